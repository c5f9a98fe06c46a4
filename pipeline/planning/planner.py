"""Make the frozen plan of a run: search, offset audit, zones, grid phase and units.

This runs on the driver before any work. It writes nothing.
"""

from __future__ import annotations

import logging
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.archive.scene import STATED, OffsetDecision, Scene
from pipeline.bands import BAND_NAMES
from pipeline.conditions.settle import settle
from pipeline.conditions.whole_raster import pixels
from pipeline.errors import NoDataError, PipelineError, ReadError, Unreachable, UsageError
from pipeline.plain import LOADING, counted
from pipeline.planning.map_ground import require_ground
from pipeline.planning.output_size import MAX_OUTPUT_GB, require_output
from pipeline.planning.plan import Plan, consistency_of
from pipeline.planning.scene_selection import grown_aoi, over, padded, reach_m, whole_passes
from pipeline.planning.shaping import Shaping
from pipeline.planning.store_template import absent_bands
from pipeline.planning.stored_inputs import in_variants, map_layout
from pipeline.planning.zoning import layouts_of, most_m, zones_of
from pipeline.process import device_name, one_thread
from pipeline.superres import chain
from pipeline.superres.batches import size_for
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.registry import spec_of
from pipeline.superres.system import load
from pipeline.superres.weights import choose, memory_of, stages_of
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.archive.read.access import Access
    from pipeline.conditions.frozen import Frozen
    from pipeline.config import RunConfig
    from pipeline.planning.units import PassLayout, Zone
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import SceneState
    from pipeline.superres.weights import Choice

_log = logging.getLogger(__name__)
_AUDIT_THREADS = 8
_LACKING = re.compile(r"bands (.+) are missing")  # the search's rejection reason for an item that lacks bands
_STATE_WINDOWS = 64  # windows of 64 x 64 px from which the state of a scene is computed


@dataclass(frozen=True)
class _Found:
    """Scenes of a search, with the search's notes."""

    catalog: Catalog
    access: Access
    scenes: tuple[Scene, ...]
    notes: tuple[str, ...]


def make_plan(
    config: RunConfig,
    aoi: Aoi,
    *,
    workers: int = 1,
    together: bool = True,
    say: Callable[[str], None] = lambda _text: None,
    max_output_gb: float = MAX_OUTPUT_GB,
) -> Plan:
    """Search the catalogue, decide offsets, and lay out zones and units, for `workers`, on one machine if `together`.

    Raises UsageError if something does not fit or more than `max_output_gb` would be stored, and NoDataError if there
    are no scenes.
    """
    system = choose(config.sr, config.weights, config.option_values)
    stages = stages_of(system)
    declared = spec_of(config.sr).conditions_for(dict(system.options))
    maps = settle(declared, config.condition_files, config.sr)
    map_remarks = require_ground(declared, maps, stages, aoi)
    passes = passes_of(stages, config.band_names)
    require_output(aoi.area_km2, 1, passes, max_output_gb)
    options = Options(consistency=consistency_of(config, system), mtf=config.mtf_by_band)
    layouts = layouts_of(passes, config, options)
    config = replace(config, batch=config.batch or _batch(system, passes))
    _load(system, say)
    began_s = time.perf_counter()  # how long the area and the archive take, not how long libraries take to load
    reach_px = passes[0].reach_px(options)
    around = _around(config, aoi, passes[0], layouts, reach_px)
    say("searching")
    found = _searched(config, aoi, around, chain.bands_required(stages, config.band_names))
    scenes, notes = _audited(found, config, say)
    shaping = _shaping(config, system, passes, reach_px, workers, together=together)
    zones, zone_notes = zones_of(config, aoi, around, scenes, workers, layouts, shaping)
    variants = spec_of(config.sr).variants(dict(system.options))
    zones = tuple(in_variants(zone, variants) for zone in zones)
    require_output(aoi.area_km2, max(len(zone.periods) for zone in zones), passes, max_output_gb)
    kept = _used(scenes, zones)
    states = _states(system, kept, found.access, maps, say)
    plan = Plan(
        config=config,
        aoi_name=aoi.name,
        aoi_digest=aoi.digest,
        aoi_geometry=aoi.geometry,
        scenes=kept,
        zones=zones,
        system=system,
        access=found.access,
        states=states,
        passes=layouts,
        conditions=maps,
        variants=variants.name,
        map_stored=map_layout(declared, maps, passes),
        notes=(*aoi.warnings, *found.notes, *notes, *zone_notes, *_remarks(config, system, kept), *map_remarks),
        licence=found.catalog.licence,
        credit=found.catalog.credit,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        version=VERSION,
    )
    _tell_planned(plan, time.perf_counter() - began_s)
    return plan


def _load(system: Choice, say: Callable[[str], None]) -> None:
    """Load the networks, so that unsuitable weights are found before any request to the archive, and the readers."""
    say(LOADING)
    load(system, "cpu")
    _import_readers()


def _around(config: RunConfig, aoi: Aoi, first: Pass, layouts: Sequence[PassLayout], reach_px: int) -> Aoi:
    """Return the AOI and the ground around it that any pass may read."""
    passes_m = math.sqrt(2) * most_m(layouts, config)  # of a square around every place
    return grown_aoi(aoi, passes_m + reach_m(config, chain.reach_m(first.groups), reach_px))


def _searched(config: RunConfig, aoi: Aoi, around: Aoi, required: set[str]) -> _Found:
    """Search, and log how it begins and ends."""
    _stage("search", f"searching {config.catalog} for scenes over {aoi.name}", catalog=config.catalog)
    found = _search(config, aoi, around, required)
    whose = "its" if len(found.scenes) == 1 else "their"
    text = f"found {counted(len(found.scenes), 'scene')}; looking at {whose} pixels"
    _stage("search", text, scenes=len(found.scenes))
    return found


def _used(scenes: Sequence[Scene], zones: Sequence[Zone]) -> dict[str, Scene]:
    """Return the scenes of which a period makes use, by id."""
    used = {name for zone in zones for period in zone.periods for name in period.scene_ids}
    return {scene.id: scene for scene in scenes if scene.id in used}


def _shaping(
    config: RunConfig, system: Choice, passes: Sequence[Pass], reach_px: int, workers: int, *, together: bool
) -> Shaping | None:
    """Return what decides the shape of units; None where settings, shards, passes or finer outputs fix it."""
    if config.unit_chunks or config.shard or len(passes) > 1 or passes[0].finer:
        return None
    return Shaping(passes[0], reach_px, system.draws(config.estimate, config.members), workers, together)


def _batch(system: Choice, passes: Sequence[Pass]) -> int:
    """Return how many windows networks compute at once on the device of this process; 0, the default, for one."""
    if not stages_of(system):
        return 0
    window_px = max(group.lattice.window_px for one in passes for group in one.groups if group.stages)
    size = size_for(memory_of(system), window_px, device_name())
    return size if size > 1 else 0


def _import_readers() -> None:
    """Import what reads archives, which takes a second or more."""
    for name in ("search", "offset_audit", "read.cube"):
        import_module(f"pipeline.archive.{name}")


def _tell_planned(plan: Plan, seconds: float) -> None:
    units, scenes = sum(1 for _ in plan.units()), len(plan.scenes)
    text = f"planned {counted(units, 'unit')} from {counted(scenes, 'scene')} in {seconds:.1f} s"
    _stage("plan", text, units=units, scenes=scenes, plan_digest=plan.digest, seconds=round(seconds, 3))


def _stage(stage: str, text: str, **facts: object) -> None:
    """Log that a stage of planning begins or has ended."""
    _log.info("%s", text, extra={"facts": {"stage": stage, **facts}})


def _remarks(config: RunConfig, system: Choice, scenes: Mapping[str, Scene]) -> list[str]:
    """Return remarks on settings without effect, on the cost of draws, and on absent bands."""
    remarks = [*system.notes, *_imagined(config, system)]
    if idle := _idle(config, system):
        remarks.append(f"no effect on the mean, which is stored: {idle} (--estimate sample and --members N draw)")
    drawn, asked = system.draws(config.estimate, config.members), f"--members {config.members}" * bool(config.members)
    asked = asked or "--estimate sample" * (config.estimate == "sample")
    if asked and not system.stochastic:
        remarks.append(f"{asked} has no effect with --sr {system.name}, which draws nothing")
    elif drawn > 1 and not config.members:
        remarks.append(
            f"--sr {system.name} has no regression: what is stored is the mean of {drawn} draws, at {drawn} times "
            "the cost of one (--members N for another number, --estimate sample for one draw)"
        )
    absent = [band for band, why in absent_bands(config.band_names, scenes).items() if "scene" in why]
    if absent:
        remarks.append(f"not in the store: {', '.join(absent)}, which --bands leaves out and no scene has")
    return remarks


def _search(config: RunConfig, aoi: Aoi, around: Aoi, needed: Collection[str]) -> _Found:
    """Search for scenes over `around`, which contains the AOI. Raises NoDataError if no scene covers the AOI itself.

    `needed` are the bands that the system requires besides the stored ones.
    """
    from pipeline.aoi.period import parse_period
    from pipeline.archive.catalog import load_catalog
    from pipeline.archive.read.ground import grounds
    from pipeline.archive.search import search, summarised

    catalog = load_catalog(config.catalog)
    start, end = parse_period(config.start or None, config.end or None)
    if not config.start and catalog.default_days:
        last = datetime.fromisoformat(end) if end else datetime.now(UTC)
        start = (last - timedelta(days=catalog.default_days)).strftime("%Y-%m-%dT%H:%M:%SZ")
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
            or f"check the AOI's place ({aoi.describe()}; coordinates are longitude, latitude), widen --start/--end or "
            "--max-cloud, or choose another --catalog",
        )
    return _Found(catalog, catalog.access(), scenes, tuple(notes))


def _without(config: RunConfig, reasons: list[str], needed: Collection[str] = ()) -> str:
    """Return the cure if every item lacks bands: request the other bands. Empty if items were rejected otherwise.

    >>> from pipeline.config import RunConfig
    >>> _without(RunConfig(bands=("B01", "B02", "B03")), ["bands B01 are missing"])
    'request the available bands: --bands B02,B03'
    """
    lacking = [_LACKING.fullmatch(reason) for reason in reasons]
    absent = {name for found in lacking if found for name in found[1].split(", ")}
    others = [name for name in config.band_names if name not in absent]
    if not (all(lacking) and absent):
        return ""
    if reads := sorted(absent & {*needed}):
        return f"choose another --sr: {config.sr} reads {', '.join(reads)}"
    return f"request the available bands: --bands {','.join(others)}" if others else ""


def _audited(found: _Found, config: RunConfig, say: Callable[[str], None]) -> tuple[tuple[Scene, ...], list[str]]:
    """Audit the offset of each scene. Return the scenes whose decision stands, and notes that name the others."""
    if config.offset is not None:
        decision = OffsetDecision(config.offset, f"--offset {config.offset}", by_user=True)
        return tuple(replace(scene, offset=decision) for scene in found.scenes), []
    from pipeline.archive.offset_audit import audit_scene
    from pipeline.archive.offset_verdict import verdict

    def audit(scene: Scene) -> tuple[Scene, str, str]:
        """Return the scene with its audited offset, the reason to leave it out (or ""), and a note (or "")."""
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
    """Return the scene with its offset marked as stated, so that its pixels can be read to audit it."""
    return replace(scene, offset=replace(scene.offset, standing=STATED))


def _none_left(faults: list[str]) -> PipelineError:
    """Return the error for an audit that leaves no scene: UsageError for offsets, ReadError for unreadable files."""
    text = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    if any("contradict" in fault or "BOA offset is unknown" in fault for fault in faults):
        return UsageError(
            text,
            "metadata or pixels that tell the BOA offset, and do not contradict each other",
            "say which is right with --offset 0 or --offset -1000",
        )
    return ReadError(text, "at least one scene whose files can be read", "use another catalogue or period")


def _idle(config: RunConfig, system: Choice) -> str:
    """Return the options of draws that differ from their defaults although nothing is drawn, as they are typed."""
    if system.draws(config.estimate, config.members):
        return ""
    values = dict(system.options)
    of_draws = (option for option in spec_of(system.name).options if option.of_draws)
    return ", ".join(f"--option {one.name}={values[one.name]}" for one in of_draws if values[one.name] != one.default)


def _imagined(config: RunConfig, system: Choice) -> list[str]:
    """Say so where the detail is no estimate of the ground, and where the colours are not those measured."""
    found = [f"--sr {system.name} is synthetic: {system.synthetic}"] if system.synthetic else []
    if system.restyled:
        ignored = "" if config.consistency == "none" else f" (--consistency {config.consistency} has no effect)"
        found.append(f"colours are not those measured{ignored}: no index can be computed from this store")
    return found


@one_thread()
def _states(
    system: Choice,
    scenes: dict[str, Scene],
    access: Access,
    maps: Sequence[Frozen],
    say: Callable[[str], None],
) -> dict[str, SceneState]:
    """Return the state of each scene for the stages that take one, from fixed windows of the scene, never from chunks.

    What conditions tell that are taken whole is added to each. Raises PipelineError if a scene has no window without
    nodata.
    """
    say("measuring each scene for the networks")
    loaded = load(system, "cpu")
    stages = [stage for stage in loaded.stages if stage.scene_state]
    whole = {name for stage in loaded.stages for name in stage.whole}
    if loaded.predictor is None or not (stages or whole):
        return {}
    from pipeline.planning.scene_state import state_windows

    declared = {one.name: one for one in spec_of(system.name).conditions}
    shared: SceneState = {}
    for frozen in maps:
        if frozen.name in whole:
            shared |= loaded.predictor.image_state(frozen.name, pixels(declared[frozen.name], frozen))
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
    return {scene_id: state | shared for scene_id, state in states.items()}
