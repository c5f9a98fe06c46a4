"""What a training task declares of itself: presets, what it learns from, how it is built, judged and converted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bands import RGB

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.conversion import Conversion
    from training.data.sources import TrainingData
    from training.loop.task import Trainable
    from training.presets import Preset, Use
    from training.quality.wald import Judge


@dataclass(frozen=True)
class TaskSpec:
    """A training task by name. Every module of `training.tasks` that declares one as `TASK` is found by its place.

    kind: what its bundles call themselves (`Bundle.system`). use: whether it learns from images or from tiles at all
    native resolutions. bands: those of the images, in the order of the batches' channels. switches: what
    `--as-published` may name, and of whose code. follows: other kinds of bundle that a run has to begin from; its
    network is then given them by `begin_from`. judge: how weights are judged that no system takes first; all others
    are judged as the system that takes them. convert: how a foreign checkpoint becomes a bundle of this kind.
    """

    name: str
    summary: str
    kind: str
    presets: tuple[Preset, ...]
    build: Callable[[Preset, TrainingData], Trainable]
    use: Use = "super-resolution"
    bands: tuple[str, ...] = RGB
    switches: tuple[str, ...] = ()
    whose: str = ""
    follows: tuple[str, ...] = ()
    judge: Judge | None = None
    convert: Conversion | None = None

    def preset(self, name: str) -> Preset | None:
        """The preset of that name, or None."""
        return next((preset for preset in self.presets if preset.name == name), None)
