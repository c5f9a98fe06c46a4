"""What can be trained, as a plain table.

In: nothing. Out: `PRESETS`. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from training.schedule import Schedule


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
    task: Literal["sr", "fusion"]
    architecture: dict[str, Any]
    stages: tuple[Stage, ...]
    minutes: float  # default budget, on one CPU core
    images: int | None = None  # default budget instead, where the recipe counts images
    batch: int = 16
    crop_px: int = 96  # side of training crops: px of 2.5 m for sr, of the target grid for fusion
    ema: float = 0.999
    warmup_steps: int = 100
    schedule: Schedule = "cosine"  # of the learning rate within a stage
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    sampler: dict[str, Any] = field(default_factory=dict)


def table() -> str:
    """All presets as plain text, one setting a line."""
    lines = []
    for preset in PRESETS.values():
        lines += [preset.name, *(f"  {f.name} = {getattr(preset, f.name)!r}" for f in fields(preset)[1:])]
    return "\n".join(lines)


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
            sampler={"name": "dpm++2m", "steps": 4},
        ),
        Preset(
            name="lite-fusion",
            task="fusion",
            architecture={"sharpen_width": 48, "sharpen_blocks": 5, "detail_width": 64, "detail_blocks": 5},
            stages=(Stage("wald", 1.0, (), 3e-4),),
            minutes=10,
            batch=8,
        ),
    )
}
