"""`python -m pipeline.index`: index a folder of Sentinel-2 files, or list finished stores as STAC items."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bands import BAND_NAMES
from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.help_text import Help, example, exit_codes
from pipeline.parsers import CommandParser
from pipeline.report import show_report
from pipeline.store.place import place_of
from pipeline.temporary import require_ours, require_parent
from pipeline.terminal import counted, refuse, show, tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pipeline.archive.scene import Scene
    from pipeline.running.stac_publish import Listed

_ARCHIVE = Path("archive.json")
_OUTWARD = (math.floor, math.floor, math.ceil, math.ceil)


@dataclass(frozen=True)
class ScenesReport:
    """The scenes of an index, and the stores listed beside it."""

    scenes: Sequence[Scene]
    out: Path
    notes: Sequence[str]
    stores: StoresReport | None = None
    bbox: tuple[float, ...] = ()  # west, south, east, north of all scenes, degrees
    footprint: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all scenes and stores."""
        said: dict[str, Any] = {"index": str(self.out), "scenes": [_scene(s) for s in self.scenes]}
        said |= {"notes": list(self.notes), "bbox": list(self.bbox), "footprint": str(self.footprint)}
        return {**said, "stores": self.stores.to_json()} if self.stores else said

    def text(self) -> str:
        """Return one line per scene and store. Notes go to stderr."""
        next_step = f"python -m pipeline.run --catalog {self.out} --aoi {self.footprint}"
        listed = f"{counted(len(self.scenes), 'scene')} in {self.out}; next: {next_step}"
        # rounded outward, so that the box holds all scenes
        sides = [f"{turn(degrees * 1e4) / 1e4:.4f}" for turn, degrees in zip(_OUTWARD, self.bbox, strict=True)]
        where = f"bounds --bbox={','.join(sides)}, footprint in {self.footprint}"
        return "\n".join([*map(_line, self.scenes), where, listed, *([self.stores.text()] if self.stores else [])])


@dataclass(frozen=True)
class StoresReport:
    """STAC items of finished stores. `out` is the file that lists them, if any."""

    listed: Listed
    out: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return id, bounding box and time of each item."""
        items = [
            {"store": store, "id": item["id"], "bbox": item["bbox"], "datetime": _when(item)}
            for store, item in zip(self.listed.stores, self.listed.items, strict=True)
        ]
        said = {"index": str(self.out) if self.out else None, "items": items, "notes": list(self.listed.notes)}
        return {**said, "collection": str(self.listed.collection)} if self.listed.collection else said

    def text(self) -> str:
        """Return one line per store. Notes go to stderr."""
        pairs = zip(self.listed.stores, self.listed.items, strict=True)
        lines = [
            f"{store}  {item['id']}  {_when(item)}  {', '.join(f'{degrees:.4f}' for degrees in item['bbox'])}"
            for store, item in pairs
        ]
        where = f" in {self.out}" if self.out else ", each in its store; --out FILE lists them in one file"
        return "\n".join([*lines, f"{counted(len(self.listed.items), 'STAC item')}{where}"])


def _when(item: dict[str, Any]) -> str:
    properties = item["properties"]
    return str(properties["datetime"] or f"{properties['start_datetime']}/{properties['end_datetime']}")


def _scene(scene: Scene) -> dict[str, Any]:
    from pipeline.archive.local.scan import AUDIT_KEY

    return {
        "id": scene.id,
        "datetime": scene.datetime_utc,
        "epsg": scene.epsg,
        "bands": [band for band in BAND_NAMES if band in scene.hrefs],
        "scl": "SCL" in scene.hrefs,
        "phase_m": [scene.phase.x_m, scene.phase.y_m],
        "offset_dn": scene.offset.offset_dn,
        "offset_evidence": scene.offset.evidence,
        "audit": scene.properties.get(AUDIT_KEY, ""),
    }


def _line(scene: Scene) -> str:
    from pipeline.grid.grid import Phase

    said = _scene(scene)
    bands = said["bands"]
    which = "all 12 bands" if len(bands) == len(BAND_NAMES) else ", ".join(bands)
    scl = "with SCL" if said["scl"] else "no SCL"
    official = scene.phase == Phase.official(scene.epsg)
    phase = "on the official grid" if official else f"phase {scene.phase.x_m:g}, {scene.phase.y_m:g} m"
    audit = said["audit"].split(":", 1)[0] or "none"
    audit = "" if "the pixels" in scene.offset.evidence else f"  audit {audit}"  # which then say so themselves
    return (
        f"{scene.id}  {scene.datetime_utc}  EPSG:{scene.epsg}  {which}, {scl}  {phase}"
        f"  offset {scene.offset.offset_dn} ({scene.offset.evidence}){audit}"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = CommandParser(
        "python -m pipeline.index",
        description="List the Sentinel-2 L2A scenes of a folder, or finished stores, in an index file.",
        epilog=exit_codes(0, 2, 3, 5, 6, 7),
        formatter_class=Help,
    )
    p.add_argument("what", nargs="+", metavar="FOLDER|STORE", help="a folder of Sen2Cor products or files per band, "
                   "at any depth; or finished stores, or a folder of them")  # fmt: skip
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    both = p.add_argument_group("the index", example("~/s2_archive --out archive.json"))
    both.add_argument(
        "--out", type=Path, metavar="FILE", help=f"index (default: {_ARCHIVE}; for stores only where it is given)"
    )
    both.add_argument("--relative", action="store_true", help="paths relative to the index, so that both can move")
    scenes = p.add_argument_group("scenes of a folder", example("tifs --datetime 2024-06-17T10:20:31Z --offset -1000"))
    scenes.add_argument("--datetime", metavar="UTC", help="sensing time of scenes whose names and files do not tell it")
    scenes.add_argument(
        "--offset",
        type=int,
        choices=(0, -1000),
        help="BOA offset of all scenes in DN (default: as files and their pixels tell)",
    )
    stores = p.add_argument_group("finished stores", example("*.zarr --out stores.json --collection lyon-2024"))
    stores.add_argument("--collection", metavar="ID", help="their items name it, and it is written beside --out")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.out is not None:
            require_parent(arguments.out)
        stores = _stores(arguments.what)
        if stores:
            return _of_stores(stores, arguments)
        return _of_scenes(Path(arguments.what[0]), arguments)
    except PipelineError as error:
        return refuse(error)


def _stores(what: Sequence[str]) -> list[str]:
    """Return the arguments that are stores, all or none. Raises UsageError for a mixture, or for several folders."""
    # Every URL counts as a store, since buckets are not scanned for scenes. Other URLs fail later, by name.
    stores = [word for word in what if "://" in word or place_of(word).size("zarr.json") is not None]
    others = [word for word in what if word not in stores]
    if (stores and others) or len(others) > 1:
        raise UsageError(f"{others[0]} is not a store", "stores only, or one folder", "index them one after the other")
    return stores


def _of_scenes(folder: Path, arguments: argparse.Namespace) -> int:
    """Index a folder's scenes, and list the stores in it in a separate file."""
    from pipeline.archive.local.scan import scan
    from pipeline.archive.stac.index_file import write_index
    from pipeline.running.stac_publish import stores_below

    stores = [str(store) for store in stores_below(folder)]
    if arguments.collection is not None and not stores:
        raise UsageError(f"--collection {arguments.collection}, and no store in {folder}", "stores to put into it")
    try:
        scenes, notes = scan(folder, datetime_utc=arguments.datetime, offset_dn=arguments.offset)
    except UsageError:
        if not stores:
            raise
        return _of_stores(stores, arguments)
    out = arguments.out or _ARCHIVE
    write_index(scenes, out, relative=arguments.relative)
    beside = out.with_name(f"{out.stem}_stores{out.suffix}")
    listed, more = _listed_beside(stores, beside, arguments) if stores else (None, ())
    bbox, ground = _footprint(scenes, out)
    found = ScenesReport(scenes, out, (*notes, *more), StoresReport(listed, beside) if listed else None, bbox, ground)
    if not arguments.json:
        _tell(found.notes)
    show_report(found, as_json=arguments.json)
    return EXIT_OK


def _footprint(scenes: Sequence[Scene], out: Path) -> tuple[tuple[float, ...], Path]:
    """Write the footprint of all scenes beside the index. Return its bounds and its file."""
    from pipeline import whole_archive
    from pipeline.store.files import write_atomic

    path = out.with_name(f"{out.stem}_footprint.geojson")
    require_ours(path)
    shape = whole_archive.footprint(scenes)
    write_atomic(path, whole_archive.geojson(shape, out.stem, len(scenes)))
    return whole_archive.bounds(shape), path


def _listed_beside(
    stores: Sequence[str], out: Path, arguments: argparse.Namespace
) -> tuple[Listed | None, tuple[str, ...]]:
    """List the stores in a folder of scenes in `out`. Return them, or None if none is finished, and notes."""
    from pipeline.running.stac_publish import list_stores

    try:
        listed = list_stores(stores, out, relative=arguments.relative, collection=arguments.collection)
    except UsageError as error:
        return None, (str(error),)
    return listed, listed.notes


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        tell(f"note: {note}")


def _of_stores(stores: Sequence[str], arguments: argparse.Namespace) -> int:
    """Write the items of finished stores, and list them in the file given with --out."""
    from pipeline.running.stac_publish import list_stores

    if arguments.datetime is not None or arguments.offset is not None:
        raise UsageError("--datetime and --offset are for scenes", "neither, where stores are listed")
    if arguments.collection is not None and arguments.out is None:
        raise UsageError("--collection without --out", "a file for the items", "the collection is written beside it")
    listed = list_stores(stores, arguments.out, relative=arguments.relative, collection=arguments.collection)
    if not arguments.json:
        _tell(listed.notes)
    show_report(StoresReport(listed, arguments.out), as_json=arguments.json)
    if listed.collection is not None and not arguments.json:
        show(f"collection {arguments.collection} in {listed.collection}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
