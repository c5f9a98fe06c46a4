"""`python -m pipeline.index`: a folder of Sentinel-2 files -> an index that `python -m pipeline.run --catalog` reads.

In: command-line arguments. Out: a STAC ItemCollection, one line per scene, an exit code (pipeline/errors.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bands import BAND_NAMES
from pipeline.errors import EXIT_OK, PipelineError
from pipeline.terminal import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.archive.scene import Scene


def parser() -> argparse.ArgumentParser:
    """All flags."""
    p = argparse.ArgumentParser(
        "python -m pipeline.index", description="List the Sentinel-2 L2A scenes of a folder in an index file."
    )
    p.add_argument("folder", type=Path, help="Sen2Cor products, or files per band, at any depth")
    p.add_argument("--out", type=Path, default=Path("archive.json"), metavar="FILE", help="index (%(default)s)")
    p.add_argument("--datetime", metavar="UTC", help="sensing time of scenes whose names and files do not tell it")
    p.add_argument("--offset", type=int, choices=(0, -1000), help="BOA offset of all scenes, over files and audit")
    p.add_argument("--relative", action="store_true", help="paths relative to the index, so that both can move")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from pipeline.archive.index_file import write_index
    from pipeline.archive.local import scan

    arguments = parser().parse_args(argv)
    try:
        scenes, notes = scan(arguments.folder, datetime_utc=arguments.datetime, offset_dn=arguments.offset)
        write_index(scenes, arguments.out, relative=arguments.relative)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        show(json.dumps({"index": str(arguments.out), "scenes": [as_json(s) for s in scenes], "notes": list(notes)}))
        return EXIT_OK
    for scene in scenes:
        show(in_words(scene))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    count = f"{len(scenes)} scene{'' if len(scenes) == 1 else 's'}"
    show(f"{count} in {arguments.out}; next: python -m pipeline.run --catalog {arguments.out} --aoi region.geojson")
    return EXIT_OK


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
