"""`plan`: what a run would do and cost, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.api.asked import asked
from pipeline.api.progress import progress_of
from pipeline.process import guest
from pipeline.redaction import redact_logs
from pipeline.report import PlanPreview

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.api.area import Area


@dataclass(frozen=True, repr=False)
class Preview(PlanPreview):
    """The plan and cost of a run: `plan` and `cost`, shown as `sen2fine run --dry-run` prints them."""

    def __repr__(self) -> str:
        return self.text()


def plan(
    aoi: Area | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    bbox: Sequence[float] | None = None,
    **settings: object,
) -> Preview:
    """Return the scenes, units and cost of a run with the same arguments, and write nothing.

    `preview.plan` can be given to `open_cube`, to look at what would go in. Raises PipelineError as `run` does.
    """
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.planning.planner import make_plan
    from pipeline.running.choices import HERE, at_work

    of = asked("plan", {"aoi": aoi, "out": out, "bbox": bbox, **settings})
    redact_logs()
    with guest(), progress_of(shown=of.manner.progress) as progress:
        restrict_drivers()
        workers, together = at_work(of.manner.cluster, of.manner.workers), of.manner.cluster in HERE
        made = make_plan(
            of.config, of.area, workers=workers, together=together, say=progress.say, max_output_gb=float("inf")
        )
        cost = estimate(made, workers, together=together)
    return Preview(made, cost, of.place, of.area.describe())
