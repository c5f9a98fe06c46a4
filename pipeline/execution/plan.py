"""The frozen plan: everything that decides the pixels, written before any work and never searched again.

In: nothing but its own JSON. Out: `Plan`, `Zone`, `Unit`. Imports config, archive's records, grid, superres' choice.

A unit is an address: zone, row, column, period. It stands for a block of whole chunks, of which only those that touch
the AOI are computed. Rows and columns of units may differ in size, so that the last one is no sliver.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive.read.access import Access
from pipeline.archive.scene import Period, Scene
from pipeline.bands import BAND_NAMES
from pipeline.config import FUSION_ROLE, RunConfig
from pipeline.errors import IntegrityError, UsageError
from pipeline.grid.grid import Grid, Phase, Window
from pipeline.store import sealed
from pipeline.store.keys import PLAN_KEY
from pipeline.store.layout import group_name, plan_content
from pipeline.store.place import place_of
from pipeline.store.template import FORMAT_VERSION
from pipeline.superres.chain import groups_of
from pipeline.superres.options import Options
from pipeline.superres.weights import Choice, File, from_older, stages_of, to_older

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.archive.read.cube import Cube
    from pipeline.store.place import Where
    from pipeline.superres.chain import Group

ALL_BANDS_READ = 2  # first format whose pixels do not depend on the bands that are stored
NAMES_ESTIMATE = 3  # first format that says which estimate it holds, and of which MTF
WEIGHTS_BY_ROLE = 4  # first format whose systems take any number of weights
_KNOWN_FORMATS = range(1, FORMAT_VERSION + 1)


@dataclass(frozen=True, order=True)
class Address:
    """A place in a run: zone, time step, and row and column in whatever the zone is cut into. Immutable, no pixels.

    >>> Unit(32631, 2, 0, 0).id
    'z32631-r2-c0-t0'
    """

    epsg: int
    row: int
    col: int
    period: int

    @property
    def id(self) -> str:
        """Name that is safe in file names and task keys."""
        return f"z{self.epsg}-r{self.row}-c{self.col}-t{self.period}"


class Unit(Address):
    """One piece of work; row and column count the zone's breaks."""


@dataclass(frozen=True)
class Zone:
    """One UTM zone of a run: its 2.5 m grid, the AOI in metres, its time steps, and how it is cut into units."""

    epsg: int
    grid: Grid
    area: dict[str, Any]  # GeoJSON geometry of the AOI's part, in metres of `epsg`
    periods: tuple[Period, ...]
    row_breaks: tuple[int, ...]  # in chunks, from 0 to the number of chunk rows
    col_breaks: tuple[int, ...]
    resample: bool = False  # scenes lie on another phase than the grid and are resampled, nearest

    def active_chunks(self, chunk_px: int) -> NDArray[np.bool_]:
        """Which chunks (rows, cols) touch the AOI."""
        import shapely
        from shapely.geometry import shape

        rows, cols = self.row_breaks[-1], self.col_breaks[-1]
        size = chunk_px * self.grid.gsd_m
        left, bottom, right, top = self.grid.bounds_m
        x0 = left + np.arange(cols) * size
        y1 = top - np.arange(rows) * size
        xs, ys = np.meshgrid(x0, y1)
        # edges are shared, not touched: a chunk that only meets the AOI's border line has no pixel of it
        inset = 1e-3
        boxes = shapely.box(
            xs + inset,
            np.maximum(ys - size, bottom) + inset,
            np.minimum(xs + size, right) - inset,
            ys - inset,
        )
        area = shape(self.area)
        shapely.prepare(area)
        touching: NDArray[np.bool_] = shapely.intersects(area, boxes)
        return touching


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
        content["system"].pop("licence")
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

    def groups(self) -> tuple[Group, ...]:
        """The model windows that its bands need, by group of stages. Reads the weights' metadata."""
        return groups_of(stages_of(self.system), self.config.band_names)

    def options(self, stream: int = 0) -> Options:
        """What shapes the pixels besides scenes and weights; `stream` is that of the noise."""
        return Options(self.config.seed, stream, self.draws, self.config.consistency, self.config.mtf_by_band)

    @property
    def mtf(self) -> dict[str, float]:
        """MTF at Nyquist by band where the consistency is "sensor"; else empty."""
        if self.config.consistency != "sensor":
            return {}
        return {name: round(self.options().mtf_of(name), 4) for name in self.config.band_names}

    @property
    def reach_px(self) -> int:
        """How far around a piece of ground its bands are predicted."""
        return self.options().reach_px(self.config.band_names)

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
    def _active(self) -> dict[int, NDArray[np.bool_]]:
        return {zone.epsg: zone.active_chunks(self.config.chunk_px) for zone in self.zones}

    def is_active(self, unit: Unit) -> bool:
        """True when at least one chunk of the address touches the AOI."""
        zone = self.zone(unit.epsg)
        rows = slice(*zone.row_breaks[unit.row : unit.row + 2])
        cols = slice(*zone.col_breaks[unit.col : unit.col + 2])
        return bool(self._active[unit.epsg][rows, cols].any())

    def units(self) -> Iterator[Unit]:
        """All units with at least one active chunk, period by period, row by row."""
        for zone in self.zones:
            for period in range(len(zone.periods)):
                for row in range(len(zone.row_breaks) - 1):
                    for col in range(len(zone.col_breaks) - 1):
                        if self.is_active(unit := Unit(zone.epsg, row, col, period)):
                            yield unit

    def chunks(self, unit: Unit) -> list[Window]:
        """Active chunks of a unit as absolute windows (2.5 m px), ascending; cut where the grid ends.

        With shards, a unit is one shard and is computed and written as one piece.
        """
        zone, size = self.zone(unit.epsg), self.config.chunk_px
        grid = zone.grid.window
        active = self._active[unit.epsg]
        if self.config.shard:
            step = size * self.config.unit_chunks
            return [Window(grid.row + unit.row * step, grid.col + unit.col * step, step, step).intersect(grid)]
        found = []
        for row in range(zone.row_breaks[unit.row], zone.row_breaks[unit.row + 1]):
            for col in range(zone.col_breaks[unit.col], zone.col_breaks[unit.col + 1]):
                if active[row, col]:
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
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """Inverse of `to_json`. UsageError on another format version."""
        if content.get("format_version") not in _KNOWN_FORMATS:
            raise UsageError(
                f"the plan has format version {content.get('format_version')}",
                f"at most {FORMAT_VERSION}",
                "finish it with the version that wrote it, or start a new store",
            )
        known = {key: value for key, value in content.items() if key != "plan_digest"}
        known["config"] = RunConfig.from_mapping(content["config"], "the plan")
        known["scenes"] = {name: Scene.from_json(record) for name, record in content["scenes"].items()}
        known["zones"] = tuple(_zone(record) for record in content["zones"])
        older = content["format_version"] < WEIGHTS_BY_ROLE
        known["system"] = from_older(content["system"]) if older else _choice(content["system"])
        known["access"] = Access(
            **{
                **content["access"],
                "hosts": tuple(content["access"]["hosts"]),
                "roots": tuple(content["access"]["roots"]),
            }
        )
        known["notes"] = tuple(content["notes"])
        return cls(**known)


def _zone(record: dict[str, Any]) -> Zone:
    grid = record["grid"]
    return Zone(
        **{
            **record,
            "grid": Grid(grid["epsg"], Window(**grid["window"]), grid["gsd_m"], Phase(**grid["phase"])),
            "periods": tuple(Period(**{**p, "scene_ids": tuple(p["scene_ids"])}) for p in record["periods"]),
            "row_breaks": tuple(record["row_breaks"]),
            "col_breaks": tuple(record["col_breaks"]),
        }
    )


def _choice(record: dict[str, Any]) -> Choice:
    files = tuple(File(**file) for file in record["weights"])
    return Choice(**{**record, "weights": files, "generated_bands": tuple(record["generated_bands"])})


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
