"""What a run cost, from its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def stages(case: str, report: dict[str, Any], cpu: float) -> list[tuple[str, str, str]]:
    """Return rows: shares of the stages, of what is around the model, and of what is outside the units."""
    total = sum(report["stage_seconds"].values())
    around = 100 * around_s(report) / total
    shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in sorted(report["stage_seconds"].items()))
    outside = 100 * max(0.0, cpu - total) / cpu
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
