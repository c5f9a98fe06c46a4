"""Declaration of a training task: presets, data, construction, evaluation and conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from training.conversion import Conversion
    from training.data.sources import TrainingData
    from training.loop.task import Trainable
    from training.presets import Preset, Use
    from training.quality.cascade import Cascades
    from training.quality.map_guidance import Guided
    from training.quality.wald import Judge


@dataclass(frozen=True)
class TaskSpec:
    """A training task. Modules of `training.tasks` that define one as `TASK` are registered automatically.

    kind: name of its bundles (`Bundle.system`). use: trains on images, or on tiles at all native resolutions. switches:
    values of `--as-published`; whose: owner of that code. follows: other kinds of bundle, one of which a run must start
    from, passed to `begin_from`. judge: evaluation of weights that no system takes first; others are evaluated as their
    system. cascades: evaluation of weights that a cascade repeats. guided: evaluation of weights that a map guides, in
    place of others. convert: conversion of third-party checkpoints.
    of_bands: settings, NAME=VALUE, that `--bands N` makes beside the bands, by N.
    """

    name: str
    summary: str
    kind: str
    presets: tuple[Preset, ...]
    build: Callable[[Preset, TrainingData], Trainable]
    use: Use = "super-resolution"
    switches: tuple[str, ...] = ()
    whose: str = ""
    follows: tuple[str, ...] = ()
    judge: Judge | None = None
    cascades: Cascades | None = None
    guided: Guided | None = None
    convert: Conversion | None = None
    of_bands: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def preset(self, name: str) -> Preset | None:
        """Return the preset of that name, or None."""
        return next((preset for preset in self.presets if preset.name == name), None)
