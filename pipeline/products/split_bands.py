"""`pipeline.split_bands`: a variable for each band, as programs expect that name layers by variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME
from pipeline.products.indices import bands_of, in_zones, without_bands

if TYPE_CHECKING:
    import xarray as xr


def split_bands(ds: xr.Dataset | xr.DataTree) -> xr.Dataset | xr.DataTree:
    """Return the reflectance of each band as a variable: B01, B02 ..., lazy float32 (time, y, x); (y, x) of one date.

    `rio.to_raster` writes them as named bands, and `exactextract` names its columns by them. Their attributes hold
    `wavelength_nm`, `native_gsd_m` and `generated` (1 or 0). A DataTree of zones gives a DataTree. Raises UsageError
    for a dataset without reflectance by band.
    """
    return in_zones(ds, _split)


def _split(zone: xr.Dataset) -> xr.Dataset:
    if zone.sizes.get("time") == 1:
        zone = zone.isel(time=0)
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in zone.coords else {}
    names = [str(name) for name in np.atleast_1d(zone.band.values)] if "band" in zone.coords else []
    single = {}
    for name, values in zip(names, bands_of(zone, names, "split_bands"), strict=True):
        about = {
            key: int(zone[key].sel(band=name).values) for key in ("native_gsd_m", "generated") if key in zone.coords
        }
        values.attrs = {
            "long_name": f"{name} {BY_NAME[name].wavelength_nm:g} nm",
            "units": "1",
            "wavelength_nm": BY_NAME[name].wavelength_nm,
            **about,
            **mapping,
        }
        values.encoding = {"_FillValue": np.float32(np.nan)}  # nodata of `.rio`
        single[name] = values.drop_vars("band", errors="ignore")
    return without_bands(zone).assign(single)
