"""A walk over an area in strips, from the top: each window is computed once, blended at once, and not kept.

Windows are computed by several threads and handed over in ascending order, so that neither strips nor threads show in
the pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.superres.chain import cells_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from pipeline.grid.arrays import Array
    from pipeline.grid.grid import Window
    from pipeline.superres.canvas import Canvases
    from pipeline.superres.chain import Group

Cell = tuple[int, int]
Cells = Sequence[Sequence[Cell]]  # by group
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Due:
    """Windows of one group that a strip computes, ascending, and those whose images later groups read meanwhile."""

    cells: list[Cell]
    read: list[Cell]
    kept: frozenset[Cell]  # of both, those whose images later strips read as well


class Sweep:
    """The state of a walk. `then` are the parts of the area that follow the strip at hand, in px of the pass."""

    def __init__(self, threads: int = 1, require: Callable[[], None] = lambda: None) -> None:
        """Walk with so many threads. `require` is called before every window, and raises if the walk is to end."""
        self._require = require
        self.then: Sequence[Window] = ()
        self.canvases: Canvases | None = None  # of the first strip on
        self.windows = 0  # computed so far
        self._handed: dict[tuple[int, Cell], list[Array] | None] = {}
        self._done: dict[int, int] = {}  # last row of windows computed, by group
        self._seconds: dict[str, float] = {}
        self._counting = Lock()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Sweep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def due(self, groups: Sequence[Group], now: Cells, all_to_come: Cells) -> list[Due]:
        """Return what the next strip computes of every group. Both arguments list windows by group, `now` of the strip.

        Whole rows are computed, as far as any strip needs them, so that windows are blended in one order everywhere.
        """
        due = [Due([], [], frozenset()) for _ in groups]
        later: list[list[Cell]] = [[] for _ in groups]
        for i in reversed(range(len(groups))):
            read = cells_read(groups, i, [one.cells for one in due])
            bottom = max((row for row, _ in (*now[i], *read)), default=None)
            done = self._done.get(i)
            open_to = [cell for cell in all_to_come[i] if done is None or cell[0] > done]
            cells = [] if bottom is None else [cell for cell in open_to if cell[0] <= bottom]
            later[i] = open_to[len(cells) :]
            due[i] = Due(cells, read, frozenset(cells_read(groups, i, later)))
            if cells:
                self._done[i] = cells[-1][0]
        return due

    def take(self, number: int, cell: Cell, *, keep: bool) -> list[Array] | None:
        """Return the images that a window of group `number`, of an earlier strip, hands on. `keep`: and keep them."""
        return self._handed[number, cell] if keep else self._handed.pop((number, cell))

    def keep(self, number: int, cell: Cell, handed: list[Array] | None) -> None:
        """Keep the images that a window hands on for later strips; None if nothing was measured in it."""
        self._handed[number, cell] = handed

    def count(self, windows: int) -> None:
        """Count windows as computed. Threads may call it."""
        with self._counting:
            self.windows += windows

    def spend(self, step: str, seconds: float) -> None:
        """Add to the seconds of a step."""
        self._seconds[step] = self._seconds.get(step, 0.0) + seconds

    def spent(self) -> dict[str, float]:
        """Return the seconds by step since this was last asked."""
        found, self._seconds = self._seconds, {}
        return found

    def in_order(self, compute: Callable[[T], U], items: Iterable[T]) -> Ordered[T, U]:
        """Return an iterator over `compute` of each item, in the order of the items."""
        return Ordered(compute, items, self._pool, self._threads, self._require)


class Ordered(Generic[T, U]):
    """Yields `compute` of each item, in the order of the items; with a pool, several are computed at once.

    `then` is the iterator whose first items are computed when there are no more items here, if there is one.
    """

    def __init__(
        self,
        compute: Callable[[T], U],
        items: Iterable[T],
        pool: ThreadPoolExecutor | None,
        threads: int,
        require: Callable[[], None],
    ) -> None:
        self._compute, self._items, self._pool = compute, iter(items), pool
        self._threads, self._require = threads, require
        self._waiting: deque[Future[U]] = deque()
        self.then: Ordered[T, U] | None = None

    def __iter__(self) -> Ordered[T, U]:
        return self

    def __next__(self) -> U:
        if self._pool is None:
            item = next(self._items)
            self._require()
            return self._compute(item)
        while len(self._waiting) <= self._threads and self._start():
            pass
        if not self._waiting:
            raise StopIteration
        if self.then is not None and len(self._waiting) <= self._threads:
            self.then.ahead(1 + self._threads - len(self._waiting))
        return self._waiting.popleft().result()

    def ahead(self, count: int = 0) -> None:
        """Start items until so many are not yet handed over, or twice the number of threads by default.

        This keeps threads busy while the caller does something else.
        """
        if self._pool is None:
            return
        count = count or 2 * self._threads
        while len(self._waiting) < count and self._start():
            pass
        if self.then is not None and len(self._waiting) < count:
            self.then.ahead(count - len(self._waiting))

    def _start(self) -> bool:
        """Start the next item. Return whether there was one."""
        assert self._pool is not None
        for item in self._items:
            self._require()
            self._waiting.append(self._pool.submit(self._compute, item))
            return True
        return False
