"""A super-resolution system, loaded and ready to run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, UsageError
from pipeline.superres.passes import stages_of
from pipeline.superres.precision import FLOAT32, computing, require_possible
from pipeline.superres.registry import spec_of
from pipeline.superres.turns import Turns
from pipeline.superres.weights import bundles_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, Predictor, Stage, StageInput, SystemSpec
    from pipeline.superres.weights import Choice


@dataclass(frozen=True)
class System:
    """A loaded system. `predictor` is None if it has no stages; `bundles` describe its weights by role.

    `options` are the requested ones, and the defaults of the others. `precision` is that of `predict` alone. `turns`
    are those of threads at the device, None if each computes on its own; `number` is that of the strip at hand.
    """

    name: str
    stages: tuple[Stage, ...]
    predictor: Predictor | None
    bundles: Bundles
    device: torch.device
    options: Settings = field(default_factory=dict)
    precision: str = FLOAT32
    turns: Turns | None = None
    number: int = 0

    def queued(self) -> System:
        """Return the system for the next strip, whose windows come after those of earlier ones."""
        return self if self.turns is None else replace(self, number=self.turns.number())

    def threads(self, asked: int) -> int:
        """Return how many threads compute the windows of a unit: as many as asked, but enough to prepare the next."""
        return asked if self.turns is None else max(asked, AHEAD)

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return reflectance (b, len(stage.gives), T, T). Raises PipelineError if a network breaks its declaration."""
        if self.predictor is None:
            raise PipelineError(f"{self.name} has no networks", f"networks for stage {stage.name}")
        if given.noise is None and stage.stochastic and not stage.regresses:
            raise PipelineError(
                f"stage {stage.name} of {self.name} gives no mean without draws", "members of 1 or more"
            )
        turn = nullcontext() if self.turns is None else self.turns.taken(self.number)
        with turn, computing(self.precision, self.device.type):
            out = self.predictor.predict(stage, given).float()
        batch, side = len(next(iter(given.images.values()))), stage.lattice.window_px
        expected = (batch, len(stage.gives), side, side)
        if tuple(out.shape) != expected:
            raise PipelineError(
                f"stage {stage.name} of {self.name} gave an image of shape {tuple(out.shape)}",
                f"{expected}: batch, bands, rows, columns at {stage.gsd_m:g} m",
                "correct the system's declared bands, GSD and window, or its network",
            )
        return out


def load(choice: Choice, device_name: str, precision: str = FLOAT32) -> System:
    """Load `choice` once per process and cache it, also for several threads.

    Raises UsageError if the files are not those the plan recorded, or if the device does not compute in `precision`.
    """
    require_possible(precision, device_name.partition(":")[0])
    with _LOADING:
        found = _loaded(choice, device_name)
    return found if precision == found.precision else replace(found, precision=precision)


_LOADING = Lock()  # lru_cache alone would load once for each thread that asks at the same time


@lru_cache(maxsize=2)
def _loaded(choice: Choice, device_name: str) -> System:
    import torch

    from pipeline.models.bundle import BundleError

    try:
        return built(spec_of(choice.name), bundles_of(choice), torch.device(device_name), dict(choice.options))
    except BundleError as error:
        raise UsageError(
            error.found,
            "weights that fit, the same as when the plan was made",
            "restore them (delete a file of the hub's cache, it is fetched anew), or start a new store",
        ) from error


def built(spec: SystemSpec, bundles: Bundles, device: torch.device, options: Settings | None = None) -> System:
    """Return the system with the networks of these bundles. Raises BundleError or UsageError if they do not fit."""
    settings = spec.defaults if options is None else options
    predictor = None if spec.build is None else spec.build(bundles, settings).to(device)
    turns = Turns() if shares_device(spec, device.type) else None
    return System(spec.name, stages_of(spec, bundles, settings), predictor, bundles, device, settings, turns=turns)


AT_ONCE = 3  # units in one process around one device: two suffice on average, a third fills in where one takes longer
# Threads of each of these units: while a window of one is at the device, another prepares the next. With one thread,
# three units keep the device busy for three quarters of the time where networks and all the rest take equally long.
AHEAD = 2


def units_at_once(spec: SystemSpec, device_type: str) -> int:
    """Return how many units one process computes at once, in threads: several where the networks leave it free."""
    return AT_ONCE if shares_device(spec, device_type) else 1


def shares_device(spec: SystemSpec, device_type: str) -> bool:
    """Return whether the networks of a system leave this process's processors free, and serve one thread at a time."""
    return device_type != "cpu" or spec.elsewhere
