"""Weights of map guidance small enough for a test, away from their initial values."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, SMALL_PRIOR, Prior, prior_bundle
from pipeline.models.guidance import Guidance
from pipeline.models.sgdm import SMALL, guidance_bundle, guidance_tensors
from pipeline.models.style_model import StyleModel, style_bundle
from pipeline.models.tone import OURS

LATTICE = LatticeSpec(window_px=96, stride_px=64, ramp_px=16, margin_px=8)
STYLE = 8
SIZES = {
    "block_out_channels": [8, 16, 16, 16],
    "attention_head_dim": [1, 2, 2, 2],
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}
# Of Stable Diffusion's shape
PRIOR = {
    **PUBLISHED_PRIOR,
    "unet": {**PUBLISHED_PRIOR["unet"], **SIZES, "layers_per_block": 1},
    "vae": {
        **PUBLISHED_PRIOR["vae"],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [4, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "contexts": [16, 3, 8],
}
# Of our own
OUR_PRIOR = {
    **SMALL_PRIOR,
    "unet": {**SMALL_PRIOR["unet"], **SIZES},
    "vae": {**SMALL_PRIOR["vae"], "width": 8, "encoder_blocks": 1, "decoder_blocks": 1},
    "contexts": [1, 3, 8],
}
GUIDANCE = {
    **SMALL["guidance"],
    "map_channels": 5,
    "stem": 8,
    "widths": [8, STYLE],
    "spade_width": 8,
    "merged": 16,
    "controls": [8, 16, 16],
}
CLASSES = ["road-minor", "building", "road-major", "wood", "water"]
ARCHITECTURE = {"guidance": GUIDANCE, "words": [[1], [2], [3], [4]], "classes": CLASSES, "prior": ""}
STYLES = {"model": "gaussian", "dim": STYLE, "log_std": True}


def moved(module: torch.nn.Module, by: float = 0.05, seed: int = 0) -> torch.nn.Module:
    """The module with all parameters moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module


def write_prior(folder: Path, **architecture) -> Path:
    torch.manual_seed(0)
    described = {**PRIOR, **architecture}
    save_bundle(folder / "prior.safetensors", prior_bundle(described, LATTICE), moved(Prior(described)).state_dict())
    return folder / "prior.safetensors"


def write_guidance(folder: Path, steps: int = 4, **architecture) -> Path:
    """Guidance whose attention is not the prior's own."""
    torch.manual_seed(1)
    described = {**ARCHITECTURE, **architecture}
    bundle = guidance_bundle(described, scale=8, lattice=LATTICE, normalisation=OURS.described)
    tensors = guidance_tensors(moved(Guidance(described["guidance"]), seed=1), moved(Prior(PRIOR), seed=2))
    path = folder / "sgdm.safetensors"
    save_bundle(path, replace(bundle, sampler={**bundle.sampler, "steps": steps}), tensors)
    return path


def write_style(folder: Path, **architecture) -> Path:
    torch.manual_seed(2)
    described = {**STYLES, **architecture}
    path = folder / "style.safetensors"
    save_bundle(path, style_bundle(described, LATTICE), moved(StyleModel(described), 0.1).state_dict())
    return path
