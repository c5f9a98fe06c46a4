"""Dataclasses of training presets: stages, batches, budget. The tasks declare the presets themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from pipeline.bands import BY_NAME, RGB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from training.schedule import Schedule


SMALL_PX = 64  # default crop side for images smaller than `crop_px`
Use = Literal["super-resolution", "fusion"]  # use of the data: images, or tiles at all native resolutions


@dataclass(frozen=True)
class Stage:
    """One stage of a run: trained parameters, learning rate and share of the budget. The task defines its loss."""

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
    images: int | None = None  # default budget in images, instead of minutes
    batch: int = 16
    crop_px: int = 96  # side of training crops: px of 2.5 m for images, of the target grid for tiles
    ema: float = 0.999
    warmup_steps: int = 100
    schedule: Schedule = "cosine"  # of the learning rate within a stage
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    sampler: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of the task; `--recipe` changes them
    published: tuple[str, ...] = ()  # deviations of the released code (see `--as-published`)
    bands: tuple[str, ...] = RGB  # of the images, in channel order; all of one native GSD
    scale: int = 4  # pixels of the output per pixel of the input, along one axis
    scales: tuple[int, ...] = ()  # that its network can have; with any, `--set` changes bands and scale
    levels: int = 1  # of a cascade of the network, after which images are judged
    half: bool = False  # whether weights are stored in 16 bits

    @property
    def output_gsd_m(self) -> float:
        """GSD of the output after all levels, if the input has the native GSD of the bands."""
        return BY_NAME[self.bands[0]].gsd_m / self.total_scale

    @property
    def total_scale(self) -> int:
        """Pixels of the output after all levels per pixel of the input, along one axis."""
        return int(self.scale**self.levels)

    @property
    def least_px(self) -> int:
        """Side of the smallest super-resolution crops in px at the target GSD. Smaller images are not used."""
        return min(self.crop_px, int(self.recipe.get("small_px", SMALL_PX)))


def table(presets: Iterable[Preset]) -> str:
    """Return the presets as plain text, one setting per line. Bands and scale are named where they can be set."""
    lines = []
    for preset in presets:
        hidden = ("name", *(() if preset.scales else ("bands", "scale", "scales", "levels")))
        shown = [f.name for f in fields(preset) if f.name not in hidden]
        lines += [preset.name, *(f"  {name} = {getattr(preset, name)!r}" for name in shown)]
    return "\n".join(lines)
