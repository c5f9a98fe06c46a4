"""What the fusions that learn by Wald's protocol on Sentinel-2 tiles have in common: crops, and places to watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from training.tasks.fusion_tiles import TileSampler, judged_places, tiles_to_train_on, views, watched_places

if TYPE_CHECKING:
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.presets import Preset, Stage

N = TypeVar("N", bound=nn.Module)


class TileTask(Generic[N]):
    """A fusion in training. Of `judged` places, the `watched` ones decide how much of the residual is kept."""

    def __init__(self, preset: Preset, data: TrainingData, network: N) -> None:
        self.preset, self.data, self.network = preset, data, network
        self.sampler = TileSampler(tiles_to_train_on(data))
        self.watched = watched_places(data)
        self.judged = {**self.watched, **judged_places(data)}
        self.views = views(data.watched_tiles())

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Do nothing."""
