"""LPIPS with VGG16 (Zhang et al., CVPR 2018) as a loss, from files that the user has.

The convolutions are those of torchvision's VGG16, in its file's names; the weights of channels are the five linear
layers of the package `lpips`, version 0.1, in the names of its file. Neither package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.bundle import check_fit
from training.checkpoint import CheckpointError, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

VGG16_FILE, VGG16_SHA256 = "vgg16-397923af.pth", "397923af"  # torchvision's IMAGENET1K_V1, whose name has its digest
LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, and convolutions before the level is compared
SHIFT, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of inputs in [-1, 1], as in the package
FEATURES, CLASSIFIER = "features.", "classifier."
_LEAST_SQUARE = 1e-20  # added to squared lengths, whose root would have no slope at 0


@dataclass(frozen=True)
class PerceptualLoss:
    """A network from two batches of images (B, 3, H, W) in [-1, 1] to distances, or the reason why there is none."""

    network: nn.Module | None
    reason: str = ""


class LpipsVgg(nn.Module):
    """Distance of two batches of images (B, 3, H, W) in [-1, 1], H and W at least 16; returns (B, 1, 1, 1).

    Features of five levels are divided by their length; squared differences are weighted by channel and averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        layers, before = dict[str, nn.Module](), 3
        index = 0
        for channels, count in LEVELS:
            for _ in range(count):
                layers[str(index)] = nn.Conv2d(before, channels, 3, padding=1)
                before, index = channels, index + 2  # a ReLU follows
            index += 1  # pooling
        self.features = nn.ModuleDict(layers)
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(1, channels, 1, 1)) for channels, _ in LEVELS)
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None], persistent=False)
        self.register_buffer("unit", torch.tensor(SPREAD)[None, :, None, None], persistent=False)

    def levels(self, image: Tensor) -> list[Tensor]:
        """Return the features of the five levels, each divided by its length over channels."""
        h = (image - self.get_buffer("shift")) / self.get_buffer("unit")
        convolutions, found = iter(self.features.values()), list[Tensor]()
        for level, (_, count) in enumerate(LEVELS):
            h = functional.max_pool2d(h, 2) if level else h
            for _ in range(count):
                h = functional.relu(next(convolutions)(h))
            found.append(h / (h.square().sum(1, keepdim=True) + _LEAST_SQUARE).sqrt())
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair."""
        total = torch.zeros(len(a), 1, 1, 1, device=a.device)
        for head, one, other in zip(self.heads, self.levels(a), self.levels(b), strict=True):
            total = total + (head * (one - other).square()).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        return total


def lpips_loss(vgg: str = "", heads: str = "") -> PerceptualLoss:
    """Return LPIPS with VGG16, frozen and in eval mode, as a loss for training.

    vgg: FILE or FILE@SHA256 of its convolutions; without a digest it must be torchvision's. heads: file of its linear
    layers. Without these, torch's folder of checkpoints and the package lpips are looked into. Raises CheckpointError
    or BundleError for files that do not fit.
    """
    named, _, digest = vgg.rpartition("@") if "@" in Path(vgg).name else (vgg, "", "")
    convolutions = Path(named) if named else Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE
    linear = Path(heads) if heads else _packaged_heads()
    if not named and not convolutions.is_file():
        return PerceptualLoss(None, f"no VGG16 weights {VGG16_FILE} in torch's folder of checkpoints")
    if linear is None:
        return PerceptualLoss(None, "package lpips, which holds the linear layers, is not installed")
    return PerceptualLoss(load(convolutions, linear, digest or VGG16_SHA256))


def _packaged_heads() -> Path | None:
    """Return the file of linear layers in the package lpips, if it is installed."""
    found = find_spec("lpips")
    return Path(found.origin).parent / "weights" / "v0.1" / "vgg.pth" if found and found.origin else None


def load(vgg: Path, heads: Path, sha256: str = VGG16_SHA256) -> LpipsVgg:
    """Return the network of two files, frozen and in eval mode; the sha256 of `vgg` begins with `sha256`.

    Raises CheckpointError for files that cannot be read or have another digest, BundleError, which names them, for
    tensors that are missing, unknown or of another shape.
    """
    network = LpipsVgg()
    own = network.state_dict()
    found = read_checkpoint(vgg)
    if not found.sha256.startswith(sha256.lower()):
        raise CheckpointError(f"{vgg} has the sha256 {found.sha256}", f"one that begins with {sha256.lower()}")
    kept = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(CLASSIFIER)}
    convolutions = {name: tensor for name, tensor in own.items() if name.startswith(FEATURES)}
    check_fit(kept, convolutions, f"{vgg} does not hold the convolutions of VGG16")
    weights = read_checkpoint(heads).tensors
    named = {f"lin{level}.model.1.weight": own[f"heads.{level}"] for level in range(len(LEVELS))}
    check_fit(weights, named, f"{heads} does not hold the linear layers of LPIPS")
    renamed: Mapping[str, Tensor] = {f"heads.{level}": weights[name] for level, name in enumerate(named)}
    network.load_state_dict({**kept, **renamed})
    return network.eval().requires_grad_(False)
