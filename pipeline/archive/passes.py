"""Satellite passes over an area, and the time steps of a store that are built from them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from pipeline.archive.scene import Period
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pipeline.archive.scene import Scene

COMPOSITES: tuple[str, ...] = ("none", "mosaic", "median", "monthly")
# Half an orbit of 100.7 min (143 orbits in 10 days): the sunlit half takes no longer, the next one begins no sooner.
MAX_GAP = timedelta(minutes=50)
_YEAR_MONTH = len("2024-06")
_PLATFORM = re.compile(r"2-?([A-D])", re.IGNORECASE)  # "sentinel-2a", "Sentinel-2A", "S2A"


@dataclass
class Pass:
    """Scenes that one satellite took on one overpass, in order of time. Tiles, datatakes and dates may differ."""

    scenes: list[Scene] = field(default_factory=list)

    @property
    def start(self) -> datetime:
        """Time of the first scene, UTC."""
        return moment_of(self.scenes[0])

    def takes(self, scene: Scene) -> bool:
        """True when `scene`, which is not earlier than those here, may belong to the same overpass."""
        last, moment = self.scenes[-1], moment_of(scene)
        if moment.time() == time() and moment == moment_of(last):
            return True  # a date without a time
        alike = all(a == b or a is None or b is None for a, b in zip(_facts(last), _facts(scene), strict=True))
        return alike and moment - moment_of(last) <= MAX_GAP


def moment_of(scene: Scene) -> datetime:
    """Acquisition time, UTC; one without a zone is taken as UTC."""
    moment = datetime.fromisoformat(scene.datetime_utc)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def passes(scenes: Iterable[Scene]) -> list[Pass]:
    """Scenes grouped by overpass, in order of time.

    An overpass is one platform on one relative orbit without a gap of more than 50 minutes. It is no calendar day:
    an overpass may go on past midnight UTC or across the antimeridian, and two orbits may meet on one day.
    Missing metadata do not separate scenes. Scenes at 00:00:00 carry a date and no time, as
    monthly syntheses do; those of one date belong together.
    """
    found: list[Pass] = []
    recent: list[Pass] = []
    for moment, _, scene in sorted(((moment_of(s), s.id, s) for s in scenes), key=lambda entry: entry[:2]):
        recent = [one for one in recent if moment - moment_of(one.scenes[-1]) <= MAX_GAP]
        joined = next((one for one in reversed(recent) if one.takes(scene)), None)
        if joined is None:
            joined = Pass()
            found.append(joined)
            recent.append(joined)
        joined.scenes.append(scene)
    return found


def pass_numbers(scenes: Sequence[Scene]) -> list[int]:
    """For each scene the number of its pass among the passes of `scenes`, from 0."""
    numbers = {scene.id: number for number, one in enumerate(passes(scenes)) for scene in one.scenes}
    return [numbers[scene.id] for scene in scenes]


def _facts(scene: Scene) -> tuple[str | None, str | None]:
    """(platform letter, relative orbit); None for what the archive does not give."""
    platform = _PLATFORM.search(str(scene.properties.get("platform", "")))
    orbit = scene.properties.get("relative_orbit", scene.properties.get("sat:relative_orbit"))
    return platform[1].upper() if platform else None, None if orbit is None else str(orbit)


def best_first(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Least cloudy first, unknown cloud cover last, then by id."""
    return tuple(sorted(scenes, key=lambda s: (s.cloud_pct is None, s.cloud_pct or 0.0, s.id)))


def periods(scenes: Sequence[Scene], composite: str, *, over_area: Collection[str] | None = None) -> tuple[Period, ...]:
    """Time steps for `composite`: "none" one per pass, "monthly" one per month, else one of everything.

    `over_area`: ids of the scenes that reach into the area itself (None: all); the others lie in the margin that
    models read. They join time steps but do not create any.
    "mosaic" and "median" name how the scenes of a step are combined; a month is combined by its median, a pass by its
    mosaic. Steps come in order of time and name their scenes best first. A step is labelled by the UTC date of its
    time, that of its earliest scene over the area. A month's time is its first day at 00:00 UTC: the same in every
    store, as pandas and xarray resample to "MS", and `sel(time="2024-06")` finds it. Months without a scene are left
    out. UsageError for an unknown composite.
    """
    if composite not in COMPOSITES:
        raise UsageError(f"composite {composite!r} is unknown", f"one of {', '.join(COMPOSITES)}")
    inside = {scene.id for scene in scenes} if over_area is None else set(over_area)
    groups: dict[str, list[Scene]] = defaultdict(list)
    for number, one in enumerate(passes(scenes)):
        core = [scene for scene in one.scenes if scene.id in inside]
        key = {"none": f"{number:09}", "monthly": f"{(core or one.scenes)[0].datetime_utc[:_YEAR_MONTH]}"}
        groups[key.get(composite, "")] += one.scenes
    steps = {key: _period(group, inside, composite) for key, group in sorted(groups.items())}
    if composite == "monthly":
        return tuple(_month(step, month) for month, step in steps.items() if step)
    return _distinct([step for step in steps.values() if step])


def _period(scenes: Sequence[Scene], inside: Collection[str], composite: str) -> Period | None:
    """The time step of these scenes; None where none of them is over the area."""
    core = sorted((scene for scene in scenes if scene.id in inside), key=lambda s: (moment_of(s), s.id))
    if not core:
        return None
    first, last = (moment_of(core[at]).date().isoformat() for at in (0, -1))
    one_pass = composite == "none"
    label = first if one_pass or first == last else f"{first}/{last}"
    how = "mosaic" if one_pass else composite
    return Period(label, core[0].datetime_utc, tuple(s.id for s in best_first(scenes)), how)


def _month(step: Period, month: str) -> Period:
    return Period(month, f"{month}-01T00:00:00Z", step.scene_ids, "median")


def _distinct(steps: Sequence[Period]) -> tuple[Period, ...]:
    """The steps in order of time; steps of the same date are labelled by date and time."""
    ordered = sorted(steps, key=lambda step: (datetime.fromisoformat(step.datetime_utc), step.scene_ids))
    count = Counter(step.label for step in ordered)
    seen: Counter[str] = Counter()
    found = []
    for step in ordered:
        label = step.label
        if count[label] > 1:
            label = f"{datetime.fromisoformat(step.datetime_utc):%Y-%m-%dT%H%M%SZ}"
        seen[label] += 1
        name = label if seen[label] == 1 else f"{label}-{seen[label]}"
        found.append(Period(name, step.datetime_utc, step.scene_ids, step.composite))
    return tuple(found)
