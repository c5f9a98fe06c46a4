"""`super_resolve`: from an xarray image that is open already to the same at 2.5 m."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.api.images import layers_of, times_of
from pipeline.api.native import Meaning
from pipeline.api.progress import progress_of
from pipeline.api.runs import compute
from pipeline.api.scenes import INDEX, Image, write_scenes
from pipeline.api.settings import settled
from pipeline.bands import BAND_NAMES, SCALE_10M, SCL
from pipeline.errors import UsageError
from pipeline.process import guest
from pipeline.store.place import LocalPlace, place_of
from pipeline.store.reader import open_store
from pipeline.temporary import working_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import xarray as xr

    from pipeline.aoi.aoi import Aoi
    from pipeline.config import RunConfig

MAX_IN_MEMORY_GB = 2.0  # of float32 reflectance: 12 bands of about 16 x 16 km, one time step
_NOT_HERE = ("catalog", "start", "end")
_RING_POINTS = 64  # along each edge, so that an edge straight in degrees is straight in UTM to centimetres
_INSET_M = 1.0


def super_resolve(
    image: xr.Dataset | xr.DataArray | Mapping[Any, xr.Dataset | xr.DataArray] | list[xr.Dataset | xr.DataArray],
    out: str | os.PathLike[str] | None = None,
    *,
    offset: int | None = None,
    values: str = "",
    epsg: int | None = None,
    xy_coords: str | None = None,
    datetime: str | None = None,
    **settings: object,
) -> xr.Dataset:
    """Return an image at 2.5 m, as `open_store` would: `reflectance` (time, band, y, x), `quality`, and `scl` if given.

    `image` is what odc-stac, stackstac or cubo give: bands as variables or along `band`, by ESA or common names, all on
    the 10 m grid or each at its native GSD; several images, such as one for each GSD, come in a list or mapping.
    Bands on a finer grid than measured must be copies of measured pixels (nearest neighbour); they are turned back.

    Integers are DN, whose BOA offset `offset` (0 or -1000) must be stated unless coordinates or pixels tell it; floats
    up to about 6 are reflectance; `values` ("dn" or "reflectance") settles it. NaN and DN 0 are nodata. `epsg` and
    `datetime` are for images that do not state them, `xy_coords` ("center" or "topleft") for coordinates that could be
    either. Each pass is a time step of the result; `composite` may combine them. Further settings are those of `run`.

    Without `out`, the result is computed into memory, up to 2 GB. With `out`, a folder or URL, it is a store, opened
    lazily, and the same call continues it after an interruption. Raises PipelineError.
    """
    for name in _NOT_HERE:
        if name in settings:
            raise UsageError(f"super_resolve({name}=...)", "no settings of a search", "leave it out, or use run")
    if offset not in (None, 0, -1000):
        raise UsageError(f"offset = {offset!r}", "0 or -1000")
    layers = layers_of(image, epsg, xy_coords)
    prepared = Image(layers, times_of(layers, datetime), Meaning(values), offset)
    config, manner = settled({**_defaults(prepared), **settings}, "super_resolve")
    if out is None:
        _require_memory(prepared, config)
    with guest(), progress_of(shown=manner.progress) as progress, _folders(out) as (inputs, store):
        index = write_scenes(prepared, inputs, progress.say)
        area = _area(prepared)
        compute(replace(config, catalog=str(index)), area, place_of(store), manner, progress)
        return _opened(store, prepared, load=out is None)


def _defaults(image: Image) -> dict[str, object]:
    """Return the settings that an image changes: its own bands and time steps, whatever their clouds."""
    there = {layer.band for layer in image.layers} - {SCL}
    some = {} if there == {*BAND_NAMES} else {"bands": [band for band in BAND_NAMES if band in there]}
    return {"composite": "none", "max_cloud": 100.0, **some}


def _require_memory(image: Image, config: RunConfig) -> None:
    from pipeline.superres import declared
    from pipeline.superres.registry import spec_of

    left, bottom, right, top = image.bounds_m
    spec = spec_of(config.sr)
    variants = spec.variants(declared.settled(spec.options, config.option_values, spec.name)).numbers
    pixels = (right - left) * (top - bottom) / 100 * SCALE_10M**2 * len(image.times) * max(1, len(variants))
    size_gb = pixels * len(config.band_names) * np.dtype(np.float32).itemsize / 1e9
    if size_gb > MAX_IN_MEMORY_GB:
        raise UsageError(
            f"the result has {size_gb:.1f} GB",
            f"at most {MAX_IN_MEMORY_GB:g} GB in memory",
            'out="fine.zarr" for a store, or a smaller area',
        )


@contextmanager
def _folders(out: str | os.PathLike[str] | None) -> Iterator[tuple[Path, str]]:
    """Yield the folder of the input files, and the store. A store that is to be continued needs the same folder."""
    place = None if out is None else place_of(os.fspath(out))
    if isinstance(place, LocalPlace):
        store = place.absolute().path
        inputs = store.with_name(f"{store.name}.input")
        if inputs.exists() and not (inputs / INDEX).exists() and any(inputs.iterdir()):
            raise UsageError(f"{inputs} is in the way", "a free name for the input files", "choose another out")
        inputs.mkdir(exist_ok=True)
        yield inputs, str(store)
        shutil.rmtree(inputs)  # only after success
        return
    with working_folder(Path(tempfile.gettempdir()), "sen2fine-image-") as folder:
        inputs = folder / "input"
        inputs.mkdir()
        yield inputs, str(folder / "fine.zarr" if out is None else out)


def _area(image: Image) -> Aoi:
    """Return the ground of an image as AOI, within its edges so that no further row or column is added."""
    import json

    from pyproj import Transformer

    from pipeline.aoi.aoi import aoi_from_geojson

    left, bottom, right, top = image.bounds_m
    left, bottom, right, top = left + _INSET_M, bottom + _INSET_M, right - _INSET_M, top - _INSET_M
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    ring = [
        (a + (c - a) * i / _RING_POINTS, b + (d - b) * i / _RING_POINTS)
        for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True)
        for i in range(_RING_POINTS)
    ]
    x, y = zip(*ring, ring[0], strict=True)
    degrees = Transformer.from_crs(image.epsg, 4326, always_xy=True).transform(x, y)
    polygon = {"type": "Polygon", "coordinates": [[list(pair) for pair in zip(*degrees, strict=True)]]}
    return aoi_from_geojson(json.dumps(polygon).encode(), "image")


def _opened(store: str, image: Image, *, load: bool) -> xr.Dataset:
    """Return the store's pixels over the image itself, without those that pad it to whole pixels of 60 m."""
    import xarray as xr

    opened = open_store(store)
    assert isinstance(opened, xr.Dataset)  # one zone
    left, bottom, right, top = image.bounds_m
    inside = opened.sel(x=slice(left, right), y=slice(top, bottom))
    if inside.sizes != opened.sizes:  # they describe the place of the whole store
        inside.attrs = {name: value for name, value in inside.attrs.items() if not name.startswith("spatial:")}
    return inside.load() if load else inside
