"""The arguments of a run, parsed into configuration and AOI."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import bbox
from pipeline.aoi.aoi import MAX_AREA_KM2
from pipeline.config import COMPOSITES, CONSISTENCIES, ESTIMATES, FUSION_ROLE, RunConfig
from pipeline.errors import UsageError
from pipeline.planning.output_size import MAX_OUTPUT_GB
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.superres.registry import known
from pipeline.superres.systems import DEFAULT

if TYPE_CHECKING:
    from pipeline.aoi.aoi import Aoi


def parser() -> argparse.ArgumentParser:
    """Return the parser with all flags. Flags that decide pixels default to None, so that a TOML file can set them.

    Arguments must have passed through `bbox.joined`.
    """
    p = argparse.ArgumentParser(
        "python -m pipeline.run", description="Sentinel-2 L2A at 2.5 m, from AOI to Zarr store."
    )
    _add_ground(p.add_argument_group("where and when"))
    _add_method(p.add_argument_group("how"))
    _add_output(p.add_argument_group("output"))
    _add_parts(p.add_argument_group("in parts, for job arrays"))
    _add_running(p.add_argument_group("running"))
    return p


def _add_ground(where: argparse._ArgumentGroup) -> None:
    where.add_argument("--aoi", metavar="FILE", help="GeoJSON polygon(s) in EPSG:4326; - reads stdin")
    where.add_argument(bbox.FLAG, metavar=bbox.FORMS, help="degrees, or W S E N, instead of --aoi")
    where.add_argument("--repair", action="store_true", help="repair self-crossing polygons")
    where.add_argument("--max-area-km2", type=float, default=MAX_AREA_KM2, help="refuse larger AOIs (%(default)g)")
    where.add_argument("--catalog", help="name, STAC API URL, static catalogue or index file (earth-search)")
    where.add_argument("--start", help="first day, e.g. 2024-06-01 (90 days before --end)")
    where.add_argument("--end", help="last day (today)")
    where.add_argument("--max-cloud", type=float, metavar="PCT", help="largest cloud cover of a scene (60)")
    where.add_argument(
        "--composite",
        choices=COMPOSITES,
        help="mosaic or median of all passes; none: a time step per pass; monthly: medians (mosaic)",
    )
    where.add_argument("--exclude", metavar="ID", action="append", help="leave this scene out (may be repeated)")
    where.add_argument("--offset", type=int, choices=(0, -1000), help="override the archive's BOA offset rule")


def _add_method(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--bands", help="comma-separated, e.g. B02,B03,B04,B08 (all 12)")
    how.add_argument("--sr", metavar="SYSTEM", help=f"{', '.join(known())} ({DEFAULT})")
    how.add_argument(
        "--weights",
        metavar="[ROLE=]FILE",
        action="append",
        help="bundle of the system's first network, or of ROLE: .safetensors, or hf://OWNER/REPO/FILE",
    )
    how.add_argument("--fusion-weights", metavar="FILE", help=f"the same as --weights {FUSION_ROLE}=FILE")
    how.add_argument("--option", dest="options", metavar="NAME=VALUE", action="append", help="a setting of the system")
    how.add_argument(
        "--condition", dest="conditions", metavar="NAME=FILE", action="append", help="a map that the system takes"
    )
    how.add_argument("--estimate", choices=ESTIMATES, help="mean: the best estimate; sample: one draw (mean)")
    how.add_argument(
        "--members", type=int, metavar="N", help="number of draws to average; more than 1 adds uncertainty"
    )
    how.add_argument("--seed", type=int, help="seed of the generated detail (0)")
    how.add_argument(
        "--consistency",
        choices=CONSISTENCIES,
        help="what must equal the input: the simulated sensor, block or tent means, or nothing (sensor)",
    )
    how.add_argument(
        "--mtf",
        metavar="[BAND=]VALUE",
        action="append",
        help="MTF of the sensor at Nyquist, instead of the published values",
    )
    how.add_argument("--config", metavar="TOML", help="file of these settings; flags override it")


def _add_output(out: argparse._ArgumentGroup) -> None:
    out.add_argument("--out", metavar="STORE", help="folder or s3://... to write or continue (AOI's name + .zarr)")
    out.add_argument(
        "--max-output-gb",
        type=float,
        default=MAX_OUTPUT_GB,
        metavar="GB",
        help="refuse runs that would store more, before compression; --dry-run says how much (%(default)g)",
    )
    out.add_argument("--clip", action="store_true", default=None, help="mask pixels outside the polygon")
    out.add_argument("--shard", action="store_true", default=None, help="one Zarr shard per unit")
    out.add_argument("--chunk-px", type=int, help="side of a chunk, a multiple of 24 (480)")
    out.add_argument("--unit-chunks", type=int, help="maximum number of chunks per unit and axis (chosen by cost)")
    out.add_argument("--overwrite", action="store_true", help="delete an existing store first")
    out.add_argument("--verify", choices=VERIFY_LEVELS, default="size", help="how finished units are checked")
    out.add_argument(
        "--mixed-software",
        action="store_true",
        help="continue a store whose units other software computed; pixels may differ",
    )


def _add_parts(parts: argparse._ArgumentGroup) -> None:
    parts.add_argument("--plan-only", action="store_true", help="freeze the plan into --out and stop")
    parts.add_argument("--plan", metavar="STORE", help="continue with the frozen plan of this store")
    parts.add_argument("--shard-of", metavar="J/N", help="with --plan: compute part J of N, J from 1, and stop")
    parts.add_argument(
        "--pass", dest="of_pass", type=int, metavar="P", help="with --shard-of: of this pass alone, P from 1 (all)"
    )
    parts.add_argument("--finalise", action="store_true", help="with --plan: check that all parts are done, publish")


def _add_running(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--cluster", default="auto", help="auto, inline, local, cuda, slurm or a scheduler's address (%(default)s)"
    )
    run.add_argument("--workers", type=int, help="local worker processes (one per processor)")
    run.add_argument(
        "--max-outage",
        type=float,
        default=30,
        metavar="MIN",
        help="wait out outages of up to this length (%(default)g)",
    )
    run.add_argument("--dry-run", action="store_true", help="print scenes, units and cost; write nothing")
    run.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    run.add_argument("--quiet", action="store_true", help="no progress line")


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """Merge defaults, then the TOML file, then flags."""
    config = RunConfig.from_toml(Path(arguments.config)) if arguments.config else RunConfig()
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


def aoi_of(arguments: argparse.Namespace) -> Aoi:
    """Return the AOI from --aoi or --bbox. Raises UsageError unless exactly one is given."""
    from pipeline.aoi.aoi import aoi_from_bbox, read_aoi

    if (arguments.aoi is None) == (arguments.bbox is None):
        found = "no area" if arguments.aoi is None else "two areas"
        raise UsageError(f"{found} given", "either --aoi FILE or --bbox W,S,E,N")
    if arguments.bbox is not None:
        return aoi_from_bbox(*bbox.degrees_of(arguments.bbox), max_area_km2=arguments.max_area_km2)
    return read_aoi(arguments.aoi, max_area_km2=arguments.max_area_km2, repair=arguments.repair)
