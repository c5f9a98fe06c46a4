"""Opening a finished store: one call, lazy and decoded.

In: a path or URL. Out: an xarray Dataset (one UTM zone) or DataTree (several). Imports layout, place and errors only.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import DN_SCALE, HOUSE_ADD_OFFSET_DN, NODATA_DN
from pipeline.errors import UsageError
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.place import place_of

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.store.place import Place, Where


def open_store(path: Where) -> xr.Dataset | xr.DataTree:
    """Open a store: `reflectance` in float32 with NaN for nodata, `quality`, `scl`, `uncertainty`, and its CRS.

    Raises UsageError when `path` is no store of this pipeline; warns when the store is not complete.
    """
    import xarray as xr
    import zarr

    importlib.import_module("rioxarray")  # registers the `.rio` accessor that users expect to find
    location = place_of(path)
    if location.size("zarr.json") is None:
        raise UsageError(f"{location} is not a Zarr store", "the folder that a run wrote, such as region.zarr")
    with location.reading():
        root = zarr.open_group(location.zarr_store(), mode="r")
    if "plan_digest" not in root.attrs:
        raise UsageError(f"{location} was not written by this pipeline", "a group with the attribute plan_digest")
    if root.attrs.get("status") == STATUS_QUARANTINE:
        aside = ", ".join(map(str, root.attrs.get("quarantined", [])))
        warnings.warn(f"{location} lacks units that were set aside ({aside}); they read as NaN", stacklevel=2)
    elif root.attrs.get("status") != STATUS_COMPLETE:
        warnings.warn(f"{location} is not complete; missing units read as NaN", stacklevel=2)
    groups = root.attrs.get("groups", [""])
    with location.reading():
        opened = {str(group): _decoded(location, str(group)) for group in groups}
    if list(opened) == [""]:
        return opened[""]
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in opened.items()})


def _decoded(location: Place, group: str) -> xr.Dataset:
    import xarray as xr

    raw = xr.open_zarr(location.zarr_store(), group=group or None, chunks={}, mask_and_scale=False)
    dn = raw["reflectance"]
    # float32: a DN needs 16 bits, so nothing is lost, and it halves the memory of xarray's float64
    # and the offset in whole DN first, so that DN 1000 is exactly 0
    values = ((dn + np.float32(HOUSE_ADD_OFFSET_DN)) * np.float32(DN_SCALE)).where(dn != NODATA_DN)
    attributes = {k: v for k, v in dn.attrs.items() if k not in ("scale_factor", "add_offset", "_FillValue")}
    raw["reflectance"] = values.assign_attrs(attributes)
    if "uncertainty" in raw:
        spread = raw["uncertainty"]
        kept = {k: v for k, v in spread.attrs.items() if k not in ("scale_factor", "add_offset")}
        raw["uncertainty"] = (spread * np.float32(DN_SCALE)).assign_attrs(kept)
    small = [name for name in ("spatial_ref", "wavelength_nm", "native_gsd_m", "generated") if name in raw.variables]
    decoded: xr.Dataset = raw.set_coords(small).assign_coords({name: raw[name].load() for name in small})
    return decoded
