"""What the report page reads: one zone and time of a store, the part that is shown, and its pixels.

In: a store, and what the user asked for. Out: `Zone`, `Part`, arrays of DN. Reads chunks of the shown part only: a page
of a country costs no more than one of a town. Imports bands, errors, grid and place; zarr inside functions.
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
from pipeline.store.place import place_of
from pipeline.store.selection import labels, require_stored_dn, root_attributes, time_indices
from pipeline.store.uncertainty import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.place import Place, Where

_CONTEXT_PX = 1_200_000  # of the overview around that part
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
    uncertainty: NDArray[np.uint16] | None  # as `dn`, nodata 65535
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
    attributes = root_attributes(place)
    names = tuple(str(name) for name in _list(attributes.get("groups"), [""]))
    chosen = names[0] if zone is None else zone
    if chosen not in names:
        known = ", ".join(name for name in names if name) or "none, there is one zone only"
        raise UsageError(f"{place} has no zone {zone}", known)
    with undamaged(place, chosen or "the root group"):
        group = zarr.open_group(place.zarr_store(chosen), mode="r")
        require_stored_dn(place, "", group)
        return _zone(place, chosen, names, group, time)


def _zone(place: Place, name: str, names: tuple[str, ...], group: zarr.Group, time: str | None) -> Zone:
    times = tuple(_utc(seconds) for seconds in np.asarray(group["time"][:]))
    _, _, left, _, _, top = (float(value) for value in group.attrs["spatial:transform"])
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


def _time_index(place: Place, times: tuple[str, ...], attributes: Mapping[str, Any], asked: str | None) -> int:
    """The one time step asked for, by default the first. UsageError where none or several are meant."""
    found = [0] if asked is None else time_indices(place, attributes, times, asked)
    if len(found) > 1:
        named = labels(attributes, times)
        shown = ", ".join(named[i] for i in found[:8]) + (", ..." if len(found) > 8 else "")
        raise UsageError(f"{len(found)} time steps of {place} are {asked}", f"one of {shown}")
    return found[0]


@contextmanager
def undamaged(place: Place, what: str) -> Iterator[None]:
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


def nothing(zone: Zone) -> NoDataError:
    """What to say where no pixel at all is measured."""
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
        raise nothing(zone)
    quality = _read(zone, zone.group, "quality", (rows, cols)).astype(np.uint8)
    spread = None
    if "uncertainty" in zone.group:
        spread = decoded(_read(zone, zone.group, "uncertainty", (slice(None), rows, cols)), dn)
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
    means: NDArray[np.uint16] = np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint16)
    means[(blocks == NODATA_DN).any((1, 3))] = NODATA_DN
    return means


def _read(zone: Zone, group: zarr.Group, name: str, where: tuple[slice, ...]) -> NDArray[np.uint16]:
    with undamaged(zone.place, name):
        values: NDArray[np.uint16] = np.asarray(group[name][(zone.time, *where)])
    return values


def _measured(zone: Zone, window: Window) -> dict[int, NDArray[np.uint16]] | None:
    """DN of what went in; None where the store does not keep it."""
    found: dict[int, NDArray[np.uint16]] = {}
    for gsd in GSDS_M:
        names = bands_at(gsd, zone.bands)
        if not names:
            continue
        group = subgroup(zone, f"measured/{gsd}m")
        if group is None:
            return None
        kept = [str(band) for band in np.asarray(group["band"][:])]
        rows, cols = window.coarsen(factor_of(gsd)).slices(zone.whole.coarsen(factor_of(gsd)))
        dn = _read(zone, group, "reflectance", (slice(None), rows, cols))
        found[gsd] = dn if kept == list(names) else np.stack([dn[kept.index(name)] for name in names])
    return found


def subgroup(zone: Zone, path: str) -> zarr.Group | None:
    """A group below the zone's that holds reflectance; None where there is none."""
    import zarr

    found = zone.group.get(path)
    return found if isinstance(found, zarr.Group) and "reflectance" in found else None


def overviews(zone: Zone) -> list[tuple[int, zarr.Array]]:
    """GSD and reflectance of the store's overviews, finest first."""
    found = []
    for gsd in _OVERVIEW_GSDS_M:
        with zone.place.reading():
            group = subgroup(zone, f"overviews/{gsd}m")
        if group is None:
            break
        found.append((gsd, group["reflectance"]))
    return found


def read_context(zone: Zone) -> Context | None:
    """The finest overview that is small enough; None when there is none."""
    for gsd, array in overviews(zone):
        if array.shape[-2] * array.shape[-1] <= _CONTEXT_PX:
            with undamaged(zone.place, f"the overview of {gsd} m"):
                return Context(gsd, np.asarray(array[zone.time]))
    return None
