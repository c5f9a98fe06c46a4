"""All levels of a store as one DataTree, and the engine by which `xarray.open_datatree(store)` finds it.

The Zarr groups themselves are no DataTree: xarray requires a group to share the coordinates of the group above it, and
the levels below the 2.5 m arrays have other pixels. Here they stand side by side.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from xarray.backends import BackendEntrypoint

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.store.keys import PLAN_KEY
from pipeline.store.levels import gsd_name
from pipeline.store.reader import levels_of, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    import xarray as xr

    from pipeline.store.place import Where


def open_tree(path: Where) -> xr.DataTree:
    """Open all levels of a store: nodes "2.5m", "5m", "10m" ..., "measured/10m" ..., finer ones, lazy and decoded.

    Nodes are as `open_store` and `open_measured` give them. With several UTM zones they lie below "utm31n" and so on.
    Raises as `open_store`.
    """
    import xarray as xr

    return xr.DataTree.from_dict(_nodes(path))


def _nodes(path: Where) -> dict[str, xr.Dataset]:
    """Return {path of the node: dataset}; the root and "measured" hold nothing but attributes."""
    import xarray as xr

    found: dict[str, xr.Dataset] = {}
    for zone, levels in levels_of(path).items():
        base = levels[gsd_name(TARGET_GSD_M)]
        found["/"] = xr.Dataset(attrs=base.attrs)
        found |= {"/".join(("", *filter(None, (zone, name)))): dataset for name, dataset in levels.items()}
    return found


class StoreEngine(BackendEntrypoint):
    """The engine "sen2fine" of xarray, with which `xr.open_datatree(store)` and `xr.open_dataset(store)` work."""

    description = "Stores of sen2fine, decoded"
    supports_groups = True
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "group")

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Return whether it is a local folder with a plan of this pipeline."""
        return isinstance(filename_or_obj, str | os.PathLike) and (Path(filename_or_obj) / PLAN_KEY).is_file()

    def open_dataset(
        self, filename_or_obj: object, *, drop_variables: str | Iterable[str] | None = None, group: str | None = None
    ) -> xr.Dataset:
        """Open one level, the 2.5 m arrays by default. Raises UsageError if there is no such group or several zones."""
        import xarray as xr

        if group is None:
            opened = open_store(_path(filename_or_obj))
            if isinstance(opened, xr.DataTree):
                zones = ", ".join(opened.children)
                raise UsageError(
                    f"{filename_or_obj} has the UTM zones {zones}", f'group="{zones[:6]}/2.5m", for example'
                )
            return _without(opened, drop_variables)
        nodes = _nodes(_path(filename_or_obj))
        if (name := f"/{group.strip('/')}") not in nodes:
            raise UsageError(f"{filename_or_obj} has no group {group}", f"one of {', '.join(nodes)}")
        return _without(nodes[name], drop_variables)

    def open_groups_as_dict(
        self, filename_or_obj: object, *, drop_variables: str | Iterable[str] | None = None
    ) -> dict[str, xr.Dataset]:
        """Open all levels."""
        return {name: _without(dataset, drop_variables) for name, dataset in _nodes(_path(filename_or_obj)).items()}

    def open_datatree(
        self, filename_or_obj: object, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.DataTree:
        """Open all levels."""
        import xarray as xr

        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables))


def _path(given: object) -> Where:
    if isinstance(given, str | Path):
        return given
    raise UsageError(f"a {type(given).__name__}", "the path or URL of a store")


def _without(dataset: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    dropped = [names] if isinstance(names, str) else list(names or ())
    return dataset.drop_vars(dropped, errors="ignore")
