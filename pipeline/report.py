"""Reports of the commands. Each is a dataclass with two renderings, text for people and JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.bands import BY_NAME, GSDS_M, TARGET_GSD_M, bands_at
from pipeline.plain import plain
from pipeline.superres.precision import FLOAT32
from pipeline.terminal import LEAST, counted, duration, number, show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning.estimate import Estimate
    from pipeline.planning.expenses import Reads
    from pipeline.planning.parts import Part
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Zone
    from pipeline.running.unit_queue import Summary
    from pipeline.store.place import Place

_SHOWN = 8
_STAGE_NAMES = {
    "start": "start", "load": "load weights", "read": "read", "superres": "super-resolve and fuse", "blend": "blend",
    "project": "project", "write": "write", "overviews": "overviews",
}  # fmt: skip
_CAUSES = {
    "cloud": "at or near clouds of the classification",
    "like_cloud": "at or near what looks like cloud",
    "saturated": "at or near saturated pixels",
    "bright": "at or near pixels brighter than the network was trained on",
    "nodata": "at or within 5 m of nodata",
}


class Report(Protocol):
    """Report at the end of a command."""

    def text(self) -> str:
        """Return lines for people."""

    def to_json(self) -> dict[str, Any]:
        """Return one JSON object for programs."""


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout, as text or as one JSON object."""
    show(json.dumps(report.to_json()) if as_json else report.text())


@dataclass(frozen=True)
class PlanPreview:
    """The plan and cost of a dry run, which writes nothing."""

    plan: Plan
    cost: Estimate
    store: Place
    area: str  # description of the AOI
    price: float | None = None  # of an hour of a core, or of a GPU

    def to_json(self) -> dict[str, Any]:
        """Return the plan as it would be stored, and the estimate."""
        cost = self.cost
        money = {} if self.price is None else {"cost": cost.hours * self.price}
        return {"plan": self.plan.to_json(), "estimate": cost.to_json() | money}

    def text(self) -> str:
        """Return scenes with dates and offsets, zones, units and cost."""
        plan = self.plan
        title = (
            f"plan for {plain(plan.aoi_name)}: {plan.system.name}, {len(plan.config.band_names)} bands{_finer(plan)}"
        )
        notes = [f"  note: {plain(note)}" for note in plan.notes]
        zones = [line for zone in plan.zones for line in self._zone(zone)]
        return "\n".join([self.area, f"{title}, {self.store} (not written)", *zones, *notes, *self._cost()])

    def _zone(self, zone: Zone) -> list[str]:
        ny, nx = zone.grid.shape
        lines = [f"  EPSG:{zone.epsg}  {nx} x {ny} px of 2.5 m, {counted(len(zone.periods), 'time step')}"]
        for period in zone.periods:
            lines.append(f"    {period.label} ({period.composite})")
            for name in period.scene_ids:
                scene = self.plan.scenes[name]
                cloud = "unknown" if scene.cloud_pct is None else f"{scene.cloud_pct:.1f} %"
                told = f"cloud {cloud:<8} offset {scene.offset.offset_dn:>5}"
                lines.append(f"      {scene.datetime_utc[:10]}  {told}  {plain(name)}")
        return lines

    def _cost(self) -> list[str]:
        cost = self.cost
        finer = [f"  finer    {pixels:,} pixels per band at {gsd} m" for gsd, pixels in cost.finer.items()]
        per_window = f" ({cost.seconds_per_window:.2f} s per window, measured here{self._in_precision()})"
        networks = bool(self.plan.system.generated_bands)
        per_window = per_window if cost.seconds_per_window and networks else ""
        reads = "requests" if _remote(self.plan) else "reads"
        threads = f" of {cost.threads} threads" if cost.threads > 1 else ""
        windows = f"{counted(cost.windows, 'model window')}, {cost.overlap:g} px through the networks per px stored"
        return [
            f"  area     {cost.area_km2:g} km2 per time step, {cost.output_pixels:,} pixels per band in all",
            *finer,
            f"  work     {counted(cost.units, 'unit')}, {windows if networks else 'interpolated, without a network'}",
            f"  reads    about {cost.read_requests:,} {reads} for {cost.read_mib:,.0f} MiB (COGs, blocks of 1024 px)",
            f"  storage  {cost.output_mib:g} MiB raw, about {cost.stored_mib:g} MiB stored "
            f"in {counted(cost.objects, 'object')} of data",
            f"  memory   about {cost.process_mib:.0f} MiB per worker, {counted(cost.processes, 'worker')}{threads}",
            f"  time     about {duration(cost.seconds)} of computing{per_window}",
            f"  cost     {_spent(cost.hours, cost.device, self.price, around=True)}",
        ]

    def _in_precision(self) -> str:
        """Say in which precision a window was timed, if the plan's is not the default."""
        return f" in {self.cost.precision}" if self.plan.config.precision != FLOAT32 else ""


@dataclass(frozen=True)
class FrozenPlan:
    """A plan in its store, ready for others to run."""

    plan: Plan
    store: Place
    parts: int = 0  # that it is planned for; 0 if no number was asked for

    @cached_property
    def empty(self) -> int:
        """Number of parts without a unit."""
        from pipeline.planning.parts import empty_parts

        return empty_parts([sum(1 for _ in self.plan.units_of(i)) for i in range(len(self.plan.passes))], self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return store, digest, and numbers of units and of parts."""
        return {
            "status": "planned",
            "store": str(self.store),
            "plan_digest": self.plan.digest,
            "units": sum(1 for _ in self.plan.units()),
            "parts": self.parts,
            "empty_parts": self.empty,
        }

    def text(self) -> str:
        """Return the store, and the commands that run its plan in parts."""
        units = sum(1 for _ in self.plan.units())
        planned = f", for {counted(self.parts, 'part')}" if self.parts else ""
        planned += f", {self.empty} of them without a unit" if self.empty else ""
        return (
            f"{self.store} holds the plan: {counted(units, 'unit')}{planned}, digest {self.plan.digest[:12]}\n"
            f"  part      python -m pipeline.run --plan {self.store} --shard-of J/{self.parts or 'N'}\n"
            f"  publish   python -m pipeline.run --plan {self.store} --finalise"
        )


@dataclass(frozen=True)
class PartReport:
    """A finished part of a plan."""

    shard: Part
    summary: Summary
    store: Place
    of_units: int  # of the whole plan

    def to_json(self) -> dict[str, Any]:
        """Return counts of units, and seconds."""
        summary = self.summary
        return {
            "status": "part",
            "store": str(self.store),
            "shard": f"{self.shard.number}/{self.shard.of}",
            "units": summary.units,
            "computed": summary.computed,
            "resumed": summary.resumed,
            "quarantined": list(summary.quarantined),
            "seconds": round(summary.seconds, 3),
        }

    def text(self) -> str:
        """Return the same on one line."""
        summary, shard = self.summary, self.shard
        title = f"part {shard.number} of {shard.of} of {self.store}"
        if not summary.units:
            here = f"pass {shard.of_pass}" if shard.of_pass else "this part"
            return f"{title}: no unit in {here}, the plan has {counted(self.of_units, 'unit')}; nothing to do"
        aside = f", {len(summary.quarantined)} set aside" if summary.quarantined else ""
        return (
            f"{title}: {counted(summary.units, 'unit')}, "
            f"{summary.computed} computed, {summary.resumed} found done{aside}, {summary.seconds:.1f} s"
        )


@dataclass(frozen=True)
class RunReport:
    """A finished run. `picture` is the path of its quicklook, if any."""

    plan: Plan
    summary: Summary
    store: Place
    picture: Path | None
    device: str = "cpu"  # that units were computed on: "cpu" or "cuda"
    price: float | None = None  # of an hour of a core, or of a GPU

    @property
    def reads(self) -> Reads:
        """Estimated reads from the archive."""
        from pipeline.planning.expenses import reads_of

        return reads_of(self.plan)

    @property
    def hours(self) -> float:
        """Hours of processor time, or for GPUs and for units of older versions, of workers from begin to end."""
        spent = self.summary.cpu_seconds
        if self.device == "cuda" or spent is None:
            spent = sum(self.summary.stage_seconds.values())
        return spent / 3600

    @property
    def of_processors(self) -> bool:
        """Whether hours are processor time, which other programs on the same machine do not lengthen."""
        return self.device != "cuda" and self.summary.cpu_seconds is not None

    def to_json(self) -> dict[str, Any]:
        """Return counts, seconds, sizes and shares."""
        summary = self.summary
        reads = self.reads
        clear = summary.clear_pixels / summary.pixels if summary.clear_pixels and summary.pixels else None
        return {
            "status": "complete_with_quarantine" if summary.quarantined else "complete",
            "store": str(self.store),
            "quarantined": list(summary.quarantined),
            "picture": str(self.picture) if self.picture else None,
            "plan_digest": self.plan.digest,
            "scenes": list(summary.scenes),
            "units": summary.units,
            "computed": summary.computed,
            "resumed": summary.resumed,
            "valid_fraction": summary.valid_fraction,
            "clear_fraction": clear,
            "seconds": round(summary.seconds, 3),
            "stage_seconds": {name: round(value, 3) for name, value in summary.stage_seconds.items()},
            "device": self.device,
            "hours": round(self.hours, 6),
            "hours_of": "processors" if self.of_processors else "workers",
            "cost": None if self.price is None else self.hours * self.price,
            "reads_estimated": {"requests": reads.requests, "mib": reads.mib},
            "stored_bytes": summary.stored_bytes,
            "objects": summary.objects,
            "peak_worker_mib": summary.peak_worker_mib,
            "holes": summary.holes,
            "detail": summary.detail_shares,
            "generated_bands": list(_generated(self.plan)),
            "measured_values_share": round(measured_share(self.plan.config.band_names), 6),
            "notes": list(self.plan.notes),
        }

    def text(self) -> str:
        """Return the location of the store, its scenes, the time by stage, and how to open it."""
        return "\n".join([self._title(), *self._content(), *self._work(), *self._next()])

    def _title(self) -> str:
        plan, set_aside = self.plan, len(self.summary.quarantined)
        but = f" but for {counted(set_aside, 'quarantined unit')}" if set_aside else ""
        zones = ", ".join(f"EPSG:{z.epsg} {z.grid.shape[1]} x {z.grid.shape[0]} px" for z in plan.zones)
        bands = f"{len(plan.config.band_names)} bands at 2.5 m{_finer(plan)}"
        return f"{self.store} is complete{but}: {bands}, {zones}, by {plan.system.name}"

    def _content(self) -> list[str]:
        plan, summary = self.plan, self.summary
        clear = "unknown, no scene classification"
        if summary.clear_pixels is not None and summary.pixels:
            clear = _percent(summary.clear_pixels / summary.pixels)
        more = len(summary.scenes) - _SHOWN
        names = [f"{plan.scenes[name].datetime_utc[:10]}  {plain(name)}" for name in summary.scenes[:_SHOWN]]
        return [
            f"  scenes    {len(summary.scenes)} used",
            *(f"            {name}" for name in names),
            *([f"            and {more} more"] if more > 0 else []),
            f"  measured  {_percent(summary.valid_fraction)} of pixels; clear {clear}",
            *([f"  detail    {_detail(summary)}"] if plan.system.generated_bands and summary.detail_shares else []),
            f"  origin    {_origin(plan)}",
            *(f"  note      {plain(note)}" for note in plan.notes),
            *([f"  note      {_holes(summary)}"] if summary.holes else []),
        ]

    def _work(self) -> list[str]:
        summary = self.summary
        spent, reads = summary.stage_seconds, self.reads
        stages = ", ".join(f"{words} {spent[name]:.1f}" for name, words in _STAGE_NAMES.items() if name in spent)
        return [
            f"  units     {summary.computed} computed, {summary.resumed} found done",
            f"  time      {summary.seconds:.1f} s of computing; worker seconds: {stages}",
            f"  cost      {_spent(self.hours, self.device, self.price)}; about {reads.requests:,} "
            f"{'requests to the archive' if _remote(self.plan) else 'reads'} for {reads.mib:,.0f} MiB",
            f"  size      {summary.stored_bytes / 2**20:.1f} MiB in {counted(summary.objects, 'object')} of data; "
            f"largest worker {summary.peak_worker_mib:.0f} MiB",
        ]

    def _next(self) -> list[str]:
        store, aside = self.store, ", ".join(self.summary.quarantined)
        where = " (in this folder, since the store is remote)" if "://" in str(store) else ""
        return [
            *([f"  set aside {aside}; python -m pipeline.check {store} tells why"] if aside else []),
            *([f"  picture   {self.picture}{where}"] if self.picture is not None else []),
            f"  look      python -m pipeline.view {store}",
            f'  open      import sen2fine; ds = sen2fine.open_store("{store}")',
        ]


def _detail(summary: Summary) -> str:
    """Describe how many measured pixels have generated detail, and why the others lack some or all of it."""
    shares = summary.detail_shares
    words = f"generated in {_percent(shares['generated'])} of measured pixels"
    words += f", partly in {_percent(shares['partial'])}" if shares["partial"] else ""
    words += f", not in {_percent(shares['none'])}" if shares["none"] else ""
    causes = sorted(summary.withheld, key=lambda cause: -summary.withheld[cause])
    why = [f"{_CAUSES.get(cause, cause)} ({_percent(shares[f'withheld_{cause}'])})" for cause in causes]
    return f"{words}; withheld {', '.join(why)}" if why else words


def _generated(plan: Plan) -> tuple[str, ...]:
    """Return the stored bands whose detail a network makes."""
    return tuple(name for name in plan.config.band_names if name in plan.system.generated_bands)


def measured_share(bands: Sequence[str]) -> float:
    """Return how many values of `bands` were measured for each that is stored at 2.5 m.

    >>> measured_share(["B04"])  # 10 m
    0.0625
    """
    return sum((TARGET_GSD_M / BY_NAME[name].gsd_m) ** 2 for name in bands) / len(bands)


def _origin(plan: Plan) -> str:
    """Say how many of the stored values were measured, and what the others are."""
    bands = plan.config.band_names
    steps = {gsd: round((gsd / TARGET_GSD_M) ** 2) for gsd in GSDS_M if bands_at(gsd, bands)}
    became = ", ".join(f"{gsd} m became {count}" for gsd, count in steps.items())
    made = f"a network made the detail of {len(_generated(plan))} of {len(bands)} bands"
    share = f"{100 * measured_share(bands):.1f} values were measured for 100 stored"
    return f"{share} (a value of {became}); {made if _generated(plan) else 'the others are interpolated'}"


def _spent(hours: float, device: str, price: float | None, *, around: bool = False) -> str:
    """Return hours of cores or GPUs, and what they cost. `around`: they are an estimate.

    >>> _spent(2.5, "cpu", 0.04)
    '2.5 core-hours: 0.1 at 0.04 per core-hour'
    >>> _spent(0.00004, "cpu", None, around=True), _spent(41234.5, "cuda", None, around=True)
    ('less than 0.001 core-hours', 'about 41,234 GPU-hours')
    """
    of = "GPU" if device == "cuda" else "core"
    told = f"{'about ' if around and hours >= LEAST else ''}{number(hours)} {of}-hours"
    return told if price is None else f"{told}: {number(hours * price)} at {price:g} per {of}-hour"


def _remote(plan: Plan) -> bool:
    """Return whether any file of the scenes is asked for over a network."""
    return any("://" in href for scene in plan.scenes.values() for href in scene.hrefs.values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _holes(summary: Summary) -> str:
    """Describe bands with zeros where SCL says clear, and their possible causes."""
    counts = ", ".join(f"{band} {count}" for band, count in sorted(summary.holes.items()))
    return f"0 where the classification says clear ({counts} px): a damaged file, or a product clipped at 0; left empty"


def _finer(plan: Plan) -> str:
    """Describe the bands stored at GSDs below 2.5 m."""
    found = [f"{len(bands)} at {gsd_m:g} m" for gsd_m, bands in plan.finer]
    return f" and, generated, {', '.join(found)}" if found else ""
