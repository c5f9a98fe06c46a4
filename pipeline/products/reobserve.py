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
    kept = {name: value for name, value in fine.coords.items() if not {"y", "x"} & set(value.dims)}
    return xr.DataArray(
        da.stack(bands, axis=-3), dims=fine.dims, coords={**kept, "y": y, "x": x}, name=fine.name, attrs=fine.attrs
    )


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
