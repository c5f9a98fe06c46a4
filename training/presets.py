"""What can be trained, as a plain table.

In: nothing. Out: `PRESETS`. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from training.schedule import Schedule


SMALL_PX = 64  # side of crops of images that hold none of `crop_px`, where a recipe does not say
Use = Literal["super-resolution", "fusion"]  # what data are for


@dataclass(frozen=True)
class Stage:
    """One part of a run: what is minimised, which parameters move, and how much of the budget it gets."""

    name: str
    share: float  # of the run's budget; the shares of a preset sum to one
    trains: tuple[str, ...]  # prefixes of parameter names; () trains all
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Preset:
    """One recipe: network, batches, stages, budget."""

    name: str
    task: Literal["sr", "fusion", "difffusr-sr", "difffusr-fusion"]
    architecture: dict[str, Any]
    stages: tuple[Stage, ...]
    minutes: float = 0.0  # default budget, on one CPU core
    images: int | None = None  # default budget instead, where the recipe counts images
    batch: int = 16
    crop_px: int = 96  # side of training crops: px of 2.5 m for sr, of the target grid for fusion
    ema: float = 0.999
    warmup_steps: int = 100
    schedule: Schedule = "cosine"  # of the learning rate within a stage
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    sampler: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of the task; `--recipe` changes them
    published: tuple[str, ...] = ()  # departures of the released code, `training.degradation.published`

    @property
    def system(self) -> str:
        """What its bundles call themselves."""
        return {"sr": "lite-sr", "fusion": "lite-fusion"}.get(self.task, self.task)

    @property
    def least_px(self) -> int:
        """Side of the smallest crops of super-resolution, in px of the target GSD: smaller images teach nothing."""
        return min(self.crop_px, int(self.recipe.get("small_px", SMALL_PX)))

    @property
    def use(self) -> Use:
        """What it needs data for."""
        return "fusion" if self.task in ("fusion", "difffusr-fusion") else "super-resolution"


def table() -> str:
    """All presets as plain text, one setting a line."""
    lines = []
    for preset in PRESETS.values():
        lines += [preset.name, *(f"  {f.name} = {getattr(preset, f.name)!r}" for f in fields(preset)[1:])]
    return "\n".join(lines)


# Weights of DiffFuSR's eq. 8, its momentum contrast, and the blur: "blind" kernels, or "sentinel2" for the sensor's.
BLIND: dict[str, Any] = {
    "aux": 1.0,
    "contrast": 0.05,
    "queue": 8192,
    "momentum": 0.999,
    "temperature": 0.07,
    "psf": "blind",
}
# Mean and spread of bands from the training "tiles" or as "released"; dropout of the guide's features; whether guides
# are softened, sharpened and shifted, so that their radiometry is not trusted.
WALD: dict[str, Any] = {"statistics": "tiles", "dropout": 0.2, "disturb_guide": True}
# How sharp images become coarse ones: blur in px of 2.5 m and noise in reflectance, each from so much to so much; share
# of images blurred more one way than the other, and of batches decimated by an antialiased cubic. See `degrade`.
SENSOR: dict[str, Any] = {
    "blur_from": 1.3,
    "blur_to": 2.9,
    "anisotropic": 0.2,
    "bicubic": 0.3,
    "noise_from": 4e-4,
    "noise_to": 2e-3,
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="lite-sr",
            task="sr",
            architecture={"width": 48, "blocks": 14, "denoiser_width": 64, "denoiser_blocks": 5},
            stages=(
                Stage("mean", 0.6, ("encoder.", "mean_head.", "spread_head."), 1e-3),
                Stage("detail", 0.4, ("denoiser.",), 1e-3),
            ),
            minutes=60,
            sampler={"name": "dpm++2m", "steps": 6, "spacing": "log-snr"},
            recipe=dict(SENSOR),
        ),
        Preset(
            name="lite-fusion",
            task="fusion",
            architecture={"sharpen_width": 48, "sharpen_blocks": 5, "detail_width": 64, "detail_blocks": 5},
            stages=(Stage("wald", 1.0, (), 3e-4),),
            minutes=10,
            batch=8,
        ),
        Preset(  # arXiv 2506.11764 and the authors' configuration: 1000 epochs of 256 images
            name="difffusr-sr",
            task="difffusr-sr",
            architecture={
                "base": 64,
                "mults": [1, 2, 2, 4, 8],
                "res_blocks": 5,
                "fold": 2,
                "groups": 32,
                "attention_strides": [16],
                "block2_norm": False,
                "features": 64,
                "growth": 32,
                "encoder_blocks": 23,
                "degradation_base": 64,
            },
            stages=(Stage("all", 1.0, (), 1e-4),),
            images=256_000,
            batch=8,
            crop_px=256,
            warmup_steps=0,
            schedule="step",
            betas=(0.9, 0.999),
            sampler={"name": "ddim", "steps": 20, "spacing": "published", "denoise_last": False},
            recipe={**BLIND, "small_px": 128},
        ),
        Preset(  # the same recipe at a ninth of the size, for a CPU
            name="difffusr-sr-small",
            task="difffusr-sr",
            architecture={
                "base": 64,
                "mults": [1, 2, 2, 2],
                "res_blocks": 2,
                "fold": 2,
                "groups": 32,
                "attention_strides": [],
                "block2_norm": True,
                "features": 64,
                "growth": 32,
                "encoder_blocks": 8,
                "degradation_base": 64,
            },
            stages=(Stage("all", 1.0, (), 1e-4),),
            minutes=120,
            batch=8,
            crop_px=96,
            schedule="step",
            betas=(0.9, 0.999),
            sampler={"name": "ddim", "steps": 4, "spacing": "trailing"},
            recipe={**BLIND, "small_px": 64},
        ),
        Preset(
            name="difffusr-fusion",
            task="difffusr-fusion",
            architecture={"channels": 64, "growth": 32, "blocks": 5, "reduction": 4},
            stages=(Stage("wald", 1.0, (), 1e-4),),
            images=64_000,
            batch=4,
            warmup_steps=0,
            schedule="constant",
            betas=(0.9, 0.999),
            recipe=dict(WALD),
        ),
        Preset(
            name="difffusr-fusion-small",
            task="difffusr-fusion",
            architecture={"channels": 32, "growth": 16, "blocks": 1, "reduction": 4},
            stages=(Stage("wald", 1.0, (), 3e-4),),
            minutes=60,
            batch=4,
            betas=(0.9, 0.999),
            recipe=dict(WALD),
        ),
    )
}
