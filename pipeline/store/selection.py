"""Select zones, time steps, variables, bands and a window of a store, and check the request before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import IntegrityError, UsageError
from pipeline.grid.grid import Window
from pipeline.store.extras import MAP_CLASS
from pipeline.store.identity import group_attributes, groups_of
from pipeline.store.identity import root_attributes as root_attributes
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.levels import BANDED, FINER, gsd_name
from pipeline.store.nodes import array_at, group_at, values_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr

    from pipeline.store.place import Place

PER_BAND = BANDED  # variables (time, band, y, x)
CLASSES = ("quality", "scl", MAP_CLASS)  # variables (time, y, x)
VARIABLES = (*PER_BAND, *CLASSES)
_MAX_INDEX_DIGITS = 3  # more digits are a year
_ON_EDGE_PX = 1e-6  # tolerance, so that a box that ends on a pixel's edge does not select the next pixel by rounding


@dataclass(frozen=True)
class Request:
    """What a user asks for; empty fields select everything."""

    bands: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None  # west, south, east, north, degrees
    time: str = "all"  # "all", an index, or how a step's label or time begins: 2024, 2024-06, 2024-06-17
    variables: tuple[str, ...] = ("reflectance",)
    gsd_m: float = TARGET_GSD_M  # or finer, where the store has that


@dataclass(frozen=True)
class Slab:
    """One variable of one time step of one zone, within a window."""

    group: str  # path of the group of its arrays in the store
    epsg: int
    variable: str
    time_index: int
    time_utc: str  # ISO 8601 with Z
    bands: tuple[str, ...]  # in the order asked for; empty for classes
    band_indices: tuple[int, ...]  # of `bands` in the store
    window: Window  # pixels from the upper left of the group's grid
    transform: tuple[float, float, float, float, float, float]  # affine a..f of the window
    generated: frozenset[str]  # bands with generated detail
    label: str  # of the time step: a date, a month, or two dates
    attributes: dict[str, Any]  # the zone's
    gsd_m: float = TARGET_GSD_M

    @property
    def zone(self) -> str:
        """UTM zone as in names of groups and files: "utm32n"."""
        return f"utm{self.epsg % 100:02d}{'n' if self.epsg // 100 == 326 else 's'}"

    @property
    def date(self) -> str:
        """Label of the time step as in file names: "2024-06-17", "2024-06", "2024-06-02_2024-06-29"."""
        return self.label.replace("/", "_")


def require_stored_dn(place: Place, group: str, root: zarr.Group) -> None:
    """Raise UsageError unless a zone's reflectance is uint16 DN, which copies by other programs may not be."""
    found = array_at(root, "/".join(part for part in (group, "reflectance") if part)).dtype
    if found != np.uint16:
        raise UsageError(
            f"{place} holds reflectance as {found}: a copy of a store, made by another program",
            "uint16, as the run wrote it",
            "use the store itself, or open the copy with xarray",
        )


def store_name(place: Place) -> str:
    """Return the last part of the store's address, without .zarr. File names begin with it."""
    return PurePosixPath(str(place.absolute()).replace("\\", "/")).name.removesuffix(".zarr") or "store"


def require_finished(place: Place, attributes: dict[str, Any], *, allow_incomplete: bool) -> list[str]:
    """Return notes on what the store lacks. Raises UsageError if it is not finished, unless that is allowed."""
    status = attributes.get("status")
    if status == STATUS_QUARANTINE:
        aside = ", ".join(map(str, attributes.get("quarantined", [])))
        return [f"{place} lacks units that were set aside ({aside}); they are nodata"]
    if status == STATUS_COMPLETE:
        return []
    if allow_incomplete:
        return [f"{place} is not complete; units that are missing are nodata"]
    raise UsageError(
        f"{place} is {status}",
        "a finished store",
        f"finish it with python -m pipeline.run --plan {place}, or export what there is with --allow-incomplete",
    )


def select(place: Place, attributes: dict[str, Any], request: Request) -> list[Slab]:
    """Return the slabs of a request, zone by zone. Raises UsageError if the store does not hold what is asked for."""
    import zarr

    if request.bbox is not None:
        _check_bbox(request.bbox)
    found: list[Slab] = []
    for group in groups_of(place, attributes):
        try:
            with place.reading():
                opened = zarr.open_group(place.zarr_store(group), mode="r")
                require_stored_dn(place, "", opened)
                stated = group_attributes(place, group, opened)
                path, opened, lies = _at_gsd(place, group, opened, stated, request.gsd_m)
            window = _window(lies, request.bbox)
            if not window.empty:
                found += _of_zone(place, path, opened, stated | lies, window, request)
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"the metadata of {place}, group {group or '/'} cannot be read ({error})",
                cure=f"python -m pipeline.check {place} --verify full",
            ) from error
    if not found:
        box = ", ".join(f"{value:g}" for value in request.bbox or ())
        raise UsageError(f"the box {box} does not meet {place}", f"degrees within {_extent(place, attributes)}")
    return found


def _at_gsd(
    place: Place, group: str, opened: zarr.Group, stated: dict[str, Any], gsd_m: float
) -> tuple[str, zarr.Group, dict[str, Any]]:
    """Return (path, group, georeference) of the level of a GSD. Raises UsageError if the zone has none."""
    if gsd_m == TARGET_GSD_M:
        return group, opened, stated
    inside = f"{FINER}/{gsd_name(gsd_m)}"
    if inside not in opened:
        finer = group_at(opened, FINER).group_keys() if FINER in opened else ()
        known = [*sorted(finer, key=lambda name: float(name.removesuffix("m"))), gsd_name(TARGET_GSD_M)]
        raise UsageError(f"{place} holds nothing at {gsd_m:g} m", f"one of {', '.join(known)}")
    path = f"{group}/{inside}".lstrip("/")
    level = group_at(opened, inside)
    lies = {name: value for name, value in dict(level.attrs).items() if name.startswith(("spatial:", "comment"))}
    return path, level, lies | {"proj:code": stated["proj:code"]}


def _of_zone(
    place: Place, group: str, opened: zarr.Group, attributes: dict[str, Any], window: Window, request: Request
) -> list[Slab]:
    with place.reading():
        bands = [str(name) for name in values_at(opened, "band")]
        flags = values_at(opened, "generated")
        seconds = [int(value) for value in values_at(opened, "time")]
    a, _, c, _, e, f = (float(value) for value in attributes["spatial:transform"])
    chosen = request.bands or tuple(bands)
    _require(place, "band", [name for name in chosen if name not in bands], bands)
    present = [name for name in VARIABLES if name in opened]
    absent = [name for name in request.variables if name not in present]
    hints = {
        "uncertainty": "uncertainty is written by runs with --members 2 or more",
        MAP_CLASS: "the map that guided a run is stored at the GSD that it is read at, below 2.5 m (--gsd)",
    }
    hint = next((hints[name] for name in absent if name in hints), "")
    _require(place, "variable", absent, present, hint)
    times = [_iso(value) for value in seconds]
    named = labels(attributes, times)
    return [
        Slab(
            group=group,
            epsg=int(str(attributes["proj:code"]).removeprefix("EPSG:")),
            variable=variable,
            time_index=index,
            time_utc=times[index],
            bands=chosen if variable in PER_BAND else (),
            band_indices=tuple(bands.index(name) for name in chosen) if variable in PER_BAND else (),
            window=window,
            transform=(a, 0.0, c + window.col * a, 0.0, e, f + window.row * e),
            generated=frozenset(name for name, flag in zip(bands, flags, strict=True) if flag),
            label=named[index],
            attributes=attributes,
            gsd_m=request.gsd_m,
        )
        for index in time_indices(place, attributes, times, request.time)
        for variable in request.variables
    ]


def _require(place: Place, kind: str, absent: Sequence[str], present: Sequence[str], cure: str = "") -> None:
    if absent:
        raise UsageError(f"{place} holds no {kind} {', '.join(absent)}", f"of {', '.join(present)}", cure)


def _iso(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def labels(attributes: Mapping[str, Any], times: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of the time steps: those of their periods, such as local dates or months, else UTC dates."""
    found = periods(attributes)
    return tuple(
        str(found[i].get("label") or when[:10]) if i < len(found) else when[:10] for i, when in enumerate(times)
    )


def periods(attributes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the store's records of its time steps; empty records where it has none."""
    found = attributes.get("periods")
    return [one if isinstance(one, dict) else {} for one in found] if isinstance(found, list) else []


def time_indices(place: Place, attributes: Mapping[str, Any], times: Sequence[str], asked: str) -> list[int]:
    """Return the time steps asked for: "all", an index, or the start of a label or time. Raises UsageError for none."""
    if asked == "all":
        return list(range(len(times)))
    named = labels(attributes, times)
    digits = asked.removeprefix("-")
    if digits.isdecimal() and len(digits) <= _MAX_INDEX_DIGITS:
        index = int(asked)
        if -len(times) <= index < len(times):
            return [index % len(times)]
    elif asked:
        steps = list(enumerate(zip(named, times, strict=True)))
        found = [i for i, (label, _) in steps if label == asked] or [
            i for i, (label, _) in steps if label.startswith(asked)
        ]
        found = found or [i for i, (_, moment) in steps if moment.startswith(asked)]
        if found:
            return found
    shown = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
    numbers = f"0 to {len(times) - 1}" if len(times) > 1 else "0"
    raise UsageError(f"{place} holds no time step {asked!r}", f"all, {numbers}, or one of {shown}")


def _check_bbox(bbox: tuple[float, float, float, float]) -> None:
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        shown = ",".join(f"{value:g}" for value in bbox)
        raise UsageError(f"the box {shown} is none", "west,south,east,north in degrees, west < east and south < north")


def _window(attributes: Mapping[str, Any], bbox: tuple[float, float, float, float] | None) -> Window:
    """Return the pixels of the group that a box touches, all of them without a box; empty if there are none."""
    ny, nx = (int(value) for value in attributes["spatial:shape"])
    whole = Window(0, 0, ny, nx)
    if bbox is None:
        return whole
    from pyproj import Transformer

    a, _, c, _, e, f = (float(value) for value in attributes["spatial:transform"])
    to_metres = Transformer.from_crs(4326, str(attributes["proj:code"]), always_xy=True)
    left, bottom, right, top = to_metres.transform_bounds(*bbox, densify_pts=21)
    if not all(map(math.isfinite, (left, bottom, right, top))):
        return Window(0, 0, 0, 0)
    col, row = (math.floor(value + _ON_EDGE_PX) for value in ((left - c) / a, (top - f) / e))
    col_end, row_end = (math.ceil(value - _ON_EDGE_PX) for value in ((right - c) / a, (bottom - f) / e))
    return Window(row, col, row_end - row, col_end - col).intersect(whole)


def _extent(place: Place, attributes: dict[str, Any]) -> str:
    """Return the extent of a store, "w,s,e,n" in degrees, one per zone."""
    import zarr
    from pyproj import Transformer

    boxes = []
    for group in groups_of(place, attributes):
        with place.reading():
            stated = group_attributes(place, group, zarr.open_group(place.zarr_store(group), mode="r"))
        to_degrees = Transformer.from_crs(str(stated["proj:code"]), 4326, always_xy=True)
        left, bottom, right, top = stated["spatial:bbox"]
        box = to_degrees.transform_bounds(left, bottom, right, top, densify_pts=21)
        boxes.append(",".join(f"{v:.4f}" for v in box))
    return " or ".join(boxes)
