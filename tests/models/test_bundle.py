"""Weights files: what is written comes back, and nothing that is wrong gets in."""

import hashlib
import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import UsageError
from pipeline.models.bundle import (
    Bundle,
    BundleError,
    LatticeSpec,
    load_bundle,
    load_into,
    load_tensors,
    save_bundle,
)

BUNDLE = Bundle(
    system="lite-sr",
    architecture={"width": 4, "mults": [1, 2]},
    in_bands=("B04", "B03", "B02"),
    out_bands=("B04",),
    scale=4,
    lattice=LatticeSpec(480, 384, 48, 24),
    normalisation={"kind": "unit"},
    sampler={"name": "ddim", "steps": 4},
    provenance={"seed": 7},
    licence="CC0",
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def write(tmp_path, tensors=None, bundle=BUNDLE):
    path = tmp_path / "weights" / "net.safetensors"
    digest = save_bundle(path, bundle, network().state_dict() if tensors is None else tensors)
    return path, digest


def test_round_trip(tmp_path):
    path, digest = write(tmp_path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_bundle(path, digest)
    assert loaded == replace(BUNDLE, digest=digest, path=str(path))
    tensors = load_tensors(loaded)
    for name, tensor in network().state_dict().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_weights_may_be_stored_in_16_bits_and_are_used_in_32(tmp_path):
    tensors = {"weight": torch.tensor([1.0, 1.0 + 2**-11]), "steps": torch.tensor([3])}
    save_bundle(tmp_path / "w.safetensors", BUNDLE, tensors, half=True)
    assert load_file(tmp_path / "w.safetensors")["weight"].dtype == torch.float16
    found = load_tensors(load_bundle(tmp_path / "w.safetensors"))
    assert found["weight"].dtype == torch.float32
    assert found["weight"].tolist() == [1.0, 1.0]
    assert found["steps"].tolist() == [3]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path, digest = write(tmp_path)
    with pytest.raises(TypeError):
        write(tmp_path, bundle=replace(BUNDLE, provenance={"when": object()}))
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write(tmp_path, {"a": shared, "b": shared})
    assert load_bundle(path).digest == digest
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_load_into_fills_the_network(tmp_path):
    path, _ = write(tmp_path)
    empty = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_into(empty, load_bundle(path))
    for name, tensor in network().state_dict().items():
        assert torch.equal(empty.state_dict()[name], tensor)


def test_load_into_takes_a_prefix(tmp_path):
    path, _ = write(tmp_path, {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2), "b.weight": torch.ones(1)})
    linear = nn.Linear(2, 2)
    load_into(linear, load_bundle(path), prefix="a.")
    assert torch.equal(linear.weight, torch.ones(2, 2))


def test_wrong_digest_is_refused(tmp_path):
    path, digest = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"expected {digest}"):
        load_bundle(path, digest)


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no weights at") as caught:
        load_bundle(tmp_path / "absent.safetensors")
    assert caught.value.exit_code == 2


def test_a_folder_that_holds_weights_is_answered_with_their_path(tmp_path):
    path, _ = write(tmp_path)
    with pytest.raises(BundleError) as caught:
        load_bundle(path.parent)
    assert caught.value.cure == f"give {path}"


class Trap:
    """Unpickling this leaves a mark in the file system."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


@pytest.mark.parametrize("writer", [lambda thing, path: path.write_bytes(pickle.dumps(thing)), torch.save])
def test_pickle_is_never_opened(tmp_path, writer):
    mark, path = tmp_path / "mark", tmp_path / "net.safetensors"
    writer(Trap(mark), path)
    with pytest.raises(BundleError, match="convert other formats to safetensors once"):
        load_bundle(path)
    assert not mark.exists()


def test_a_truncated_file_is_refused(tmp_path):
    path, _ = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_bundle(path)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_broken_tensors_are_refused(tmp_path, poison):
    path, _ = write(tmp_path, {"fine": torch.ones(2), "rotten": torch.tensor([1.0, poison])})
    with pytest.raises(BundleError, match="NaN or infinity in rotten"):
        load_tensors(load_bundle(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("0.bias"), "missing .'0.bias'."),
        (lambda t: t.update({"2.weight": torch.ones(1)}), "unknown .'2.weight'."),
        (lambda t: t.update({"0.weight": torch.ones(4, 3, 1, 1)}), r"wrong shape .'0.weight \[4, 3, 1, 1\] instead of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, said):
    tensors = network().state_dict()
    change(tensors)
    path, _ = write(tmp_path, tensors)
    with pytest.raises(BundleError, match=said):
        load_into(network(), load_bundle(path))


def described(**changes):
    fields = {
        "system": "lite-sr",
        "architecture": {},
        "in_bands": [],
        "out_bands": [],
        "scale": 4,
        "lattice": {"window_px": 480, "stride_px": 384, "ramp_px": 48, "margin_px": 24},
        "format_version": 1,
    }
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "have no bundle metadata"),
        ({"bundle": "not json"}, "have invalid bundle metadata"),
        ({"bundle": "[]"}, "have invalid bundle metadata"),
        ({"bundle": described(lattice=None)}, "have invalid bundle metadata"),
        ({"bundle": described(lattice={"window": 3})}, "have invalid bundle metadata"),
        ({"bundle": described(surprise=1)}, "have invalid bundle metadata"),
        ({"bundle": described(format_version=99)}, "bundle format 99; expected 1"),
    ],
)
def test_senseless_descriptions_are_refused(tmp_path, metadata, said):
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata)
    with pytest.raises(BundleError, match=said):
        load_bundle(path)


def test_the_smallest_description_is_enough(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.ones(1)}, path, {"bundle": described()})
    assert load_bundle(path).lattice == LatticeSpec(480, 384, 48, 24)
