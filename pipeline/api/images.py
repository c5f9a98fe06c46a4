"""Images as odc-stac, stackstac and cubo give them: bands, times, and where their pixels lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.api.names import band_named
from pipeline.bands import BAND_NAMES, BY_NAME, GSDS_M, SCL
from pipeline.errors import UsageError
from pipeline.grid.grid import Phase
from pipeline.grid.native_rasters import SCL_GSD_M

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_TIME, _BAND = "time", "band"
CORNERS = ("center", "topleft")  # what x and y of a pixel may be; the words are stackstac's
_NEAR_M = 1e-3  # coordinates closer than this are equal
_EPSG_COORDINATES = ("epsg", "proj:epsg", "proj:code")


@dataclass(frozen=True)
class Corner:
    """Upper-left corner of an image in metres, its pixel size, and its shape (ny, nx)."""

    left_m: float
    top_m: float
    gsd_m: int
    shape: tuple[int, int]

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top)."""
        ny, nx = self.shape
        return self.left_m, self.top_m - ny * self.gsd_m, self.left_m + nx * self.gsd_m, self.top_m


@dataclass(frozen=True)
class Layer:
    """All time steps of one band, or of SCL: `image` is (time, y, x) or (y, x), rows south."""

    band: str
    image: xr.DataArray
    place: Corner
    epsg: int

    @property
    def native_m(self) -> int:
        """GSD at which the band is measured."""
        return SCL_GSD_M if self.band == SCL else BY_NAME[self.band].gsd_m

    def plane(self, step: int) -> NDArray[np.generic]:
        """Return one time step, computed: (y, x)."""
        image = self.image.isel({_TIME: step}) if _TIME in self.image.dims else self.image
        return np.asarray(image.values)

    @property
    def nodata(self) -> float | None:
        """Value without data that the attributes name."""
        found = self.image.attrs.get("nodata", self.image.attrs.get("_FillValue"))
        return None if found is None else float(found)


def layers_of(images: object, epsg: int | None, xy_coords: str | None) -> list[Layer]:
    """Return the bands of a Dataset or DataArray, or of several in a list or mapping, such as one for each GSD.

    Bands are variables, or labels along `band`. Raises UsageError for images without bands, in other projections than
    UTM, on grids of other GSDs than 10, 20 and 60 m, or with a band twice.
    """
    import xarray as xr

    if xy_coords not in (None, *CORNERS):
        raise UsageError(f"xy_coords = {xy_coords!r}", f"one of {', '.join(CORNERS)}")
    if isinstance(images, xr.Dataset | xr.DataArray):
        parts: list[object] = [images]
    else:
        parts = list(images.values()) if isinstance(images, Mapping) else images if isinstance(images, list) else []
    found: dict[str, Layer] = {}
    for part in parts:
        if not isinstance(part, xr.Dataset | xr.DataArray):
            raise _no_image(part)
        for band, image in _split(part):
            if band in found:
                raise UsageError(f"{band} is there twice", "each band once")
            found[band] = _layer(band, image, part, epsg, xy_coords)
    if not parts:
        raise _no_image(images)
    if not set(found) - {SCL}:
        raise UsageError("no band is among the variables", f"names such as {', '.join(BAND_NAMES[:4])}, or red, nir08")
    if len({layer.epsg for layer in found.values()}) > 1:
        raise UsageError("the bands lie in several UTM zones", "one zone", "super-resolve each by itself")
    return list(found.values())


def _no_image(given: object) -> UsageError:
    return UsageError(
        f"an image of type {type(given).__name__}", "an xarray Dataset or DataArray, or a list or mapping of them"
    )


def _split(part: xr.Dataset | xr.DataArray) -> list[tuple[str, xr.DataArray]]:
    """Return (band, image) of all bands of a Dataset or DataArray. Other variables are passed over, and logged."""
    import xarray as xr

    arrays = list(part.data_vars.values()) if isinstance(part, xr.Dataset) else [part]
    named: list[tuple[object, xr.DataArray]] = []
    for array in arrays:
        if _BAND in array.dims:
            labels = array[_BAND].values.tolist()
            named += [(label, array.isel({_BAND: number})) for number, label in enumerate(labels)]
        elif _BAND in array.coords and band_named(array[_BAND].item()):
            named.append((array[_BAND].item(), array))
        else:
            named.append((array.name, array))
    passed_over = [str(name) for name, _ in named if not band_named(name)]
    if passed_over:
        _log.info("not among the bands: %s", ", ".join(passed_over))
    return [(band, array) for name, array in named if (band := band_named(name))]


def _layer(
    band: str, image: xr.DataArray, part: xr.Dataset | xr.DataArray, epsg: int | None, xy_coords: str | None
) -> Layer:
    axes = [str(dim) for dim in image.dims if dim != _TIME]
    y = next((dim for dim in axes if dim.lower().startswith(("y", "north"))), "")
    x = next((dim for dim in axes if dim.lower().startswith(("x", "east"))), "")
    if len(axes) != 2 or not (x and y) or x not in image.coords or y not in image.coords:
        raise UsageError(f"{band} has the dimensions {', '.join(map(str, image.dims))}", "time, y and x, with y and x")
    wanted = (*((_TIME,) if _TIME in image.dims else ()), y, x)
    image = image.transpose(*wanted)
    if image.sizes[y] > 1 and image[y].values[1] > image[y].values[0]:
        image = image.isel({y: slice(None, None, -1)})
    zone = _epsg(band, image, part) if epsg is None else epsg
    if zone // 100 not in (326, 327):
        raise UsageError(f"{band} lies in EPSG:{zone}", "a UTM zone, EPSG:326zz or EPSG:327zz", "load it in its own")
    place = _corner(band, image[x].values, image[y].values, zone, xy_coords or _convention(image, part, x))
    return Layer(band, image, place, zone)


def _epsg(band: str, image: xr.DataArray, part: xr.Dataset | xr.DataArray) -> int:
    """Return the EPSG code by coordinates, CF grid mapping or attributes. Raises UsageError."""
    import importlib

    importlib.import_module("rioxarray")  # registers the `.rio` accessor
    for name in _EPSG_COORDINATES:
        if name in image.coords and image[name].size == 1:
            return int(str(image[name].item()).rpartition(":")[2])
    crs = image.rio.crs or part.rio.crs or part.attrs.get("crs") or part.attrs.get("epsg")
    if crs is not None:
        from pyproj import CRS

        code = CRS.from_user_input(crs).to_epsg()
        if code is not None:
            return int(code)
    raise UsageError(f"{band} does not say its coordinate system", "spatial_ref or epsg", "epsg=32631, or whichever")


def _convention(image: xr.DataArray, part: xr.Dataset | xr.DataArray, x: str) -> str:
    """Return which point of a pixel x and y are, by what the loader wrote beside them; "" if it wrote nothing.

    Origins may be those of a larger image that this one was cut out of, so only the remainder counts.
    """
    first = float(image[x].values[0])
    for left_m, gsd_m in _origins(image, part):
        beside = (first - left_m) % gsd_m
        if min(beside, gsd_m - beside) < _NEAR_M:
            return "topleft"
        if abs(beside - gsd_m / 2) < _NEAR_M:
            return "center"
    return ""


def _origins(image: xr.DataArray, part: xr.Dataset | xr.DataArray) -> list[tuple[float, float]]:
    """Return (left edge, pixel size) in metres as stackstac, odc-stac or rioxarray, and cubo write them."""
    found = []
    attrs: Mapping[str, Any] = {**part.attrs, **image.attrs}
    if "transform" in attrs and len(tuple(attrs["transform"])) >= 6:
        a, _, c, *_ = tuple(attrs["transform"])
        found.append((float(c), float(a)))
    for name in (
        "spatial_ref",
        str(image.attrs.get("grid_mapping", image.encoding.get("grid_mapping", "spatial_ref"))),
    ):
        words = str(image.coords[name].attrs.get("GeoTransform", "")).split() if name in image.coords else []
        if len(words) == 6:
            found.append((float(words[0]), float(words[1])))
    if {"central_x", "edge_size_m", "resolution"} <= attrs.keys():
        found.append((float(attrs["central_x"]) - float(attrs["edge_size_m"]) / 2, float(attrs["resolution"])))
    return found


def _corner(band: str, x: NDArray[np.generic], y: NDArray[np.generic], epsg: int, convention: str) -> Corner:
    """Return the place of an image from its coordinates. Raises UsageError for grids that are no product's."""
    steps = np.concatenate([np.diff(x.astype(float)), -np.diff(y.astype(float))])
    gsd_m = next((gsd for gsd in GSDS_M if steps.size and np.abs(steps - gsd).max() < _NEAR_M), 0)
    if not gsd_m:
        size = f"{np.median(steps):g}" if steps.size else "unknown"
        raise UsageError(
            f"{band} has pixels of {size} m", "an even grid of 10, 20 or 60 m", "load it at its native GSD"
        )
    first_x, first_y, half = float(x[0]), float(y[0]), gsd_m / 2
    if not convention:
        official = Phase.official(epsg)
        beside = ((first_x - official.x_m) % gsd_m, (first_y - official.y_m) % gsd_m)
        if any(abs(rest - half) > _NEAR_M for rest in beside):
            raise UsageError(
                f"x and y of {band} start at {first_x:g}, {first_y:g}, which may be centres or corners of pixels",
                "coordinates at the centres of official pixels",
                'say which with xy_coords="center" or "topleft" (stackstac\'s and cubo\'s default)',
            )
        convention = "center"
    half = half if convention == "center" else 0.0
    return Corner(first_x - half, first_y + half, gsd_m, (y.size, x.size))


def times_of(layers: Sequence[Layer], datetime_utc: str | None) -> list[str]:
    """Return the time of each step, ISO 8601. Raises UsageError if there is none, or if bands differ."""
    found: dict[tuple[str, ...], str] = {}
    for layer in layers:
        times = np.atleast_1d(layer.image[_TIME].values) if _TIME in layer.image.coords else np.array([])
        texts = tuple(re.sub(r"\.000$", "", str(np.datetime_as_string(t, unit="ms"))) + "Z" for t in times)
        found.setdefault(texts, layer.band)
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found.values())} have different times", "the same time steps for all bands")
    (texts,) = found
    if datetime_utc is not None and len(texts) <= 1:
        return [datetime_utc]
    if not texts:
        raise UsageError("the image has no time", "a coordinate time", 'datetime="2024-06-17", or when it was taken')
    return list(texts)


def stated(layers: Sequence[Layer], name: str, step: int) -> object:
    """Return what a coordinate such as "s2:processing_baseline" says of a time step, or None."""
    for layer in layers:
        if name in layer.image.coords:
            found = layer.image[name]
            found = found.isel({_TIME: step}) if _TIME in found.dims else found
            if found.size == 1:
                value: object = found.item()
                return value
    return None
