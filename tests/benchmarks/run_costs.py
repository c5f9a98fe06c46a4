"""What a run cost, from its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def stages(case: str, report: dict[str, Any], cpu: float) -> list[tuple[str, str, str]]:
    """Return rows: shares of the stages, of what is around the model, and of what is outside the units."""
    total, of_units = sum(report["stage_seconds"].values()), 3600 * report["hours"]
    around = 100 * around_s(report) / total
    shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in sorted(report["stage_seconds"].items()))
    outside = 100 * max(0.0, cpu - of_units) / cpu
    return [
        (case, "share of worker seconds by stage", shares),
        (case, "share of worker seconds around the model", f"{around:.1f} %"),
        (
            case,
            "share of CPU seconds outside the units (start-up, planning, scheduling, quicklook)",
            f"{outside:.1f} %",
        ),
    ]


def around_s(report: dict[str, Any]) -> float:
    """Return the seconds of all workers that were not spent in networks."""
    return sum(seconds for stage, seconds in report["stage_seconds"].items() if stage != "superres")


def factor(store: Path) -> float:
    """Return the pixels that go through the networks for each pixel stored."""
    from pipeline.planning.estimate import estimate
    from pipeline.planning.plan import load_plan

    return estimate(load_plan(store), 1, timed=False).overlap


def planned_factors(folder: Path, workers: int) -> list[tuple[str, str, str]]:
    """Return a row per square of 25, 100, 400 and 10 000 km2, from plans for so many workers."""
    from pipeline.config import RunConfig
    from pipeline.planning.estimate import estimate
    from tests.benchmarks.scene import wide_plan

    rows = []
    for side_m in (5000, 10_000, 20_000, 100_000):
        own = folder / str(side_m)
        own.mkdir()
        counted = estimate(wide_plan(own, side_m, RunConfig(), workers), workers, timed=False)
        case = f"{counted.area_km2:.0f} km2 for {workers} workers, {counted.units} units"
        rows.append((case, "pixels through the networks per pixel stored", f"{counted.overlap:.2f}"))
    return rows
