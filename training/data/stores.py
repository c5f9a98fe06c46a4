"""Sources in Zarr stores: stores of this pipeline, and any variable with dimensions y and x."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BAND_NAMES, RGB
from training.data.headers import Header
from training.data.images import make_image
from training.data.rasters import GAMMA_BANDS, reading
from training.data.training_file import ordered

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from xarray import DataArray

    from training.data.images import Image
    from training.data.rasters import Stored
    from training.data.training_file import Source

_GROUND = {"y": ("y", "latitude", "lat"), "x": ("x", "longitude", "lon")}
OPEN_STORES = 8  # per process


@dataclass(frozen=True)
class Layer:
    """One date of one variable. `date` indexes the dimension other than band, y and x; -1 without one."""

    store: str
    group: str
    variable: str
    date: int
    decoded: bool  # False: stored values without mask and scale

    def array(self) -> DataArray:
        """Return the lazy array (band, y, x), in the store's orientation."""
        found = _datasets(self.store, self.decoded)[self.group][self.variable]
        y, x = (next(name for name in names if name in found.dims) for names in _GROUND.values())
        others = [str(name) for name in found.dims if name not in (y, x, "band")]
        found = found.isel({others[0]: self.date}) if others else found
        found = found if "band" in found.dims else found.expand_dims("band")
        return found.rename({y: "y", x: "x"} if (y, x) != ("y", "x") else {}).transpose("band", "y", "x")


@dataclass(frozen=True)
class StoreReader:
    """Reader of bands (0-based) of a layer."""

    layer: Layer
    bands: tuple[int, ...]
    shape: tuple[int, int]
    itemsize: int

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Read a window as `Reader.read`. Raises ReadError if the store is damaged."""
        with reading(self.layer.store):
            lazy = self.layer.array().isel(band=list(self.bands), y=slice(y, y + ny), x=slice(x, x + nx))
            stored: Stored = lazy.data.compute(scheduler="synchronous")
        return stored.astype(np.float32) if stored.dtype == np.float64 else stored

    def mask(self, y: int, x: int, ny: int, nx: int) -> None:
        """Return None: a store marks nodata by value."""

    def selecting(self, places: Sequence[int]) -> StoreReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))


@lru_cache(maxsize=OPEN_STORES)
def _datasets(store: str, decoded: bool) -> dict[str, xr.Dataset]:
    """Return {group: dataset}. Stores of this pipeline are decoded by `open_store`, with one group per UTM zone."""
    import xarray as xr
    import zarr

    from pipeline.store.reader import open_store

    root = zarr.open_group(store, mode="r")
    if "plan_digest" not in root.attrs:
        listed = root.metadata.consolidated_metadata is not None
        opened = xr.open_zarr(store, chunks={}, mask_and_scale=decoded, consolidated=listed, decode_coords="all")
        return {"": opened}
    found = open_store(store)
    if isinstance(found, xr.Dataset):
        return {"": found}
    return {name: child.to_dataset() for name, child in found.children.items()}


def layers_of(source: Source) -> list[Layer]:
    """Return every date of the source's variable. Raises UsageError if the store or the variable is missing."""
    decoded = source.role == "sentinel2" or source.values == "reflectance"
    try:
        datasets = _datasets(source.zarr, decoded)
    except (OSError, ValueError, KeyError) as error:
        raise source.fault(f"{source.zarr} cannot be opened as a Zarr store ({error})", "a Zarr store") from None
    layers = []
    for group, dataset in datasets.items():
        if source.variable not in dataset:
            names = [str(name) for name in dataset.data_vars]
            near = difflib.get_close_matches(source.variable, names, 1)
            raise source.fault(
                f"{source.zarr} has no variable {source.variable!r}",
                f"one of {', '.join(names) or 'none'}",
                f"did you mean {near[0]!r}?" if near else "",
            )
        found = dataset[source.variable]
        lacking = [axis for axis, names in _GROUND.items() if not set(names) & set(map(str, found.dims))]
        others = [str(d) for d in found.dims if d != "band" and not any(d in names for names in _GROUND.values())]
        if lacking or len(others) > 1:
            raise source.fault(
                f"{source.variable} of {source.zarr} has dimensions {', '.join(map(str, found.dims))}",
                "y, x, and at most band and one of dates",
            )
        dates = range(found.sizes[others[0]]) if others else [-1]
        layers += [Layer(source.zarr, group, source.variable, date, decoded) for date in dates]
    return layers


def layer_header(layer: Layer, source: Source) -> Header:
    """Return the layer's raster header: shape, dtype, nodata, CRS of the store, affine from coordinates y and x."""
    array = layer.array()
    crs, affine = "", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    if {"y", "x"} <= set(array.coords):
        dy, dx = (_step(source, array, axis) for axis in ("y", "x"))
        affine = dx, 0.0, float(array.x[0]) - dx / 2, 0.0, dy, float(array.y[0]) - dy / 2
        crs = _crs(array)
    nodata = array.attrs.get("_FillValue", array.attrs.get("nodata"))
    return Header(
        (array.sizes["y"], array.sizes["x"]),
        array.sizes["band"],
        str(array.dtype),
        None if nodata is None else float(nodata),
        crs,
        affine,
    )


def _step(source: Source, array: DataArray, axis: str) -> float:
    """Return the spacing of a coordinate. Raises UsageError if it is uneven."""
    steps = np.diff(array[axis].values.astype(np.float64))
    if not len(steps) or not np.allclose(steps, steps[0], rtol=1e-3, atol=0) or steps[0] == 0:
        raise source.fault(f"coordinate {axis} of {source.zarr} is not evenly spaced", "pixels of one size")
    return float(steps.mean())


def _crs(array: DataArray) -> str:
    import rioxarray  # registers the `.rio` accessor

    del rioxarray
    found: Any = array.rio.crs
    if found:
        return str(found.to_wkt())
    return "EPSG:4326" if array.x.attrs.get("units", "").startswith("degree") else ""


def band_indices(source: Source, layer: Layer, names: tuple[str, ...]) -> dict[str, int]:
    """Return {band: 0-based index} from the source's `bands`, else from the coordinate `band`, else RGB.

    Raises UsageError if the store lacks a stated band.
    """
    array = layer.array()
    held = [str(name) for name in array.band.values] if "band" in array.coords else []
    stated = dict(source.bands) or ({} if set(RGB) <= set(held) else {b: i for i, b in enumerate(RGB, 1)})
    found = {}
    for name in names:
        where = stated.get(name, name if name in held else None)
        if where is None:
            continue
        index = where - 1 if isinstance(where, int) else held.index(where) if where in held else -1
        if not 0 <= index < array.sizes["band"]:
            listed = ", ".join(held) or f"1 to {array.sizes['band']}"
            near = difflib.get_close_matches(str(where), held, 1)
            raise source.fault(
                f"{source.zarr} has no band {where!r}", f"one of {listed}", f"did you mean {near[0]!r}?" if near else ""
            )
        found[name] = index
    return found


def store_images(source: Source) -> list[Image]:
    """Return the dates of a store as images."""
    images = []
    for layer in layers_of(source):
        indices = band_indices(source, layer, GAMMA_BANDS if source.values == "8-bit" else BAND_NAMES)
        bands = ordered(indices)
        header = layer_header(layer, source)
        counted = header.affine[0] == 1 and header.affine[2] in (0.0, -0.5)  # x is 0, 1, 2 ...: pixel indices
        metres = None if header.crs or counted else abs(header.affine[0])  # without CRS, x and y are in metres
        stated = replace(source, gsd_m=source.gsd_m or metres)
        reader = StoreReader(
            layer, tuple(indices[band] for band in bands), header.shape, np.dtype(header.dtype).itemsize
        )
        label = f"{source.variable} of {source.zarr}" + (f" ({layer.group})" if layer.group else "")
        images.append(make_image(stated, label, Path(source.zarr), header, reader, bands))
    return images
