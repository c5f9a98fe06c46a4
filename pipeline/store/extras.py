"""Arrays beside the usual ones: the map that guided a run, and several images of every time step.

The images of a time step are stored along `time`, one after another, each with its number in a coordinate. So they are
written, recorded and verified as time steps are. `along` gives them a dimension of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    import zarr

MAP_CLASS = "map_class"  # array of the map, with (time, y, x)
NOTHING = "nothing"  # class 0 of a map
_COUNT = "images_of_a_time_step"  # attribute


@dataclass(frozen=True)
class MapRaster:
    """A map as a raster of classes at a GSD below 2.5 m: 0 for nothing, k + 1 for class k."""

    gsd_m: float
    classes: tuple[str, ...]
    credit: str = ""

    @property
    def meanings(self) -> str:
        """Names of the values, from 0 on."""
        return " ".join((NOTHING, *self.classes))

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the array."""
        credit = {"credit": self.credit} if self.credit else {}
        return {
            "long_name": "class of the vector map that guided the detail",
            "flag_values": list(range(len(self.classes) + 1)),
            "flag_meanings": self.meanings,
            **credit,
        }


def class_numbers(channels: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the values (ny, nx) of exclusive classes (classes, ny, nx) of 0 or 1.

    >>> class_numbers(np.eye(2, 3, dtype=np.float32)[:, None]).tolist()
    [[1, 2, 0]]
    """
    found: np.ndarray[Any, np.dtype[np.uint8]] = ((channels.argmax(0) + 1) * channels.any(0)).astype(np.uint8)
    return found


def of_images(numbers: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of the coordinate that numbers the images of every time step, for all steps together."""
    count = len(dict.fromkeys(numbers))
    return {"long_name": "number of the image, of which every time step has several", _COUNT: count}


def is_of_images(array: xr.Variable | zarr.Array[Any]) -> bool:
    """Return whether an array is such a coordinate."""
    return _COUNT in array.attrs


def along(opened: xr.Dataset, *, shared: bool) -> xr.Dataset:
    """Return a dataset as stored with the images of a time step along a dimension of their own, behind `time`.

    `shared`: all images have the same pixels, as measured ones do, so that the first stands for all.
    """
    import xarray as xr

    name = next((str(name) for name, one in opened.variables.items() if is_of_images(one)), "")
    if not name:
        return opened
    count = int(opened[name].attrs[_COUNT])
    parts = [opened.isel(time=slice(k, None, count)).drop_vars(name) for k in range(count)]
    if shared:
        return parts[0]
    found: xr.Dataset = parts[0]
    for key, one in opened.data_vars.items():
        if "time" in one.dims and key != MAP_CLASS:
            joined = xr.concat([part[key] for part in parts], dim=name, coords="minimal", compat="override")
            joined = joined.transpose("time", name, *one.dims[1:])
            joined.attrs, joined.encoding = one.attrs, one.encoding
            found = found.drop_vars([key]).assign({key: joined})
    return found.assign_coords({name: (name, opened[name].values[:count], {"long_name": "number of the image"})})
