"""Another system's super-resolver as a step of a cascade: its stage from 10 m, run on any GSD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.bands import RGB, TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.superres.registry import spec_of
from pipeline.superres.spec import MEASURED

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.superres.spec import Bundles, Predictor, Stage, StageInput, Weights

_FROM_M = 10


@dataclass(frozen=True)
class Backbone:
    """A system by name, and its stage that brings bands from 10 m, and nothing else, to 2.5 m or finer."""

    name: str
    stage: Stage

    @property
    def factor(self) -> int:
        """How many times finer its output is than its input."""
        return round(_FROM_M / self.stage.gsd_m)

    @property
    def input(self) -> str:
        """Name of its input."""
        return self.stage.reads[0].name

    def at(self, name: str, coarse_m: float, source: str) -> Stage:
        """Return its stage under another name, reading `source` at another GSD."""
        read = replace(self.stage.reads[0], gsd_m=coarse_m, source=source)
        return replace(self.stage, name=name, reads=(read,), gsd_m=coarse_m / self.factor)

    def predict(self, networks: Predictor, given: StageInput) -> Tensor:
        """Return what its networks (see `built`) give, with its own options."""
        return networks.predict(self.stage, replace(given, options=spec_of(self.name).step_options))

    def built(self, bundles: Bundles) -> Predictor:
        """Load its networks. Raises BundleError if the tensors do not fit."""
        spec = spec_of(self.name)
        assert spec.build is not None  # it has a stage
        return spec.build(bundles, spec.step_options)


def weights_of(name: str) -> tuple[Weights, ...]:
    """Return the weights that a system takes. Raises UsageError if there is no such system."""
    spec = spec_of(name)
    return spec.weights_for(spec.step_options)


def backbone_of(name: str, bundles: Bundles) -> Backbone:
    """Return the backbone of a system with these weights. Raises UsageError if none of its stages fits."""
    spec = spec_of(name)
    for stage in spec.stages(bundles, spec.step_options):
        read = stage.reads[0]
        alone = len(stage.reads) == 1 and (read.source, read.gsd_m) == (MEASURED, _FROM_M)
        if alone and stage.gsd_m <= TARGET_GSD_M and set(RGB) <= set(stage.gives) == set(read.bands):
            return Backbone(name, stage)
    raise UsageError(
        f"--option backbone={name}, which has no network for that",
        f"a system with a stage that brings {', '.join(RGB)} from {_FROM_M} m, and nothing else, to 2.5 m",
    )
