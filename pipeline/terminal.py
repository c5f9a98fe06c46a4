"""What a run says while it works and when it is done. In: plans, summaries. Out: text. No decisions are taken here."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.bands import TARGET_GSD_M
from pipeline.plain import plain

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.execution.estimate import Estimate
    from pipeline.execution.plan import Plan
    from pipeline.execution.shards import Shard
    from pipeline.execution.work import Summary
    from pipeline.store.place import Place

_WIDTH = 100
_STAGE_NAMES = {
    "start": "start", "load": "load weights", "read": "read", "superres": "super-resolve and fuse", "blend": "blend",
    "project": "project", "write": "write", "overviews": "overviews",
}  # fmt: skip


class Progress:
    """One line that is rewritten on a terminal; silent elsewhere and when `quiet`."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = not quiet and self._stream.isatty()
        self._started = time.monotonic()
        self._first: tuple[int, int] | None = None

    def say(self, text: str) -> None:
        """Show what is going on now."""
        if self._shown:
            self._stream.write(f"\r{plain(text)[:_WIDTH]:<{_WIDTH}}")
            self._stream.flush()

    def units(self, summary: Summary, running: int) -> None:
        """Show how far the units are, how fast, and for how long still."""
        done = summary.resumed + summary.computed
        if self._first is None:
            self._first = (done, summary.pixels)
            self._started = time.monotonic()
        elapsed = time.monotonic() - self._started
        words = [f"units {done}/{summary.units}"]
        new_pixels = summary.pixels - self._first[1]
        if new_pixels and elapsed > 0:
            km2_per_h = new_pixels * TARGET_GSD_M**2 / 1e6 / elapsed * 3600
            left_s = elapsed * (summary.units - done) / max(1, done - self._first[0])
            words += [f"{km2_per_h:.0f} km2/h", f"{duration(left_s)} left"]
        stage = f"{running} at work" if running else "starting workers" if done < summary.units else "publishing"
        self.say(" · ".join([*words, stage]))

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r" + " " * _WIDTH + "\r")
            self._stream.flush()


def show(text: str) -> None:
    """Print, control characters as escapes; a reader that leaves early (`| head`) is no failure of the run."""
    try:
        print(plain(text, lines=True), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter fails again at exit


def tell(text: str) -> None:
    """Print one line to stderr: a note or a warning, which may quote what came from elsewhere."""
    print(plain(text), file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(number: int, thing: str) -> str:
    """The number with its noun: "1 unit", "2 units"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def described_plan(plan: Plan, cost: Estimate, store: Place) -> str:
    """A plan in words: scenes with dates and offsets, zones, units, cost."""
    lines = [
        f"plan for {plain(plan.aoi_name)}: {plan.system.name}, {len(plan.config.band_names)} bands{_finer(plan)}, "
        f"{store} (not written)"
    ]
    for zone in plan.zones:
        ny, nx = zone.grid.shape
        lines.append(f"  EPSG:{zone.epsg}  {nx} x {ny} px of 2.5 m, {counted(len(zone.periods), 'time step')}")
        for period in zone.periods:
            lines.append(f"    {period.label} ({period.composite})")
            for name in period.scene_ids:
                scene = plan.scenes[name]
                cloud = "unknown" if scene.cloud_pct is None else f"{scene.cloud_pct:.1f} %"
                told = f"cloud {cloud:<8} offset {scene.offset.offset_dn:>5}"
                lines.append(f"      {scene.datetime_utc[:10]}  {told}  {plain(name)}")
    lines += [f"  note: {plain(note)}" for note in plan.notes]
    per_window = f" ({cost.seconds_per_window:.2f} s per window, measured here)" if cost.seconds_per_window else ""
    lines += [
        f"  area     {cost.area_km2:g} km2 per time step, {cost.output_pixels:,} pixels per band in all",
        f"  work     {counted(cost.units, 'unit')}, {counted(cost.windows, 'model window')}, "
        f"{cost.overlap:g} times the area by overlap",
        f"  storage  {cost.output_mib:g} MiB raw, about {cost.stored_mib:g} MiB stored",
        f"  memory   about {cost.worker_mib:.0f} MiB per worker, {counted(cost.workers, 'worker')}",
        f"  time     about {duration(cost.seconds)} of computing{per_window}",
    ]
    return "\n".join(lines)


def described_run(plan: Plan, summary: Summary, store: Place, picture: Path | None) -> str:
    """A finished run in words: where the store is, what it rests on, where the time went, how to open it."""
    zones = ", ".join(f"EPSG:{z.epsg} {z.grid.shape[1]} x {z.grid.shape[0]} px" for z in plan.zones)
    stages = ", ".join(
        f"{_STAGE_NAMES[name]} {summary.stage_seconds[name]:.1f}"
        for name in _STAGE_NAMES
        if name in summary.stage_seconds
    )
    clear = "unknown, no scene classification"
    if summary.clear_pixels is not None and summary.pixels:
        clear = f"{100 * summary.clear_pixels / summary.pixels:.1f} %"
    lines = [
        f"{store} is complete{_but(summary)}: {len(plan.config.band_names)} bands at 2.5 m{_finer(plan)}, {zones}, "
        f"by {plan.system.name}",
        f"  scenes    {len(summary.scenes)} used",
        *(f"            {plan.scenes[name].datetime_utc[:10]}  {plain(name)}" for name in summary.scenes[:8]),
        *([f"            and {len(summary.scenes) - 8} more"] if len(summary.scenes) > 8 else []),
        f"  measured  {100 * summary.valid_fraction:.1f} % of pixels; clear {clear}",
        *([f"  detail    {_detail(summary)}"] if plan.system.generated_bands and summary.detail_shares else []),
        *(f"  note      {plain(note)}" for note in plan.notes),
        *([f"  note      {_holes(summary)}"] if summary.holes else []),
        f"  units     {summary.computed} computed, {summary.resumed} found done",
        f"  time      {summary.seconds:.1f} s in all; worker seconds: {stages}",
        f"  size      {summary.stored_bytes / 2**20:.1f} MiB; largest worker {summary.peak_worker_mib:.0f} MiB",
    ]
    if summary.quarantined:
        lines.append(f"  set aside {', '.join(summary.quarantined)}; python -m pipeline.check {store} tells why")
    if picture is not None:
        where = " (in this folder, since the store is remote)" if "://" in str(store) else ""
        lines.append(f"  picture   {picture}{where}")
    lines.append(f"  look      python -m pipeline.view {store}")
    lines.append(f'  open      import pipeline; ds = pipeline.open_store("{store}")')
    return "\n".join(lines)


def _finer(plan: Plan) -> str:
    """What is stored below 2.5 m."""
    found = [f"{len(bands)} at {gsd_m:g} m" for gsd_m, bands in plan.finer]
    return f" and, generated, {', '.join(found)}" if found else ""


_CAUSES = {
    "cloud": "clouds of the classification",
    "like_cloud": "what looks like cloud",
    "saturated": "saturated pixels",
    "bright": "pixels brighter than the network was trained on",
    "nodata": "nodata",
}


def _detail(summary: Summary) -> str:
    """How much of what was measured has generated detail, and why the rest lacks some or all of it."""
    shares = summary.detail_shares
    words = f"generated in {_percent(shares['generated'])} of measured pixels"
    words += f", partly in {_percent(shares['partial'])}" if shares["partial"] else ""
    words += f", not in {_percent(shares['none'])}" if shares["none"] else ""
    causes = sorted(summary.withheld, key=lambda cause: -summary.withheld[cause])
    why = [f"{_CAUSES.get(cause, cause)} ({_percent(shares[f'withheld_{cause}'])})" for cause in causes]
    return f"{words}; withheld at or near {', '.join(why)}" if why else words


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _but(summary: Summary) -> str:
    """What a complete store lacks."""
    return f" but for {counted(len(summary.quarantined), 'quarantined unit')}" if summary.quarantined else ""


def _holes(summary: Summary) -> str:
    """What zeros under a clear sky may mean."""
    counts = ", ".join(f"{band} {count}" for band, count in sorted(summary.holes.items()))
    return f"0 where the classification says clear ({counts} px): a damaged file, or a product clipped at 0; left empty"


def frozen_plan(plan: Plan, store: Place) -> str:
    """A plan that was frozen for others to run, in words."""
    units = sum(1 for _ in plan.units())
    return (
        f"{store} holds the plan: {counted(units, 'unit')}, digest {plan.digest[:12]}\n"
        f"  part      python -m pipeline.run --plan {store} --shard-of J/N\n"
        f"  publish   python -m pipeline.run --plan {store} --finalise"
    )


def plan_json(plan: Plan, store: Place) -> dict[str, Any]:
    """A frozen plan as one JSON object."""
    return {
        "status": "planned",
        "store": str(store),
        "plan_digest": plan.digest,
        "units": sum(1 for _ in plan.units()),
    }


def described_shard(shard: Shard, summary: Summary, store: Place) -> str:
    """A finished shard in words."""
    aside = f", {len(summary.quarantined)} set aside" if summary.quarantined else ""
    return (
        f"part {shard.number} of {shard.of} of {store}: {counted(summary.units, 'unit')}, {summary.computed} computed, "
        f"{summary.resumed} found done{aside}, {summary.seconds:.1f} s"
    )


def shard_json(shard: Shard, summary: Summary, store: Place) -> dict[str, Any]:
    """A finished shard as one JSON object."""
    return {
        "status": "part",
        "store": str(store),
        "shard": f"{shard.number}/{shard.of}",
        "units": summary.units,
        "computed": summary.computed,
        "resumed": summary.resumed,
        "quarantined": list(summary.quarantined),
        "seconds": round(summary.seconds, 3),
    }


def run_json(plan: Plan, summary: Summary, store: Place, picture: Path | None) -> dict[str, Any]:
    """A finished run as one JSON object."""
    return {
        "status": "complete_with_quarantine" if summary.quarantined else "complete",
        "store": str(store),
        "quarantined": list(summary.quarantined),
        "picture": str(picture) if picture else None,
        "plan_digest": plan.digest,
        "scenes": list(summary.scenes),
        "units": summary.units,
        "computed": summary.computed,
        "resumed": summary.resumed,
        "valid_fraction": summary.valid_fraction,
        "clear_fraction": summary.clear_pixels / summary.pixels if summary.clear_pixels and summary.pixels else None,
        "seconds": round(summary.seconds, 3),
        "stage_seconds": {name: round(value, 3) for name, value in summary.stage_seconds.items()},
        "stored_bytes": summary.stored_bytes,
        "peak_worker_mib": summary.peak_worker_mib,
        "holes": summary.holes,
        "detail": summary.detail_shares,
        "notes": list(plan.notes),
    }
