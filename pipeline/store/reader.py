"""Opening a finished store: one call, lazy and decoded.

In: a path or URL. Out: an xarray Dataset (one UTM zone) or DataTree (several). Imports levels, layout, place, errors.

With xarray alone: `xr.open_zarr(store)` for the 2.5 m arrays of one zone, `xr.open_groups(store, engine="zarr")` for
all levels, or `xr.open_datatree(store, engine="zarr", group="overviews")`, and "measured". The whole store is no
DataTree: in one, a group must share the coordinates of the group above it, and levels differ in x and y.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import DN_SCALE, HOUSE_ADD_OFFSET_DN, NODATA_DN, NODATA_SPREAD, TARGET_GSD_M
from pipeline.errors import IntegrityError, UsageError
from pipeline.store.flat import flat
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.levels import MEASURED, OVERVIEWS, gsd_name
from pipeline.store.place import place_of
from pipeline.store.selection import require_stored_dn, root_attributes

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from pipeline.store.place import Place, Where


_OF_THE_STORE = ("groups", "multiscales", "zarr_conventions")  # which say nothing of one level, nor of a copy of it
_PACKING = ("scale_factor", "add_offset", "_FillValue")


def open_store(path: Where, gsd_m: float | None = None) -> xr.Dataset | xr.DataTree:
    """Open a store: `reflectance` in float32 with NaN for nodata, `quality`, `scl`, `uncertainty`, and its CRS.

    Lazy; several UTM zones make a DataTree. `gsd_m` chooses an overview (5, 10, 20 ... m): means of the 2.5 m pixels.
    `uncertainty` is NaN where reflectance is. Attributes that are lists of words or dictionaries, such as `scenes`, are
    JSON text, so that `to_netcdf` takes them. A plain `xarray.open_zarr` decodes into float64: twice the memory.
    Raises UsageError when `path` is no store of this pipeline or has no such overview; warns when the store is not
    complete.
    """
    import xarray as xr

    location, root = _root(path)
    _warn_if_unfinished(location, root)
    groups = [str(group) for group in root.attrs.get("groups", [""])]
    level = "" if gsd_m is None else _overview(location, root, groups, gsd_m)
    opened = {group: _decoded(location, _joined(group, level)) for group in groups}
    if groups == [""]:
        return opened[""]
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in opened.items()})


def _overview(location: Place, root: zarr.Group, groups: list[str], gsd_m: float) -> str:
    """Path, within a zone's group, of the overview of a GSD that every zone has. UsageError names those there are."""
    if gsd_m == TARGET_GSD_M:
        return ""
    shared = set.intersection(*(set(_gsds(root, group, OVERVIEWS)) for group in groups))
    if f"{gsd_m:g}" not in shared:
        known = [f"{TARGET_GSD_M:g}", *sorted(shared, key=float)]
        raise UsageError(f"{location} has no overview of {gsd_m:g} m", f"one of {', '.join(known)} m")
    return f"{OVERVIEWS}/{gsd_name(gsd_m)}"


def open_measured(path: Where, zone: str = "") -> dict[int, xr.Dataset]:
    """What went in, on its native grids: {10: B02 B03 B04 B08, 20: ..., 60: ...} as float32 reflectance, lazy.

    `zone` such as "utm31n" chooses one of several UTM zones. UsageError when it is not there, or must be given.
    """
    location, root = _root(path)
    groups = [str(group) for group in root.attrs.get("groups", [""])]
    if zone not in groups and groups != [""]:
        found = f"no zone {zone}" if zone else "several UTM zones"
        raise UsageError(f"{location} has {found}", f'zone="{groups[0]}" or another of {", ".join(groups)}')
    group = "" if groups == [""] else zone
    gsds = [int(name) for name in _gsds(root, group, MEASURED)]
    return {gsd: _decoded(location, _joined(group, f"{MEASURED}/{gsd}m")) for gsd in gsds}


def _root(path: Where) -> tuple[Place, zarr.Group]:
    """A store's place and root group. UsageError when it is none of ours."""
    import zarr

    importlib.import_module("rioxarray")  # registers the `.rio` accessor that users expect to find
    location = place_of(path)
    attributes = root_attributes(location)
    try:
        with location.reading():
            root = zarr.open_group(location.zarr_store(), mode="r")
            for group in map(str, attributes.get("groups", [""])):
                require_stored_dn(location, group, root)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the metadata of {location} cannot be read ({error})",
            "what the run wrote",
            f"python -m pipeline.check {location} --verify full --repair",
        ) from error
    return location, root


def _warn_if_unfinished(location: Place, root: zarr.Group) -> None:
    if root.attrs.get("status") == STATUS_QUARANTINE:
        aside = ", ".join(map(str, root.attrs.get("quarantined", [])))
        warnings.warn(f"{location} lacks units that were set aside ({aside}); they read as NaN", stacklevel=3)
    elif root.attrs.get("status") != STATUS_COMPLETE:
        warnings.warn(f"{location} is not complete; missing units read as NaN", stacklevel=3)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _gsds(root: zarr.Group, group: str, folder: str) -> list[str]:
    """GSDs in metres, finest first, of the levels in a folder of a zone's group; none in stores of before."""
    path = _joined(group, folder)
    if path not in root:
        return []
    return sorted((name.removesuffix("m") for name in root[path].group_keys()), key=float)


def _decoded(location: Place, group: str) -> xr.Dataset:
    import xarray as xr

    with location.reading():
        raw = xr.open_zarr(location.zarr_store(), group=group or None, chunks={}, mask_and_scale=False)
    dn = raw["reflectance"]
    # float32: a DN needs 16 bits, so nothing is lost, and it halves the memory of xarray's float64
    # and the offset in whole DN first, so that DN 1000 is exactly 0
    values = ((dn + np.float32(HOUSE_ADD_OFFSET_DN)) * np.float32(DN_SCALE)).where(dn != NODATA_DN)
    raw["reflectance"] = _unpacked(values, dn)
    if "uncertainty" in raw:
        spread = raw["uncertainty"]
        valid = spread != NODATA_SPREAD
        if "_FillValue" not in spread.attrs:  # format 1, where 0 stands for nodata as well
            valid &= dn != NODATA_DN
        raw["uncertainty"] = _unpacked((spread * np.float32(DN_SCALE)).where(valid), spread)
    small = [name for name in ("spatial_ref", "wavelength_nm", "native_gsd_m", "generated") if name in raw.variables]
    decoded: xr.Dataset = raw.set_coords(small).assign_coords({name: raw[name].load() for name in small})
    decoded.attrs = flat({name: value for name, value in decoded.attrs.items() if name not in _OF_THE_STORE})
    return decoded


def _unpacked(values: xr.DataArray, packed: xr.DataArray) -> xr.DataArray:
    """`values` with the attributes of what they were packed in, but for the packing: a copy is not decoded twice."""
    values.attrs = {name: value for name, value in packed.attrs.items() if name not in _PACKING}
    values.encoding = {}
    return values
