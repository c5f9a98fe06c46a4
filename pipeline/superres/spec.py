"""What a super-resolution system declares: stages, weights, memory. Cheap to import."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from pipeline.bands import BRIGHT_REFLECTANCE, BY_NAME
from pipeline.errors import UsageError
from pipeline.grid.lattice import Lattice
from pipeline.superres.declared import CONDITION, Condition, Option, Settings, Variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle

Bundles = Mapping[str, "Bundle"]  # by role of the weights

SceneState = dict[str, list[float]]

MEASURED = "measured"  # source of an input: the native rasters
FINISHED = "finished"  # source of an input: what an earlier pass of the run has stored
MEMBERS = 4  # draws averaged for a best estimate where a system has no regression


class NoiseSource(Protocol):
    """Standard normal noise keyed by absolute position, independent of how the ground is cut into windows."""

    def __call__(self, step: int, channels: int, coarser: int = 1) -> Tensor:
        """Return noise (b, channels, T / coarser, T / coarser) of sampler step `step`.

        T is the side of the stage's window. Raises ValueError if windows are not whole pixels of the coarser grid.
        """
        ...


@dataclass(frozen=True)
class Input:
    """An image that a stage is given: `bands` as channels, in that order, at `gsd_m`.

    `source` is MEASURED (rasters on their native grid), FINISHED (the stored group of `gsd_m`, 2.5 m or finer, that an
    earlier pass has completed), the name of an earlier stage of the same pass, or that of a condition
    (`Condition.source`). Measured bands of an `optional` input may be missing from a product: their channels are 0 and
    they are not in `StageInput.present`.
    """

    name: str
    bands: tuple[str, ...]
    gsd_m: float
    source: str = MEASURED
    optional: bool = False

    @property
    def stage(self) -> str:
        """Name of the stage that it comes from, or "" if it comes from none."""
        return "" if self.source in (MEASURED, FINISHED) or self.condition else self.source

    @property
    def condition(self) -> str:
        """Name of the condition that it shows, or "" if it shows none."""
        return self.source.removeprefix(CONDITION) if self.source.startswith(CONDITION) else ""


@dataclass(frozen=True)
class Stage:
    """One network of a system, run window by window.

    `gives` are its output bands in channel order, in reflectance at `gsd_m`; those at 2.5 m and finer are stored. The
    lattice counts px of `gsd_m`; its windows begin and end on whole pixels of every raster that the stage reads or
    gives.

    stochastic: it draws from noise. regresses: it gives the conditional mean if it gets no noise. scene_state: it takes
    what `Predictor.scene_state` returned for the scene. whole: names of conditions taken whole whose state it takes.
    weights: role of its bundle. multiple_px: the side of its output must be a multiple of this. local: pixels depend
    on the size of a window through its border alone (no statistics, no global attention). Above `bright_reflectance`
    of its required bands, no detail is generated. Raises ValueError for an impossible stage.
    """

    name: str
    reads: tuple[Input, ...]
    gives: tuple[str, ...]
    gsd_m: float
    lattice: Lattice
    stochastic: bool = False
    regresses: bool = False
    scene_state: bool = False
    whole: tuple[str, ...] = ()
    weights: str = ""
    multiple_px: int = 1
    local: bool = False
    bright_reflectance: float = BRIGHT_REFLECTANCE

    def __post_init__(self) -> None:
        faults = [*self._input_faults(), *self._nesting_faults()]
        if not self.reads or not self.gives:
            faults.append("it reads or gives nothing")
        if faults:
            msg = f"stage {self.name}: " + "; ".join(faults)
            raise ValueError(msg)

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """Bands that it reads from the native rasters."""
        return tuple(dict.fromkeys(band for given in self.reads if given.source == MEASURED for band in given.bands))

    @cached_property
    def finished(self) -> tuple[str, ...]:
        """Bands that it reads from a finished group."""
        return tuple(dict.fromkeys(band for given in self.reads if given.source == FINISHED for band in given.bands))

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Bands of `measured` and `finished` without which it cannot run."""
        needed = (given for given in self.reads if given.source in (MEASURED, FINISHED) and not given.optional)
        return tuple(dict.fromkeys(band for given in needed for band in given.bands))

    @cached_property
    def sources(self) -> frozenset[str]:
        """Names of the earlier stages that it reads."""
        return frozenset(given.source for given in self.reads if given.stage)

    @property
    def follows(self) -> bool:
        """Whether it reads the output of an earlier stage."""
        return bool(self.sources)

    @cached_property
    def nest_px(self) -> int:
        """Side, in px of this stage, of the smallest square that holds whole pixels of all its rasters."""
        return math.lcm(1, *(round(gsd / self.gsd_m) for gsd in self._gsds() if gsd > self.gsd_m))

    def input(self, name: str) -> Input:
        """Return the input of that name. Raises KeyError if there is none."""
        for given in self.reads:
            if given.name == name:
                return given
        raise KeyError(name)

    def _gsds(self) -> set[float]:
        """Return the GSDs of its inputs, and of the measured bands that its output has to agree with."""
        read = {given.gsd_m for given in self.reads}
        return read if self.finished else read | {BY_NAME[band].gsd_m for band in self.gives if band in BY_NAME}

    def _input_faults(self) -> list[str]:
        faults = []
        names = [given.name for given in self.reads]
        if len(set(names)) < len(names):
            faults.append(f"inputs {', '.join(names)} share a name")
        for given in self.reads:
            if given.source != MEASURED:
                continue
            wrong = [band for band in given.bands if band not in BY_NAME or BY_NAME[band].gsd_m != given.gsd_m]
            if wrong:
                faults.append(f"input {given.name} reads {', '.join(wrong)} at {given.gsd_m:g} m, not their native GSD")
        return faults

    def _nesting_faults(self) -> list[str]:
        uneven = [gsd for gsd in self._gsds() if not _nests(gsd, self.gsd_m)]
        if uneven:
            return [f"its GSD of {self.gsd_m:g} m does not nest with {', '.join(f'{gsd:g} m' for gsd in uneven)}"]
        lattice, nest = self.lattice, self.nest_px
        if lattice.window_px % self.multiple_px:
            return [f"{lattice}: the window must be a multiple of {self.multiple_px} px, which its network needs"]
        if lattice.stride_px % nest or lattice.reach_px % nest:
            return [
                f"{lattice}: stride and margin + ramp / 2 must be multiples of {nest} px, so that windows hold whole "
                f"pixels of {max(self._gsds()):g} m"
            ]
        return []


def _nests(one_m: float, other_m: float) -> bool:
    """Return whether the larger of two GSDs is a whole multiple of the smaller."""
    ratio = max(one_m, other_m) / min(one_m, other_m)
    return abs(ratio - round(ratio)) < 1e-9


@dataclass(frozen=True)
class StageInput:
    """A batch of windows of one stage, in reflectance, on the system's device.

    `images[name]` is (b, bands, h, w) of the input of that name, filled where nothing was measured. `present` holds the
    measured bands that the product has, and the conditions that were given. `valid` (b, 1, h, w) bool, at 10 m or at
    the GSD of the finished group that is read, is False where a required band was not measured. `noise` is None if the
    conditional mean is wanted. `state` is that of the windows' scenes and of conditions taken whole, `options` are
    those of the system, and `variant` is the number of the image where these ask for several (`SystemSpec.variants`).
    """

    images: Mapping[str, Tensor]
    present: frozenset[str]
    valid: Tensor
    noise: NoiseSource | None = None
    state: SceneState | None = None
    options: Settings = field(default_factory=dict)
    variant: int = 0


class Predictor(ABC):
    """The loaded networks of a system."""

    @abstractmethod
    def to(self, device: torch.device) -> Predictor:
        """Move the weights and return self."""

    @abstractmethod
    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return reflectance (b, len(stage.gives), T, T) of a batch of windows, T being `stage.lattice.window_px`.

        The pixels of a window must depend on that window only.
        """

    def scene_state(self, stage: Stage, windows: Tensor) -> SceneState:
        """Return what a stage with `scene_state` needs to know of a scene.

        `windows` (K, c, 64, 64) is reflectance of the bands of its first input, at places that depend on the scene
        only. Raises UsageError unless the system overrides it.
        """
        del windows
        raise UsageError(
            f"stage {stage.name} says that it takes the state of a scene, and {type(self).__name__} makes none",
            "a method scene_state, or a stage without scene_state",
        )

    def image_state(self, condition: str, image: Tensor) -> SceneState:
        """Return what stages need to know of a condition that is taken whole, beside the state of scenes.

        `image` (1, bands, h, w) holds its pixels in [0, 1] (`conditions.whole_raster`), NaN where it has none. Raises
        UsageError unless the system overrides it.
        """
        del image
        raise UsageError(
            f"condition {condition} is taken whole, and {type(self).__name__} makes no state of it",
            "a method image_state, or a condition that is read by windows",
        )


@dataclass(frozen=True)
class Weights:
    """A weights file that a system takes: the kinds of bundle that fit (`Bundle.system`), and the shipped file.

    With `bands`, only weights that give these fit, in any order. `named` is a file that an option names; `--weights`
    goes before it. `conversion` returns the command, up to its `--out`, that makes weights of the file or folder at a
    path, "" if there is none; it raises UsageError for a folder of another model.
    """

    role: str
    kinds: tuple[str, ...]
    shipped: str = ""  # file name beside the package; empty where users bring their own
    bands: tuple[str, ...] = ()
    named: str = ""
    conversion: Callable[[Path], str] | None = None

    def fit(self, bundle: Bundle) -> bool:
        """Return whether a bundle fits this role."""
        return bundle.system in self.kinds and (not self.bands or {*self.bands} == {*bundle.out_bands})


@dataclass(frozen=True)
class Memory:
    """Peak memory beyond that of any run: loaded weights in MiB, float32 values alive per pixel of one window."""

    weights_mib: float = 700.0
    floats_per_px: float = 2000.0


@dataclass(frozen=True)
class SystemSpec:
    """A system by name. `stages` and `build` take bundles by role and options, and return stages and CPU networks.

    Its `options` may change the stages, and all of them reach `Predictor.predict`. A system without weights and stages
    interpolates. `weights` are those of the default options; `weights_of` returns those of others, if they differ.
    `memory` is that of its networks; `memory_of` returns that of other weights, if it differs. `conditions_of` returns
    which of its conditions it takes with other than the default options, and whether they are required.
    `as_step` are the options with which it is a step of another system, where they differ from the defaults.
    `synthetic` says what its detail is, where it is not an estimate of the ground: stores carry it.
    `variants` returns which images of every time step these options ask for, if several (`StageInput.variant`).
    `restyles` tells whether these options give other colours than those measured: nothing then ties the output to the
    measurement, and what needs reflectance refuses it.
    `elsewhere`: `predict` waits for something other than the processors of its process, such as a service, even where
    torch has no GPU. It is called by one thread at a time, while others read and write.
    """

    name: str
    summary: str
    stages: Callable[[Bundles, Settings], tuple[Stage, ...]]
    build: Callable[[Bundles, Settings], Predictor] | None = None
    weights: tuple[Weights, ...] = ()
    weights_of: Callable[[Settings], tuple[Weights, ...]] | None = None
    memory: Memory = field(default_factory=Memory)
    memory_of: Callable[[Bundles], Memory] | None = None
    options: tuple[Option, ...] = ()
    conditions: tuple[Condition, ...] = ()
    conditions_of: Callable[[Settings], tuple[Condition, ...]] | None = None
    as_step: Settings = field(default_factory=dict)
    synthetic: str = ""
    variants: Callable[[Settings], Variants] = lambda _options: Variants()
    restyles: Callable[[Settings], bool] = lambda _options: False
    elsewhere: bool = False

    def weights_for(self, options: Settings) -> tuple[Weights, ...]:
        """Return the weights that it takes with these options. Raises UsageError as `weights_of`."""
        return self.weights if self.weights_of is None else self.weights_of(options)

    def conditions_for(self, options: Settings) -> tuple[Condition, ...]:
        """Return the conditions that it takes with these options."""
        return self.conditions if self.conditions_of is None else self.conditions_of(options)

    def memory_for(self, bundles: Bundles) -> Memory:
        """Return the memory that it needs with these weights."""
        return self.memory if self.memory_of is None else self.memory_of(bundles)

    @property
    def defaults(self) -> Settings:
        """Default values of its options."""
        return {option.name: option.default for option in self.options}

    @property
    def step_options(self) -> Settings:
        """Values of its options as a step of another system."""
        return {**self.defaults, **self.as_step}


def lattice_of(bundle: Bundle) -> Lattice:
    """Return the lattice that a bundle was made for. Raises ValueError if its numbers are invalid."""
    spec = bundle.lattice
    return Lattice(spec.window_px, spec.stride_px, spec.ramp_px, spec.margin_px)


def stochastic(stages: Iterable[Stage]) -> bool:
    """Return whether any stage draws."""
    return any(stage.stochastic for stage in stages)


def mean_draws(stages: Iterable[Stage]) -> int:
    """Return how many draws the best estimate of these stages averages by default; 0 if it needs none."""
    return MEMBERS if any(stage.stochastic and not stage.regresses for stage in stages) else 0


def draws(estimate: str, members: int, *, stochastic: bool, mean_draws: int) -> int:
    """Return how many draws an estimate averages: `members`, else `mean_draws`; 0 if nothing is drawn.

    Raises UsageError if one sample is asked for with several members.
    """
    if estimate == "sample" and members > 1:
        raise UsageError(
            f"estimate = sample with members = {members}", "one draw", "leave --members out, or --estimate sample"
        )
    if not stochastic:
        return 0
    return 1 if estimate == "sample" else members or mean_draws
