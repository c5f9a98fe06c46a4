"""Making a plan: search, audit, zones, phase, units. Driver side, cheap, before any work.

In: `RunConfig`, an AOI. Out: a frozen `Plan`. Imports every room but writes nothing.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.archive.scene import STATED, OffsetDecision, Scene
from pipeline.bands import BAND_NAMES
from pipeline.errors import NoDataError, PipelineError, ReadError, Unreachable, UsageError
from pipeline.execution.outline import absent_bands
from pipeline.execution.plan import Plan, Zone
from pipeline.execution.scene_selection import grown_aoi, over, padded, reach_m, whole_passes
from pipeline.grid.grid import Grid, Phase
from pipeline.superres import chain
from pipeline.superres.options import Options
from pipeline.superres.system import load
from pipeline.superres.weights import choose, stages_of
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from shapely import Geometry

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Period
    from pipeline.config import RunConfig
    from pipeline.superres.spec import SceneState
    from pipeline.superres.weights import Choice

_DEFAULT_DAYS = 90
_AUDIT_THREADS = 8
_LACKING = re.compile(r"bands (.+) are missing")  # the catalogue's word for an item that lacks some
_BOW_M = 0.05
_SLIVER_DEG2 = 1e-9  # about ten square metres
_SLIVER_SHARE = 1e-3  # of an area that is itself no larger
_STATE_WINDOWS = 64  # windows of 64 x 64 px from which a scene's state is taken


@dataclass(frozen=True)
class _Found:
    """Scenes of a search with what was said about them."""

    catalog: Catalog
    access: Access
    scenes: tuple[Scene, ...]
    notes: tuple[str, ...]


def make_plan(
    config: RunConfig, aoi: Aoi, *, workers: int = 1, say: Callable[[str], None] = lambda _text: None
) -> Plan:
    """Search the catalogue, decide offsets, lay out zones and units. UsageError or NoDataError when nothing fits."""
    system = choose(config.sr, config.weights)
    groups = chain.groups_of(stages_of(system), config.band_names)
    load(system, "cpu")  # unfit weights are found before anything is asked of an archive
    say("searching")
    reach_px = Options(consistency=config.consistency, mtf=config.mtf_by_band).reach_px(config.band_names)
    around = grown_aoi(aoi, reach_m(config, chain.reach_m(groups), reach_px))
    found = _search(config, aoi, around, chain.bands_required(stages_of(system), config.band_names))
    scenes, notes = _audited(found, config, say)
    zones, zone_notes = _zones(config, aoi, around, scenes, workers)
    used = {name for zone in zones for period in zone.periods for name in period.scene_ids}
    kept = {scene.id: scene for scene in scenes if scene.id in used}
    say("reading scene states")
    return Plan(
        config=config,
        aoi_name=aoi.name,
        aoi_digest=aoi.digest,
        scenes=kept,
        zones=zones,
        system=system,
        access=found.access,
        states=_states(system, kept, found.access),
        notes=(*aoi.warnings, *found.notes, *notes, *zone_notes, *_remarks(config, system, kept)),
        licence=found.catalog.licence,
        credit=found.catalog.credit,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        version=VERSION,
    )


def _remarks(config: RunConfig, system: Choice, scenes: Mapping[str, Scene]) -> list[str]:
    """Settings that have no effect, and bands that there are not, said aloud."""
    remarks = []
    drawn, asked = system.draws(config.estimate, config.members), f"--members {config.members}" * bool(config.members)
    asked = asked or "--estimate sample" * (config.estimate == "sample")
    if asked and not system.stochastic:
        remarks.append(f"{asked} has no effect with --sr {system.name}, which draws nothing")
    elif drawn > 1 and not config.members:
        remarks.append(
            f"--sr {system.name} has no regression: its best estimate is the mean of {drawn} draws, at {drawn} times "
            "the cost of one (--members N for another number, --estimate sample for one draw)"
        )
    absent = [band for band, why in absent_bands(config.band_names, scenes).items() if "scene" in why]
    if absent:
        remarks.append(f"the store is without {', '.join(absent)}: no scene has them")
    return remarks


def _search(config: RunConfig, aoi: Aoi, around: Aoi, needed: Collection[str]) -> _Found:
    """Scenes over `around`, which holds the AOI; NoDataError where none of them is over the AOI itself.

    `needed` are bands that are not stored, and without which the system cannot run.
    """
    from pipeline.aoi.period import parse_period
    from pipeline.archive.catalog import load_catalog
    from pipeline.archive.read.ground import grounds
    from pipeline.archive.search import search, summarised

    catalog = load_catalog(config.catalog)
    start, end = parse_period(config.start or None, config.end or None)
    if not config.start and catalog.kind == "api" and not catalog.ids:
        last = datetime.fromisoformat(end) if end else datetime.now(UTC)
        start = (last - timedelta(days=_DEFAULT_DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    if config.offset is not None:
        catalog = catalog.with_offset(config.offset)
    look = partial(grounds, access=catalog.access())
    bands = tuple(name for name in BAND_NAMES if name in config.band_names or name in needed)
    result = search(catalog, around, *padded(start, end), config.max_cloud, bands=bands, look=look)
    wanted, outside = whole_passes(result.scenes, aoi, start, end)
    scenes = tuple(scene for scene in wanted if scene.id not in config.exclude)
    notes = [*result.notes, *summarised(result.rejected)]
    if outside:
        notes.append(f"{outside} scene{'' if outside == 1 else 's'} left out: of passes outside the period")
    if len(scenes) < len(wanted):
        notes.append(f"left out by --exclude: {', '.join(s.id for s in wanted if s.id in config.exclude)}")
    if not over(aoi.shape, scenes):
        reasons = "; ".join(notes) or "the search came back empty"
        raise NoDataError(
            f"no usable scene of {catalog.name} over {aoi.name} from {start or 'the beginning'} to {end or 'now'} "
            f"with at most {config.max_cloud:g} % cloud ({reasons})",
            cure=_without(config, [] if result.scenes else [reason for _, reason in result.rejected], needed)
            or "check the AOI's place, widen --start/--end or --max-cloud, or choose another --catalog",
        )
    return _Found(catalog, catalog.access(), scenes, tuple(notes))


def _without(config: RunConfig, reasons: list[str], needed: Collection[str] = ()) -> str:
    """The cure where every item lacks bands: to ask for the others. Empty where items were refused for other reasons.

    >>> _without(RunConfig(bands=("B01", "B02", "B03")), ["bands B01 are missing"])
    'ask for the bands there are: --bands B02,B03'
    """
    lacking = [_LACKING.fullmatch(reason) for reason in reasons]
    absent = {name for found in lacking if found for name in found[1].split(", ")}
    others = [name for name in config.band_names if name not in absent]
    if not (all(lacking) and absent):
        return ""
    if reads := sorted(absent & {*needed}):
        return f"choose another --sr: {config.sr} reads {', '.join(reads)}"
    return f"ask for the bands there are: --bands {','.join(others)}" if others else ""


def _audited(found: _Found, config: RunConfig, say: Callable[[str], None]) -> tuple[tuple[Scene, ...], list[str]]:
    """Scenes whose offset decision stands, with its evidence; the others are left out with both facts."""
    if config.offset is not None:
        decision = OffsetDecision(config.offset, f"--offset {config.offset}", by_user=True)
        return tuple(replace(scene, offset=decision) for scene in found.scenes), []
    from pipeline.archive.offset_audit import audit_scene
    from pipeline.archive.offset_verdict import verdict

    def audit(scene: Scene) -> tuple[Scene, str, str]:
        """The scene with what its pixels say, why it is left out (empty: it stays), and what else is to be said."""
        if scene.offset.by_user:
            return scene, "", ""
        try:
            found_dn = verdict(scene.offset, audit_scene(_guessed(scene), found.access))
        except Unreachable:
            raise
        except ReadError as error:
            return scene, f"left out {scene.id}: {error.found}", ""
        fault = f"left out {scene.id}: {found_dn.fault}" if found_dn.fault else ""
        return replace(scene, offset=found_dn.decision), fault, f"{scene.id}: {found_dn.note}" if found_dn.note else ""

    audited = []
    with ThreadPoolExecutor(max(1, min(_AUDIT_THREADS, found.catalog.limits.connections))) as pool:
        for done, outcome in enumerate(pool.map(audit, found.scenes), 1):
            audited.append(outcome)
            say(f"looking at the scenes' pixels, {done} of {len(found.scenes)}")
    faults = [fault for _, fault, _ in audited if fault]
    kept = tuple(scene for scene, fault, _ in audited if not fault)
    if not kept:
        raise _none_left(faults)
    return kept, faults + [note for _, _, note in audited if note]


def _guessed(scene: Scene) -> Scene:
    """The scene with an open offset taken as a guess, so that its pixels may be read to judge it."""
    return replace(scene, offset=replace(scene.offset, standing=STATED))


def _none_left(faults: list[str]) -> PipelineError:
    """Why no scene is left after the audit, as the error that fits: wrong offsets, or files that cannot be read."""
    text = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    if any("contradict" in fault or "BOA offset is unknown" in fault for fault in faults):
        return UsageError(
            text,
            "metadata or pixels that tell the BOA offset, and do not contradict each other",
            "say which is right with --offset 0 or --offset -1000",
        )
    return ReadError(text, "at least one scene whose files can be read", "use another catalogue or period")


def _zones(
    config: RunConfig, aoi: Aoi, around: Aoi, scenes: tuple[Scene, ...], workers: int
) -> tuple[tuple[Zone, ...], list[str]]:
    from pipeline.aoi.aoi import to_utm, utm_parts
    from pipeline.archive.passes import periods

    parts, notes = assign(utm_parts(aoi), scenes)
    zones = []
    for epsg, part in parts.items():
        mine = [scene for scene in scenes if scene.epsg == epsg]
        inside = {scene.id for scene in over(part, mine)}
        steps = periods(over(around.shape, mine), config.composite, over_area=inside)
        zone, note = _zone(config, epsg, to_utm(part, epsg), mine, steps, workers)
        zones.append(zone)
        notes += note
    if not zones:
        raise NoDataError(f"the scenes found do not reach into {aoi.name}", cure="look at the AOI's coordinates")
    return tuple(zones), notes


def assign(parts: dict[int, Geometry], scenes: tuple[Scene, ...]) -> tuple[dict[int, Geometry], list[str]]:
    """AOI parts by the zone whose scenes will feed them, in degrees; nothing is ever warped between zones.

    Ground stays in its own zone where a scene of that zone covers it; what is left goes to the neighbouring zone whose
    scenes cover it, since tiles overlap across zone borders. What no scene covers stays at home, as nodata.
    """
    import shapely

    from pipeline.aoi.footprints import footprint_shape

    covered = {
        epsg: shapely.union_all([footprint_shape(scene.footprint) for scene in scenes if scene.epsg == epsg])
        for epsg in sorted({scene.epsg for scene in scenes})
    }
    assigned: dict[int, list[Geometry]] = {}
    notes: list[str] = []
    for epsg, part in parts.items():
        left, sliver_deg2 = part, min(_SLIVER_DEG2, _SLIVER_SHARE * part.area)
        for home in [epsg, *sorted(covered.keys() - {epsg}, key=lambda other: (abs(other - epsg), other))]:
            mine = left.intersection(covered[home]) if home in covered else shapely.Polygon()
            if mine.area <= sliver_deg2:
                continue
            if home != epsg:
                notes.append(f"part of the AOI in EPSG:{epsg} is processed in EPSG:{home}, where its scenes are")
            assigned.setdefault(home, []).append(mine)
            left = left.difference(mine)
        if left.area > sliver_deg2:
            share = 100 * left.area / part.area
            notes.append(f"no scene covers {share:.3g} % of the AOI's part in EPSG:{epsg}")
            if epsg in assigned:
                assigned[epsg].append(left)
    return {epsg: _polygons(shapely.union_all(pieces)) for epsg, pieces in sorted(assigned.items())}, notes


def _polygons(geometry: Geometry) -> Geometry:
    """The polygons of a geometry; points and lines that cutting leaves behind are dropped."""
    import shapely

    flat = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in flat if part.geom_type == "Polygon" and part.area > 0])


def _zone(
    config: RunConfig, epsg: int, area: Geometry, scenes: list[Scene], steps: tuple[Period, ...], workers: int
) -> tuple[Zone, list[str]]:
    from shapely.geometry import mapping

    used = {name for step in steps for name in step.scene_ids}
    phase, resample, notes = _phase(epsg, [scene for scene in scenes if scene.id in used])
    left, bottom, right, top = area.bounds
    # edges straight in degrees bow by centimetres in metres: an AOI drawn along 60 m lines keeps to them
    bow_x, bow_y = min(_BOW_M, (right - left) / 4), min(_BOW_M, (top - bottom) / 4)
    grid = Grid.covering(epsg, (left + bow_x, bottom + bow_y, right - bow_x, top - bow_y), phase)
    ny, nx = (-(-length // config.chunk_px) for length in grid.shape)
    rows, cols = _breaks(ny, nx, config, workers)
    return Zone(epsg, grid, _plain(mapping(area)), steps, rows, cols, resample), notes


def _plain(geometry: dict[str, Any]) -> dict[str, Any]:
    """GeoJSON with lists for tuples, millimetres, as JSON gives it back."""

    def rounded(value: object) -> object:
        return [rounded(v) for v in value] if isinstance(value, list | tuple) else round(float(str(value)), 3)

    return {"type": geometry["type"], "coordinates": rounded(geometry["coordinates"])}


def _phase(epsg: int, scenes: list[Scene]) -> tuple[Phase, bool, list[str]]:
    """Grid phase of a zone: the scenes' own when they share one, else the official one, by nearest resampling."""
    try:
        phases = {scene.id: scene.phase for scene in scenes}
    except ValueError as error:
        raise UsageError(
            f"a scene of EPSG:{epsg} cannot be gridded: {error}", "bands that nest on one 60 m grid"
        ) from error
    distinct, official = set(phases.values()), Phase.official(epsg)
    if len(distinct) == 1:
        phase = distinct.pop()
        if phase == official:
            return phase, False, []
        where = f"{phase.x_m - official.x_m:+g} m east, {phase.y_m - official.y_m:+g} m north"
        return phase, False, [f"EPSG:{epsg}: pixels keep their own grid, {where} of the official one"]
    moved = sum(phase != official for phase in phases.values())
    return official, True, [f"EPSG:{epsg}: {moved} scenes are off the official grid and are resampled, nearest"]


def _breaks(ny: int, nx: int, config: RunConfig, workers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk rows and columns at which units begin: even parts, at least one per worker where the area allows."""
    limit = config.unit_chunks
    if config.shard:  # shards are equal squares, whatever the number of workers
        return _steps(ny, limit), _steps(nx, limit)
    rows, cols = -(-ny // limit), -(-nx // limit)
    while rows * cols < workers and (rows < ny or cols < nx):
        if cols < nx and (nx / cols >= ny / rows or rows >= ny):
            cols += 1
        else:
            rows += 1
    return _even(ny, rows), _even(nx, cols)


def _steps(count: int, step: int) -> tuple[int, ...]:
    return (*range(0, count, step), count)


def _even(count: int, parts: int) -> tuple[int, ...]:
    return tuple(count * i // parts for i in range(parts + 1))


def _states(system: Choice, scenes: dict[str, Scene], access: Access) -> dict[str, SceneState]:
    """Per-scene state of the stages that take one, from fixed windows of each scene: never from a chunk."""
    loaded = load(system, "cpu")
    stages = [stage for stage in loaded.stages if stage.scene_state]
    if loaded.predictor is None or not stages:
        return {}
    from pipeline.execution.states import state_windows

    states: dict[str, SceneState] = {scene_id: {} for scene_id in scenes}
    for scene in scenes.values():
        for stage in stages:
            windows = state_windows(scene, stage.reads[0].bands, access, _STATE_WINDOWS)
            if windows is None:
                raise PipelineError(
                    f"scene {scene.id} has no 720 m square without nodata to take its state from",
                    cure="use a system that takes none, or leave the scene out with --exclude",
                )
            states[scene.id] |= loaded.predictor.scene_state(stage, windows)
    return states
