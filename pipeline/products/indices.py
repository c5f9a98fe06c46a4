"""Spectral indices of an opened store.

Formulas follow the literature on surface reflectance, with B08 as near infrared throughout, the near-infrared band with
the finest native GSD. Reflectance is as stored, without baseline offsets, and may be slightly negative, so normalised
differences of dark ground can leave -1 to 1. Nothing is clipped. tests/products/test_indices compares every formula
with the catalogue Awesome Spectral Indices (spyndex, MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from pipeline.bands import BY_NAME, RADIOMETRY, STYLED
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from xarray import DataArray

    Ratio = Callable[..., tuple[DataArray, DataArray]]


@dataclass(frozen=True)
class Index:
    """One spectral index. `ratio` takes the bands in the order of `bands` and returns (numerator, denominator)."""

    long_name: str
    bands: tuple[str, ...]
    formula: str
    source: str
    ratio: Ratio


def _difference(long_name: str, first: str, second: str, source: str) -> Index:
    """Return the normalised difference of two bands."""
    formula = f"({first} - {second}) / ({first} + {second})"
    return Index(long_name, (first, second), formula, source, lambda a, b: (a - b, a + b))


INDICES: dict[str, Index] = {
    "ndvi": _difference("normalized difference vegetation index", "B08", "B04", "Rouse et al. 1974, NASA SP-351, 309"),
    "gndvi": _difference(
        "green normalized difference vegetation index", "B08", "B03",
        "Gitelson et al. 1996, doi:10.1016/S0034-4257(96)00072-7",
    ),
    "ndre": _difference(
        "normalized difference red edge index", "B08", "B05",
        "Gitelson and Merzlyak 1994, doi:10.1016/1011-1344(93)06963-4",
    ),
    "ndwi": _difference(
        "normalized difference water index (open water)", "B03", "B08", "McFeeters 1996, doi:10.1080/01431169608948714"
    ),
    "mndwi": _difference(
        "modified normalized difference water index", "B03", "B11", "Xu 2006, doi:10.1080/01431160600589179"
    ),
    "ndmi": _difference(
        "normalized difference moisture index (of leaves)", "B08", "B11",
        "Wilson and Sader 2002, doi:10.1016/S0034-4257(01)00318-2",
    ),
    "nbr": _difference("normalized burn ratio", "B08", "B12", "Key and Benson 1999, doi:10.3133/ofr0211"),
    "ndbi": _difference("normalized difference built-up index", "B11", "B08", "Zha 2003, doi:10.1080/01431160304987"),
    "ndsi": _difference(
        "normalized difference snow index", "B03", "B11", "Riggs et al. 1994, doi:10.1109/IGARSS.1994.399618"
    ),
    "cire": Index(
        "red edge chlorophyll index", ("B08", "B05"), "(B08 - B05) / B05",
        "Gitelson et al. 2003, doi:10.1078/0176-1617-00887", lambda nir, edge: (nir - edge, edge),
    ),
    "evi": Index(
        "enhanced vegetation index", ("B08", "B04", "B02"),
        "2.5 * (B08 - B04) / (B08 + 6 * B04 - 7.5 * B02 + 1)",
        "Huete et al. 1997, doi:10.1016/S0034-4257(96)00112-5",
        lambda nir, red, blue: (2.5 * (nir - red), nir + 6 * red - 7.5 * blue + 1),
    ),
    "evi2": Index(
        "two-band enhanced vegetation index", ("B08", "B04"), "2.5 * (B08 - B04) / (B08 + 2.4 * B04 + 1)",
        "Jiang et al. 2008, doi:10.1016/j.rse.2008.06.006", lambda nir, red: (2.5 * (nir - red), nir + 2.4 * red + 1),
    ),
    "savi": Index(
        "soil-adjusted vegetation index (L = 0.5)", ("B08", "B04"), "1.5 * (B08 - B04) / (B08 + B04 + 0.5)",
        "Huete 1988, doi:10.1016/0034-4257(88)90106-X", lambda nir, red: (1.5 * (nir - red), nir + red + 0.5),
    ),
    "bsi": Index(
        "bare soil index", ("B11", "B04", "B08", "B02"),
        "((B11 + B04) - (B08 + B02)) / ((B11 + B04) + (B08 + B02))",
        "Rikimaru et al. 2002, Tropical Ecology 43(1), 39",
        lambda swir, red, nir, blue: ((swir + red) - (nir + blue), (swir + red) + (nir + blue)),
    ),
}  # fmt: skip


@overload
def indices(ds: xr.Dataset, names: str) -> xr.DataArray: ...
@overload
def indices(ds: xr.Dataset, names: list[str] | tuple[str, ...]) -> xr.Dataset: ...
@overload
def indices(ds: xr.DataTree, names: str | list[str] | tuple[str, ...]) -> xr.DataTree: ...
def indices(
    ds: xr.Dataset | xr.DataTree, names: str | list[str] | tuple[str, ...]
) -> xr.DataArray | xr.Dataset | xr.DataTree:
    """Return spectral indices by name, such as "ndvi": a DataArray for one name, a Dataset for several.

    A DataTree of zones gives a DataTree. Values are lazy float32 with the dims of `ds.reflectance` without band; NaN
    where a band is nodata or the denominator is zero. The attributes hold long_name, formula, source, the bands, and
    `native_gsd_m`, the coarsest native GSD of the bands. Raises UsageError, with the alternatives, for an unknown index
    or a band that `ds` lacks.
    """
    wanted = [name.lower() for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in wanted if name not in INDICES]
    if unknown or not wanted:
        found = f"no such index: {', '.join(unknown)}" if unknown else "no index named"
        raise UsageError(found, f"some of {', '.join(sorted(INDICES))}")
    import xarray as xr

    def of(zone: xr.Dataset) -> xr.Dataset:
        return without_bands(zone).assign({name: _index(zone, name) for name in wanted})

    made = in_zones(ds, of)
    return made[names.lower()] if isinstance(names, str) and isinstance(made, xr.Dataset) else made


def in_zones(ds: xr.Dataset | xr.DataTree, of: Callable[[xr.Dataset], xr.Dataset]) -> xr.Dataset | xr.DataTree:
    """Apply `of` to the Dataset, or to each zone."""
    import xarray as xr

    if not isinstance(ds, xr.DataTree | xr.Dataset):
        raise UsageError(f"a {type(ds).__name__}", "the Dataset or DataTree that pipeline.open_store gave")
    if isinstance(ds, xr.DataTree):
        return xr.DataTree.from_dict({node.path: of(node.to_dataset()) for node in ds.leaves})
    return of(ds)


def without_bands(zone: xr.Dataset) -> xr.Dataset:
    """Return the coordinates of a zone that do not run along `band`, for variables without that dimension."""
    return zone.drop_vars([*zone.data_vars, *(name for name, value in zone.coords.items() if "band" in value.dims)])


def bands_of(zone: xr.Dataset, names: Sequence[str], purpose: str) -> list[DataArray]:
    """Return the reflectance of the bands by name. Raises UsageError if a band or the band dimension is missing."""
    if "reflectance" not in zone or "band" not in zone.reflectance.dims:
        raise UsageError(f"{purpose} of a dataset without reflectance by band", "what pipeline.open_store gave")
    there = [str(name) for name in zone.band.values]
    missing = [name for name in names if name not in there]
    if missing:
        raise UsageError(
            f"{purpose} needs {', '.join(names)}, and {', '.join(missing)} is not in the store",
            f"its bands are {', '.join(there)}",
            "make the store with --bands that include it, or leave --bands out",
        )
    return [zone.reflectance.sel(band=name).reset_coords(drop=True, names=_of_band(zone)) for name in names]


def _of_band(zone: xr.Dataset) -> list[str]:
    """Return the names of coordinates along `band`, which do not apply to an index of several bands."""
    return [str(name) for name, values in zone.reflectance.coords.items() if "band" in values.dims]


def require_reflectance(zone: xr.Dataset, purpose: str) -> None:
    """Raise UsageError for a dataset whose colours are not those measured."""
    if zone.attrs.get(RADIOMETRY) == STYLED:
        raise UsageError(
            f"{purpose} of a store whose colours follow a style, not the measurement",
            "reflectance",
            "make the store with --option radiometry=keep",
        )


def _index(zone: xr.Dataset, name: str) -> DataArray:
    index = INDICES[name]
    require_reflectance(zone, name)
    numerator, denominator = index.ratio(*bands_of(zone, index.bands, name))
    values = (numerator / denominator.where(denominator != 0)).astype(np.float32)
    attributes = {
        "long_name": index.long_name,
        "units": "1",
        "formula": index.formula,
        "source": index.source,
        "bands": " ".join(index.bands),
        "native_gsd_m": max(BY_NAME[band].gsd_m for band in index.bands),
    }
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in zone.coords else {}
    values.attrs = {**attributes, **mapping}  # without the attributes of the bands, which arithmetic may keep
    values.encoding = {"_FillValue": np.float32(np.nan)}  # nodata of `.rio`
    return values.rename(name)
