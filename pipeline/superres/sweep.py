"""A walk over an area in strips, from the top: windows that the next strip needs too are kept, not computed again.

Windows are computed by several threads and handed over in ascending order, so that neither strips nor threads show in
the pixels.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.grid.arrays import copied
from pipeline.superres.chain import at_gsd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from pipeline.grid.arrays import Array
    from pipeline.grid.grid import Window
    from pipeline.superres.chain import Group
    from pipeline.superres.windows import WindowResult

Cell = tuple[int, int]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Computed:
    """What the networks gave in one window.

    `found` is None if nothing was measured in it. `detail` (T, T) is the weight of generated detail, None for a group
    that interpolates. `above` rows of the group's px have been cut off the top of both.
    """

    found: WindowResult | None
    detail: Array | None = None
    above: int = 0

    def below(self, rows: int, group: Group) -> Computed:
        """Return a copy without the first `rows` px of the window. What later groups read is kept whole."""
        step = max([round(output.gsd_m / group.gsd_m) for output in group.outputs], default=1)
        rows = max(self.above, rows // step * step)
        if self.found is None or rows == self.above:
            return self
        detail = None if self.detail is None else copied(self.detail[rows - self.above :])
        return Computed(self.found.below(rows - self.above, group.gsd_m), detail, rows)


class Sweep:
    """The state of a walk. `then` are the parts of the area that follow the strip at hand, in px of the pass."""

    def __init__(self, threads: int = 1, require: Callable[[], None] = lambda: None) -> None:
        """Walk with so many threads. `require` is called before every window, and raises if the walk is to end."""
        self._require = require
        self.then: Sequence[Window] = ()
        self._kept: dict[tuple[int, Cell], Computed] = {}
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Sweep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, number: int, cell: Cell) -> Computed | None:
        """Return a window of group `number` that an earlier strip has computed, or None."""
        return self._kept.pop((number, cell), None)

    def keep(self, number: int, group: Group, cell: Cell, computed: Computed, top_row: int, gsd_m: float) -> None:
        """Keep the part of a window from `top_row` on (px of `gsd_m`) for later strips."""
        whole = group.lattice.window(*cell)
        first = at_gsd(whole, group.gsd_m, gsd_m).row
        rows = round((top_row - first) * gsd_m / group.gsd_m)
        self._kept[number, cell] = computed.below(min(max(0, rows), whole.ny), group)

    def in_order(self, compute: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield `compute` of each item, in the order of the items; several at once if the walk has threads."""
        if self._pool is None:
            for item in items:
                self._require()
                yield compute(item)
            return
        waiting: deque[Future[U]] = deque()
        for item in items:
            self._require()
            waiting.append(self._pool.submit(compute, item))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
