"""Arrays and groups below an opened group of a store, each as what it is expected to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray


def array_at(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """The array at `path`. KeyError where nothing is there, TypeError where a group is."""
    import zarr

    found = group[path]
    if not isinstance(found, zarr.Array):
        msg = f"{path} is a group, expected an array"
        raise TypeError(msg)
    return found


def group_at(group: zarr.Group, path: str) -> zarr.Group:
    """The group at `path`. KeyError where nothing is there, TypeError where an array is."""
    import zarr

    found = group[path]
    if not isinstance(found, zarr.Group):
        msg = f"{path} is an array, expected a group"
        raise TypeError(msg)
    return found


def values_at(group: zarr.Group, path: str) -> NDArray[Any]:
    """All values of the array at `path`. Errors as of `array_at`."""
    return np.asarray(array_at(group, path)[:])


def dimensions(array: zarr.Array[Any]) -> tuple[str, ...] | None:
    """Names of an array's dimensions; None where it has none, as in Zarr's second format."""
    names = getattr(array.metadata, "dimension_names", None)
    return None if names is None else tuple(map(str, names))
