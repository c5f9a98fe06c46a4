"""Adaptive scaling of a Dask cluster with the number of units left, to avoid idle jobs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed.deploy.cluster import Cluster

INTERVAL_S = 5.0  # between checks of the cluster
_PATIENCE = 3  # checks in which a worker must be surplus before it is retired
_SPARE = 1  # extra worker, to run a copy of a straggling unit


@dataclass
class Demand:
    """Number of units that are not done yet, including those at work."""

    units: int


@contextmanager
def following(cluster: Cluster, workers: int, demand: Demand) -> Iterator[None]:
    """Keep `cluster` at one worker more than units left, between 1 and `workers`.

    Dask derives its own target from the tasks it holds. A run submits at most one task per worker, so that a stop only
    waits for those, and the cluster would never grow.
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
