"""The same number in the log of a run and in its evaluation, for the same images."""

import csv

import numpy as np
import pytest

from pipeline.models.bundle import load_bundle
from pipeline.superres.system import load
from pipeline.superres.systems import PLAIN
from pipeline.superres.weights import choose
from tests.training.imagery import corner_in, own_imagery, placed, texture, write_raster
from training import evaluate, train
from training.data.sources import load_data
from training.degradation.degrade import Degradation
from training.quality import judge
from training.quality.as_logged import as_logged, watched
from training.quality.pairs import HELD_OUT_PER_SET, held_out_pairs
from training.quality.tables import Record
from training.tasks import watched_gains

NETWORK = "mine, network alone"


@pytest.fixture
def scored(monkeypatch):
    """What training's validation scores, in order."""
    kept, score = [], watched_gains.score
    monkeypatch.setattr(watched_gains, "score", lambda *given: kept.append(score(*given)) or kept[-1])
    return kept


@pytest.mark.slow
def test_training_and_evaluation_give_the_same_psnr_of_every_image(tmp_path, monkeypatch, scored, capsys):
    file = own_imagery(tmp_path, monkeypatch)
    for number in range(3, 10):  # more held-out images than are watched
        left, top = corner_in("held-out", number)
        write_raster(
            tmp_path / "orthos" / f"{number}.tif", texture(320, 320, number), **placed(left + 500, top - 500, 0.5)
        )
    out = tmp_path / "run"
    assert train.main(["--preset", "lite-sr", "--data", str(file), "--out", str(out), "--images", "64"]) == 0
    with (out / "log.csv").open(newline="") as log:
        last = list(csv.DictReader(log))[-1]
    trained = scored[-3 * HELD_OUT_PER_SET :: 3]  # of every image: the mean head, one draw, four

    monkeypatch.setattr(judge, "WAYS", (judge.DEFAULT,))
    monkeypatch.setattr(judge, "PLAIN", ())
    candidate = judge.Candidate("mine", evaluate.system_of(load_bundle(out / "lite-sr.safetensors")))
    pairs = held_out_pairs(load_data(file).held_out_chips(), Degradation())
    assert len(pairs) == 8
    records = judge.judge(candidate, load(choose(PLAIN), "cpu"), pairs, Degradation(), {})
    evaluated = [record.values["PSNR"] for record in watched(records) if record.method == NETWORK]
    assert len(evaluated) == HELD_OUT_PER_SET
    np.testing.assert_allclose(evaluated, trained, atol=1e-4)
    assert len({round(value, 3) for value in evaluated}) == HELD_OUT_PER_SET

    said = as_logged(records, NETWORK, Degradation(), None)
    logged = f"IBP {float(last['psnr_ibp']):.2f} dB, `{NETWORK}` {float(last['gain mean']):+.2f}."
    assert said == f"On the 6 images that a run on these data logs (at most 6 of each set): {logged}"


def records_of(count, name="town"):
    return [
        Record("quality", name, "", index, method, {"PSNR": 20.0 + index + gain})
        for index in range(count)
        for method, gain in (("IBP", 0.0), (NETWORK, 1.5))
    ]


def test_only_the_first_of_each_set_are_logged():
    both = [*records_of(9), *records_of(2, "sea")]
    assert [(r.set, r.image) for r in watched(both)[::2]] == [*(("town", n) for n in range(6)), ("sea", 0), ("sea", 1)]
    said = as_logged(both, NETWORK, Degradation(), None)
    assert said.startswith("On the 8 images")
    assert "IBP 21.50 dB" in said


@pytest.mark.parametrize(
    ("how", "per_set", "network"),
    [(Degradation(decimator="bicubic"), None, NETWORK), (Degradation(), 5, NETWORK), (Degradation(), None, "none")],
)
def test_nothing_is_said_where_the_log_judges_other_images(how, per_set, network):
    assert as_logged(records_of(9), NETWORK, Degradation(), 6)
    assert as_logged(records_of(9), network, how, per_set) == ""
