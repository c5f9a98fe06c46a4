"""Recipes of training: stages, batches, budget. The presets themselves are declared by the tasks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from training.schedule import Schedule


SMALL_PX = 64  # side of crops of images that hold none of `crop_px`, where a recipe does not say
Use = Literal["super-resolution", "fusion"]  # what data are for: images, or tiles at all native resolutions


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
    task: str  # name of the `TaskSpec`
    architecture: dict[str, Any]
    stages: tuple[Stage, ...]
    minutes: float = 0.0  # default budget, on one CPU core
    images: int | None = None  # default budget instead, where the recipe counts images
    batch: int = 16
    crop_px: int = 96  # side of training crops: px of 2.5 m for images, of the target grid for tiles
    ema: float = 0.999
    warmup_steps: int = 100
    schedule: Schedule = "cosine"  # of the learning rate within a stage
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    sampler: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of the task; `--recipe` changes them
    published: tuple[str, ...] = ()  # departures of released code, of those the task knows

    @property
    def least_px(self) -> int:
        """Side of the smallest crops of super-resolution, in px of the target GSD: smaller images teach nothing."""
        return min(self.crop_px, int(self.recipe.get("small_px", SMALL_PX)))


def table(presets: Iterable[Preset]) -> str:
    """Presets as plain text, one setting a line."""
    lines = []
    for preset in presets:
        lines += [preset.name, *(f"  {f.name} = {getattr(preset, f.name)!r}" for f in fields(preset)[1:])]
    return "\n".join(lines)
