"""Finds Sentinel-2 L2A scenes in a folder of Sen2Cor products (also zipped), per-band GeoTIFFs, or COGs with items."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.local.files import File, chosen, header
from pipeline.archive.local.groups import Candidate, band_of, candidates, rasters
from pipeline.archive.local.metadata import Meta, from_item, from_names, from_safe, to_utc
from pipeline.archive.local.names import Names, product_name
from pipeline.archive.local.offset import AUDIT_KEY, decided
from pipeline.archive.local.tree import walk
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.bands import BAND_NAMES, CANONICAL_OFFSET_DN, SCL
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AUDIT_KEY", "footprint_of", "sample_scenes", "scan"]

SAMPLE_PACKAGE = "bigearthnet-patch-interface"
_SAMPLE_BASELINE = "02.05"  # of S2A_MSIL2A_20170617T113321, by its product name
_PICTURE = re.compile(r"TCI|visual|thumbnail|PVI|preview|overview", re.IGNORECASE)


def scan(
    folder: Path, *, datetime_utc: str | None = None, offset_dn: int | None = None
) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """(scenes by time and id, notes) of a folder, searched recursively. Every scene's offset is audited.

    `datetime_utc` dates scenes whose files do not; `offset_dn` (0 or -1000) overrides files and audit.
    A scene that cannot be used is left out with a note; UsageError with all notes when none is left.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "a folder of Sentinel-2 L2A files")
    if offset_dn not in (None, 0, CANONICAL_OFFSET_DN):
        raise UsageError(f"offset {offset_dn}", f"0 or {CANONICAL_OFFSET_DN} DN")
    when = "" if datetime_utc is None else to_utc(datetime_utc)
    override = None if offset_dn is None else OffsetDecision(offset_dn, "set by the user", by_user=True)
    tree = walk(Path(os.path.abspath(folder)))
    scenes: dict[str, Scene] = {}
    reasons: dict[str, list[str]] = defaultdict(list)
    said: list[str] = []
    used: set[Path] = set()
    for candidate in candidates(tree):
        used |= {path for found in candidate.paths.values() for path in found}
        try:
            scene, remarks = _scene(candidate, when, override)
            _add(scene, candidate, scenes)
        except (PipelineError, ValueError) as error:
            reasons[str(error)].append(candidate.id)
            continue
        said += [f"{scene.id}: {remark}" for remark in remarks]
    stray = [path for files in tree.folders.values() for path in rasters(files) if path not in used]
    notes = [*tree.notes, *_stacked(stray), *said]
    notes += [f"{', '.join(names)}: left out: {reason}" for reason, names in reasons.items()]
    if not scenes and notes:
        raise UsageError(f"{folder} holds no usable scene. {'. '.join(notes)}")
    if not scenes:
        raise UsageError(f"{folder} holds no raster files with band names", "such as B02.tif, *_B8A.tif, *_B02_10m.jp2")
    return tuple(sorted(scenes.values(), key=lambda s: (s.datetime_utc, s.id))), tuple(notes)


def _add(scene: Scene, candidate: Candidate, scenes: dict[str, Scene]) -> None:
    """Add a scene under its id, or under its path where the id is taken. ValueError for a copy."""
    twin = scenes.get(scene.id)
    if twin is not None:
        same = (twin.datetime_utc, twin.tile, twin.rasters) == (scene.datetime_utc, scene.tile, scene.rasters)
        if same and product_name(Names((scene.id,))):
            raise ValueError(f"{candidate.place} holds a copy: another folder holds this scene already")
        scene = replace(scene, id=f"{scene.id}_{candidate.where}" if candidate.where else scene.id)
    if scene.id in scenes:
        raise ValueError(f"{candidate.place} holds a scene of the same name as another folder's")
    scenes[scene.id] = scene


def sample_scenes() -> tuple[Scene, ...]:
    """The 1.2 km BigEarthNet patch inside the package of the `sample` extra. UsageError when it is not installed."""
    from importlib.metadata import PackageNotFoundError, files

    offset = OffsetDecision(0, f"processing baseline {_SAMPLE_BASELINE} < 04.00")
    try:
        first = next(path for path in files(SAMPLE_PACKAGE) or () if path.name.endswith("_B02.tif"))
        candidate = next(candidates(walk(Path(str(first.locate())).parent)))
    except (PackageNotFoundError, StopIteration) as error:
        raise UsageError("the sample scene is not installed", cure='pip install "sen2fine[sample]"') from error
    scene, _ = _scene(candidate, "", offset)
    credit = {"licence": "CDLA-Permissive-1.0", "credit": "BigEarthNet; modified Copernicus Sentinel data 2017"}
    return (replace(scene, baseline=_SAMPLE_BASELINE, properties={**scene.properties, **credit}),)


def footprint_of(epsg: int, bounds_m: tuple[float, float, float, float]) -> dict[str, Any]:
    """GeoJSON polygon in EPSG:4326 of (left, bottom, right, top) metres, four points per edge."""
    from pyproj import Transformer

    left, bottom, right, top = bounds_m
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    steps = [i / 4 for i in range(4)]
    ring = [(a + t * (c - a), b + t * (d - b)) for (a, b), (c, d) in pairwise(corners) for t in steps]
    xs, ys = zip(*ring, ring[0], strict=True)
    longitudes, latitudes = Transformer.from_crs(epsg, 4326, always_xy=True).transform(xs, ys)
    return {
        "type": "Polygon",
        "coordinates": [[[round(x, 7), round(y, 7)] for x, y in zip(longitudes, latitudes, strict=True)]],
    }


def _bounds(rasters: tuple[Raster, ...]) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) metres of what any of the rasters covers."""
    return (
        min(r.left_m for r in rasters),
        min(r.top_m - r.ny * r.gsd_m for r in rasters),
        max(r.left_m + r.nx * r.gsd_m for r in rasters),
        max(r.top_m for r in rasters),
    )


def _scene(candidate: Candidate, when: str, override: OffsetDecision | None) -> tuple[Scene, list[str]]:
    """(scene, remarks). ValueError or UsageError when the candidate cannot be used, with the reason."""
    if candidate.fault:
        raise ValueError(candidate.fault)
    if "B10" in candidate.paths:
        raise ValueError("B10 exists only in Level-1C; expected Level-2A")
    meta = _meta(candidate)
    files, others, remarks = chosen(candidate.paths)
    if not set(files) - {SCL}:
        raise ValueError(f"no band at its native resolution ({others or 'no reflectance bands'})")
    epsg, rasters_m = _grid(files)
    moment, remark = _moment(meta, when)
    scene = Scene(
        id=meta.id,
        datetime_utc=moment,
        epsg=epsg,
        footprint=footprint_of(epsg, _bounds(rasters_m)),
        hrefs={band: str(file.path.resolve()) for band, file in files.items()},
        rasters=rasters_m,
        baseline=meta.baseline,
        cloud_pct=meta.cloud_pct,
        tile=meta.tile,
        properties=meta.properties,
    )
    _ = scene.phase  # ValueError when the bands do not nest
    absent = [band for band in BAND_NAMES if band not in files]
    lacking = [f"without {', '.join(absent)}{f' ({others})' if others else ''}"] if absent else []
    if not absent and others:
        lacking = [f"without SCL ({others})"]
    scene, seen = decided(scene, (*meta.offsets, *_by_tags(files)), override)
    return scene, [*lacking, *meta.remarks, *remark, *remarks, *seen]


def _meta(candidate: Candidate) -> Meta:
    named = from_names(candidate.id, candidate.names)
    if candidate.product_xml is not None:
        meta = from_safe(candidate.product_xml, candidate.tile_xmls, named)
        return replace(meta, id=f"{meta.id}_{named.tile or candidate.granule}") if candidate.granule else meta
    return named if candidate.item is None else from_item(candidate.item, named)


def _moment(meta: Meta, when: str) -> tuple[str, list[str]]:
    """(sensing time, remarks) from files and names; --datetime adds the time of a known day, or the whole date."""
    if not meta.datetime_utc:
        if not when:
            raise UsageError("no file or name dates it", "a sensing time", "give it with --datetime, e.g. 2024-06-17")
        return when, []
    if not when or meta.datetime_utc == when:
        return meta.datetime_utc, []
    if meta.datetime_utc[:10] == when[:10]:
        return (meta.datetime_utc if meta.exact else when), []
    return meta.datetime_utc, [f"dated {meta.datetime_utc} by its own files and names, not {when} as --datetime says"]


def _by_tags(files: dict[str, File]) -> tuple[OffsetDecision, ...]:
    """BOA offset by the scale and offset tags of the bands. ValueError where bands differ."""
    stated = {file.offset_dn for band, file in files.items() if band != SCL and file.offset_dn is not None}
    if len(stated) > 1:
        raise ValueError(f"the scale and offset tags of its bands differ: {sorted(stated)} DN; expected one offset")
    return tuple(OffsetDecision(offset_dn, "scale and offset tags of its files") for offset_dn in stated)


def _stacked(strays: Sequence[Path]) -> list[str]:
    """Notes on unnamed files with several bands; true-colour images hold no DN and are passed over."""
    notes = []
    for path in strays:
        if band_of(path.stem):
            continue
        try:
            count = header(path).bands
        except UsageError as error:
            notes.append(str(error))
            continue
        if count > 1 and not _PICTURE.search(path.stem):
            cure = "split it into one file per band (python -m pipeline.archive.stack)"
            notes.append(f"{path} holds {count} bands in one file; {cure}")
    return notes


def _grid(files: dict[str, File]) -> tuple[int, tuple[Raster, ...]]:
    """(epsg, raster per GSD). ValueError where bands of one resolution lie on different grids."""
    zones = {file.epsg for file in files.values() if file.epsg is not None}
    if len(zones) != 1 or not all(32601 <= zone <= 32660 or 32701 <= zone <= 32760 for zone in zones):
        raise ValueError(
            f"its files lie in {', '.join(f'EPSG:{zone}' for zone in sorted(zones))}; expected one UTM zone"
        )
    rasters: dict[int, Raster] = {}
    for band, file in files.items():
        raster = Raster(round(file.gsd_m), file.left_m, file.top_m, file.ny, file.nx)
        other = rasters.setdefault(raster.gsd_m, raster)
        if raster != other:
            raise ValueError(f"{band} lies on {raster}, other bands of {raster.gsd_m} m on {other}")
    return zones.pop(), tuple(rasters[gsd_m] for gsd_m in sorted(rasters))
