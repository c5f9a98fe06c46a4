"""A frozen plan in parts: N shards and a publication give what one run gives."""

import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.planning.parts import Part
from pipeline.planning.plan import Unit, load_plan
from pipeline.run import main
from pipeline.running.watching import Watch
from pipeline.store import layout
from pipeline.store.lease import lease
from pipeline.store.place import place_of
from tests.conftest import without_log
from tests.running.conftest import PYTHON, chunk_digests, config_for, run


class FakePlan:
    def __init__(self, *counts):
        self.passes = [[Unit(32632, 0, col, 0, number) for col in range(n)] for number, n in enumerate(counts)]

    def units_of(self, number):
        return iter(self.passes[number])


@given(st.integers(0, 200), st.integers(0, 50), st.integers(1, 70))
def test_shards_partition_each_pass_in_order_and_evenly(count, later, of):
    plan = FakePlan(count, later)
    for number, units in enumerate(plan.passes):
        parts = [Part(part, of, number + 1).units(plan) for part in range(1, of + 1)]
        assert [unit for part in parts for unit in part] == units
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        whole = [[unit for unit in Part(part, of).units(plan) if unit.number == number] for part in range(1, of + 1)]
        assert whole == parts


@pytest.mark.parametrize("number", [0, 3])
def test_a_pass_that_there_is_not_is_refused(number):
    with pytest.raises(UsageError, match=f"--pass {number}"):
        Part(1, 2, number).units(FakePlan(4, 2))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "-1/4", "1", "a/b", "1/4/2", ""])
def test_a_bad_shard_says_what_is_expected(text):
    with pytest.raises(UsageError, match="J/N"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["3", "3/8"])
def test_a_part_of_a_planned_number_needs_no_number(text):
    assert Part.parse(text, planned=8) == Part(3, 8)


@pytest.mark.parametrize("text", ["9", "9/8", "3/7", "9/16", "0"])
def test_a_part_beyond_the_planned_number_is_refused(text):
    with pytest.raises(UsageError, match=f"--shard-of {text}, but the plan is for 8 parts"):
        Part.parse(text, planned=8)


@pytest.fixture(scope="module")
def sound(archive, aoi, tmp_path_factory):
    store = tmp_path_factory.mktemp("sound") / "sound.zarr"
    run(config_for(archive, unit_chunks=1, bands=("B02", "B03", "B04")), aoi, store)
    return store


@pytest.fixture
def frozen(archive, aoi, tmp_path, capsys):
    """A store with a frozen plan, made by the command."""
    store = tmp_path / "parts.zarr"
    words = ["--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--chunk-px", "120", "--unit-chunks", "1",
             "--bands", "B02,B03,B04", "--max-cloud", "100", "--out", str(store), "--plan-only", "--json"]  # fmt: skip
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["units"] > 4
    return store


def test_the_plan_knows_its_parts_and_an_empty_one_says_so(frozen, capsys):
    plan = load_plan(frozen)
    units = sum(1 for _ in plan.units())
    of = units + 3
    empty = [number for number in range(1, of + 1) if not Part(number, of).units(plan)]
    assert len(empty) == 3
    assert main(["--plan", str(frozen), "--plan-only", "--parts", str(of), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["parts"], said["empty_parts"]) == (of, 3)
    assert main(["--plan", str(frozen), "--plan-only"]) == 0
    assert f"for {of} parts, 3 of them without a unit" in capsys.readouterr().out

    assert [part.units for part in Watch(plan, place_of(frozen)).look().parts].count(0) == 3
    for text in (f"{of + 1}/{of + 1}", f"{of + 1}", f"1/{units}"):
        assert main(["--plan", str(frozen), "--shard-of", text]) == 2
        assert f"the plan is for {of} parts" in capsys.readouterr().err
    assert main(["--plan", str(frozen), "--shard-of", str(empty[0]), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert f"part {empty[0]} of {of} of {frozen}: no unit in this part" in out


def test_parts_of_another_number_do_not_begin_beside_parts_at_work(frozen, capsys):
    assert main(["--plan", str(frozen), "--plan-only", "--parts", "4"]) == 0
    with lease(frozen, "2-of-4"):
        assert main(["--plan", str(frozen), "--plan-only", "--parts", "4"]) == 0
        assert main(["--plan", str(frozen), "--plan-only", "--parts", "3"]) == 75
        assert "part 2 of 4 of" in capsys.readouterr().err
    assert main(["--plan", str(frozen), "--plan-only", "--parts", "3"]) == 0


def test_a_plan_for_more_parts_has_more_units(archive, wide_aoi, tmp_path, capsys):
    words = ["--aoi", str(wide_aoi), "--catalog", str(archive), "--sr", "bicubic", "--chunk-px", "120", "--max-cloud",
             "100", "--bands", "B04", "--plan-only", "--json"]  # fmt: skip
    found = {}
    for parts in (1, 12):
        assert main([*words, "--parts", str(parts), "--out", str(tmp_path / f"{parts}.zarr")]) == 0
        found[parts] = json.loads(capsys.readouterr().out)
    assert found[12]["units"] > 2 * found[1]["units"]
    assert found[12]["parts"] == found[12]["units"] + found[12]["empty_parts"] == 12
    assert (found[1]["parts"], found[1]["empty_parts"]) == (1, 0)


@pytest.mark.slow
def test_four_processes_at_once_and_a_publication_equal_one_run(frozen, sound, capsys):
    tasks = [
        subprocess.Popen(
            [PYTHON, "-m", "pipeline.run", "--plan", str(frozen), "--shard-of", f"{j}/3", "--cluster", "inline"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for j in (1, 2, 3)
    ]
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0]
    assert said[1].startswith(f"part 2 of 3 of {frozen}")
    assert layout.status(frozen) == layout.STATUS_INCOMPLETE
    assert main(["--plan", str(frozen), "--finalise"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert chunk_digests(frozen) == chunk_digests(sound)


@pytest.mark.slow
def test_publication_refuses_and_names_what_is_missing(frozen, capsys):
    assert main(["--plan", str(frozen), "--shard-of", "1/2", "--cluster", "inline", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["--plan", str(frozen), "--finalise"]) == 75
    said = capsys.readouterr().err
    missing = Part(2, 2).units(load_plan(frozen))
    assert f"{len(missing)} of" in said
    assert missing[0].id in said
    assert layout.status(frozen) == layout.STATUS_INCOMPLETE
    assert main(["--plan", str(frozen), "--cluster", "inline", "--json"]) == 0  # or compute the rest here
    assert json.loads(capsys.readouterr().out)["computed"] == len(missing)


@pytest.mark.slow
def test_a_shard_has_one_worker_and_no_whole_run_beside_it(frozen, capsys):
    with lease(frozen, "1-of-2"):
        with lease(frozen, "2-of-2"):
            pass
        for words in (["--shard-of", "1/2"], ["--finalise"], []):
            capsys.readouterr()
            assert main(["--plan", str(frozen), "--cluster", "inline", *words]) == 75
            assert f"being written by process {os.getpid()}" in capsys.readouterr().err
    assert main(["--plan", str(frozen), "--cluster", "inline", "--shard-of", "1/2"]) == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--shard-of", "1/2"], "without --plan"),
        (["--finalise"], "without --plan"),
        (["--parts", "4"], "--parts without --plan-only"),
        (["--plan-only", "--parts", "0"], "--parts 0"),
        (["--plan", "STORE", "--plan-only", "--finalise"], "one of them"),
        (["--plan", "STORE", "--seed", "3"], "--seed given with --plan"),
        (["--plan", "STORE", "--finalise", "--shard-of", "1/2"], "one of them"),
        (["--plan", "STORE", "--shard-of", "3/2"], "J/N"),
        (["--plan", "nothing.zarr"], "holds no plan"),
    ],
)
def test_bad_part_arguments_are_one_clear_line(frozen, capsys, words, part):
    assert main([str(frozen) if word == "STORE" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert len(without_log(said).splitlines()) == 1
