"""Architectures small enough for a test, and the shipped system made of them."""

from pathlib import Path

import torch

from pipeline.models import lite, lite_fusion
from pipeline.models.bundle import Bundle, LatticeSpec, save_bundle

LITE = {"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1}
FUSION = {"sharpen_width": 8, "sharpen_blocks": 1, "detail_width": 8, "detail_blocks": 1}
LATTICE = LatticeSpec(window_px=192, stride_px=144, ramp_px=24, margin_px=12)
DIFFFUSR = {
    "base": 8,
    "mults": [1, 2],
    "res_blocks": 1,
    "groups": 4,
    "attention_strides": [2],
    "features": 8,
    "growth": 4,
    "encoder_blocks": 1,
    "degradation_base": 4,
}


def write_lite(folder: Path, bands: tuple[str, ...] = lite.RGB_BANDS, scale: int = 4) -> tuple[Path, Path]:
    """The files of `--sr lite` under their shipped names, of untrained networks: super-resolution and fusion."""
    times = max(1, scale // 4)  # the lattice counts px of the output
    lattice = LatticeSpec(*(times * px for px in (192, 144, 24, 12)))
    _write(
        folder / "lite-sr.safetensors",
        lite.LiteNetwork(**LITE, bands=len(bands), scale=scale),
        Bundle(lite.SYSTEM, LITE, bands, bands, scale, lattice, lite.NORMALISATION, {"name": "ddim", "steps": 1}),
    )
    _write(
        folder / "lite-fusion.safetensors",
        lite_fusion.FusionNetwork(**FUSION),
        Bundle(lite_fusion.SYSTEM, FUSION, ("B04",), lite_fusion.OUT_BANDS, 4, LATTICE, lite_fusion.NORMALISATION),
    )
    return folder / "lite-sr.safetensors", folder / "lite-fusion.safetensors"


def _write(path: Path, network: torch.nn.Module, bundle: Bundle) -> None:
    """Weights away from their zero initialisation, so that every path carries something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_bundle(path, bundle, network.state_dict())
