"""Making a plan: search, audit, zones, phase, units. Driver side, cheap, before any work.

In: `RunConfig`, an AOI. Out: a frozen `Plan`. Imports every room but writes nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.archive.scene import OffsetDecision, Scene
from pipeline.errors import NoDataError, PipelineError, UsageError
from pipeline.execution.plan import Plan, Zone
from pipeline.grid.grid import Grid, Phase
from pipeline.superres import systems
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from shapely import Geometry

    from pipeline.archive.access import Access
    from pipeline.archive.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.config import RunConfig

_DEFAULT_DAYS = 90
_AUDIT_THREADS = 8
_BOW_M = 0.05
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
    system = systems.choose(config.sr, config.weights, config.fusion_weights)
    _check_bands(config, system)
    systems.load(system, "cpu")  # unfit weights are found before anything is asked of an archive
    say("searching")
    found = _search(config, aoi)
    say("auditing offsets")
    scenes, notes = _audited(found, config)
    zones, zone_notes = _zones(config, aoi, scenes, workers)
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
        notes=(*aoi.warnings, *found.notes, *notes, *zone_notes),
        licence=found.catalog.licence,
        credit=found.catalog.credit,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        version=VERSION,
    )


def _check_bands(config: RunConfig, system: systems.Choice) -> None:
    missing = [name for name in ("B02", "B03", "B04") if name not in config.band_names]
    if system.sr_weights and missing:
        raise UsageError(
            f"--sr {system.name} needs B02, B03 and B04, and --bands leaves out {', '.join(missing)}",
            "all three among --bands",
            "add them, or use --sr bicubic",
        )


def _search(config: RunConfig, aoi: Aoi) -> _Found:
    from pipeline.archive.catalog import load_catalog, search
    from pipeline.archive.period import parse_period

    catalog = load_catalog(config.catalog)
    start, end = parse_period(config.start or None, config.end or None)
    if not config.start and catalog.kind == "api":
        last = datetime.fromisoformat(end) if end else datetime.now(UTC)
        start = (last - timedelta(days=_DEFAULT_DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    if config.offset is not None:
        catalog = catalog.with_offset(config.offset)
    result = search(catalog, aoi, start, end, config.max_cloud, bands=config.band_names)
    notes = [*result.notes, *(f"left out {name}: {reason}" for name, reason in result.rejected)]
    if not result.scenes:
        reasons = "; ".join(notes) or "the search came back empty"
        raise NoDataError(
            f"no usable scene of {catalog.name} over {aoi.name} from {start or 'the beginning'} to {end or 'now'} "
            f"with at most {config.max_cloud:g} % cloud ({reasons})",
            cure="check the AOI's place, widen --start/--end or --max-cloud, or choose another --catalog",
        )
    return _Found(catalog, catalog.access(), result.scenes, tuple(notes))


def _audited(found: _Found, config: RunConfig) -> tuple[tuple[Scene, ...], list[str]]:
    """Scenes whose offset decision stands, with its evidence; the others are left out with both facts."""
    if config.offset is not None:
        decision = OffsetDecision(config.offset, f"--offset {config.offset}")
        return tuple(replace(scene, offset=decision) for scene in found.scenes), []
    from pipeline.archive.radiometry import audit_scene

    def audit(scene: Scene) -> tuple[Scene, str, bool]:
        result = audit_scene(scene, found.access)
        evidence = f"{scene.offset.evidence}; pixels {result.verdict}: {result.fact}"
        decided = replace(scene, offset=OffsetDecision(scene.offset.offset_dn, evidence))
        return decided, result.fact, result.verdict != "contradicts"

    with ThreadPoolExecutor(_AUDIT_THREADS) as pool:
        audited = list(pool.map(audit, found.scenes))
    kept = tuple(scene for scene, _, stands in audited if stands)
    faults = [
        f"left out {scene.id}: offset {scene.offset.offset_dn} by rule, but {scene.offset.evidence}"
        for scene, _, stands in audited
        if not stands
    ]
    if not kept:
        raise UsageError(
            "; ".join(faults),
            "metadata and pixels that agree on the BOA offset",
            "say which is right with --offset 0 or --offset -1000",
        )
    return kept, faults


def _zones(config: RunConfig, aoi: Aoi, scenes: tuple[Scene, ...], workers: int) -> tuple[tuple[Zone, ...], list[str]]:
    from pipeline.archive.zones import to_utm, utm_parts

    parts, notes = _assign(utm_parts(aoi), scenes)
    zones = []
    for epsg, part in parts.items():
        over = _over(part, [scene for scene in scenes if scene.epsg == epsg])
        zone, note = _zone(config, epsg, to_utm(part, epsg), over, workers)
        zones.append(zone)
        notes += note
    if not zones:
        raise NoDataError(f"the scenes found do not reach into {aoi.name}", cure="look at the AOI's coordinates")
    return tuple(zones), notes


def _over(part: Geometry, scenes: list[Scene]) -> tuple[Scene, ...]:
    from pipeline.archive.footprints import footprint_shape

    return tuple(scene for scene in scenes if footprint_shape(scene.footprint).intersects(part))


def _assign(parts: dict[int, Geometry], scenes: tuple[Scene, ...]) -> tuple[dict[int, Geometry], list[str]]:
    """AOI parts by the zone whose scenes will feed them.

    A part stays in its own zone when a scene of that zone reaches it; else it goes to the neighbouring zone whose
    scenes do, since tiles overlap across zone borders and nothing then has to be warped.
    """
    import shapely

    assigned: dict[int, list[Geometry]] = {}
    notes: list[str] = []
    for epsg, part in parts.items():
        homes = [epsg, *sorted({scene.epsg for scene in scenes} - {epsg}, key=lambda other: (abs(other - epsg), other))]
        home = next((h for h in homes if _over(part, [s for s in scenes if s.epsg == h])), None)
        if home is None:
            notes.append(f"no scene reaches the AOI's part in EPSG:{epsg}; it is left out")
            continue
        if home != epsg:
            notes.append(f"the AOI's part in EPSG:{epsg} is processed in EPSG:{home}, where its scenes are")
        assigned.setdefault(home, []).append(part)
    return {epsg: shapely.union_all(pieces) for epsg, pieces in sorted(assigned.items())}, notes


def _zone(
    config: RunConfig, epsg: int, area: Geometry, scenes: tuple[Scene, ...], workers: int
) -> tuple[Zone, list[str]]:
    from shapely.geometry import mapping

    from pipeline.archive.composite import periods

    phase, resample, notes = _phase(epsg, scenes)
    left, bottom, right, top = area.bounds
    # edges straight in degrees bow by centimetres in metres: an AOI drawn along 60 m lines keeps to them
    grid = Grid.covering(epsg, (left + _BOW_M, bottom + _BOW_M, right - _BOW_M, top - _BOW_M), phase)
    ny, nx = (-(-length // config.chunk_px) for length in grid.shape)
    rows, cols = _breaks(ny, nx, config, workers)
    return Zone(epsg, grid, _plain(mapping(area)), periods(scenes, config.composite), rows, cols, resample), notes


def _plain(geometry: dict[str, Any]) -> dict[str, Any]:
    """GeoJSON with lists for tuples, millimetres, as JSON gives it back."""

    def rounded(value: Any) -> Any:  # noqa: ANN401 - nested coordinates
        return [rounded(v) for v in value] if isinstance(value, list | tuple) else round(float(value), 3)

    return {"type": geometry["type"], "coordinates": rounded(geometry["coordinates"])}


def _phase(epsg: int, scenes: tuple[Scene, ...]) -> tuple[Phase, bool, list[str]]:
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


def _states(system: systems.Choice, scenes: dict[str, Scene], access: Access) -> dict[str, dict[str, list[float]]]:
    """Per-scene state of systems that keep one, from fixed windows of each scene: never from a chunk."""
    resolver = systems.load(system, "cpu").resolver
    if resolver is None or not resolver.needs_state:
        return {}
    from pipeline.execution.states import state_windows

    states = {}
    for scene in scenes.values():
        windows = state_windows(scene, resolver.in_bands, access, _STATE_WINDOWS)
        if windows is None:
            raise PipelineError(
                f"scene {scene.id} has no 720 m square without nodata to take its state from", cure="use --sr lite"
            )
        states[scene.id] = resolver.scene_state(windows)
    return states
