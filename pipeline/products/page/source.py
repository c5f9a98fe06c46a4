"""Data of the report page: one zone and time of a store, the part that is shown, and its pixels.

Only chunks of the shown part and one overview are read, so the cost does not grow with the store.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BY_NAME, GSDS_M, NODATA_DN, TARGET_GSD_M, bands_at
from pipeline.errors import IntegrityError, NoDataError, UsageError
from pipeline.grid.grid import Window
from pipeline.store.identity import group_attributes, groups_of, root_attributes
from pipeline.store.layout import band_parts
from pipeline.store.nodes import array_at, values_at
from pipeline.store.place import place_of
from pipeline.store.selection import labels, require_stored_dn, time_indices
from pipeline.store.uncertainty import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.place import Place, Where

_CONTEXT_PX = 1_200_000  # largest overview to show around the part
_OVERVIEW_GSDS_M = tuple(5 * 2**i for i in range(14))


@dataclass(frozen=True)
class Zone:
    """One UTM zone of a store at one time. Windows are in 2.5 m pixels from its upper left corner."""

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
    mtf: Mapping[str, float]  # at Nyquist, by band, for `consistency = sensor`

    @property
    def consistency(self) -> str:
        """Consistency mode of the output."""
        return str(self.attributes.get("consistency", ""))

    @property
    def estimate(self) -> str:
        """Kind of estimate, "mean" or "sample". A single draw counts as a sample."""
        return "sample" if self.drawn == 1 else "mean"

    @property
    def drawn(self) -> int:
        """Number of draws in the output: 0 for a regression, 1 for a single draw."""
        members = self.attributes.get("members")
        return members if isinstance(members, int) and members >= 0 else 1

    @property
    def whole(self) -> Window:
        """Window of the whole zone."""
        return Window(0, 0, self.ny, self.nx)

    def bounds_m(self, window: Window) -> tuple[float, float, float, float]:
        """Return (left, bottom, right, top) of a window, in metres of the zone."""
        left, top = self.left_m + window.col * TARGET_GSD_M, self.top_m - window.row * TARGET_GSD_M
        return left, top - window.ny * TARGET_GSD_M, left + window.nx * TARGET_GSD_M, top


@dataclass(frozen=True)
class Part:
    """Pixels of the shown part: DN of the output, and of the measured input by native GSD."""

    window: Window
    dn: NDArray[np.uint16]  # (band, ny, nx), 2.5 m
    quality: NDArray[np.uint8]  # (ny, nx)
    uncertainty: NDArray[np.uint16] | None  # as `dn`, nodata 65535
    measured: dict[int, NDArray[np.uint16]]  # gsd -> (band, y, x), bands as `bands_at(gsd, zone.bands)`
    measured_kept: bool  # False if the store keeps no input and `measured` holds block means of the output


@dataclass(frozen=True)
class Context:
    """An overview of the whole zone around the part."""

    gsd_m: int
    dn: NDArray[np.uint16]  # (band, y, x)


def open_zone(where: Where, zone: str | None = None, time: str | None = None) -> Zone:
    """Open one zone and time of a store, by default the first. Raises UsageError if they do not exist."""
    import zarr

    place = place_of(where)
    attributes = root_attributes(place)
    names = tuple(groups_of(place, attributes))
    chosen = names[0] if zone is None else zone
    if chosen not in names:
        known = ", ".join(name for name in names if name) or "none, there is one zone only"
        raise UsageError(f"{place} has no zone {zone}", known)
    with undamaged(place, chosen or "the root group"):
        group = zarr.open_group(place.zarr_store(chosen), mode="r")
        require_stored_dn(place, "", group)
        return _zone(place, chosen, names, group, time)


def _zone(place: Place, name: str, names: tuple[str, ...], group: zarr.Group, time: str | None) -> Zone:
    stated = group_attributes(place, name, group)
    times = tuple(_utc(seconds) for seconds in values_at(group, "time"))
    _, _, left, _, _, top = (float(value) for value in stated["spatial:transform"])
    bands = tuple(str(band) for band in values_at(group, "band"))
    unknown = [band for band in bands if band not in BY_NAME]
    if unknown:
        raise UsageError(f"{place} has bands {', '.join(unknown)}", f"some of {', '.join(BY_NAME)}")
    flags = values_at(group, "generated")
    ny, nx = array_at(group, "reflectance").shape[-2:]
    kept = dict(zip(bands, map(float, values_at(group, "mtf")), strict=True)) if "mtf" in group else {}
    return Zone(
        place, name, names, group, stated, bands,
        tuple(band for band, flag in zip(bands, flags, strict=True) if flag),
        times, _time_index(place, times, stated, time),
        int(str(stated["proj:code"]).removeprefix("EPSG:")), left, top, ny, nx,
        {band: kept.get(band, BY_NAME[band].product_mtf) for band in bands},
    )  # fmt: skip


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time_index(place: Place, times: tuple[str, ...], attributes: Mapping[str, Any], asked: str | None) -> int:
    """Return the index of the requested time step, by default the first. Raises UsageError if none or several match."""
    found = [0] if asked is None else time_indices(place, attributes, times, asked)
    if len(found) > 1:
        named = labels(attributes, times)
        shown = ", ".join(named[i] for i in found[:8]) + (", ..." if len(found) > 8 else "")
        raise UsageError(f"{len(found)} time steps of {place} are {asked}", f"one of {shown}")
    return found[0]


@contextmanager
def undamaged(place: Place, what: str) -> Iterator[None]:
    """Turn read failures into IntegrityErrors, except the store location's own errors."""
    try:
        with place.reading():
            yield
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(
            f"{place}: {what} cannot be read ({reason})",
            "what the run wrote",
            f"python -m pipeline.check {place} --verify full --repair",
        ) from error


def nothing(zone: Zone) -> NoDataError:
    """Return the error for a store without any measured pixel."""
    label = labels(zone.attributes, zone.times)[zone.time]
    return NoDataError(
        f"{zone.place} holds no measured pixel at {label}",
        cure="finish the run, or choose another --time or --zone" if len(zone.times) > 1 or len(zone.names) > 1 else
        "finish the run: python -m pipeline.check tells what is missing",
    )  # fmt: skip


def read_part(zone: Zone, window: Window, hidden: frozenset[str] = frozenset()) -> Part:
    """Read all arrays of `window`, with the chunks `hidden` as nodata.

    Raises IntegrityError if bytes are damaged, and NoDataError if nothing is measured there.
    """
    rows, cols = window.slices(zone.whole)
    dn = _read(zone, zone.group, "reflectance", (slice(None), rows, cols), hidden)
    if not dn.any():
        raise nothing(zone)
    quality = _read(zone, zone.group, "quality", (rows, cols), hidden).astype(np.uint8)
    spread = None
    if "uncertainty" in zone.group:
        spread = decoded(_read(zone, zone.group, "uncertainty", (slice(None), rows, cols), hidden), dn)
    measured = _measured(zone, window, hidden)
    if measured is not None:
        return Part(window, dn, quality, spread, measured, measured_kept=True)
    means = {
        gsd: np.stack([block_means(dn[zone.bands.index(name)], factor_of(gsd)) for name in bands_at(gsd, zone.bands)])
        for gsd in GSDS_M
        if bands_at(gsd, zone.bands)
    }
    return Part(window, dn, quality, spread, means, measured_kept=False)


def factor_of(gsd_m: int) -> int:
    """Return the number of 2.5 m pixels along one side of a pixel of `gsd_m`."""
    return round(gsd_m / TARGET_GSD_M)


def block_means(dn: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Return means (y, x) of factor x factor px, rounded; nodata if any of them is nodata."""
    ny, nx = dn.shape[0] // factor, dn.shape[1] // factor
    blocks = dn[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)
    means: NDArray[np.uint16] = np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint16)
    means[(blocks == NODATA_DN).any((1, 3))] = NODATA_DN
    return means


def _read(
    zone: Zone, group: zarr.Group, name: str, where: tuple[slice, ...], hidden: frozenset[str], path: str = ""
) -> NDArray[np.uint16]:
    """Read pixels of the array `name`, which is at `path` in the zone's group."""
    with undamaged(zone.place, name):
        array = array_at(group, name)
        selected: tuple[int | slice, ...] = (zone.time, *where)
        values: NDArray[np.uint16] = np.array(array[selected])
    step, (rows, cols) = (array.shards or array.chunks)[-1], where[-2:]
    many = len(band_parts(array)) > 1
    for key in hidden:
        if key.startswith(f"{path or name}/c/"):
            band, row, col = (int(part) for part in key.split("/")[-3:])
            top, left = max(0, row * step - rows.start), max(0, col * step - cols.start)
            below, right = max(0, (row + 1) * step - rows.start), max(0, (col + 1) * step - cols.start)
            shown = values[band] if many else values
            shown[..., top:below, left:right] = array.fill_value
    return values


def _measured(zone: Zone, window: Window, hidden: frozenset[str]) -> dict[int, NDArray[np.uint16]] | None:
    """Read the DN of the measured input by GSD, or None if the store does not keep it."""
    found: dict[int, NDArray[np.uint16]] = {}
    for gsd in GSDS_M:
        names = bands_at(gsd, zone.bands)
        if not names:
            continue
        group = subgroup(zone, f"measured/{gsd}m")
        if group is None:
            return None
        kept = [str(band) for band in values_at(group, "band")]
        rows, cols = window.coarsen(factor_of(gsd)).slices(zone.whole.coarsen(factor_of(gsd)))
        path = f"measured/{gsd}m/reflectance"
        dn = _read(zone, group, "reflectance", (slice(None), rows, cols), hidden, path)
        found[gsd] = dn if kept == list(names) else np.stack([dn[kept.index(name)] for name in names])
    return found


def subgroup(zone: Zone, path: str) -> zarr.Group | None:
    """Return a group below the zone's group that holds reflectance, or None."""
    import zarr

    found = zone.group.get(path)
    return found if isinstance(found, zarr.Group) and "reflectance" in found else None


def overviews(zone: Zone) -> list[tuple[int, zarr.Array[Any]]]:
    """Return GSD and reflectance of the store's overviews, finest first."""
    found = []
    for gsd in _OVERVIEW_GSDS_M:
        with zone.place.reading():
            group = subgroup(zone, f"overviews/{gsd}m")
        if group is None:
            break
        found.append((gsd, array_at(group, "reflectance")))
    return found


def context_gsd_m(zone: Zone) -> int | None:
    """Return the GSD of the finest overview that is small enough, or None."""
    sizes = ((gsd, array.shape[-2] * array.shape[-1]) for gsd, array in overviews(zone))
    return next((gsd for gsd, pixels in sizes if pixels <= _CONTEXT_PX), None)


def read_context(zone: Zone, gsd_m: int, hidden: frozenset[str] = frozenset()) -> Context | None:
    """Read the overview of this GSD, if any, with the chunks `hidden` as nodata."""
    path = f"overviews/{gsd_m}m"
    group = subgroup(zone, path)
    if group is None:
        return None
    rows, cols = (slice(0, length) for length in array_at(group, "reflectance").shape[-2:])
    dn = _read(zone, group, "reflectance", (slice(None), rows, cols), hidden, f"{path}/reflectance")
    return Context(gsd_m, dn)
