"""Clusters that grow and shrink with the work left: no idle jobs at the end of a run, none asked for that have no unit.

In: how many units are left. Out: a Dask cluster that follows. Imports nothing of the project; distributed in functions.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed.deploy.cluster import Cluster

INTERVAL_S = 5.0  # between looks at the cluster
_PATIENCE = 3  # looks at which a worker must be one too many before it goes
_SPARE = 1  # worker beyond those with a unit, so that one that lags can get a twin


@dataclass
class Demand:
    """Units that are not done yet, those at work included."""

    units: int


@contextmanager
def following(cluster: Cluster, workers: int, demand: Demand) -> Iterator[None]:
    """Keep `cluster` at as many workers as there are units left and one more, `workers` at most and one at least.

    Dask's own target goes by the tasks it holds and the time they took so far. A run gives it no more tasks than it has
    workers, so that stopping means waiting for those alone; it would never grow. The run knows better what is left.
    """
    from distributed.deploy.adaptive import Adaptive

    async def target(_self: object) -> int:
        return demand.units + _SPARE

    cluster.scale(min(workers, demand.units + _SPARE))  # at once; Dask looks only after the first interval
    by_units = type("ByUnits", (Adaptive,), {"target": target})
    adaptive = cluster.adapt(
        Adaptive=by_units, minimum=1, maximum=workers, interval=f"{INTERVAL_S}s", wait_count=_PATIENCE
    )
    try:
        yield
    finally:
        adaptive.stop(reason="end of the run")
