"""Read the pixels of a slab block by block. Damaged or lost chunks raise instead of reading as nodata."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_SPREAD
from pipeline.errors import IntegrityError, PipelineError
from pipeline.grid.grid import Window
from pipeline.store import uncertainty
from pipeline.store.layout import band_parts
from pipeline.store.receipts import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.place import Place
    from pipeline.store.selection import Slab

_AHEAD = 8  # blocks to read ahead from a remote store


class Stored:
    """Reads blocks of a store's arrays. The store's receipts define which chunks must exist."""

    def __init__(self, place: Place, plan_digest: str, *, complete: bool = True) -> None:
        self.place = place
        self.hidden: set[str] = set()  # chunks that no receipt names, read as nodata
        self._digest = plan_digest
        self._complete = complete

    @cached_property
    def _chunks(self) -> set[str]:
        """Keys of all chunks that receipts list; empty if the store keeps no receipts."""
        return {
            f"{receipt.group}/{key}" if receipt.group else key
            for receipt in Ledger(self.place, self._digest).read_all()
            for key in receipt.chunks
        }

    def blocks(self, array: zarr.Array[Any], slab: Slab, step: int) -> Iterator[tuple[Window, NDArray[np.generic]]]:
        """Yield (window, values) over the slab, row by row, at most `_AHEAD` in memory. Values are (band, y, x)."""
        window = slab.window
        places = (
            Window(row, col, step, step).intersect(window)
            for row in range(window.row, window.row_end, step)
            for col in range(window.col, window.col_end, step)
        )
        if self.place.hands == 1:
            yield from ((block, self.read(array, slab, block)) for block in places)
            return
        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting = deque((block, pool.submit(self.read, array, slab, block)) for block in islice(places, _AHEAD))
            while waiting:
                block, values = waiting.popleft()
                yield block, values.result()
                waiting += ((after, pool.submit(self.read, array, slab, after)) for after in islice(places, 1))

    def array(self, slab: Slab) -> zarr.Array[Any]:
        """Return the slab's array."""
        import zarr

        with self.place.reading():
            group = zarr.open_group(self.place.zarr_store(slab.group), mode="r")
            array = group[slab.variable]
        if not isinstance(array, zarr.Array):
            raise IntegrityError(f"{slab.variable} of {self.place} is not an array", "a store as a run wrote it")
        return array

    def read(self, array: zarr.Array[Any], slab: Slab, block: Window) -> NDArray[np.generic]:
        """Read values (band, y, x) of all bands. Nodata of uncertainty is 65535, whatever the store's format.

        Raises IntegrityError if a chunk is damaged, missing although a receipt names it, or without a receipt in a
        complete store. In an incomplete store, a chunk without a receipt is of an unfinished unit and reads as nodata.
        """
        rows, cols = slice(block.row, block.row_end), slice(block.col, block.col_end)
        try:
            with self.place.reading():
                values = np.array(array[(slab.time_index, ..., rows, cols)])
        except PipelineError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise self._damaged(slab, rows, cols, f"cannot be decoded ({error})") from error
        self._compare_with_receipts(array, slab, rows, cols, values)
        if slab.variable == "uncertainty" and array.fill_value != NODATA_SPREAD:
            measured = replace(slab, variable="reflectance")
            dn = self.read(self.array(measured), measured, block)
            return uncertainty.decoded(values.astype(np.uint16), dn.astype(np.uint16))
        return values if values.ndim == 3 else values[np.newaxis]

    def _compare_with_receipts(
        self, array: zarr.Array[Any], slab: Slab, rows: slice, cols: slice, values: NDArray[np.generic]
    ) -> None:
        """Compare chunks with receipts. Empty chunks are not stored; all others must be named by a receipt."""
        fill = array.fill_value
        step = (array.shards or array.chunks)[-1]
        lead = f"{slab.group}/" if slab.group else ""
        middles = band_parts(array)
        chunks = product(
            range(rows.start // step, -(-rows.stop // step)),
            range(cols.start // step, -(-cols.stop // step)),
            enumerate(middles),
        )
        for row, col, (band, middle) in chunks:
            y, x = max(0, row * step - rows.start), max(0, col * step - cols.start)
            shown = values[band] if len(middles) > 1 else values
            part = shown[..., y : (row + 1) * step - rows.start, x : (col + 1) * step - cols.start]
            key = f"{lead}{slab.variable}/c/{slab.time_index}/{middle}{row}/{col}"
            stored = bool((part != fill).any())
            if not stored and key in self._chunks and self.place.size(key) is None:
                raise self._damaged(slab, rows, cols, f"are lost: {key} is missing")
            if stored and self._chunks and key not in self._chunks:
                if self._complete:
                    raise self._damaged(slab, rows, cols, f"are not the run's: no receipt names {key}")
                part[...] = fill
                self.hidden.add(key)

    def _damaged(self, slab: Slab, rows: slice, cols: slice, what: str) -> IntegrityError:
        return IntegrityError(
            f"{slab.variable} of {self.place}, {slab.date}, rows {rows.start}.., columns {cols.start}.. {what}",
            "bytes as they were written",
            f"python -m pipeline.check {self.place} --verify full --repair",
        )
