"""Folders of Sentinel-2 L2A files on this machine: which scenes lie in them, on which grids, with which offset.

In: a folder of Sen2Cor products, of per-band GeoTIFFs, or of COGs beside their STAC item. Out: `Scene`s and notes.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.access import Access
from pipeline.archive.audit import audit_scene
from pipeline.archive.bandfile import SCL, SCL_GSD_M, gdal_options
from pipeline.archive.local_meta import PRODUCT_XML, Meta, from_item, from_names, from_safe, item_beside, to_utc
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.bands import BAND_NAMES, BY_NAME, HOUSE_ADD_OFFSET_DN
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

AUDIT_KEY = "sen2fine:offset_audit"  # scene property: what the pixels say about its offset
SAMPLE_PACKAGE = "bigearthnet-patch-interface"
_SAMPLE_BASELINE = "02.05"  # of S2A_MSIL2A_20170617T113321, by its product name
_SUFFIXES = (".tif", ".tiff", ".jp2")
_BAND = re.compile(r"(?:(?P<scene>.*?)[_.-])?(?P<band>B0?[1-9]|B1[012]|B8A|SCL)(?:[_.-](?:10|20|60)m)?", re.IGNORECASE)
_MASKS = "MSK_"  # quality masks of a product; MSK_DETFOO_B02.jp2 is no B02
_WHOLE_M = 1e-3  # pixel sizes and origins closer than this are equal


@dataclass(frozen=True)
class _File:
    """Header of one raster file."""

    path: Path
    bands: int
    dtype: str
    epsg: int | None
    gsd_m: float
    left_m: float
    top_m: float
    ny: int
    nx: int


def scan(
    folder: Path, *, datetime_utc: str | None = None, offset_dn: int | None = None
) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """(scenes by time and id, notes) of a folder, searched to the bottom. Every scene's offset is audited.

    `datetime_utc` dates scenes whose files do not; `offset_dn` (0 or -1000) overrides what the files and the audit say.
    A scene that cannot be used is left out with a note; UsageError with all notes when none is left.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "a folder of Sentinel-2 L2A files")
    if offset_dn not in (None, 0, HOUSE_ADD_OFFSET_DN):
        raise UsageError(f"offset {offset_dn}", f"0 or {HOUSE_ADD_OFFSET_DN} DN")
    when = "" if datetime_utc is None else to_utc(datetime_utc)
    override = None if offset_dn is None else OffsetDecision(offset_dn, "set by the user", by_user=True)
    scenes: dict[str, Scene] = {}
    notes: list[str] = []
    reasons: dict[str, list[str]] = defaultdict(list)
    for candidate in _candidates(folder, notes):
        try:
            scene, remarks = _scene(candidate, when, override)
        except (PipelineError, ValueError) as error:
            reasons[str(error)].append(candidate.name)
            continue
        notes += [f"{scene.id}: {remark}" for remark in remarks]
        if scene.id in scenes:
            notes.append(f"{scene.id}: {candidate.folder} left out: another folder holds this scene already")
        else:
            scenes[scene.id] = scene
    notes += [f"{', '.join(names)}: left out: {reason}" for reason, names in reasons.items()]
    if not scenes and notes:
        raise UsageError(f"{folder} holds no usable scene. {'. '.join(notes)}")
    if not scenes:
        raise UsageError(f"{folder} holds no raster files with band names", "such as B02.tif, *_B8A.tif, *_B02_10m.jp2")
    return tuple(sorted(scenes.values(), key=lambda s: (s.datetime_utc, s.id))), tuple(notes)


def sample_scenes() -> tuple[Scene, ...]:
    """The 1.2 km BigEarthNet patch inside the package of the `sample` extra. UsageError when it is not installed."""
    from importlib.metadata import PackageNotFoundError, files

    offset = OffsetDecision(0, f"processing baseline {_SAMPLE_BASELINE} < 04.00")
    try:
        first = next(path for path in files(SAMPLE_PACKAGE) or () if path.name.endswith("_B02.tif"))
        candidate = next(_candidates(Path(str(first.locate())).parent, []))
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


@dataclass(frozen=True)
class _Candidate:
    """Files that belong together; `paths` by band, of any resolution. `alone` when the folder holds no other scene."""

    name: str
    folder: Path
    paths: dict[str, list[Path]]
    alone: bool = True


def _candidates(folder: Path, notes: list[str]) -> Iterator[_Candidate]:
    """Scenes below `folder`, in order of their paths: a product with its XML, or files of one prefix in one folder."""
    for place, below, names in os.walk(folder):
        below.sort()
        here = Path(place)
        if PRODUCT_XML in names:
            below.clear()
            merged: dict[str, list[Path]] = defaultdict(list)
            for bands in _by_scene(sorted(here.rglob("*")), notes).values():
                for band, found in bands.items():
                    merged[band] += found
            yield _Candidate(here.resolve().name, here, merged)
            continue
        grouped = _by_scene([here / name for name in sorted(names)], notes)
        for prefix, bands in grouped.items():
            yield _Candidate(prefix or here.resolve().name, here, bands, alone=len(grouped) == 1)


def _by_scene(paths: list[Path], notes: list[str]) -> dict[str, dict[str, list[Path]]]:
    """{prefix: {band: files}}; says so where a file without band name holds several bands."""
    grouped: dict[str, dict[str, list[Path]]] = {}
    for path in paths:
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith(_MASKS):
            continue
        named = _BAND.fullmatch(path.stem)
        if named is None:
            notes += _stacked(path)
            continue
        band = named["band"].upper()
        band = band if band in (SCL, "B8A") else f"B{int(band[1:]):02d}"
        grouped.setdefault(named["scene"] or "", {}).setdefault(band, []).append(path)
    return grouped


def _stacked(path: Path) -> list[str]:
    """A note where a file without band name holds several bands; pictures in true colour hold no DN."""
    try:
        count = _header(path).bands
    except UsageError as error:
        return [str(error)]
    if count == 1 or re.search(r"TCI|visual|thumbnail|PVI", path.stem, re.IGNORECASE):
        return []
    cure = "split it into one file per band (python -m pipeline.archive.stack)"
    return [f"{path} holds {count} bands in one file; {cure}"]


def _header(path: Path) -> _File:
    """UsageError when the file is no raster at all."""
    import rasterio

    try:
        with rasterio.Env(**gdal_options(Access())), rasterio.open(path) as dataset:
            a, b, left_m, d, e, top_m = tuple(dataset.transform)[:6]
            if b or d or abs(a + e) > _WHOLE_M:
                raise UsageError(f"{path} has pixels of ({a:g}, {b:g}, {d:g}, {e:g})", "square, north-up pixels")
            epsg = dataset.crs.to_epsg() if dataset.crs else None
            return _File(path, dataset.count, dataset.dtypes[0], epsg, a, left_m, top_m, dataset.height, dataset.width)
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"{path} cannot be opened: {error}", "a GeoTIFF or JPEG 2000 file") from error


def _scene(candidate: _Candidate, when: str, override: OffsetDecision | None) -> tuple[Scene, list[str]]:
    """(scene, remarks). ValueError or UsageError when the candidate cannot be used, with the reason."""
    if "B10" in candidate.paths:
        raise ValueError("B10 exists only in Level-1C; expected Level-2A")
    meta = _meta(candidate)
    files, others = _native(candidate)
    if not set(files) - {SCL}:
        raise ValueError(f"no band at its native resolution ({others or 'no reflectance bands'})")
    epsg, rasters = _grid(files)
    moment = meta.datetime_utc or when
    if not moment:
        raise UsageError("no file or name dates it", "a sensing time", "give it with --datetime, e.g. 2024-06-17")
    scene = Scene(
        id=meta.id,
        datetime_utc=moment,
        epsg=epsg,
        footprint=footprint_of(epsg, _bounds(rasters)),
        hrefs={band: str(file.path.resolve()) for band, file in files.items()},
        rasters=rasters,
        baseline=meta.baseline,
        cloud_pct=meta.cloud_pct,
        tile=meta.tile,
        properties=meta.properties,
    )
    _ = scene.phase  # ValueError when the bands do not nest
    absent = [band for band in BAND_NAMES if band not in files]
    remarks = [f"without {', '.join(absent)}{f' ({others})' if others else ''}"] if absent else []
    return _audited(scene, meta.offset, override), remarks


def _bounds(rasters: tuple[Raster, ...]) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) metres of what any of the rasters covers."""
    return (
        min(r.left_m for r in rasters),
        min(r.top_m - r.ny * r.gsd_m for r in rasters),
        max(r.left_m + r.nx * r.gsd_m for r in rasters),
        max(r.top_m for r in rasters),
    )


def _meta(candidate: _Candidate) -> Meta:
    product = candidate.folder / PRODUCT_XML
    if product.is_file():
        return from_safe(product)
    item = item_beside(candidate.folder) if candidate.alone else None
    if item is not None:
        return from_item(item, candidate.name)
    return from_names(candidate.name, candidate.name, candidate.folder.resolve().name)


def _native(candidate: _Candidate) -> tuple[dict[str, _File], str]:
    """({band: its file at native resolution}, what is coarser or finer instead, in words)."""
    files: dict[str, _File] = {}
    others: dict[str, list[str]] = defaultdict(list)
    for band in (*BAND_NAMES, SCL):
        native_m = SCL_GSD_M if band == SCL else BY_NAME[band].gsd_m
        headers = [_header(path) for path in candidate.paths.get(band, [])]
        fitting = [header for header in headers if abs(header.gsd_m - native_m) < _WHOLE_M]
        if fitting:
            files[band] = _usable(fitting[0], "uint8" if band == SCL else "uint16")
        elif headers:
            others[f"{min(header.gsd_m for header in headers):g} m pixels instead of {native_m} m"].append(band)
    return files, "; ".join(f"{', '.join(bands)}: {size}" for size, bands in others.items())


def _usable(file: _File, dtype: str) -> _File:
    if file.bands != 1:
        raise ValueError(f"{file.path.name} holds {file.bands} bands; expected one file per band")
    if file.dtype != dtype:
        raise ValueError(f"{file.path.name} is {file.dtype}; expected {dtype} digital numbers of a Level-2A product")
    if file.epsg is None:
        raise ValueError(f"{file.path.name} has no coordinate system with an EPSG number; expected a UTM zone")
    return file


def _grid(files: dict[str, _File]) -> tuple[int, tuple[Raster, ...]]:
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


def _audited(scene: Scene, recorded: OffsetDecision | None, override: OffsetDecision | None) -> Scene:
    """The scene with its offset: the override, else the record's, else 0. ValueError where the pixels contradict it."""
    claimed = override or recorded or OffsetDecision(0, "no processing baseline, taken as without offset")
    roots = sorted({str(Path(href).parent) for href in scene.hrefs.values()})
    audit = audit_scene(replace(scene, offset=claimed), Access(roots=tuple(roots)))
    if audit.verdict == "contradicts" and override is None:
        other = HOUSE_ADD_OFFSET_DN - claimed.offset_dn
        raise ValueError(
            f"{audit.fact}; cure: --offset {other} if the pixels are right, --offset {claimed.offset_dn} if not"
        )
    if override is None and recorded is None:
        says = "the pixels agree" if audit.verdict == "agrees" else "the pixels cannot tell"
        claimed = OffsetDecision(claimed.offset_dn, f"{claimed.evidence}; {says}")
    properties = {**scene.properties, AUDIT_KEY: f"{audit.verdict}: {audit.fact}"}
    return replace(scene, offset=claimed, properties=properties)
