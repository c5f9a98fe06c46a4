"""A Zarr store without some of its nodes. xarray refuses a group if one array lacks dimension names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import Store
from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection


class HidingStore(WrapperStore[Store]):
    """List all nodes but those at `paths`. Open it without consolidated metadata."""

    def __init__(self, store: Store, paths: Collection[str] = ()) -> None:
        super().__init__(store)
        self._paths = frozenset(paths)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix."""
        async for name in super().list_dir(prefix):
            if f"{prefix.strip('/')}/{name}".strip("/") not in self._paths:
                yield name


def without(store: str | Store, paths: Collection[str]) -> HidingStore:
    """Return a store, or the store in a folder, without the nodes at `paths`."""
    return HidingStore(LocalStore(store, read_only=True) if isinstance(store, str) else store, paths)
