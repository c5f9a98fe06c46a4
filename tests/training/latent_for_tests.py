"""Images of several bands and presets of few parameters, for tests of latent diffusion's training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import RGB
from pipeline.models.ldsr_published import ARCHITECTURE
from tests.models.ldsr_small import TINY
from tests.training.imagery import corner_in, placed, texture, write_raster
from training.tasks import ldsr_autoencoder, ldsr_unet

if TYPE_CHECKING:
    from pathlib import Path

    from training.presets import Preset

RGBN = (*RGB, "B08")
PUBLISHED = {
    **ARCHITECTURE,
    "autoencoder_channels": [32, 32, 32],
    "autoencoder_blocks": 1,
    "channels": [32, 64],
    "blocks": 1,
    "attention_levels": [1],
}
SOURCE = """
name = "{name}"

[[source]]
name = "{name}"
role = "hr"
path = "{name}/*.tif"
values = "reflectance"
scale = 1e-4
bands = [{bands}]
"""
PAIRS = """
[[source]]
name = "pairs"
role = "pair"
path = "pairs/*/hr_*.tif"
coarse = "lr_*.tif"
values = "reflectance"
scale = 1e-4
coarse_scale = 1e-4
bands = ["B04", "B03", "B02", "B08"]
"""


def write_images(
    folder: Path, name: str, bands: tuple[str, ...] = RGBN, gsd_m: float = 2.5, side: int = 96, seed: int = 0
) -> Path:
    """Georeferenced images of blocks, two to train on and one held out, and their training file `NAME.toml`."""
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        stored = 20 * texture(side, side, 10 * seed + number, len(bands)).astype(np.uint16)
        write_raster(folder / name / f"{number}.tif", stored, **placed(left + 1000, top - 1000, gsd_m))
    path = folder / f"{name}.toml"
    path.write_text(SOURCE.format(name=name, bands=", ".join(f'"{band}"' for band in bands)))
    return path


def tiny(preset: Preset, **changes: object) -> Preset:
    """The preset with the smallest networks of its kind and small batches."""
    published = preset.architecture["networks"] == ARCHITECTURE["networks"]
    small = {"architecture": PUBLISHED if published else TINY, "batch": 2, "crop_px": 32, "warmup_steps": 2}
    sampler = {"sampler": {**preset.sampler, "steps": 2}} if preset.sampler else {}
    return replace(preset, **{**small, **sampler, **changes})


AUTOENCODER, DECODER, AUTOENCODER_PAPER = (tiny(preset) for preset in ldsr_autoencoder.TASK.presets)
UNET, UNET_PAPER = (tiny(preset) for preset in ldsr_unet.TASK.presets)
