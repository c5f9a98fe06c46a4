"""Perceptual distances between reflectance images (3, H, W), if their weights are available locally. No downloads.

LPIPS (Zhang et al. 2018, AlexNet) and the L1 distance of CLIP-like embeddings (SigLIP ViT-B/16 at 256 px), both as in
OpenSR-test 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Distance = Callable[[Tensor, Tensor], float]

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's IMAGENET1K_V1
LPIPS_LEAST_PX = 64
WHITE = 0.5  # reflectance that `displayed` shows as white; vegetation has up to 0.5 in near infrared
_DARK = 0.01  # reflectance added before the root, so that its slope is finite at 0
CLIP_MODEL, CLIP_PX = "ViT-B-16-SigLIP-256", 256
CLIP_REPOSITORY, CLIP_FILE = "timm/ViT-B-16-SigLIP-256", "open_clip_pytorch_model.bin"
CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Perceptual:
    """A distance, or the reason why it is not available."""

    distance: Distance | None
    reason: str = ""


def displayed(reflectance: Tensor) -> Tensor:
    """Return reflectance in [-1, 1] as a picture shows it: gamma 2, black at 0 and white at `WHITE`.

    LPIPS was trained on pictures, whose values are roots of radiance. Brighter ground is clipped, as in a picture.
    """
    low, high = _DARK**0.5, (WHITE + _DARK) ** 0.5
    shown: Tensor = 2 * ((reflectance.clamp(0, WHITE) + _DARK).sqrt() - low) / (high - low) - 1
    return shown


def distances() -> Mapping[str, Perceptual]:
    """Return both distances by name, with their networks loaded if available."""
    return {"LPIPS": lpips(), "CLIP": clip()}


def _absent(*packages: str) -> str:
    missing = [name for name in packages if find_spec(name) is None]
    return f"package {missing[0]} is not installed" if missing else ""


def lpips() -> Perceptual:
    """Return LPIPS with AlexNet. Images smaller than 64 px are interpolated to 64 px."""
    if reason := _absent("lpips", "torchvision"):
        return Perceptual(None, reason)
    if not (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file():
        return Perceptual(None, f"no AlexNet weights {ALEXNET} in torch's folder of checkpoints")
    network = import_module("lpips").LPIPS(net="alex", verbose=False).eval()

    @torch.inference_mode()
    def distance(x: Tensor, y: Tensor) -> float:
        size = [max(side, LPIPS_LEAST_PX) for side in x.shape[-2:]]
        a, b = (functional.interpolate(z[None], size=size, mode="bilinear", antialias=True) * 2 - 1 for z in (x, y))
        return float(network(a, b).mean())

    return Perceptual(distance)


def clip() -> Perceptual:
    """Return the mean absolute difference of embeddings."""
    reason = _absent("open_clip", "huggingface_hub")
    if reason:
        return Perceptual(None, reason)
    weights = import_module("huggingface_hub").try_to_load_from_cache(CLIP_REPOSITORY, CLIP_FILE)
    if not isinstance(weights, str):
        return Perceptual(None, f"no weights of {CLIP_REPOSITORY} in the cache of huggingface_hub")
    network = import_module("open_clip").create_model(CLIP_MODEL, pretrained=weights).eval()
    mean, spread = (torch.tensor(values)[None, :, None, None] for values in (CLIP_MEAN, CLIP_SPREAD))

    @torch.inference_mode()
    def distance(x: Tensor, y: Tensor) -> float:
        sized = (
            functional.interpolate(z[None].clamp(0, 1), size=(CLIP_PX, CLIP_PX), mode="bilinear", antialias=True)
            for z in (x, y)
        )
        a, b = (network.encode_image((z - mean) / spread) for z in sized)
        return float((a - b).abs().mean())

    return Perceptual(distance)
