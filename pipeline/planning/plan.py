"""The frozen plan: everything that decides the pixels. It is written before any work; workers never search again.

A unit is addressed by pass, zone, row, column and period. It covers a block of whole chunks, of which only those that
touch the AOI are computed. Unit rows and columns may differ in size, to avoid slivers at the end.
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
from pipeline.planning.touched import blocks_of
from pipeline.planning.units import Cut, MapLayout, PassLayout, Unit, Zone
from pipeline.store import sealed
from pipeline.store.keys import PLAN_KEY
from pipeline.store.layout import group_name, plan_content
from pipeline.store.place import place_of
from pipeline.store.template import FORMAT_VERSION
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.precision import FLOAT32
from pipeline.superres.weights import Choice, from_older, stages_of, to_older

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.archive.read.cube import Cube
    from pipeline.store.place import Where
    from pipeline.superres.passes import Pass

ALL_BANDS_READ = 2  # first format whose pixels do not depend on the selection of stored bands
NAMES_ESTIMATE = 3  # first format that records the estimate and the MTF
WEIGHTS_BY_ROLE = 4  # first format whose systems take any number of weights files
CHUNKS_BY_BAND = 5  # first format whose chunks may hold one band
_KNOWN_FORMATS = range(1, FORMAT_VERSION + 1)


@dataclass(frozen=True)
class Plan:
    """The frozen plan of a run, complete for workers and for readers of the store."""

    config: RunConfig
    aoi_name: str
    aoi_digest: str
    scenes: dict[str, Scene]
    zones: tuple[Zone, ...]
    system: Choice
    access: Access
    states: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # scene id -> scene state
    passes: tuple[PassLayout, ...] = (PassLayout(),)
    conditions: tuple[Frozen, ...] = ()  # maps that condition the system
    variants: str = ""  # dimension of the images, where a system gives several of every time step
    map_stored: MapLayout | None = None  # map whose raster is stored beside what it guided
    notes: tuple[str, ...] = ()
    aoi_geometry: dict[str, Any] = field(default_factory=dict)  # GeoJSON in EPSG:4326; empty in older plans
    licence: str = ""
    credit: str = ""
    created_utc: str = ""
    version: str = ""
    format_version: int = FORMAT_VERSION

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that decides pixels and layout. Making the same plan twice gives the same digest."""
        content = self.to_json()
        for name in ("notes", "created_utc", "access"):
            content.pop(name)
        content.pop("aoi_geometry", None)  # `aoi_digest` stands for it
        for name in ("licence", "credits", "notes", "synthetic"):
            content["system"].pop(name, None)
        if not content["system"].get("restyled"):  # plans made before there was any
            content["system"].pop("restyled", None)
        for one in content.get("conditions", ()):
            one.pop("credit", None)
        if self.format_version < NAMES_ESTIMATE:
            for name in ("estimate", "mtf"):
                content["config"].pop(name)
        for zone in content["zones"]:  # units depend on the number of workers but do not affect the output
            zone.pop("row_breaks")
            zone.pop("col_breaks")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def draws(self) -> int:
        """Number of draws averaged in every pixel; 0 for a regression."""
        if self.format_version < WEIGHTS_BY_ROLE:  # older formats also counted draws of systems that draw nothing
            return replace(self.system, stochastic=True).draws(self.config.estimate, self.config.members)
        return self.system.draws(self.config.estimate, self.config.members)

    def model_passes(self) -> tuple[Pass, ...]:
        """Return the passes that the bands need, with their model windows. Reads the metadata of the weights."""
        return passes_of(stages_of(self.system), self.config.band_names)

    @property
    def finer(self) -> tuple[tuple[float, tuple[str, ...]], ...]:
        """Groups stored at GSDs below 2.5 m, as (GSD, bands), coarsest first."""
        return tuple(sorted((one for layout in self.passes for one in layout.finer), reverse=True))

    def options(self, stream: int = 0, variant: int = 0) -> Options:
        """Return the settings that shape the pixels besides scenes and weights. `stream` is the noise stream."""
        chosen = self.config
        return Options(chosen.seed, stream, self.draws, self.consistency, chosen.mtf_by_band, self.batch, variant)

    @property
    def batch(self) -> int:
        """Number of windows that networks compute at once."""
        return self.config.batch or 1

    @property
    def consistency(self) -> str:
        """How the output agrees with the measurement: as configured, or "none" where the system restyles it."""
        return consistency_of(self.config, self.system)

    @property
    def mtf(self) -> dict[str, float]:
        """MTF at Nyquist by band if the consistency is "sensor", else empty."""
        if self.consistency != "sensor":
            return {}
        return {name: round(self.options().mtf_of(name), 4) for name in self.config.band_names}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Bands that every scene has and that may be read, whichever bands are stored.

        Networks see all of them and composites look for gaps in all of them, so `--bands` changes no pixel.
        """
        if self.format_version < ALL_BANDS_READ:
            return self.config.band_names
        shared = [name for name in BAND_NAMES if all(name in scene.hrefs for scene in self.scenes.values())]
        return tuple(shared)

    def zone(self, epsg: int) -> Zone:
        """Return the zone with this EPSG code."""
        return next(zone for zone in self.zones if zone.epsg == epsg)

    @cached_property
    def _cut(self) -> dict[tuple[int, int], Cut]:
        size, shard = self.config.chunk_px, self.config.shard_chunks
        return {
            (zone.epsg, number): cut
            for zone in self.zones
            for number, cut in enumerate(zone.cuts(self.passes, size, shard))
        }

    def pass_of(self, gsd_m: float) -> tuple[int, float]:
        """Return the number of the pass that completes the group of a GSD, and the GSD of that pass's pixels."""
        numbers = [n for n, layout in enumerate(self.passes) if gsd_m in (one for one, _ in layout.finer)]
        number = max(numbers, default=0)
        return number, self.passes[number].gsd_m

    def grid(self, unit: Unit) -> Grid:
        """Return the zone's grid at the GSD of the unit's pass."""
        return self._cut[unit.epsg, unit.number].grid

    def is_active(self, unit: Unit) -> bool:
        """Return True if at least one chunk of the unit touches the AOI."""
        cut = self._cut[unit.epsg, unit.number]
        rows = slice(*cut.rows[unit.row : unit.row + 2])
        cols = slice(*cut.cols[unit.col : unit.col + 2])
        return bool(cut.active[rows, cols].any())

    def units(self) -> Iterator[Unit]:
        """Yield all units with at least one active chunk: by pass, zone, period, row and column."""
        for number in range(len(self.passes)):
            yield from self.units_of(number)

    def units_of(self, number: int) -> Iterator[Unit]:
        """Yield the units of one pass."""
        for zone in self.zones:
            cut = self._cut[zone.epsg, number]
            for period in range(len(zone.periods)):
                for row in range(len(cut.rows) - 1):
                    for col in range(len(cut.cols) - 1):
                        if self.is_active(unit := Unit(zone.epsg, row, col, period, number)):
                            yield unit

    def units_over(self, epsg: int, period: int, number: int, window: Window) -> list[Unit]:
        """Return the units of a pass that intersect `window` (px of that pass)."""
        cut, size = self._cut[epsg, number], self.config.chunk_px
        there = window.intersect(cut.grid.window)
        if there.empty:
            return []
        rows = _between(cut.rows, (there.row - cut.grid.window.row) // size, there.row_end - cut.grid.window.row, size)
        cols = _between(cut.cols, (there.col - cut.grid.window.col) // size, there.col_end - cut.grid.window.col, size)
        units = (Unit(epsg, row, col, period, number) for row in rows for col in cols)
        return [unit for unit in units if self.is_active(unit)]

    def chunks(self, unit: Unit) -> list[Window]:
        """Return the active chunks of a unit as absolute windows (px of its pass), ascending, clipped to the grid.

        With shards, a unit is one shard, computed and written as a whole.
        """
        cut, size = self._cut[unit.epsg, unit.number], self.config.chunk_px
        grid = cut.grid.window
        if self.config.shard:
            step = size * self.config.shard_chunks
            return [Window(grid.row + unit.row * step, grid.col + unit.col * step, step, step).intersect(grid)]
        found = []
        for row in range(cut.rows[unit.row], cut.rows[unit.row + 1]):
            for col in range(cut.cols[unit.col], cut.cols[unit.col + 1]):
                if cut.active[row, col]:
                    chunk = Window(grid.row + row * size, grid.col + col * size, size, size)
                    found.append(chunk.intersect(grid))
        return found

    def parts(self, unit: Unit) -> list[Window]:
        """Return what is computed of the unit's chunks, in px of its pass: all, or blocks of 60 m that touch the AOI.

        Blocks if the AOI fills little of its chunks, or if its pixels alone are stored.
        """
        zone, chunks = self.zone(unit.epsg), self.chunks(unit)
        if not (zone.blocks or self.config.clip):
            return chunks
        return [part for chunk in chunks for part in blocks_of(zone.ground, self.grid(unit), chunk)]

    def window(self, unit: Unit) -> Window:
        """Return the smallest window that holds the unit's active chunks."""
        chunks = self.chunks(unit)
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole.union(chunk)
        return whole

    def group(self, epsg: int) -> str:
        """Return the path of a zone's group within the store."""
        return group_name(epsg, len(self.zones))

    def period_scenes(self, epsg: int, period: int) -> tuple[Scene, ...]:
        """Return the scenes of a time step, best first."""
        return tuple(self.scenes[name] for name in self.zone(epsg).periods[period].scene_ids)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary in the layout of the plan's format version, readable by `from_json`."""
        content = {
            **{k: v for k, v in asdict(self).items() if k not in ("config", "scenes", "digest")},
            "config": self.config.to_json(),
            "scenes": {name: scene.to_json() for name, scene in self.scenes.items()},
        }
        content["conditions"] = [one.to_json() for one in self.conditions]
        for zone in content["zones"]:
            if not zone["blocks"]:  # as in plans made before there was any
                zone.pop("blocks")
        for layout in content["passes"]:
            if not layout["reach_m"]:  # as in plans made before it was known
                layout.pop("reach_m")
        if self.format_version < CHUNKS_BY_BAND:
            content["config"].pop("chunk_bands")
        if self.config.precision == FLOAT32:  # plans made before there was another
            content["config"].pop("precision")
        if self.batch == 1:  # as in plans from before there were batches
            content["config"].pop("batch")
        for name in ("aoi_geometry", "variants", "map_stored"):  # as in plans made before there were any
            if not content[name]:
                content.pop(name)
        for period in (period for zone in content["zones"] for period in zone["periods"]):
            if period["variant"] is None:
                period.pop("variant")
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
        """Invert `to_json`. Raises UsageError for unknown format versions, DecodingError for bad content."""
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


def consistency_of(config: RunConfig, system: Choice) -> str:
    """Return how the output of a run agrees with the measurement."""
    return "none" if system.restyled else config.consistency


def _between(breaks: tuple[int, ...], first: int, end_px: int, chunk_px: int) -> range:
    """Return the range of intervals between `breaks` (chunks) from chunk `first` to the chunk of pixel `end_px` - 1."""
    return range(bisect_right(breaks, first) - 1, bisect_left(breaks, -(-end_px // chunk_px)))


def _older_weights(config: RunConfig) -> dict[str, str]:
    """Return the weights of a configuration as named up to format 3."""
    fusion = [text.removeprefix(f"{FUSION_ROLE}=") for text in config.weights if text.startswith(f"{FUSION_ROLE}=")]
    others = [text for text in config.weights if not text.startswith(f"{FUSION_ROLE}=")]
    return {"weights": "".join(others), "fusion_weights": "".join(fusion)}


def plan_path(store: Path) -> Path:
    """Return the path of the plan in a local store."""
    return store / PLAN_KEY


def plan_file(plan: Plan) -> bytes:
    """Return the plan as stored: JSON with a checksum, and the plan's digest for readers that do not compute it."""
    return sealed.dump({**plan.to_json(), "plan_digest": plan.digest}, indent=1, sort_keys=False)


def load_plan(store: Where) -> Plan:
    """Load the frozen plan of a store. Raises UsageError if there is none, IntegrityError if it cannot be read."""
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
    """Open the lazy input cube of one zone and time step: three native-GSD DataArrays and SCL, one step per scene."""
    from pipeline.archive.read.cube import open_cube as open_scenes

    zone = plan.zone(epsg) if epsg else plan.zones[0]
    scenes = plan.period_scenes(zone.epsg, period)
    return open_scenes(scenes, zone.grid, plan.config.band_names, plan.access, chunk_px=512, resample=zone.resample)
