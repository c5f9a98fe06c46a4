"""`pipeline.reobserve`: the output as the sensor would measure it. Counterpart of `pipeline.open_measured`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, GSDS_M, TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.grid.sensor import observed, sensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.grid.sensor import Sensor

_CHUNK_PX = 1920  # of processing; a multiple of 24
_ON_GRID_PX = 1e-3  # tolerance of positions


def reobserve(reflectance: xr.DataArray, mtf: Mapping[str, float] | None = None) -> dict[int, xr.DataArray]:
    """Simulate the sensor: return {10: (..., band, y, x), 20: ..., 60: ...}, lazy float32, on the native grids.

    `reflectance` is that of a store at 2.5 m, whole or cut along multiples of 60 m. `mtf` by band defaults to its
    coordinate `mtf`, else to the products' MTF (`pipeline.bands`). Native pixels whose footprint touches nodata or the
    edge are NaN. Raises UsageError for another GSD, or sides that are not multiples of the native GSD.
    """
    step = float(abs(reflectance.x[1] - reflectance.x[0]))
    if not np.isclose(step, TARGET_GSD_M):
        raise UsageError(f"reflectance at {step:g} m", f"{TARGET_GSD_M:g} m", "open the store without gsd_m")
    names = [str(name) for name in np.atleast_1d(reflectance.band.values)]
    if "band" not in reflectance.dims:
        reflectance = reflectance.expand_dims("band")
    known = dict(mtf or {})
    if not known and "mtf" in reflectance.coords:
        known = dict(zip(names, map(float, np.atleast_1d(reflectance.mtf.values)), strict=True))
    found = {}
    for gsd in GSDS_M:
        held = [name for name in names if BY_NAME[name].gsd_m == gsd]
        if held:
            factor = round(gsd / TARGET_GSD_M)
            sensors = [sensor(known.get(name) or BY_NAME[name].product_mtf, factor) for name in held]
            found[gsd] = _seen(reflectance.sel(band=held), sensors, factor)
    return found


def _seen(fine: xr.DataArray, sensors: list[Sensor], factor: int) -> xr.DataArray:
    import dask.array as da
    import xarray as xr

    fine = fine.transpose(..., "band", "y", "x")
    if fine.sizes["y"] % factor or fine.sizes["x"] % factor:
        size = f"{fine.sizes['y']} x {fine.sizes['x']} px"
        raise UsageError(f"reflectance of {size}", f"sides that are multiples of {factor} px of 2.5 m")
    planes = da.asarray(fine.data).rechunk({-1: _CHUNK_PX, -2: _CHUNK_PX, -3: 1})
    bands = [_plane(planes[..., i, :, :], one) for i, one in enumerate(sensors)]
    y, x = (fine[axis].values.reshape(-1, factor).mean(1) for axis in ("y", "x"))
    kept = {name: value.copy() for name, value in fine.coords.items() if not {"y", "x"} & set(value.dims)}
    if "spatial_ref" in kept:  # it may state the transform of the finer grid
        kept["spatial_ref"].attrs.pop("GeoTransform", None)
    axes = {name: (name, values, fine[name].attrs) for name, values in (("y", y), ("x", x))}
    seen = xr.DataArray(
        da.stack(bands, axis=-3), dims=fine.dims, coords={**kept, **axes}, name=fine.name, attrs=fine.attrs
    )
    seen.encoding = {"_FillValue": np.float32(np.nan)}  # nodata of `.rio`
    return seen


def _plane(image: da.Array, of: Sensor) -> da.Array:
    """Simulate one band, (..., y, x) to (..., y/k, x/k)."""
    import dask.array as da

    k = of.factor
    axes = {image.ndim - 2: k, image.ndim - 1: k}
    around = da.overlap.overlap(image, depth=axes, boundary=dict.fromkeys(axes, np.nan), allow_rechunk=True)
    chunks = [*image.chunks[:-2], *(tuple(size // k for size in sizes) for sizes in image.chunks[-2:])]

    def seen(block: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = np.ascontiguousarray(block, np.float32).reshape(-1, *block.shape[-2:])
        planes = np.stack([observed(plane, of) for plane in flat])
        return planes.reshape(*block.shape[:-2], *planes.shape[-2:])

    planes: da.Array = around.map_blocks(seen, chunks=chunks, dtype=np.float32)
    return planes


def difference(ds: xr.Dataset, measured: Mapping[int, xr.Dataset]) -> dict[int, xr.DataArray]:
    """Return what the sensor would measure of `ds` minus what it measured: {10: (time, band, y, x), 20: ..., 60: ...}.

    `ds - measured[10]` is empty, because xarray subtracts where coordinates are equal, which the centres of 2.5 m and
    10 m pixels never are. This compares both on the native grids (`reobserve`). `ds` is what `pipeline.open_store` gave
    at 2.5 m, whole or cut along multiples of 60 m, and `measured` what `pipeline.open_measured` gave. Values are lazy
    float32 reflectance, NaN at edges and beside nodata. Raises UsageError if the two share no ground, or if `ds` was
    cut elsewhere.
    """
    if not hasattr(measured, "items") or not all(isinstance(gsd, int) for gsd in measured):
        raise UsageError(
            f"a {type(measured).__name__} as measured", "what pipeline.open_measured gave", "the whole of it"
        )
    seen = reobserve(ds.reflectance)
    found = {gsd: _minus(seen[gsd], one.reflectance, gsd) for gsd, one in measured.items() if gsd in seen}
    if not found:
        raise UsageError(f"none of the bands {', '.join(map(str, np.atleast_1d(ds.band.values)))} in measured", "some")
    return found


def _minus(seen: xr.DataArray, measured: xr.DataArray, gsd: int) -> xr.DataArray:
    """Subtract where both are. Raises UsageError if the grids do not coincide or do not touch."""
    for axis in ("y", "x"):
        ours, theirs = seen[axis].values, measured[axis].values
        shift = abs((ours[0] - theirs[0]) / gsd)
        if abs(shift - round(shift)) > _ON_GRID_PX:
            raise UsageError(
                f"{axis} begins {abs(ours[0] - theirs[0]):g} m from the measured {gsd} m pixels",
                "pixels that coincide",
                "cut ds along multiples of 60 m of the store, or not at all",
            )
        near = np.clip(np.rint((ours - theirs[0]) / (theirs[1] - theirs[0])).astype(int), 0, len(theirs) - 1)
        same = np.isclose(theirs[near], ours, rtol=0, atol=gsd * _ON_GRID_PX)
        if not same.any():
            raise UsageError(
                f"{axis} from {ours.min():g} to {ours.max():g}, measured from {theirs.min():g} to {theirs.max():g}",
                "the measured input of the same store",
            )
        seen = seen.isel({axis: same}).assign_coords({axis: (axis, theirs[near[same]], measured[axis].attrs)})
    off = seen - measured.sel(y=seen.y, x=seen.x)
    if 0 in off.shape:
        empty = ", ".join(str(dim) for dim, size in off.sizes.items() if not size)
        raise UsageError(f"no {empty} is in both", "a store and its own measured input")
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in off.coords else {}
    off.attrs = {"long_name": "re-observed minus measured reflectance", "units": "1", **mapping}
    return off.rename("difference")
