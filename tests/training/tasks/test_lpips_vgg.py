"""LPIPS with VGG16 from files of the true layout: torchvision's convolutions and the package's linear layers."""

import hashlib
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import PipelineError
from training.tasks import lpips_vgg

# torchvision's vgg16().state_dict(): index in `features`, (out, in); 3x3 kernels. Pooling is at 4, 9, 16, 23, 30.
CONVOLUTIONS = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
    17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
POOLED, COMPARED = (4, 9, 16, 23), (3, 8, 15, 22, 29)
CLASSIFIER = {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}


def numbers(name, *shape):
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def convolutions():
    found = {}
    for index, (out, into) in CONVOLUTIONS.items():
        weight = f"features.{index}.weight"
        found[weight] = numbers(weight, out, into, 3, 3) * (2 / (9 * into)) ** 0.5
        found[f"features.{index}.bias"] = 0.05 * numbers(f"features.{index}.bias", out)
    return found


@pytest.fixture(scope="module")
def files(convolutions, tmp_path_factory):
    """Both files. The classifier has its true shapes and no values of its own."""
    folder = tmp_path_factory.mktemp("lpips")
    state = dict(convolutions)
    for index, (out, into) in CLASSIFIER.items():
        state[f"classifier.{index}.weight"] = torch.zeros(1).expand(out, into)
        state[f"classifier.{index}.bias"] = torch.zeros(1).expand(out)
    torch.save(state, folder / "vgg.pth")
    torch.save(heads_of(), folder / "heads.pth")
    digest = hashlib.sha256((folder / "vgg.pth").read_bytes()).hexdigest()
    return SimpleNamespace(vgg=folder / "vgg.pth", heads=folder / "heads.pth", sha256=digest, folder=folder)


def heads_of():
    return {
        name: numbers(name, 1, channels, 1, 1).abs()
        for level, channels in enumerate((64, 128, 256, 512, 512))
        for name in [f"lin{level}.model.1.weight"]
    }


def expected(convolutions, a, b):
    """Return LPIPS as the paper defines it, layer by layer."""
    heads, total = heads_of(), 0.0
    shift, spread = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(image - shift[None, :, None, None]) / spread[None, :, None, None] for image in (a, b)]
    for layer in range(30):
        if layer in CONVOLUTIONS:
            weight, bias = (convolutions[f"features.{layer}.{kind}"] for kind in ("weight", "bias"))
            pair = [functional.conv2d(h, weight, bias, padding=1) for h in pair]
        elif layer in POOLED:
            pair = [functional.max_pool2d(h, 2, 2) for h in pair]
        else:
            pair = [h.clamp_min(0) for h in pair]
        if layer in COMPARED:
            one, other = (functional.normalize(h, dim=1) for h in pair)
            weight = heads[f"lin{COMPARED.index(layer)}.model.1.weight"]
            total += functional.conv2d((one - other).square(), weight).mean((2, 3))[:, 0]
    return total


def test_it_is_the_distance_of_the_paper_on_files_of_the_true_layout(files, convolutions):
    network = lpips_vgg.load(files.vgg, files.heads, files.sha256[:8].upper())
    a, b = (numbers(name, 2, 3, 32, 48).clamp(-1, 1) for name in "ab")
    found = network(a, b)
    assert found.shape == (2, 1, 1, 1)
    torch.testing.assert_close(found.flatten(), expected(convolutions, a, b), rtol=1e-4, atol=0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    network(flat, flat.detach() + 0.1).sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert flat.grad.abs().max() > 0


def test_a_loss_is_made_of_files_named_with_their_digest(files):
    assert lpips_vgg.lpips_loss(f"{files.vgg}@{files.sha256}", str(files.heads)).network is not None
    with pytest.raises(PipelineError, match=f"sha256 {files.sha256}; expected one that begins with 397923af"):
        lpips_vgg.lpips_loss(str(files.vgg), str(files.heads))
    with pytest.raises(PipelineError, match="no file at nowhere.pth"):
        lpips_vgg.lpips_loss("nowhere.pth", str(files.heads))


def test_files_are_found_where_torch_and_the_package_keep_them(files, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips_vgg, "find_spec", lambda name: None)
    (tmp_path / "checkpoints").mkdir()
    assert "no VGG16 weights vgg16-397923af.pth" in lpips_vgg.lpips_loss().reason
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").symlink_to(files.vgg)
    assert lpips_vgg.lpips_loss().reason == "package lpips, which holds the linear layers, is not installed"
    packaged = tmp_path / "lpips" / "weights" / "v0.1" / "vgg.pth"
    packaged.parent.mkdir(parents=True)
    packaged.symlink_to(files.heads)
    package = SimpleNamespace(origin=str(tmp_path / "lpips" / "__init__.py"))
    monkeypatch.setattr(lpips_vgg, "find_spec", lambda name: package)
    monkeypatch.setattr(lpips_vgg, "VGG16_SHA256", files.sha256)
    assert lpips_vgg.lpips_loss().network is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features.21.bias": None}, r"missing \['features.21.bias'\]"),
        ({"features.28.weight": (512, 512, 1, 1)}, r"wrong shape \['features.28.weight \[512, 512, 1, 1\]"),
        ({"features.1.weight": (64,)}, r"unknown \['features.1.weight'\]"),
    ],
)
def test_convolutions_that_do_not_fit_are_named(files, convolutions, tmp_path, change, words):
    shapes = {name: tuple(tensor.shape) for name, tensor in convolutions.items()} | change
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if shape}, tmp_path / "vgg.pth")
    with pytest.raises(PipelineError, match=f"vgg.pth does not hold the convolutions of VGG16: .*{words}"):
        lpips_vgg.load(tmp_path / "vgg.pth", files.heads, "")


def test_linear_layers_that_lack_are_named(files, tmp_path):
    state = heads_of()
    del state["lin3.model.1.weight"]
    torch.save(state, tmp_path / "heads.pth")
    with pytest.raises(PipelineError, match=r"heads.pth does not hold .* LPIPS: missing \['lin3.model.1.weight'\]"):
        lpips_vgg.load(files.vgg, tmp_path / "heads.pth", files.sha256)
