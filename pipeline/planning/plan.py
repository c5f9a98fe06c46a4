"""The frozen plan: everything that decides the pixels, written before any work and never searched again.

In: nothing but its own JSON. Out: `Plan`, `Zone`, `Unit`. Imports config, archive's records, grid, superres' choice.

A unit is an address: pass, zone, row, column, period. It stands for a block of whole chunks, of which only those that
touch the AOI are computed. Rows and columns of units may differ in size, so that the last one is no sliver.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.archive.read.access import Access
from pipeline.archive.scene import Scene
from pipeline.bands import BAND_NAMES
from pipeline.conditions.frozen import Frozen
from pipeline.config import FUSION_ROLE, RunConfig
from pipeline.decoding import decode
from pipeline.errors import IntegrityError, UsageError
from pipeline.grid.grid import Grid, Window
from pipeline.planning.units import Cut, PassLayout, Unit, Zone
from pipeline.store import sealed
from pipeline.store.keys import PLAN_KEY
from pipeline.store.layout import group_name, plan_content
from pipeline.store.place import place_of
from pipeline.store.template import FORMAT_VERSION
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.weights import Choice, from_older, stages_of, to_older

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.archive.read.cube import Cube
    from pipeline.store.place import Where
    from pipeline.superres.passes import Pass

ALL_BANDS_READ = 2  # first format whose pixels do not depend on the bands that are stored
NAMES_ESTIMATE = 3  # first format that says which estimate it holds, and of which MTF
WEIGHTS_BY_ROLE = 4  # first format whose systems take any number of weights
_KNOWN_FORMATS = range(1, FORMAT_VERSION + 1)


@dataclass(frozen=True)
class Plan:
    """All that a worker needs and all that a reader of the store may ask."""

    config: RunConfig
    aoi_name: str
    aoi_digest: str
    scenes: dict[str, Scene]
    zones: tuple[Zone, ...]
    system: Choice
    access: Access
    states: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # scene id -> scene state
    passes: tuple[PassLayout, ...] = (PassLayout(),)
    conditions: tuple[Frozen, ...] = ()  # maps that the system is given
    notes: tuple[str, ...] = ()
    licence: str = ""
    credit: str = ""
    created_utc: str = ""
    version: str = ""
    format_version: int = FORMAT_VERSION

    @cached_property
    def digest(self) -> str:
        """sha256 over what decides pixels and layout; the same plan made twice has the same digest."""
        content = self.to_json()
        for name in ("notes", "created_utc", "access"):
            content.pop(name)
        for name in ("licence", "credits", "notes"):
            content["system"].pop(name, None)
        if self.format_version < NAMES_ESTIMATE:
            for name in ("estimate", "mtf"):
                content["config"].pop(name)
        for zone in content["zones"]:  # how the area is cut into units follows the number of workers and shows nowhere
            zone.pop("row_breaks")
            zone.pop("col_breaks")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def draws(self) -> int:
        """Draws that every pixel is the mean of; 0 where a regression gives it."""
        if self.format_version < WEIGHTS_BY_ROLE:  # counted draws that were asked for in vain
            return replace(self.system, stochastic=True).draws(self.config.estimate, self.config.members)
        return self.system.draws(self.config.estimate, self.config.members)

    def model_passes(self) -> tuple[Pass, ...]:
        """The passes that its bands need, with their model windows. Reads the weights' metadata."""
        return passes_of(stages_of(self.system), self.config.band_names)

    @property
    def finer(self) -> tuple[tuple[float, tuple[str, ...]], ...]:
        """What is stored below 2.5 m, as (GSD, bands), coarsest first."""
        return tuple(sorted((one for layout in self.passes for one in layout.finer), reverse=True))

    def options(self, stream: int = 0) -> Options:
        """What shapes the pixels besides scenes and weights; `stream` is that of the noise."""
        return Options(self.config.seed, stream, self.draws, self.config.consistency, self.config.mtf_by_band)

    @property
    def mtf(self) -> dict[str, float]:
        """MTF at Nyquist by band where the consistency is "sensor"; else empty."""
        if self.config.consistency != "sensor":
            return {}
        return {name: round(self.options().mtf_of(name), 4) for name in self.config.band_names}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Bands that every scene has: what may be read, whichever bands the store holds.

        Networks see all of them and composites ask all of them for gaps, so that `--bands` changes no pixel.
        """
        if self.format_version < ALL_BANDS_READ:
            return self.config.band_names
        shared = [name for name in BAND_NAMES if all(name in scene.hrefs for scene in self.scenes.values())]
        return tuple(shared)

    def zone(self, epsg: int) -> Zone:
        """The zone of that EPSG code."""
        return next(zone for zone in self.zones if zone.epsg == epsg)

    @cached_property
    def _cut(self) -> dict[tuple[int, int], Cut]:
        size, shard = self.config.chunk_px, self.config.unit_chunks if self.config.shard else 0
        return {
            (zone.epsg, number): zone.cut(layout, size, shard)
            for zone in self.zones
            for number, layout in enumerate(self.passes)
        }

    def pass_of(self, gsd_m: float) -> tuple[int, float]:
        """Number of the pass that completes the group of a GSD, and the GSD that its units count."""
        numbers = [n for n, layout in enumerate(self.passes) if gsd_m in (one for one, _ in layout.finer)]
        number = max(numbers, default=0)
        return number, self.passes[number].gsd_m

    def grid(self, unit: Unit) -> Grid:
        """The zone's grid in the pixels that the unit's pass counts."""
        return self._cut[unit.epsg, unit.number].grid

    def is_active(self, unit: Unit) -> bool:
        """True when at least one chunk of the address touches the AOI."""
        cut = self._cut[unit.epsg, unit.number]
        rows = slice(*cut.rows[unit.row : unit.row + 2])
        cols = slice(*cut.cols[unit.col : unit.col + 2])
        return bool(cut.active[rows, cols].any())

    def units(self) -> Iterator[Unit]:
        """All units with at least one active chunk: pass by pass, period by period, row by row."""
        for number in range(len(self.passes)):
            yield from self.units_of(number)

    def units_of(self, number: int) -> Iterator[Unit]:
        """Those of one pass."""
        for zone in self.zones:
            cut = self._cut[zone.epsg, number]
            for period in range(len(zone.periods)):
                for row in range(len(cut.rows) - 1):
                    for col in range(len(cut.cols) - 1):
                        if self.is_active(unit := Unit(zone.epsg, row, col, period, number)):
                            yield unit

    def units_over(self, epsg: int, period: int, number: int, window: Window) -> list[Unit]:
        """Units of a pass whose ground meets `window` (px of that pass)."""
        cut, size = self._cut[epsg, number], self.config.chunk_px
        there = window.intersect(cut.grid.window)
        if there.empty:
            return []
        rows = _between(cut.rows, (there.row - cut.grid.window.row) // size, there.row_end - cut.grid.window.row, size)
        cols = _between(cut.cols, (there.col - cut.grid.window.col) // size, there.col_end - cut.grid.window.col, size)
        units = (Unit(epsg, row, col, period, number) for row in rows for col in cols)
        return [unit for unit in units if self.is_active(unit)]

    def chunks(self, unit: Unit) -> list[Window]:
        """Active chunks of a unit as absolute windows (px of its pass), ascending; cut where the grid ends.

        With shards, a unit is one shard and is computed and written as one piece.
        """
        cut, size = self._cut[unit.epsg, unit.number], self.config.chunk_px
        grid = cut.grid.window
        if self.config.shard:
            step = size * self.config.unit_chunks
            return [Window(grid.row + unit.row * step, grid.col + unit.col * step, step, step).intersect(grid)]
        found = []
        for row in range(cut.rows[unit.row], cut.rows[unit.row + 1]):
            for col in range(cut.cols[unit.col], cut.cols[unit.col + 1]):
                if cut.active[row, col]:
                    chunk = Window(grid.row + row * size, grid.col + col * size, size, size)
                    found.append(chunk.intersect(grid))
        return found

    def window(self, unit: Unit) -> Window:
        """Smallest window that holds the unit's active chunks."""
        chunks = self.chunks(unit)
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole.union(chunk)
        return whole

    def group(self, epsg: int) -> str:
        """Path of a zone's group within the store."""
        return group_name(epsg, len(self.zones))

    def period_scenes(self, epsg: int, period: int) -> tuple[Scene, ...]:
        """Scenes of a time step, best first."""
        return tuple(self.scenes[name] for name in self.zone(epsg).periods[period].scene_ids)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary in the form of its format version, re-readable by `from_json`."""
        content = {
            **{k: v for k, v in asdict(self).items() if k not in ("config", "scenes", "digest")},
            "config": self.config.to_json(),
            "scenes": {name: scene.to_json() for name, scene in self.scenes.items()},
        }
        if self.format_version < WEIGHTS_BY_ROLE:
            content["system"] = to_older(self.system)
            content["config"] |= _older_weights(self.config)
            content.pop("passes")
            content.pop("conditions")
            for name in ("options", "conditions"):
                content["config"].pop(name)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """Inverse of `to_json`. UsageError on another format version, DecodingError where the content does not fit."""
        if content.get("format_version") not in _KNOWN_FORMATS:
            raise UsageError(
                f"the plan has format version {content.get('format_version')}",
                f"at most {FORMAT_VERSION}",
                "finish it with the version that wrote it, or start a new store",
            )
        known: dict[str, Any] = {key: value for key, value in content.items() if key != "plan_digest"}
        known["config"] = RunConfig.from_mapping(content["config"], "the plan")
        if content["format_version"] >= WEIGHTS_BY_ROLE:
            return decode(cls, known, "plan", ready=(RunConfig,))
        known["system"] = from_older(content["system"])
        return decode(cls, known, "plan", ready=(RunConfig, Choice))


def _between(breaks: tuple[int, ...], first: int, end_px: int, chunk_px: int) -> range:
    """Parts between `breaks` (chunks) that hold the chunks from `first` up to that of pixel `end_px` - 1."""
    return range(bisect_right(breaks, first) - 1, bisect_left(breaks, -(-end_px // chunk_px)))


def _older_weights(config: RunConfig) -> dict[str, str]:
    """How a configuration named its weights up to format 3."""
    fusion = [text.removeprefix(f"{FUSION_ROLE}=") for text in config.weights if text.startswith(f"{FUSION_ROLE}=")]
    others = [text for text in config.weights if not text.startswith(f"{FUSION_ROLE}=")]
    return {"weights": "".join(others), "fusion_weights": "".join(fusion)}


def plan_path(store: Path) -> Path:
    """Where a local store keeps its plan."""
    return store / PLAN_KEY


def plan_file(plan: Plan) -> bytes:
    """The plan as it lies in a store, with its digest for readers that do not compute one, and a checksum."""
    return sealed.dump({**plan.to_json(), "plan_digest": plan.digest}, indent=1, sort_keys=False)


def load_plan(store: Where) -> Plan:
    """The frozen plan of a store. UsageError when there is none, IntegrityError when it cannot be read."""
    try:
        content = plan_content(store)
        plan = None if content is None else Plan.from_json(content)
    except (ValueError, KeyError, TypeError) as error:
        found = f"the plan {place_of(store).shown(PLAN_KEY)} cannot be read ({error})"
        raise IntegrityError(found, cure="start a new store") from error
    if plan is None:
        raise UsageError(f"{store} holds no plan ({PLAN_KEY})", "a store written by this pipeline")
    return plan


def open_cube(plan: Plan, *, epsg: int | None = None, period: int = 0) -> Cube:
    """The lazy input cube of one zone and time step: three native-resolution DataArrays and SCL, one step per scene."""
    from pipeline.archive.read.cube import open_cube as open_scenes

    zone = plan.zone(epsg) if epsg else plan.zones[0]
    scenes = plan.period_scenes(zone.epsg, period)
    return open_scenes(scenes, zone.grid, plan.config.band_names, plan.access, chunk_px=512, resample=zone.resample)
