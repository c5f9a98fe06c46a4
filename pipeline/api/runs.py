"""`run`: from an area to an opened store, in one call."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from pipeline.api.asked import asked
from pipeline.api.progress import progress_of
from pipeline.errors import LeaseLost
from pipeline.plain import LOADING
from pipeline.process import guest
from pipeline.redaction import redact_logs
from pipeline.store.reader import open_store

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import xarray as xr

    from pipeline.aoi.aoi import Aoi
    from pipeline.api.area import Area
    from pipeline.api.settings import Manner
    from pipeline.config import RunConfig
    from pipeline.planning.plan import Plan
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place
    from pipeline.terminal import Progress


def run(
    aoi: Area | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    bbox: Sequence[float] | None = None,
    **settings: object,
) -> xr.Dataset | xr.DataTree:
    """Compute all bands of an area at 2.5 m into a Zarr store, or continue one, and open it.

    `aoi` is a GeoJSON file, mapping, shapely geometry or GeoDataFrame; `bbox` is (west, south, east, north) degrees.
    `out` is a folder or an object store's URL; by default the AOI's name with the suffix .zarr. The settings are those
    of the command `sen2fine run`: `catalog`, `start`, `end`, `max_cloud`, `composite`, `bands`, `sr`, `options`,
    `members`, ..., and `workers`, `cluster`, `overwrite`, `verify`, `mixed_software`, `max_outage`, `max_area_km2`,
    `max_output_gb`, `repair`, `progress`, and `config`, a TOML file. Dates, paths, lists and mappings are taken too.

    Returns what `open_store` returns: a lazy Dataset, or a DataTree if the area lies in several UTM zones. A plain
    script needs no `if __name__ == "__main__"`. Raises PipelineError: UsageError for settings, NoDataError if no scene
    matches, Interrupted if it was stopped, to be continued by the same call.
    """
    of = asked("run", {"aoi": aoi, "out": out, "bbox": bbox, **settings})
    redact_logs()
    with guest(), progress_of(shown=of.manner.progress) as progress:
        compute(of.config, of.area, of.place, of.manner, progress)
    return open_store(of.place)


def compute(config: RunConfig, aoi: Aoi, out: Place, manner: Manner, progress: Progress) -> None:
    """Plan and compute a store, or continue it. Raises PipelineError."""
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.running.choices import HERE, affordable, at_work, require_precision
    from pipeline.running.stored_plan import RunRequest, begin_or_continue, proposed, writable
    from pipeline.store.lease import lease

    restrict_drivers()  # for the workers
    require_precision(manner.cluster, config.precision)
    together = manner.cluster in HERE
    request = RunRequest(config, aoi, writable(out), manner.overwrite, manner.max_output_gb, together)
    workers = at_work(manner.cluster, manner.workers)
    plan = proposed(request, workers, progress.say)
    progress.say(LOADING)
    cost = estimate(plan, workers, timed=False, together=together)
    workers = affordable(manner.cluster, manner.workers, workers, cost)
    with lease(request.store, say=progress.say) as held:
        _run(begin_or_continue(plan, held, request), held, manner, workers, progress)


def _run(plan: Plan, held: Lease, manner: Manner, workers: int, progress: Progress) -> None:
    from pipeline.running.choices import cluster_of
    from pipeline.running.driver import run_plan
    from pipeline.running.unit_queue import Patience

    summary = run_plan(
        plan,
        held.place,
        cluster=cluster_of(manner.cluster, sum(1 for _ in plan.units()), workers),
        workers=workers,
        verify=manner.verify,
        patience=Patience(max_outage_s=60 * manner.max_outage),
        report=progress.units,
        held=held,
        mixed=manner.mixed_software,
    )
    _log.info("%s: %d units computed, %d found done", held.place, summary.computed, summary.resumed)
    if summary.computed:
        progress.say("drawing the quicklook")
        _draw(plan, held.place)


def _draw(plan: Plan, store: Place) -> None:
    """Draw the quicklook. Failures only give warnings, since the store is finished."""
    from pipeline.running.quicklook import write_quicklook

    try:
        write_quicklook(plan, store)
    except LeaseLost:
        raise
    except Exception as error:
        warnings.warn(f"{store} is complete, but it has no picture: {error}", stacklevel=5)
