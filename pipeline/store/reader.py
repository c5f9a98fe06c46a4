"""Open a finished store as a lazy, decoded xarray Dataset (one UTM zone) or DataTree (several).

With xarray alone, use `xr.open_zarr(store)` for the 2.5 m arrays of one zone, `xr.open_groups(store, engine="zarr")`
for all levels, or `xr.open_datatree(store, engine="zarr", group="overviews")`, and "measured". The whole store is a
DataTree by `pipeline.store.tree`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import CANONICAL_OFFSET_DN, DN_SCALE, NODATA_DN, NODATA_SPREAD, TARGET_GSD_M
from pipeline.errors import IntegrityError, PipelineError, UsageError
from pipeline.store.extras import along, is_of_images
from pipeline.store.flat import flat
from pipeline.store.identity import group_attributes, groups_of, root_attributes
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.levels import FINER, MEASURED, OVERVIEWS, gsd_name
from pipeline.store.nodes import dimensions, group_at
from pipeline.store.place import place_of
from pipeline.store.selection import CLASSES, VARIABLES, require_stored_dn
from pipeline.store.template import AXIS_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    import zarr

    from pipeline.store.place import Place, Where


_OF_THE_STORE = ("groups", "multiscales", "zarr_conventions")  # do not apply to one level or to a copy of it
_COMPARED = "The input on its native grid. pipeline.difference compares the output with it; subtraction would be empty."
_PACKING = ("scale_factor", "add_offset", "_FillValue")
_TIME = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}  # as a run writes it
_SMALL = ("spatial_ref", "wavelength_nm", "native_gsd_m", "generated", "mtf")
_OURS = {*VARIABLES, *_SMALL, "x", "y", "time", "band"}


def open_store(path: Where, gsd_m: float | None = None) -> xr.Dataset | xr.DataTree:
    """Open a store: `reflectance` in float32 with NaN for nodata, `quality`, `scl`, `uncertainty`, and its CRS.

    The arrays are lazy; several UTM zones make a DataTree. `gsd_m` selects an overview (5, 10, 20 ... m), which holds
    means of the 2.5 m pixels, or a level below 2.5 m (1.25 m ...), which is all generated and whose means are the 2.5 m
    pixels. `uncertainty` is NaN where reflectance is. Attributes that are lists of words or dictionaries, such as
    `scenes`, are JSON text, so that `to_netcdf` accepts them. A plain `xarray.open_zarr` decodes into float64, twice
    the memory. Raises UsageError if `path` is not a store of this pipeline or has nothing at that GSD. Warns if the
    store is not complete.
    """
    import xarray as xr

    location, root, attributes = _root(path)
    _warn_if_unfinished(location, attributes)
    groups = groups_of(location, attributes)
    level = "" if gsd_m is None else _level(location, root, groups, gsd_m)
    opened = {group: _decoded(location, group, level) for group in groups}
    if groups == [""]:
        return opened[""]
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in opened.items()})


def _level(location: Place, root: zarr.Group, groups: list[str], gsd_m: float) -> str:
    """Return the path, within a zone's group, of a level that every zone has. Raises UsageError if there is none."""
    if gsd_m == TARGET_GSD_M:
        return ""
    folder = FINER if gsd_m < TARGET_GSD_M else OVERVIEWS
    finer, coarser = (
        set.intersection(*(set(_gsds(root, group, name)) for group in groups)) for name in (FINER, OVERVIEWS)
    )
    if f"{gsd_m:g}" not in finer | coarser:
        known = [*sorted(finer, key=float), f"{TARGET_GSD_M:g}", *sorted(coarser, key=float)]
        raise UsageError(f"{location} holds nothing at {gsd_m:g} m", f"one of {', '.join(known)} m")
    return f"{folder}/{gsd_name(gsd_m)}"


def open_measured(path: Where, zone: str = "") -> dict[int, xr.Dataset]:
    """Open the measured input on its native grids: {10: B02 B03 B04 B08, 20: ..., 60: ...}, lazy float32 reflectance.

    `zone`, such as "utm31n", selects one of several UTM zones. Raises UsageError if it is unknown, or missing but
    needed.
    """
    location, root, attributes = _root(path)
    groups = groups_of(location, attributes)
    if zone not in groups and groups != [""]:
        found = f"no zone {zone}" if zone else "several UTM zones"
        raise UsageError(f"{location} has {found}", f'zone="{groups[0]}" or another of {", ".join(groups)}')
    group = "" if groups == [""] else zone
    gsds = [int(name) for name in _gsds(root, group, MEASURED)]
    return {gsd: _decoded(location, group, f"{MEASURED}/{gsd}m") for gsd in gsds}


def levels_of(path: Where) -> dict[str, dict[str, xr.Dataset]]:
    """Open all levels of all zones, decoded: {zone, "" if there is one: {"2.5m": ..., "5m": ..., "measured/10m": ...}}.

    Raises and warns as `open_store`.
    """
    location, root, attributes = _root(path)
    _warn_if_unfinished(location, attributes)
    found: dict[str, dict[str, xr.Dataset]] = {}
    for zone in groups_of(location, attributes):
        shown = {f"{gsd}m": f"{FINER}/{gsd}m" for gsd in _gsds(root, zone, FINER)}
        shown |= {gsd_name(TARGET_GSD_M): ""}
        shown |= {f"{gsd}m": f"{OVERVIEWS}/{gsd}m" for gsd in _gsds(root, zone, OVERVIEWS)}
        shown |= {f"{MEASURED}/{gsd}m": f"{MEASURED}/{gsd}m" for gsd in _gsds(root, zone, MEASURED)}
        found[zone] = {name: _decoded(location, zone, level) for name, level in shown.items()}
    return found


def _root(path: Where) -> tuple[Place, zarr.Group, dict[str, Any]]:
    """Return a store's place, root group and attributes. Raises UsageError if it is not a store of this pipeline."""
    import zarr

    importlib.import_module("rioxarray")  # registers the `.rio` accessor that users expect to find
    location = place_of(path)
    attributes = root_attributes(location)
    try:
        with location.reading():
            root = zarr.open_group(location.zarr_store(), mode="r")
            for group in groups_of(location, attributes):
                require_stored_dn(location, group, root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise IntegrityError(
            f"the metadata of {location} cannot be read ({error})",
            "what the run wrote",
            f"python -m pipeline.check {location} --verify full --repair",
        ) from error
    return location, root, attributes


def _warn_if_unfinished(location: Place, attributes: Mapping[str, Any]) -> None:
    if attributes.get("status") == STATUS_QUARANTINE:
        aside = ", ".join(map(str, attributes.get("quarantined", [])))
        warnings.warn(f"{location} lacks units that were set aside ({aside}); they read as NaN", stacklevel=3)
    elif attributes.get("status") != STATUS_COMPLETE:
        warnings.warn(f"{location} is not complete; missing units read as NaN", stacklevel=3)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _gsds(root: zarr.Group, group: str, folder: str) -> list[str]:
    """Return the GSDs in metres, finest first, of the levels in a folder of a zone's group; none in older stores."""
    path = _joined(group, folder)
    if path not in root:
        return []
    names = (name.removesuffix("m") for name in group_at(root, path).group_keys() if name.endswith("m"))
    return sorted((name for name in names if name.replace(".", "", 1).isdecimal()), key=float)


def _decoded(location: Place, group: str, level: str) -> xr.Dataset:
    """Open and decode one level of a zone. Arrays that the run did not write are decoded by their own attributes."""
    import xarray as xr
    import zarr

    path = _joined(group, level)
    with location.reading():
        opened = zarr.open_group(location.zarr_store(path), mode="r")
        arrays = {name: array for name, array in opened.arrays() if name not in _OURS and not is_of_images(array)}
        nameless = [name for name, array in arrays.items() if dimensions(array) is None]
        raw = _open(location, path, list(arrays), nameless, packed=True)
        if not level:
            raw.attrs = group_attributes(location, group, opened)
    raw["time"].attrs = {**_TIME, **raw["time"].attrs}
    for axis, name in AXIS_NAMES.items():  # up to format 4 they had one name, and holoviews takes such axes for one
        raw[axis].attrs["long_name"] = name
    raw = xr.decode_cf(raw, mask_and_scale=False)
    dn = raw["reflectance"]
    # float32 holds 16-bit DN without loss and takes half the memory of xarray's float64.
    # The offset is added in whole DN first, so that DN 1000 is exactly 0.
    values = ((dn + np.float32(CANONICAL_OFFSET_DN)) * np.float32(DN_SCALE)).where(dn != NODATA_DN)
    raw["reflectance"] = _unpacked(values, dn)
    if "uncertainty" in raw:
        spread = raw["uncertainty"]
        valid = spread != NODATA_SPREAD
        if spread.attrs.get("_FillValue", 0) != NODATA_SPREAD:  # in format 1, 0 also stands for nodata
            valid &= dn != NODATA_DN
        raw["uncertainty"] = _unpacked((spread * np.float32(DN_SCALE)).where(valid), spread)
    for name in CLASSES:
        if name in raw:  # not `_FillValue`, with which xarray would turn classes into float32
            raw[name].attrs["nodata"] = NODATA_DN
    small = [name for name, one in raw.variables.items() if name in _SMALL or is_of_images(one)]
    decoded: xr.Dataset = raw.set_coords(small).assign_coords({name: raw[name].load() for name in small})
    # It would outlive a change of the GSD, as by `coarsen`, and rioxarray prefers it to x and y.
    decoded["spatial_ref"].attrs.pop("GeoTransform", None)
    decoded = _with_foreign(location, path, decoded, list(arrays), nameless)
    decoded = along(decoded, shared=level.startswith(MEASURED))
    if level.startswith(MEASURED):
        decoded.attrs.setdefault("comment", _COMPARED)
    decoded.attrs = flat({name: value for name, value in decoded.attrs.items() if name not in _OF_THE_STORE})
    return decoded


def _open(location: Place, path: str, dropped: list[str], nameless: list[str], *, packed: bool) -> xr.Dataset:
    """Open a group without some arrays. Those without dimension names are hidden, since xarray refuses such a group.

    `packed` keeps values and times as stored.
    """
    import xarray as xr

    store = location.zarr_store()
    with warnings.catch_warnings():
        # another program dropped the consolidated metadata: opening is slower, but the values are the same
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
        if nameless:
            from zarr.errors import ZarrUserWarning

            from pipeline.store.hiding import without

            warnings.simplefilter("ignore", ZarrUserWarning)  # the run folder is not a Zarr node
            store = without(store, [_joined(path, name) for name in nameless])
        opened: xr.Dataset = xr.open_zarr(
            store, group=path or None, chunks={}, drop_variables=dropped, consolidated=False if nameless else None,
            mask_and_scale=not packed, decode_times=not packed,
        )  # fmt: skip
    return opened


def _with_foreign(location: Place, path: str, ours: xr.Dataset, names: list[str], nameless: list[str]) -> xr.Dataset:
    """Merge arrays of other programs into `ours`, and warn about those that do not fit."""
    for name in names:
        try:
            if name in nameless:
                raise ValueError("its dimensions have no names")
            with location.reading():
                others = [str(other) for other in (*ours.variables, *names) if other != name]
                ours = ours.merge(
                    _open(location, path, others, nameless, packed=False), join="exact", combine_attrs="override"
                )
        except PipelineError:
            raise
        except Exception as error:  # an array of another program may make xarray raise anything
            warnings.warn(f"{location}: {name}, which the run did not write, is left out ({error})", stacklevel=4)
    return ours


def _unpacked(values: xr.DataArray, packed: xr.DataArray) -> xr.DataArray:
    """Return `values` with the attributes of `packed` except the packing, so that a copy is not decoded twice."""
    values.attrs = {name: value for name, value in packed.attrs.items() if name not in _PACKING}
    values.encoding = {"_FillValue": np.float32(np.nan)}  # nodata of `.rio`, in GeoTIFFs and where it reprojects
    return values
