"""Colour pictures of an opened store, with a fixed stretch, so that dates and places compare.

In: what `open_store` or `open_measured` gave. Out: lazy uint8 RGB. Imports indices and errors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from pipeline.errors import UsageError
from pipeline.store.indices import bands_of, in_zones

if TYPE_CHECKING:
    import xarray as xr
    from xarray import DataArray

TRUE_COLOR: tuple[str, ...] = ("B04", "B03", "B02")
FALSE_COLOR: tuple[str, ...] = ("B08", "B04", "B03")  # vegetation red, as on colour-infrared film
TRUE_COLOR_HIGH, FALSE_COLOR_HIGH = 0.3, 0.5  # reflectance shown as 255; near infrared of crops reaches 0.5


@overload
def true_color(
    ds: xr.Dataset, *, low: float = ..., high: float = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataArray: ...
@overload
def true_color(
    ds: xr.DataTree, *, low: float = ..., high: float = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataTree: ...
def true_color(
    ds: xr.Dataset | xr.DataTree,
    *,
    low: float = 0.0,
    high: float = TRUE_COLOR_HIGH,
    gamma: float = 1.0,
    alpha: bool = False,
) -> xr.DataArray | xr.DataTree:
    """B04 B03 B02 as a picture: lazy uint8 (time, y, x, rgb), or (y, x, rgb) of one date, as `plot.imshow` takes it.

    Reflectance `low` becomes 1 and `high` 255, the same for all bands, dates and places, so that pictures compare;
    beyond it is cut off; `gamma` above 1 lightens what is dark. 0 0 0 is nodata in any of the three and nothing else;
    with `alpha` a fourth value says so: 0 there, else 255. UsageError for a band that `ds` lacks, or no stretch.
    """
    return _color(ds, TRUE_COLOR, "true_color", (low, high, gamma), alpha=alpha)


@overload
def false_color(
    ds: xr.Dataset, *, low: float = ..., high: float = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataArray: ...
@overload
def false_color(
    ds: xr.DataTree, *, low: float = ..., high: float = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataTree: ...
def false_color(
    ds: xr.Dataset | xr.DataTree,
    *,
    low: float = 0.0,
    high: float = FALSE_COLOR_HIGH,
    gamma: float = 1.0,
    alpha: bool = False,
) -> xr.DataArray | xr.DataTree:
    """B08 B04 B03 as a picture, in which vegetation is red; otherwise as `true_color`."""
    return _color(ds, FALSE_COLOR, "false_color", (low, high, gamma), alpha=alpha)


def _color(
    ds: xr.Dataset | xr.DataTree,
    bands: tuple[str, ...],
    name: str,
    stretch: tuple[float, float, float],
    *,
    alpha: bool,
) -> xr.DataArray | xr.DataTree:
    import xarray as xr

    low, high, gamma = stretch
    if not (low < high and gamma > 0):
        raise UsageError(f"stretch from {low:g} to {high:g}, gamma {gamma:g}", "low < high and gamma > 0")

    def of(zone: xr.Dataset) -> xr.Dataset:
        return zone.drop_vars(zone.data_vars).assign({name: _picture(zone, bands, name, stretch, alpha=alpha)})

    made = in_zones(ds, of)
    return made[name] if isinstance(made, xr.Dataset) else made


def _picture(
    zone: xr.Dataset, bands: tuple[str, ...], name: str, stretch: tuple[float, float, float], *, alpha: bool
) -> DataArray:
    import xarray as xr

    low, high, gamma = stretch
    layers = xr.concat(bands_of(zone, bands, name), "rgb").transpose(..., "rgb")
    measured = layers.notnull().all("rgb")
    scaled = ((layers - low) / (high - low)).clip(0, 1) ** (1 / gamma)
    # an empty picture is not all black: 0 is kept for nodata, as in ESA's true-colour images
    shown = (1 + 254 * scaled).round().where(measured, 0).astype(np.uint8)
    channels = ["red", "green", "blue"]
    if alpha:
        opaque = (measured * np.uint8(255)).astype(np.uint8)
        shown = xr.concat([shown, opaque.expand_dims("rgb", -1)], "rgb").transpose(..., "rgb")
        channels.append("alpha")
    attributes = {"long_name": name.replace("_", " "), "bands": " ".join(bands), "low": low, "high": high}
    return shown.assign_coords(rgb=channels).rename(name).assign_attrs({**attributes, "gamma": gamma, "nodata": 0})
