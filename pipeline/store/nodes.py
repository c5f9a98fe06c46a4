"""Arrays and groups of an opened Zarr group, with their kind checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray


def array_at(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """Return the array at `path`. Raises KeyError if nothing is there, TypeError if it is a group."""
    import zarr

    found = group[path]
    if not isinstance(found, zarr.Array):
        msg = f"{path} is a group, expected an array"
        raise TypeError(msg)
    return found


def group_at(group: zarr.Group, path: str) -> zarr.Group:
    """Return the group at `path`. Raises KeyError if nothing is there, TypeError if it is an array."""
    import zarr

    found = group[path]
    if not isinstance(found, zarr.Group):
        msg = f"{path} is an array, expected a group"
        raise TypeError(msg)
    return found


def values_at(group: zarr.Group, path: str) -> NDArray[Any]:
    """Return all values of the array at `path`. Raises as `array_at`."""
    return np.asarray(array_at(group, path)[:])


def dimensions(array: zarr.Array[Any]) -> tuple[str, ...] | None:
    """Return the dimension names of an array; None if it has none, as in Zarr v2."""
    names = getattr(array.metadata, "dimension_names", None)
    return None if names is None else tuple(map(str, names))
