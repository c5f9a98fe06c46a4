"""`python -m pipeline.index`: what can be read again -> an index file.

A folder of Sentinel-2 files becomes an archive that `python -m pipeline.run --catalog` reads; finished stores become a
STAC ItemCollection for catalogues, and each gets its item. In: command-line arguments. Out: the file, one line per
scene or store, an exit code (pipeline/errors.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bands import BAND_NAMES
from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.store.place import place_of
from pipeline.terminal import counted, show, tell
from pipeline.working import require_parent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.archive.scene import Scene
    from pipeline.execution.catalogue_out import Listed

_ARCHIVE = Path("archive.json")


def parser() -> argparse.ArgumentParser:
    """All flags."""
    p = argparse.ArgumentParser(
        "python -m pipeline.index",
        description="List the Sentinel-2 L2A scenes of a folder, or finished stores, in an index file.",
    )
    p.add_argument("what", nargs="+", metavar="FOLDER|STORE", help="a folder of Sen2Cor products or files per band, "
                   "at any depth; or finished stores, or a folder of them")  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", help=f"index ({_ARCHIVE}; for stores only where it is given)")
    p.add_argument("--datetime", metavar="UTC", help="sensing time of scenes whose names and files do not tell it")
    p.add_argument("--offset", type=int, choices=(0, -1000), help="BOA offset of all scenes, over files and audit")
    p.add_argument("--collection", metavar="ID", help="of stores: their items name it, and it is written beside --out")
    p.add_argument("--relative", action="store_true", help="paths relative to the index, so that both can move")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.out is not None:
            require_parent(arguments.out)
        stores = _stores(arguments.what)
        if stores:
            return _of_stores(stores, arguments)
        return _of_scenes(Path(arguments.what[0]), arguments)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _stores(what: Sequence[str]) -> list[str]:
    """Those of the words that are stores, all of them or none. UsageError for a mixture, or for several folders."""
    # an address that is no store is told so by name; nobody scans a bucket for scenes
    stores = [word for word in what if "://" in word or place_of(word).size("zarr.json") is not None]
    others = [word for word in what if word not in stores]
    if (stores and others) or len(others) > 1:
        raise UsageError(f"{others[0]} is not a store", "stores only, or one folder", "index them one after the other")
    return stores


def _of_scenes(folder: Path, arguments: argparse.Namespace) -> int:
    """Index a folder's scenes, and the stores that lie in it, in a file of their own."""
    from pipeline.archive.index_file import write_index
    from pipeline.archive.local import scan
    from pipeline.execution.catalogue_out import stores_below

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
    notes = (*notes, *more)
    if arguments.json:
        said: dict[str, object] = {"index": str(out), "scenes": [as_json(s) for s in scenes], "notes": list(notes)}
        show(json.dumps({**said, "stores": stores_as_json(listed, beside)} if listed else said))
        return EXIT_OK
    for scene in scenes:
        show(in_words(scene))
    for note in notes:
        tell(f"note: {note}")
    show(f"{counted(len(scenes), 'scene')} in {out}; next: python -m pipeline.run --catalog {out} --aoi region.geojson")
    if listed:
        _show_stores(listed)
        show(f"{counted(len(listed.items), 'STAC item')} in {beside}")
    return EXIT_OK


def _listed_beside(
    stores: Sequence[str], out: Path, arguments: argparse.Namespace
) -> tuple[Listed | None, tuple[str, ...]]:
    """The stores among scenes, listed in `out`, and notes; None where not one of them is finished."""
    from pipeline.execution.catalogue_out import list_stores

    try:
        listed = list_stores(stores, out, relative=arguments.relative, collection=arguments.collection)
    except UsageError as error:
        return None, (str(error),)
    return listed, listed.notes


def _show_stores(listed: Listed) -> None:
    for store, item in zip(listed.stores, listed.items, strict=True):
        show(f"{store}  {item['id']}  {_when(item)}  {', '.join(f'{value:.4f}' for value in item['bbox'])}")


def _of_stores(stores: Sequence[str], arguments: argparse.Namespace) -> int:
    """Write the items of finished stores, and list them where --out says."""
    from pipeline.execution.catalogue_out import list_stores

    if arguments.datetime is not None or arguments.offset is not None:
        raise UsageError("--datetime and --offset are for scenes", "neither, where stores are listed")
    if arguments.collection is not None and arguments.out is None:
        raise UsageError("--collection without --out", "a file for the items", "the collection is written beside it")
    listed = list_stores(stores, arguments.out, relative=arguments.relative, collection=arguments.collection)
    if arguments.json:
        show(json.dumps(stores_as_json(listed, arguments.out)))
        return EXIT_OK
    _show_stores(listed)
    for note in listed.notes:
        tell(f"note: {note}")
    where = f" in {arguments.out}" if arguments.out else ", each in its store; --out FILE lists them in one file"
    show(f"{counted(len(listed.items), 'STAC item')}{where}")
    if listed.collection is not None:
        show(f"collection {arguments.collection} in {listed.collection}")
    return EXIT_OK


def _when(item: dict[str, object]) -> str:
    properties = item["properties"]
    assert isinstance(properties, dict)
    one = properties["datetime"]
    return str(one or f"{properties['start_datetime']}/{properties['end_datetime']}")


def stores_as_json(listed: Listed, out: Path | None) -> dict[str, object]:
    """What is said of stores, for programs."""
    items = [
        {"store": store, "id": item["id"], "bbox": item["bbox"], "datetime": _when(item)}
        for store, item in zip(listed.stores, listed.items, strict=True)
    ]
    said: dict[str, object] = {"index": str(out) if out else None, "items": items, "notes": list(listed.notes)}
    return {**said, "collection": str(listed.collection)} if listed.collection else said


def as_json(scene: Scene) -> dict[str, object]:
    """What is said of a scene, for programs."""
    from pipeline.archive.local import AUDIT_KEY

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


def in_words(scene: Scene) -> str:
    """What is said of a scene, for people, on one line."""
    from pipeline.grid.grid import Phase

    said = as_json(scene)
    bands = [band for band in BAND_NAMES if band in scene.hrefs]
    which = "all 12 bands" if len(bands) == len(BAND_NAMES) else ", ".join(bands)
    scl = "with SCL" if said["scl"] else "no SCL"
    official = scene.phase == Phase.official(scene.epsg)
    phase = "on the official grid" if official else f"phase {scene.phase.x_m:g}, {scene.phase.y_m:g} m"
    audit = str(said["audit"]).split(":", 1)[0] or "none"
    return (
        f"{scene.id}  {scene.datetime_utc}  EPSG:{scene.epsg}  {which}, {scl}  {phase}"
        f"  offset {scene.offset.offset_dn} ({scene.offset.evidence})  audit {audit}"
    )


if __name__ == "__main__":
    sys.exit(main())
