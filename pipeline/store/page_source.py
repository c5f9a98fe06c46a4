"""What the report page reads: one zone and time of a store, the part that is shown, and its pixels.

In: a store, and what the user asked for. Out: `Zone`, `Part`, arrays of DN. Reads whole chunks of the shown part only, so
that a page of a country costs no more than one of a town. Imports bands, errors, grid, layout and place; zarr inside
functions.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BLOCK_60M, BY_NAME, GSDS_M, NODATA_DN, TARGET_GSD_M, bands_at
from pipeline.errors import IntegrityError, NoDataError, UsageError
from pipeline.grid.grid import Window, align_down
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.place import Place, Where

WHOLE_PX = 5_000_000  # stores of at most so many pixels are shown whole: 31 km2
_DETAIL_PX = 1584  # side of the part that is shown of larger ones: 3.96 km
_CONTEXT_PX = 1_200_000  # of the overview around that part
_CANDIDATES = 6  # along each axis, where the store has no overview to choose the part by
_OVERVIEW_GSDS_M = tuple(5 * 2**i for i in range(14))


@dataclass(frozen=True)
class Zone:
    """One UTM zone of a store at one time; windows are in 2.5 m pixels from its upper left corner."""

    place: Place
    name: str  # of its Zarr group; "" is the root
    names: tuple[str, ...]  # of all zones
    group: zarr.Group
    attributes: Mapping[str, Any]
    bands: tuple[str, ...]
    generated: tuple[str, ...]
    times: tuple[str, ...]  # ISO 8601 with Z
    time: int
    epsg: int
    left_m: float
    top_m: float
    ny: int
    nx: int

    @property
    def whole(self) -> Window:
        """The window of everything."""
        return Window(0, 0, self.ny, self.nx)

    def bounds_m(self, window: Window) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a window, in metres of the zone."""
        left, top = self.left_m + window.col * TARGET_GSD_M, self.top_m - window.row * TARGET_GSD_M
        return left, top - window.ny * TARGET_GSD_M, left + window.nx * TARGET_GSD_M, top


@dataclass(frozen=True)
class Part:
    """Pixels of the shown part: DN of the output and of what was measured, native GSD by native GSD."""

    window: Window
    dn: NDArray[np.uint16]  # (band, ny, nx), 2.5 m
    quality: NDArray[np.uint8]  # (ny, nx)
    uncertainty: NDArray[np.uint16] | None  # as `dn`
    measured: dict[int, NDArray[np.uint16]]  # gsd -> (band, y, x), bands as `bands_at(gsd, zone.bands)`
    measured_kept: bool  # False: the store keeps no input, and `measured` holds block means of the output


@dataclass(frozen=True)
class Context:
    """An overview of the whole zone around the part: mean of what was measured."""

    gsd_m: int
    dn: NDArray[np.uint16]  # (band, y, x)


def open_zone(where: Where, zone: str | None = None, time: str | None = None) -> Zone:
    """One zone (the first, unless named) and time (likewise) of a store. UsageError when there is no such thing."""
    import zarr

    place = place_of(where)
    if place.size("zarr.json") is None:
        raise UsageError(f"{place} is not a Zarr store", "the folder that a run wrote, such as region.zarr")
    with _undamaged(place, "zarr.json"):
        root = zarr.open_group(place.zarr_store(), mode="r")
    if "plan_digest" not in root.attrs and "groups" not in root.attrs:
        raise UsageError(f"{place} was not written by this pipeline", "a group with the attribute plan_digest")
    names = tuple(str(name) for name in _list(root.attrs.get("groups"), [""]))
    chosen = names[0] if zone is None else zone
    if chosen not in names:
        known = ", ".join(name for name in names if name) or "none, there is one zone only"
        raise UsageError(f"{place} has no zone {zone}", known)
    with _undamaged(place, chosen or "the root group"):
        group = zarr.open_group(place.zarr_store(chosen), mode="r")
        return _zone(place, chosen, names, group, time)


def _zone(place: Place, name: str, names: tuple[str, ...], group: zarr.Group, time: str | None) -> Zone:
    times = tuple(_utc(seconds) for seconds in np.asarray(group["time"][:]))
    left, _, _, _, _, top = (float(value) for value in group.attrs["spatial:transform"])
    bands = tuple(str(band) for band in np.asarray(group["band"][:]))
    unknown = [band for band in bands if band not in BY_NAME]
    if unknown:
        raise UsageError(f"{place} has bands {', '.join(unknown)}", f"some of {', '.join(BY_NAME)}")
    flags = np.asarray(group["generated"][:])
    ny, nx = group["reflectance"].shape[-2:]
    return Zone(
        place, name, names, group, dict(group.attrs), bands,
        tuple(band for band, flag in zip(bands, flags, strict=True) if flag),
        times, _time_index(place, times, group.attrs, time),
        int(str(group.attrs["proj:code"]).removeprefix("EPSG:")), left, top, ny, nx,
    )  # fmt: skip


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _list(value: object, default: list[str]) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else default


def labels(attributes: Mapping[str, Any], times: tuple[str, ...]) -> tuple[str, ...]:
    """What the time steps are called: their periods' labels, else their dates."""
    periods = attributes.get("periods")
    if isinstance(periods, list) and len(periods) == len(times):
        return tuple(str(period.get("label") or when[:10]) for period, when in zip(periods, times, strict=True))
    return tuple(when[:10] for when in times)


def _time_index(place: Place, times: tuple[str, ...], attributes: Mapping[str, Any], asked: str | None) -> int:
    if asked is None:
        return 0
    named = labels(attributes, times)
    for index, (label, when) in enumerate(zip(named, times, strict=True)):
        if asked in (label, when) or when.startswith(asked):
            return index
    shown = ", ".join(named[:12]) + (", ..." if len(named) > 12 else "")
    raise UsageError(f"{place} has no time {asked}", f"one of {shown}")


@contextmanager
def _undamaged(place: Place, what: str) -> Iterator[None]:
    """Failures of reading as IntegrityError, but for those that the place itself puts into words."""
    try:
        with place.reading():
            yield
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(
            f"{place}: {what} cannot be read ({reason})",
            "what the run wrote",
            f"python -m pipeline.check {place} --verify full --repair",
        ) from error


def choose_window(zone: Zone, at: tuple[float, float] | None = None) -> Window:
    """The part to show: all of a small store, else a square around `at` (longitude, latitude), else where most is seen.

    Raises UsageError when `at` lies outside, NoDataError when nothing at all is measured.
    """
    if zone.ny * zone.nx <= WHOLE_PX:
        if at is not None:
            _pixel(zone, at)
        return zone.whole
    row, col = _pixel(zone, at) if at is not None else _contrast(zone)
    side_y, side_x = min(_DETAIL_PX, zone.ny), min(_DETAIL_PX, zone.nx)
    top = align_down(int(np.clip(row - side_y // 2, 0, zone.ny - side_y)), BLOCK_60M)
    left = align_down(int(np.clip(col - side_x // 2, 0, zone.nx - side_x)), BLOCK_60M)
    return Window(top, left, side_y, side_x)


def _pixel(zone: Zone, at: tuple[float, float]) -> tuple[int, int]:
    """Row and column of a place (degrees). UsageError when it lies outside the zone."""
    import pyproj

    turn = pyproj.Transformer.from_crs(4326, zone.epsg, always_xy=True)
    x, y = turn.transform(*at)
    row, col = (zone.top_m - y) / TARGET_GSD_M, (x - zone.left_m) / TARGET_GSD_M
    if not (math.isfinite(row) and math.isfinite(col) and 0 <= row < zone.ny and 0 <= col < zone.nx):
        west, south, east, north = turn.transform_bounds(*zone.bounds_m(zone.whole), direction="INVERSE")
        raise UsageError(
            f"{at[0]:g} {at[1]:g} lies outside the store",
            f"a longitude from {west:.4f} to {east:.4f} and a latitude from {south:.4f} to {north:.4f}",
        )
    return int(row), int(col)


def _contrast(zone: Zone) -> tuple[int, int]:
    """Row and column of the middle of the place with most contrast."""
    band = zone.bands.index("B03") if "B03" in zone.bands else 0
    coarsest = _overviews(zone)[-1:]
    if coarsest:
        gsd, array = coarsest[0]
        with _undamaged(zone.place, f"the overview of {gsd} m"):
            dn = np.asarray(array[zone.time, band])
        return _most_contrast(zone, dn, gsd)
    return _most_contrast_of_chunks(zone, band)


def _most_contrast(zone: Zone, dn: NDArray[np.uint16], gsd_m: float) -> tuple[int, int]:
    side = max(2, round(_DETAIL_PX * TARGET_GSD_M / gsd_m))
    best: tuple[float, int, int] | None = None
    for row in _spread(dn.shape[0], side):
        for col in _spread(dn.shape[1], side):
            score = _score(dn[row : row + side, col : col + side])
            if score > 0 and (best is None or score > best[0]):
                best = (score, row, col)
    if best is None:
        raise _nothing(zone)
    scale = gsd_m / TARGET_GSD_M
    return int((best[1] + side / 2) * scale), int((best[2] + side / 2) * scale)


def _most_contrast_of_chunks(zone: Zone, band: int) -> tuple[int, int]:
    """The same for stores without overviews: by some chunks that are spread evenly."""
    array = zone.group["reflectance"]
    chunk = array.chunks[-1]
    best: tuple[float, int, int] | None = None
    for row in _some(math.ceil(zone.ny / chunk)):
        for col in _some(math.ceil(zone.nx / chunk)):
            rows, cols = slice(row * chunk, (row + 1) * chunk), slice(col * chunk, (col + 1) * chunk)
            with _undamaged(zone.place, "reflectance"):
                score = _score(np.asarray(array[zone.time, band, rows, cols]))
            if score > 0 and (best is None or score > best[0]):
                best = (score, row, col)
    if best is None:
        raise _nothing(zone)
    return best[1] * chunk + chunk // 2, best[2] * chunk + chunk // 2


def _score(dn: NDArray[np.uint16]) -> float:
    """Spread of what is measured times its share, above 0 wherever anything is."""
    measured = dn[dn != NODATA_DN]
    return float(measured.std() + 1e-3) * measured.size / dn.size if measured.size else 0.0


def _spread(length: int, side: int) -> list[int]:
    return sorted({*range(0, max(1, length - side + 1), max(1, side // 2)), max(0, length - side)})


def _some(count: int) -> list[int]:
    return sorted({(count - 1) * i // max(1, _CANDIDATES - 1) for i in range(_CANDIDATES)})


def _nothing(zone: Zone) -> NoDataError:
    label = labels(zone.attributes, zone.times)[zone.time]
    return NoDataError(
        f"{zone.place} holds no measured pixel at {label}",
        cure="finish the run, or choose another --time or --zone" if len(zone.times) > 1 or len(zone.names) > 1 else
        "finish the run: python -m pipeline.check tells what is missing",
    )  # fmt: skip


def read_part(zone: Zone, window: Window) -> Part:
    """All arrays of `window`. IntegrityError when bytes are damaged, NoDataError when nothing there is measured."""
    rows, cols = window.slices(zone.whole)
    dn = _read(zone, zone.group, "reflectance", (slice(None), rows, cols))
    if not dn.any():
        raise _nothing(zone)
    quality = _read(zone, zone.group, "quality", (rows, cols)).astype(np.uint8)
    spread = None
    if "uncertainty" in zone.group:
        spread = _read(zone, zone.group, "uncertainty", (slice(None), rows, cols))
    measured = _measured(zone, window)
    if measured is not None:
        return Part(window, dn, quality, spread, measured, measured_kept=True)
    means = {
        gsd: np.stack([block_means(dn[zone.bands.index(name)], factor_of(gsd)) for name in bands_at(gsd, zone.bands)])
        for gsd in GSDS_M
        if bands_at(gsd, zone.bands)
    }
    return Part(window, dn, quality, spread, means, measured_kept=False)


def factor_of(gsd_m: int) -> int:
    """2.5 m pixels along one side of a native pixel."""
    return round(gsd_m / TARGET_GSD_M)


def block_means(dn: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """(y, x) means of factor x factor px, rounded; nodata where any of them is."""
    ny, nx = dn.shape[0] // factor, dn.shape[1] // factor
    blocks = dn[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)
    means = np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint16)
    means[(blocks == NODATA_DN).any((1, 3))] = NODATA_DN
    return means


def _read(zone: Zone, group: zarr.Group, name: str, where: tuple[slice, ...]) -> NDArray[np.uint16]:
    with _undamaged(zone.place, name):
        return np.asarray(group[name][(zone.time, *where)])


def _measured(zone: Zone, window: Window) -> dict[int, NDArray[np.uint16]] | None:
    """DN of what went in; None where the store does not keep it."""
    found = {}
    for gsd in GSDS_M:
        names = bands_at(gsd, zone.bands)
        if not names:
            continue
        group = _subgroup(zone, f"measured/{gsd}m")
        if group is None:
            return None
        kept = [str(band) for band in np.asarray(group["band"][:])]
        rows, cols = window.coarsen(factor_of(gsd)).slices(zone.whole.coarsen(factor_of(gsd)))
        dn = _read(zone, group, "reflectance", (slice(None), rows, cols))
        found[gsd] = dn if kept == list(names) else dn[[kept.index(name) for name in names]]
    return found


def _subgroup(zone: Zone, path: str) -> zarr.Group | None:
    import zarr

    found = zone.group.get(path)
    return found if isinstance(found, zarr.Group) and "reflectance" in found else None


def _overviews(zone: Zone) -> list[tuple[int, zarr.Array]]:
    """GSD and reflectance of the store's overviews, finest first."""
    found = []
    for gsd in _OVERVIEW_GSDS_M:
        with zone.place.reading():
            group = _subgroup(zone, f"overviews/{gsd}m")
        if group is None:
            break
        found.append((gsd, group["reflectance"]))
    return found


def read_context(zone: Zone) -> Context | None:
    """The finest overview that is small enough; None when there is none."""
    for gsd, array in _overviews(zone):
        if array.shape[-2] * array.shape[-1] <= _CONTEXT_PX:
            with _undamaged(zone.place, f"the overview of {gsd} m"):
                return Context(gsd, np.asarray(array[zone.time]))
    return None
