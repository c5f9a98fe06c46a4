"""Perceptual distances: nothing is downloaded, and a reason stands where there is no number."""

import sys
from types import SimpleNamespace

import pytest
import torch

from training.quality import perceptual


class Network:
    """Stands in for a network of embeddings or distances: what plumbing there is around it is what is tested."""

    def __init__(self, call):
        self.call = call

    def eval(self):
        return self

    def __call__(self, a, b):
        return self.call(a, b)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """All packages can be imported, torch's folder of checkpoints is empty, no cache holds weights."""
    monkeypatch.setattr(perceptual, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    seen = []
    distance = Network(lambda a, b: seen.append((a.shape, float(a.min()), float(a.max()))) or (a - b).abs())
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda net, verbose: distance))
    hub = SimpleNamespace(try_to_load_from_cache=lambda repository, file: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return SimpleNamespace(folder=tmp_path, seen=seen, hub=hub)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    found = perceptual.distances()
    assert found["LPIPS"] == perceptual.Perceptual(None, "package lpips is not installed")
    assert found["CLIP"] == perceptual.Perceptual(None, "package open_clip is not installed")


def test_missing_weights_are_named(installed):
    found = perceptual.distances()
    assert found["LPIPS"].distance is None
    assert perceptual.ALEXNET in found["LPIPS"].reason
    assert found["CLIP"].distance is None
    assert perceptual.CLIP_REPOSITORY in found["CLIP"].reason


def test_lpips_gets_values_within_one_and_64_px_or_more(installed):
    (installed.folder / "checkpoints").mkdir()
    (installed.folder / "checkpoints" / perceptual.ALEXNET).touch()
    distance = perceptual.lpips().distance
    assert distance(torch.zeros(3, 32, 48), torch.ones(3, 32, 48)) == pytest.approx(2.0)
    assert installed.seen == [((1, 3, 64, 64), -1.0, -1.0)]
    assert distance(torch.zeros(3, 80, 96), torch.zeros(3, 80, 96)) == 0.0
    assert installed.seen[1][0] == (1, 3, 80, 96)


def test_clip_compares_embeddings_of_256_px(installed, monkeypatch):
    shapes = []
    network = Network(None)
    network.encode_image = lambda z: shapes.append(z.shape) or z.mean((2, 3))
    installed.hub.try_to_load_from_cache = lambda repository, file: "weights.bin"
    made = SimpleNamespace(create_model=lambda model, pretrained: network)
    monkeypatch.setitem(sys.modules, "open_clip", made)
    distance = perceptual.clip().distance
    assert distance(torch.full((3, 40, 40), 0.2), torch.full((3, 40, 40), 0.2)) == pytest.approx(0.0, abs=1e-6)
    expected = sum(0.1 / sd for sd in perceptual.CLIP_SPREAD) / 3
    assert distance(torch.full((3, 40, 40), 0.2), torch.full((3, 40, 40), 0.3)) == pytest.approx(expected, rel=1e-4)
    assert set(shapes) == {(1, 3, 256, 256)}
