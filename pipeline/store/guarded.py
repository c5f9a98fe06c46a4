"""A Zarr store that calls a guard before each write."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zarr.abc.store import Store
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zarr.core.buffer import Buffer


def guarded_store(store: Store, guard: Callable[[], None]) -> Store:
    """Return `store` wrapped to call `guard` immediately before each write or delete."""

    class Guarded(WrapperStore[Store]):
        async def set(self, key: str, value: Buffer) -> None:
            await asyncio.to_thread(guard)
            await super().set(key, value)

        async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
            await asyncio.to_thread(guard)
            await super()._set_many(values)

        async def set_if_not_exists(self, key: str, value: Buffer) -> None:
            await asyncio.to_thread(guard)
            await super().set_if_not_exists(key, value)

        async def delete(self, key: str) -> None:
            await asyncio.to_thread(guard)
            await super().delete(key)

        async def clear(self) -> None:
            await asyncio.to_thread(guard)
            await super().clear()

        async def delete_dir(self, prefix: str) -> None:
            await asyncio.to_thread(guard)
            await super().delete_dir(prefix)

    return Guarded(store)
