"""What the checks share: where they run, the systems that they run, rows of the table, and time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from pipeline.bands import BAND_NAMES
from pipeline.grid.grid import Window
from pipeline.models import difffusr
from pipeline.models.bundle import save_bundle
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.precision import PRECISIONS, possible
from pipeline.superres.registry import spec_of
from pipeline.superres.spec import mean_draws
from pipeline.superres.superres import blend
from pipeline.superres.system import System, built
from pipeline.superres.weights import bundles_of, choose
from tests.models.test_difffusr import ruled, shapes_of
from tests.superres import every_system
from tests.superres.every_system import Ones, finished_rasters, rasters

if TYPE_CHECKING:
    from pathlib import Path

HOLDS, BROKEN, MEASURED, LEFT_OUT = "holds", "BROKEN", "", "not run"


@dataclass(frozen=True)
class Row:
    """One line of the table. `verdict`: whether what has to hold does; empty for a measurement."""

    check: str
    case: str
    figure: str
    value: str
    verdict: str = MEASURED


@dataclass
class Bench:
    """A device and the systems that are run on it: small ones, or what is shipped and the core model's shapes."""

    device: torch.device
    small: bool
    folder: Path
    limit_s: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.began + self.limit_s - time.monotonic()

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the device computes in; where networks are small, the default and the shortest."""
        names = ("float32", "bfloat16") if self.small else PRECISIONS
        return tuple(name for name in names if possible(name, self.device.type))

    @cached_property
    def _files(self) -> dict:
        place = self.folder / "weights"
        place.mkdir(parents=True)
        return every_system.write_every(place)

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the systems that are run, the quick ones first."""
        if self.small:
            return ("bicubic", "lite, draws", "difffusr")
        return ("bicubic", "lite", "lite, draws", "ldsr", "wavediffur", "sgdm", "difffusr, small", "difffusr")

    def members(self, case: str) -> int:
        """Draws of a case: none where a regression gives the mean."""
        return 2 if case == "lite, draws" else min(1, mean_draws(self.system(case, torch.device("cpu")).stages))

    def system(self, case: str, device: torch.device) -> System:
        """The system of a case on a device."""
        key = (case, device.type)
        if key not in self._systems:
            self._systems[key] = self._built(case, device)
        return self._systems[key]

    @cached_property
    def _systems(self) -> dict[tuple[str, str], System]:
        return {}

    def _built(self, case: str, device: torch.device) -> System:
        name = case.partition(",")[0]
        if self.small or case == "difffusr, small":
            return every_system.system_of(name if name == "difffusr" else case, self._files, device)
        choice = choose(name, [str(self._core)] if name == "difffusr" else ())
        return built(spec_of(name), bundles_of(choice), device, dict(choice.options))

    @cached_property
    def _core(self) -> Path:
        """Random weights in the published shapes of the core model."""
        path = self.folder / "core.safetensors"
        bundle = difffusr.difffusr_bundle({}, licence="random")
        with torch.device("meta"):
            networks = difffusr.Networks(**bundle.architecture)
        save_bundle(path, bundle, ruled(shapes_of(networks)))
        return path


PUBLISHED_STATE = {"degradation": [0.1] * 4 * difffusr.ARCHITECTURE["degradation_base"]}


@dataclass
class Area:
    """Some ground of one system's first pass: its rasters, and how it is computed."""

    bench: Bench
    case: str
    cells: int = 1  # model windows along one axis, about

    @cached_property
    def members(self) -> int:
        return self.bench.members(self.case)

    @property
    def _spared(self) -> bool:
        """Whether it is a small core model, of many windows: without the ground around that a sensor sees."""
        return self.bench.small and self.case == "difffusr"

    @cached_property
    def options(self) -> Options:
        return Options(members=self.members, consistency="tent") if self._spared else Options(members=self.members)

    @cached_property
    def window(self) -> Window:
        """In px of the pass."""
        of = self._pass
        side = max(48, round((self.cells - 1) * of.groups[0].lattice.stride_px * of.groups[0].gsd_m / of.gsd_m))
        return Window(-79_992, 12_000, side, side).snap_out(24)

    @cached_property
    def _pass(self):
        return passes_of(self.bench.system(self.case, torch.device("cpu")).stages, BAND_NAMES)[0]

    @cached_property
    def native(self):
        of = self._pass
        read = of.read_window(self.window.pad(of.reach_px(self.options)))
        if of.source_gsd_m:
            return finished_rasters(read, of.source_px, of.natives)
        return rasters(read, clouds=False)  # which would hide all detail of so small an area

    @cached_property
    def state(self) -> dict[str, list[float]]:
        if self.bench.small or self.case == "difffusr, small":
            return every_system.STATE
        return PUBLISHED_STATE if self.case == "difffusr" else {}

    def blended(self, system: System):
        """Windows computed and blended, where they were computed."""
        return blend(self.native, self.window, system, BAND_NAMES, self.options, lambda _: self.state, maps=Ones())

    def computed(self, system: System):
        """(result, windows)."""
        blended = self.blended(system)
        return blended.finish(self.window), blended.windows
