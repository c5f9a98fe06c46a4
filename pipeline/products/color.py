"""Colour pictures of an opened store, with a fixed stretch so that dates and places are comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from pipeline.errors import UsageError
from pipeline.products.indices import bands_of, in_zones, without_bands

if TYPE_CHECKING:
    import xarray as xr
    from xarray import DataArray

    High = float | tuple[float, float, float]  # for all three bands, or for each

TRUE_COLOR: tuple[str, ...] = ("B04", "B03", "B02")
FALSE_COLOR: tuple[str, ...] = ("B08", "B04", "B03")  # vegetation red, as on colour-infrared film
# Reflectance shown as 255, and gamma. Land has 0.03 to 0.15 in the visible, and crops reach 0.6 in the near infrared.
TRUE_COLOR_HIGH, TRUE_COLOR_GAMMA = 0.3, 1.5
FALSE_COLOR_HIGH, FALSE_COLOR_GAMMA = (0.6, 0.3, 0.3), 1.0


@overload
def true_color(
    ds: xr.Dataset, *, low: float = ..., high: High = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataArray: ...
@overload
def true_color(
    ds: xr.DataTree, *, low: float = ..., high: High = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataTree: ...
def true_color(
    ds: xr.Dataset | xr.DataTree,
    *,
    low: float = 0.0,
    high: High = TRUE_COLOR_HIGH,
    gamma: float = TRUE_COLOR_GAMMA,
    alpha: bool = False,
) -> xr.DataArray | xr.DataTree:
    """Return B04 B03 B02 as a picture: lazy uint8 (time, y, x, rgb), or (y, x, rgb) of a single date.

    A picture of one date goes to `plot.imshow()` and `hvplot.rgb` as it is, and to a GeoTIFF as
    `picture.to_dataset("rgb").rio.to_raster(file)`.
    Reflectance `low` becomes 1 and `high` (one number, or one per band) 255 for all dates and places, so that pictures
    are comparable. Values beyond are clipped, and `gamma` above 1 lightens dark areas. Pixels with nodata in any of the
    3 bands are 0 0 0, and no others. `alpha` adds a fourth channel, 0 for nodata and 255 elsewhere. Raises UsageError
    if `ds` lacks a band or the stretch is invalid.
    """
    return _color(ds, TRUE_COLOR, "true_color", (low, high, gamma), alpha=alpha)


@overload
def false_color(
    ds: xr.Dataset, *, low: float = ..., high: High = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataArray: ...
@overload
def false_color(
    ds: xr.DataTree, *, low: float = ..., high: High = ..., gamma: float = ..., alpha: bool = ...
) -> xr.DataTree: ...
def false_color(
    ds: xr.Dataset | xr.DataTree,
    *,
    low: float = 0.0,
    high: High = FALSE_COLOR_HIGH,
    gamma: float = FALSE_COLOR_GAMMA,
    alpha: bool = False,
) -> xr.DataArray | xr.DataTree:
    """Return B08 B04 B03 as a picture, in which vegetation is red; otherwise like `true_color`."""
    return _color(ds, FALSE_COLOR, "false_color", (low, high, gamma), alpha=alpha)


def _color(
    ds: xr.Dataset | xr.DataTree,
    bands: tuple[str, ...],
    name: str,
    stretch: tuple[float, High, float],
    *,
    alpha: bool,
) -> xr.DataArray | xr.DataTree:
    import xarray as xr

    low, high, gamma = stretch
    if not (np.size(high) in (1, len(bands)) and np.all(np.asarray(high) > low) and gamma > 0):
        raise UsageError(f"stretch from {low} to {high}, gamma {gamma}", "low < high, one or one per band, gamma > 0")

    def of(zone: xr.Dataset) -> xr.Dataset:
        if zone.sizes.get("time") == 1:
            zone = zone.isel(time=0)
        return without_bands(zone).assign({name: _picture(zone, bands, name, stretch, alpha=alpha)})

    made = in_zones(ds, of)
    if isinstance(made, xr.DataTree):
        return made
    picture = made[name]
    # `hvplot.rgb()` takes the first three coordinates for channels, rows and columns.
    first = [axis for axis in ("rgb", "y", "x") if axis in picture.coords]
    others = [axis for axis in picture.coords if axis not in first]
    ordered = {axis: picture.coords[axis] for axis in (*first, *others)}
    return xr.DataArray(picture.variable, ordered, name=name)


def _picture(
    zone: xr.Dataset, bands: tuple[str, ...], name: str, stretch: tuple[float, High, float], *, alpha: bool
) -> DataArray:
    import xarray as xr

    low, high, gamma = stretch
    layers = xr.concat(bands_of(zone, bands, name), "rgb").transpose(..., "rgb")
    measured = layers.notnull().all("rgb")
    span = xr.DataArray(np.broadcast_to(np.asarray(high, np.float32) - np.float32(low), len(bands)), dims="rgb")
    scaled = ((layers - low) / span).clip(0, 1) ** (1 / gamma)
    # Valid pixels start at 1, since 0 is reserved for nodata, as in ESA's true-colour images.
    shown = (1 + 254 * scaled).round().where(measured, 0).astype(np.uint8)
    channels = ["red", "green", "blue"]
    if alpha:
        opaque = (measured * np.uint8(255)).astype(np.uint8)
        shown = xr.concat([shown, opaque.expand_dims("rgb", -1)], "rgb").transpose(..., "rgb")
        channels.append("alpha")
    attributes = {"long_name": name.replace("_", " "), "bands": " ".join(bands), "low": low, "high": high}
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in zone.coords else {}
    shown.attrs = {**attributes, "gamma": gamma, "nodata": 0, **mapping}  # without the attributes of the bands
    return shown.assign_coords(rgb=channels).rename(name)
