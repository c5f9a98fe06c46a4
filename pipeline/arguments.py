"""The arguments of a run, parsed into configuration and AOI."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import bbox, run_file
from pipeline.aoi.aoi import MAX_AREA_KM2
from pipeline.config import CHUNK_BANDS, COMPOSITES, CONSISTENCIES, ESTIMATES, FUSION_ROLE, RunConfig
from pipeline.errors import UsageError
from pipeline.help_text import Help, example, exit_codes
from pipeline.logs import FORMATS
from pipeline.parsers import CommandParser
from pipeline.planning.output_size import MAX_OUTPUT_GB
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.superres.precision import PRECISIONS
from pipeline.superres.registry import known
from pipeline.superres.systems import DEFAULT, PLAIN

if TYPE_CHECKING:
    import argparse

    from pipeline.aoi.aoi import Aoi


def parser() -> argparse.ArgumentParser:
    """Return the parser with all flags. Flags that decide pixels default to None, so that a TOML file can set them.

    Arguments must have passed through `bbox.joined`; `run_file.parse` also takes in the file that --config names.
    """
    p = CommandParser(
        "python -m pipeline.run",
        description="Sentinel-2 L2A at 2.5 m, from an area of interest to a Zarr store.\n"
        "The same command continues a store that is not complete.",
        epilog=exit_codes(),
        formatter_class=Help,
    )
    words = "--aoi region.geojson --start 2024-06-01 --end 2024-08-31 --max-cloud 20"
    _add_ground(p.add_argument_group("where and when", example(words)))
    _add_method(p.add_argument_group("how, which decides the pixels", example("--sr bicubic, or --members 8 --seed 3")))
    _add_output(p.add_argument_group("output", example("--out s3://bucket/lyon.zarr --bands B02,B03,B04,B08 --shard")))
    _add_parts(p.add_argument_group("in parts, for job arrays", example("--plan run.zarr --shard-of 3/64")))
    words = "--config run.toml --workers 8 --price-per-hour 0.04 --dry-run"
    _add_running(p.add_argument_group("running, which changes no pixel", example(words)))
    return p


def _add_ground(where: argparse._ArgumentGroup) -> None:
    where.add_argument(
        "--aoi", metavar="FILE", help="GeoJSON polygon(s) in EPSG:4326; - reads stdin (required, or --bbox)"
    )
    where.add_argument(bbox.FLAG, metavar=bbox.FORMS, help="degrees, or W S E N, instead of --aoi")
    where.add_argument(
        "--whole-archive", action="store_true", help="without --aoi: all of a local archive, without a question"
    )
    where.add_argument(
        "--repair-aoi", action="store_true", help="repair self-crossing polygons instead of refusing them"
    )
    where.add_argument(
        "--max-area-km2",
        type=float,
        default=MAX_AREA_KM2,
        metavar="KM2",
        help="refuse larger AOIs (default: %(default)g)",
    )
    where.add_argument("--catalog", help="name, STAC API URL, static catalogue or index file (default: earth-search)")
    where.add_argument("--start", metavar="DAY", help="first day, e.g. 2024-06-01 (default: 90 days before --end)")
    where.add_argument("--end", metavar="DAY", help="last day (default: today)")
    where.add_argument(
        "--max-cloud", type=float, metavar="PCT", help="largest cloud cover of a scene, in per cent (default: 60)"
    )
    where.add_argument(
        "--composite",
        choices=COMPOSITES,
        help="mosaic: the least cloudy pass first, others where it has no pixel; median of all passes, which reads "
        "every scene; none: a time step per pass, each at the cost of one run; monthly: "
        "a median per month (default: mosaic)",
    )
    where.add_argument("--exclude", metavar="ID", action="append", help="leave this scene out (may be repeated)")
    where.add_argument(
        "--offset",
        type=int,
        choices=(0, -1000),
        help="BOA offset of all scenes in DN (default: by the archive's rule and audit)",
    )


def _add_method(how: argparse._ArgumentGroup) -> None:
    _add_system(how)
    _add_estimate(how)
    how.add_argument(
        "--clip", action="store_true", default=None, help="mask pixels outside the polygon (default: keep whole chunks)"
    )
    how.add_argument(
        "--config",
        metavar="TOML",
        help="file of any of these settings, named like the flags; flags override it; "
        "python -m pipeline.check STORE --as-config writes one",
    )


def _add_system(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--sr", metavar="SYSTEM", help=f"{', '.join(known())} (default: {DEFAULT}; {PLAIN} is the cheapest)"
    )
    how.add_argument(
        "--weights",
        metavar="[ROLE=]FILE",
        action="append",
        help="bundle of the system's first network, or of ROLE: .safetensors, or hf://OWNER/REPO/FILE "
        "(default: those shipped with the system)",
    )
    how.add_argument("--fusion-weights", metavar="FILE", help=f"the same as --weights {FUSION_ROLE}=FILE")
    how.add_argument(
        "--option",
        dest="options",
        metavar="NAME=VALUE",
        action="append",
        help="a setting of the system (may be repeated)",
    )
    how.add_argument(
        "--condition", dest="conditions", metavar="NAME=FILE", action="append", help="a map that the system takes"
    )


def _add_estimate(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--estimate",
        choices=ESTIMATES,
        help="mean: the best estimate, by systems without a regression the mean of several draws at their cost; "
        "sample: one draw (default: mean)",
    )
    how.add_argument(
        "--members",
        type=int,
        metavar="N",
        help="number of draws to average; N draws take N times as long as one; more than 1 stores uncertainty, which "
        "adds about 60 per cent to the size (default: 0, the system's choice)",
    )
    how.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="windows that the networks compute at once; another number changes the last bits of what they give "
        "(default: 1 on a CPU, else as the GPU of this machine allows)",
    )
    how.add_argument("--seed", type=int, metavar="N", help="seed of the generated detail (default: 0)")
    how.add_argument(
        "--consistency",
        choices=CONSISTENCIES,
        help="what must equal the input: the simulated sensor, block or tent means, or nothing (default: sensor)",
    )
    how.add_argument(
        "--mtf",
        metavar="[BAND=]VALUE",
        action="append",
        help="MTF of the sensor at Nyquist (default: the published values)",
    )
    how.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format in which networks compute: the shorter ones are faster on GPUs, and change DN by a few "
        "(default: float32)",
    )


def _add_output(out: argparse._ArgumentGroup) -> None:
    out.add_argument(
        "--out", metavar="STORE", help="folder or s3://... to write or continue (default: AOI's name + .zarr)"
    )
    out.add_argument(
        "--bands",
        help="comma-separated, e.g. B02,B03,B04,B08; fewer store less, and are the same pixels (default: all 12)",
    )
    out.add_argument(
        "--max-output-gb",
        type=float,
        default=MAX_OUTPUT_GB,
        metavar="GB",
        help="refuse runs that would store more, before compression; --dry-run says how much (default: %(default)g)",
    )
    out.add_argument(
        "--shard",
        action="store_true",
        default=None,
        help="one Zarr shard per unit: a sixteenth as many objects; GDAL 3.13",
    )
    out.add_argument(
        "--chunk-px",
        type=int,
        metavar="PX",
        help="side of a chunk, a multiple of 24; smaller ones make more objects (default: 480)",
    )
    out.add_argument(
        "--unit-chunks",
        type=int,
        metavar="N",
        help="maximum number of chunks per unit and axis; larger units compute less overlap and need more memory "
        "(default: chosen by cost; 4 with --shard)",
    )
    out.add_argument("--overwrite", action="store_true", help="replace what is there: delete an existing store first")
    out.add_argument(
        "--verify",
        choices=VERIFY_LEVELS,
        default="size",
        help="how closely finished units are checked; full reads every byte back (default: %(default)s)",
    )
    out.add_argument(
        "--chunk-bands",
        choices=CHUNK_BANDS,
        help="bands in a chunk; 1 reads one band faster, and makes three times as many objects (default: all)",
    )
    out.add_argument(
        "--mixed-software",
        action="store_true",
        help="continue a store whose units other software computed; pixels may differ",
    )


def _add_parts(parts: argparse._ArgumentGroup) -> None:
    parts.add_argument("--plan-only", action="store_true", help="freeze the plan into --out and stop")
    parts.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="with --plan-only: cut the area into units for N parts of --workers processes each (default: 1), and "
        "take no other number from then on; parts of a small area may have no unit",
    )
    parts.add_argument("--plan", metavar="STORE", help="continue with the frozen plan of this store")
    parts.add_argument(
        "--wait-for-plan", type=float, default=0, metavar="S", help="with --plan: wait up to S seconds for the plan"
    )
    parts.add_argument(
        "--shard-of",
        metavar="J/N",
        help="with --plan: compute part J of N, J from 1, and stop; J alone after --parts N",
    )
    parts.add_argument(
        "--pass",
        dest="of_pass",
        type=int,
        metavar="P",
        help="with --shard-of: of this pass alone, P from 1 (default: all)",
    )
    parts.add_argument("--finalise", action="store_true", help="with --plan: check that all parts are done, publish")


def _add_running(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--cluster",
        default="auto",
        help="auto, inline, local, cuda, slurm or a scheduler's address (default: %(default)s, which takes one worker "
        "for each GPU, or else local workers)",
    )
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="local worker processes (default: one per processor, or a few per GPU, as memory allows; with --parts, "
        "those of each part, 1)",
    )
    run.add_argument(
        "--max-outage",
        type=float,
        default=30,
        metavar="MIN",
        help="wait out outages of up to this length (default: %(default)g)",
    )
    run.add_argument(
        "--price-per-hour",
        type=float,
        metavar="X",
        help="of one core, or of one GPU where it computes on GPUs: --dry-run and the summary then say what a run "
        "costs, in the currency of X, without storage and requests (default: no price)",
    )
    run.add_argument("--dry-run", action="store_true", help="print scenes, units and cost; write nothing")
    run.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    run.add_argument(
        "--log-format",
        choices=FORMATS,
        help="log lines on stderr instead of a progress line (default: text where stderr is no terminal)",
    )
    run.add_argument(
        "--quiet",
        action="store_true",
        help="no progress line and no log lines; warnings, errors and the report at the end are still printed",
    )


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """Merge defaults, then the TOML file, then flags."""
    config = run_file.decided(Path(arguments.config)) if arguments.config else RunConfig()
    given = {name: value for name in config.to_json() if (value := getattr(arguments, name, None)) is not None}
    if arguments.fusion_weights is not None:
        given["weights"] = [*given.get("weights", []), f"{FUSION_ROLE}={arguments.fusion_weights}"]
    for name in {"exclude", "mtf", "weights", "options", "conditions"} & given.keys():
        given[name] = tuple(given[name])
    if "bands" in given:
        given["bands"] = tuple(band.strip() for band in given["bands"].split(",") if band.strip())
        if not given["bands"]:
            raise UsageError("--bands names no band", "for example B02,B03,B04,B08", "leave --bands out to get all 12")
    return replace(config, **given)


def whole_archive_of(arguments: argparse.Namespace) -> Aoi:
    """Return the area of a local archive where none is given. Raises UsageError for others, or if nobody wants it."""
    from pipeline.whole_archive import whole_archive

    quiet = getattr(arguments, "dry_run", False)
    ask = sys.stdin.isatty() and sys.stderr.isatty() and not getattr(arguments, "json", False)
    allowed = arguments.whole_archive or quiet
    return whole_archive(config_of(arguments), allowed=allowed, ask=ask, max_area_km2=arguments.max_area_km2)


def aoi_of(arguments: argparse.Namespace) -> Aoi:
    """Return the AOI from --aoi or --bbox. Raises UsageError unless exactly one is given."""
    from pipeline.aoi.aoi import aoi_from_bbox, aoi_from_geometry, read_aoi

    if arguments.aoi is None and arguments.bbox is None:
        return whole_archive_of(arguments)
    if (arguments.aoi is None) == (arguments.bbox is None):
        found = "no area" if arguments.aoi is None else "two areas"
        raise UsageError(f"{found} given", "either --aoi FILE or --bbox W,S,E,N")
    if arguments.bbox is not None:
        return aoi_from_bbox(*bbox.degrees_of(arguments.bbox), max_area_km2=arguments.max_area_km2)
    limits = {"max_area_km2": arguments.max_area_km2, "repair": arguments.repair_aoi}
    if isinstance(arguments.aoi, dict):  # in the file of --config
        name = getattr(arguments, run_file.AOI_NAME, None) or Path(arguments.config).stem
        return aoi_from_geometry(arguments.aoi, re.sub(r"[^\w.-]+", "_", name), **limits)
    return read_aoi(arguments.aoi, **limits)
