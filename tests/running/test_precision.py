"""Runs whose networks compute in another number format: members, a resumed run, parts; what store and receipts say."""

import numpy as np
import pytest

from pipeline.aoi.aoi import read_aoi
from pipeline.errors import UsageError
from pipeline.planning.estimate import estimate
from pipeline.planning.parts import Part
from pipeline.planning.planner import make_plan
from pipeline.process import arithmetic
from pipeline.run import main
from pipeline.running import worker_check
from pipeline.running.driver import finalise, prepare, run_plan
from pipeline.store.receipts import Ledger
from tests.running.conftest import chunk_digests, config_for, run, values

HALF = {"precision": "bfloat16", "members": 2, "unit_chunks": 5, "chunk_px": 240, "bands": ("B02", "B03", "B04")}


@pytest.fixture(scope="module")
def whole(archive, aoi, small_lite, tmp_path_factory):
    """(plan, store) of a run in bfloat16 with two members, from begin to end."""
    store = tmp_path_factory.mktemp("half") / "a.zarr"
    plan, _ = run(config_for(archive, **small_lite, **HALF), aoi, store)
    return plan, store


@pytest.mark.slow
def test_a_run_says_its_precision_and_differs_a_little(whole, archive, aoi, small_lite, tmp_path):
    import pipeline

    plan, store = whole
    exact, _ = run(config_for(archive, **small_lite, **{**HALF, "precision": "float32"}), aoi, tmp_path / "b.zarr")
    assert plan.digest != exact.digest
    assert {r.arithmetic for r in Ledger(store, plan.digest).read_all()} == {arithmetic("bfloat16")}
    assert pipeline.open_store(store).attrs["precision"] == "bfloat16"
    assert "precision" not in pipeline.open_store(tmp_path / "b.zarr").attrs
    apart = np.abs(values(store).astype(int) - values(tmp_path / "b.zarr"))
    assert 0 < apart.max() < 200


@pytest.mark.slow
def test_a_resumed_run_and_parts_give_the_same_store(whole, tmp_path):
    """The second part is computed after the first has ended, as by another process."""
    plan, store = whole
    config = plan.config.__class__(**{**vars(plan.config), "unit_chunks": 1})
    again = make_plan(config, read_aoi_of(plan))
    for name in ("parts.zarr", "resumed.zarr"):
        prepare(again, tmp_path / name)
    for part in ("1/2", "2/2"):
        run_plan(again, tmp_path / "parts.zarr", cluster="inline", workers=1, shard=Part.parse(part))
    finalise(again, tmp_path / "parts.zarr")
    run_plan(again, tmp_path / "resumed.zarr", cluster="inline", workers=1, shard=Part.parse("1/2"))
    summary = run_plan(again, tmp_path / "resumed.zarr", cluster="inline", workers=1)
    assert summary.resumed
    expected = chunk_digests(store)
    assert expected
    assert chunk_digests(tmp_path / "parts.zarr") == chunk_digests(tmp_path / "resumed.zarr") == expected


def read_aoi_of(plan):
    from pipeline.aoi.aoi import aoi_from_geometry

    return aoi_from_geometry(plan.aoi_geometry, plan.aoi_name)


def test_tf32_is_refused_before_a_store_is_begun_but_may_be_planned_for_gpus_elsewhere(
    archive, aoi, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--max-cloud", "100", "--precision"]
    assert main([*words, "tf32", "--out", "a.zarr"]) == 2
    said = capsys.readouterr().err.strip()
    assert "precision tf32 on a CPU, which has no such format" in said
    assert "\n" not in said
    assert not (tmp_path / "a.zarr").exists()
    assert main([*words, "tf32", "--out", "a.zarr", "--plan-only"]) == 0
    assert main(["--plan", "a.zarr"]) == 2
    assert "precision tf32 on a CPU" in capsys.readouterr().err


def test_the_estimate_is_of_a_precision_that_this_machine_has(archive, aoi):
    def of(precision):
        return estimate(make_plan(config_for(archive, precision=precision), read_aoi(str(aoi))), 1, timed=False)

    assert [of(name).precision for name in ("float32", "bfloat16", "tf32")] == ["float32", "bfloat16", "float32"]


class TestWorkers:
    class Client:
        def __init__(self, answers):
            self.answers = answers

        def run(self, *_given, on_error):
            assert on_error == "return"
            return self.answers

    @pytest.fixture
    def store(self, archive, aoi, tmp_path):
        plan = make_plan(config_for(archive, precision="bfloat16"), read_aoi(str(aoi)))
        prepare(plan, tmp_path / "a.zarr")
        return str(tmp_path / "a.zarr"), plan.digest

    def test_a_worker_tells_its_arithmetic(self, store):
        assert worker_check.look(*store).arithmetic == arithmetic("bfloat16")

    def test_workers_that_round_differently_are_told(self, store, caplog):
        mine = worker_check.look(*store)
        same = self.Client({"tcp://a": mine, "tcp://b": mine})
        worker_check.require_able(same, *store)
        assert not caplog.records
        other = worker_check.Able(mine.software, "NVIDIA H100, bfloat16")
        worker_check.require_able(self.Client({"tcp://a": mine, "tcp://b": other}), *store)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        both = " and on ".join(sorted([other.arithmetic, mine.arithmetic]))
        assert record.getMessage() == f"the workers compute on {both}, which round differently"

    def test_one_that_lacks_the_precision_is_refused(self, archive, aoi, tmp_path):
        plan = make_plan(config_for(archive, precision="tf32"), read_aoi(str(aoi)))
        prepare(plan, tmp_path / "a.zarr")
        with pytest.raises(UsageError, match="tf32 on a CPU") as caught:
            worker_check.look(str(tmp_path / "a.zarr"), plan.digest)
        refusing = self.Client({"tcp://a": caught.value})
        with pytest.raises(UsageError, match="tcp://a cannot do the work: precision tf32"):
            worker_check.require_able(refusing, str(tmp_path / "a.zarr"), plan.digest)
