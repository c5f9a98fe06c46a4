"""`pipeline.mosaic`: neighbouring stores of one UTM zone as one lazy Dataset.

Neighbouring runs overlap by up to 120 m and more, since a store covers whole pixels of 60 m and whole chunks. The value
of a pixel depends on scenes and settings, never on where an AOI ends, so pixels that two runs of equal settings
measured are equal and it does not matter which is taken.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_DN, RADIOMETRY, SYNTHETIC
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.store.place import Where

_ON_GRID_PX = 1e-3  # tolerance of positions
_SETTINGS = (
    "super_resolution", "options", "conditions", "seed", "estimate", "members", "consistency", "software",
    SYNTHETIC, RADIOMETRY,
)  # fmt: skip
_GEOREFERENCE = ("spatial:transform", "spatial:bbox", "spatial:shape")
_SHOWN = 3


@dataclass(frozen=True)
class _Part:
    """One store within the mosaic: its dataset, its position in pixels of the mosaic, its name for messages."""

    name: str
    dataset: xr.Dataset
    row: int
    col: int

    @property
    def rows(self) -> tuple[int, int]:
        return self.row, self.row + self.dataset.sizes["y"]

    @property
    def cols(self) -> tuple[int, int]:
        return self.col, self.col + self.dataset.sizes["x"]


def mosaic(stores: Sequence[xr.Dataset | Where], *, allow_different_settings: bool = False) -> xr.Dataset:
    """Return stores of one zone as one lazy Dataset over all of them: NaN, and class 0, where none measured.

    `stores` are paths, or Datasets from `open_store` with dims (time, band, y, x), of any level or cut. The order does
    not matter; time steps are united. Warns if stores overlap whose time steps were made of different scenes. Raises
    UsageError if zone, GSD, grid phase or bands differ, or settings that decide pixels; with
    `allow_different_settings`, the store with the smaller plan digest is taken where several measured.
    """
    if isinstance(stores, str) or not len(stores):
        raise UsageError("no stores" if not len(stores) else f"the text {stores}", "a list of stores")
    named = sorted((_named(store, number) for number, store in enumerate(stores)), key=_sort_key)
    _require_one_grid(named)
    _require_equal_settings(named, allowed=allow_different_settings)
    parts, left_m, top_m = _placed(named)
    _warn_of_scenes(parts)
    return _joined(parts, left_m, top_m)


def _named(store: xr.Dataset | Where, number: int) -> tuple[str, xr.Dataset]:
    """Open a store and return it with a name for messages."""
    import xarray as xr

    from pipeline.store.reader import open_store

    if isinstance(store, xr.Dataset | xr.DataTree | xr.DataArray):
        name, opened = f"store {number + 1}", store
    else:
        name, opened = str(store), open_store(store)
    if isinstance(opened, xr.DataTree):
        zones = ", ".join(child.name or "" for child in opened.children.values())
        raise UsageError(f"{name} has several UTM zones ({zones})", "one", 'tree["utm31n"].to_dataset() of each store')
    if not isinstance(opened, xr.Dataset) or "reflectance" not in opened or "time" not in opened.reflectance.dims:
        raise UsageError(f"{name} is no dataset of reflectance by time", "what pipeline.open_store gave")
    if several := [str(dim) for dim in opened.reflectance.dims if dim not in ("time", "band", "y", "x")]:
        raise UsageError(f"{name} has several images by {several[0]}", "one", f"store.sel({several[0]}=...) of each")
    if opened.sizes["y"] < 2 or opened.sizes["x"] < 2:
        raise UsageError(f"{name} has {opened.sizes['y']} x {opened.sizes['x']} px", "at least 2 x 2")
    return name, opened


def _sort_key(one: tuple[str, xr.Dataset]) -> tuple[str, float, float]:
    dataset = one[1]
    return str(dataset.attrs.get("plan_digest", "")), float(dataset.x[0]), -float(dataset.y[0])


def _step_m(dataset: xr.Dataset) -> float:
    return float(dataset.x[1] - dataset.x[0])


def _require_one_grid(named: Sequence[tuple[str, xr.Dataset]]) -> None:
    """Raise UsageError if CRS, GSD, grid phase or bands differ."""
    first, reference = named[0]
    for name, other in named[1:]:
        pair = f"{first} and {name}"
        codes = [_epsg(dataset) for dataset in (reference, other)]
        if codes[0] != codes[1]:
            cure = "join stores of one UTM zone, and reproject the results, as by ds.odc.reproject"
            raise UsageError(f"{pair} lie in EPSG:{codes[0]} and EPSG:{codes[1]}", "one UTM zone", cure)
        if not np.isclose(_step_m(reference), _step_m(other)):
            raise UsageError(f"{pair} have {_step_m(reference):g} and {_step_m(other):g} m pixels", "one GSD")
        for axis in ("x", "y"):
            shift = float(other[axis][0] - reference[axis][0]) / _step_m(reference)
            if abs(shift - round(shift)) > _ON_GRID_PX:
                found = f"the {axis} of {pair} are {shift:.3f} pixels apart"
                raise UsageError(found, "pixels that coincide", "scenes off the official grid give stores off it")
        bands = [[str(band) for band in dataset.band.values] for dataset in (reference, other)]
        if bands[0] != bands[1]:
            shared = ", ".join(band for band in bands[0] if band in bands[1])
            raise UsageError(
                f"{pair} have bands {bands[0]} and {bands[1]}", "the same", f"ds.sel(band=...) of {shared}"
            )


def _epsg(dataset: xr.Dataset) -> int | None:
    from pyproj import CRS

    if "spatial_ref" not in dataset.coords:
        raise UsageError("a dataset without the coordinate spatial_ref", "what pipeline.open_store gave")
    code: int | None = CRS.from_wkt(str(dataset["spatial_ref"].attrs["spatial_ref"])).to_epsg()
    return code


def _settings(dataset: xr.Dataset) -> dict[str, Any]:
    """Return what decides the pixels besides scenes, as far as the attributes tell."""
    weights = [name for name in dataset.attrs if name.endswith("_weights_sha256")]
    found = {name: dataset.attrs[name] for name in (*_SETTINGS, *sorted(weights)) if name in dataset.attrs}
    composites = {period.get("composite") for period in _periods(dataset)}
    found |= {"composite": ", ".join(sorted(map(str, composites)))} if composites else {}
    for name in ("mtf", "generated"):
        if name in dataset.coords:
            found[name] = dataset[name].values.tolist()
    return found


def _periods(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """Return the time steps as the run states them; none if it does not, or if the dataset was cut in time."""
    stated = dataset.attrs.get("periods", "[]")
    periods = json.loads(stated) if isinstance(stated, str) else stated
    return list(periods) if len(periods) == dataset.sizes["time"] else []


def _require_equal_settings(named: Sequence[tuple[str, xr.Dataset]], *, allowed: bool) -> None:
    first, reference = named[0]
    ours = _settings(reference)
    for name, other in named[1:]:
        theirs = _settings(other)
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if keys and not allowed:
            said = [f"{key} {ours.get(key)} and {theirs.get(key)}" for key in keys[:_SHOWN]]
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise UsageError(
                f"{first} and {name} were made with different settings: {'; '.join(said)}{more}",
                "equal ones, so that pixels of both agree",
                "run one again, or allow_different_settings=True",
            )


def _placed(named: Sequence[tuple[str, xr.Dataset]]) -> tuple[list[_Part], float, float]:
    """Return the parts with their positions, and the outer left and upper edges of the mosaic in metres."""
    step = _step_m(named[0][1])
    left = min(float(dataset.x[0]) for _, dataset in named)
    top = max(float(dataset.y[0]) for _, dataset in named)
    parts = [
        _Part(name, dataset, round((top - float(dataset.y[0])) / step), round((float(dataset.x[0]) - left) / step))
        for name, dataset in named
    ]
    return parts, left - step / 2, top + step / 2


def _warn_of_scenes(parts: Sequence[_Part]) -> None:
    """Warn of time steps that overlapping parts made of different scenes."""
    for one, other in combinations(parts, 2):
        if not (_meet(one.rows, other.rows) and _meet(one.cols, other.cols)):
            continue
        for time, ours in _scenes(one).items():
            differing = sorted(ours ^ _scenes(other).get(time, ours))
            if differing:
                shown = ", ".join(differing[:_SHOWN]) + (" ..." if len(differing) > _SHOWN else "")
                warnings.warn(
                    f"{one.name} and {other.name} overlap, and only one of them used {shown} for {time}; where both "
                    f"measured, {one.name} is taken", stacklevel=3
                )  # fmt: skip


def _scenes(part: _Part) -> dict[str, set[str]]:
    times = np.datetime_as_string(part.dataset.time.values, unit="s")
    return {
        str(time): set(map(str, period.get("scenes", ())))
        for time, period in zip(times, _periods(part.dataset), strict=False)
    }


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _joined(parts: Sequence[_Part], left_m: float, top_m: float) -> xr.Dataset:
    """Join the variables of all parts over the mosaic's grid."""
    import xarray as xr

    reference = parts[0].dataset
    step = _step_m(reference)
    ny, nx = max(part.rows[1] for part in parts), max(part.cols[1] for part in parts)
    times = np.unique(np.concatenate([part.dataset.time.values for part in parts]))
    axes = {"x": left_m + (np.arange(nx) + 0.5) * step, "y": top_m - (np.arange(ny) + 0.5) * step, "time": times}
    coordinates = {name: (name, values, reference[name].attrs) for name, values in axes.items()}
    shared = {name: value for name, value in reference.coords.items() if not {"x", "y", "time"} & set(value.dims)}
    variables = {}
    for name in dict.fromkeys(str(name) for part in parts for name in part.dataset.data_vars):
        model = next(part.dataset[name] for part in parts if name in part.dataset)
        if model.dims[-2:] == ("y", "x") and model.dims[0] == "time":
            values = _over(parts, name, times, (ny, nx))
            variables[name] = xr.Variable(model.dims, values, model.attrs, model.encoding)
    attributes = _attributes(parts, (step, left_m, top_m), (ny, nx))
    return xr.Dataset(variables, {**coordinates, **shared}, attributes)


def _over(parts: Sequence[_Part], name: str, times: NDArray[Any], shape: tuple[int, int]) -> da.Array:
    """Join one variable, cell by cell of the grid that the edges of all parts make."""
    import dask.array as da

    held = [(part, _array(part.dataset[name], times)) for part in parts if name in part.dataset]
    rows = pairwise(sorted({0, shape[0], *(edge for part in parts for edge in part.rows)}))
    cols = list(pairwise(sorted({0, shape[1], *(edge for part in parts for edge in part.cols)})))
    strips = [da.concatenate([_cell(held, top_below, span) for span in cols], axis=-1) for top_below in rows]
    joined: da.Array = da.concatenate(strips, axis=-2)
    return joined


def _cell(held: Sequence[tuple[_Part, da.Array]], rows: tuple[int, int], cols: tuple[int, int]) -> da.Array:
    """Return one cell, which every part covers whole or not at all: the first part that measured, pixel by pixel."""
    import dask.array as da

    cell: da.Array | None = None
    for part, array in held:
        if _meet(part.rows, rows) and _meet(part.cols, cols):
            inside = [slice(span[0] - at, span[1] - at) for span, at in ((rows, part.row), (cols, part.col))]
            cell = _first_measured(cell, array[(..., *inside)])
    if cell is not None:
        return cell
    model, size = held[0][1], (rows[1] - rows[0], cols[1] - cols[0])
    chunks = (*model.chunks[:-2], *size)
    empty: da.Array = da.full((*model.shape[:-2], *size), _nodata(model), dtype=model.dtype, chunks=chunks)
    return empty


def _array(values: xr.DataArray, times: NDArray[Any]) -> da.Array:
    """Return a variable over all time steps of the mosaic."""
    import dask.array as da

    if not np.array_equal(values.time.values, times):
        values = values.reindex(time=times, fill_value=_nodata(values))
    array: da.Array = da.asarray(values.data)
    return array


def _first_measured(one: da.Array | None, other: da.Array) -> da.Array:
    import dask.array as da

    if one is None:
        return other
    chosen: da.Array = da.where(da.isnan(one) if one.dtype.kind == "f" else one == NODATA_DN, other, one)
    return chosen


def _nodata(values: da.Array | xr.DataArray) -> float:
    return np.nan if values.dtype.kind == "f" else NODATA_DN


def _attributes(parts: Sequence[_Part], place: tuple[float, float, float], shape: tuple[int, int]) -> dict[str, Any]:
    """Return the attributes that all parts share, the scenes of all, and the georeference of the mosaic."""
    stated: list[Mapping[str, Any]] = [part.dataset.attrs for part in parts]
    found = {key: value for key, value in stated[0].items() if all(other.get(key) == value for other in stated[1:])}
    step, left, top = place
    ny, nx = shape
    scenes: dict[str, Any] = {}
    for one in stated:
        scenes |= json.loads(one.get("scenes", "{}"))
    digests = sorted({str(one["plan_digest"]) for one in stated if "plan_digest" in one})
    words = {str(one["status"]) for one in stated if "status" in one} - {"complete"}
    found |= {"status": sorted(words)[0]} if words else {}
    georeference = ([step, 0.0, left, 0.0, -step, top], [left, top - ny * step, left + nx * step, top], [ny, nx])
    return {
        **found,
        **dict(zip(_GEOREFERENCE, georeference, strict=True)),
        "scenes": json.dumps(dict(sorted(scenes.items()))),
        "mosaic_of": json.dumps(digests),
    }
