"""Bundles tell the stages of training that made them, each with the digest of what it began and ended with."""

import pytest

from pipeline.models.bundle import load_bundle, load_tensors
from tests.training.imagery import own_imagery
from training import train
from training.loop.lineage import weights_digest


@pytest.fixture
def own(tmp_path, monkeypatch):
    return own_imagery(tmp_path, monkeypatch)


def run(file, out, *more):
    return train.main(["--preset", "lite-sr", "--data", str(file), "--out", str(out), "--every", "1e9", *more])


def trained(folder):
    bundle = load_bundle(folder / "lite-sr.safetensors")
    return bundle, bundle.provenance["trained"]


def test_stages_of_training_follow_each_other_over_runs(own, tmp_path):
    assert run(own, tmp_path / "a", "--images", "40") == 0
    first, stages = trained(tmp_path / "a")
    assert [stage["stage"] for stage in stages] == ["mean", "detail"]
    assert stages[1]["began_with"] == stages[0]["ended_with"] != stages[0]["began_with"]
    assert stages[1]["ended_with"] == weights_digest(load_tensors(first))
    assert {stage["data"] for stage in stages} == {first.provenance["data_digest"]}
    assert (stages[0]["first_image"], stages[0]["end_image"]) == (0, stages[1]["first_image"])
    assert (stages[1]["end_step"], stages[1]["end_image"]) == (first.provenance["steps"], first.provenance["images"])

    init = ("--init", str(tmp_path / "a" / "lite-sr.safetensors"))
    assert run(own, tmp_path / "b", "--images", "40", "--seed", "5", *init) == 0
    second, chain = trained(tmp_path / "b")
    assert chain[:2] == stages
    assert [later["began_with"] for later in chain[1:]] == [earlier["ended_with"] for earlier in chain[:-1]]
    assert [stage["bundle"] for stage in chain] == ["", "", first.digest, ""]
    assert chain[-1]["ended_with"] == weights_digest(load_tensors(second))


def test_a_resumed_run_tells_the_same_stages(own, tmp_path, monkeypatch):
    from training.loop.run import Run

    assert run(own, tmp_path / "whole", "--images", "40") == 0
    go_on = Run.train
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", lambda self, **words: go_on(self, **words, until_images=12))
        patch.setattr(train, "write_bundle", lambda *given: "stopped early")
        assert run(own, tmp_path / "part", "--images", "40") == 0
    assert run(own, tmp_path / "part", "--images", "40", "--resume", str(tmp_path / "part")) == 0
    assert trained(tmp_path / "part")[1] == trained(tmp_path / "whole")[1]
