"""The store template of each zone of a plan: arrays and provenance attributes, before any pixel is written."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pipeline.bands import BAND_NAMES, MADE, RADIOMETRY, STYLED, SYNTHETIC, SYNTHETIC_COMMENT
from pipeline.planning.plan import WEIGHTS_BY_ROLE
from pipeline.planning.stored_inputs import map_raster
from pipeline.store.template import Template
from pipeline.superres.masks import QUALITY_MEANINGS
from pipeline.superres.precision import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.archive.scene import Scene
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Zone


_AGREES = {
    "sensor": "Seen by the sensor, whose MTF is given by band, it gives back the measured values to within noise.",
    "box": "The mean over each native pixel is the measured value.",
    "tent": "The tent-weighted mean over each native pixel is close to the measured value.",
    "none": "Nothing ties it to the measured values.",
}


def template_of(plan: Plan, zone: Zone) -> Template:
    """Return the template of a zone's group."""
    return Template(
        grid=zone.grid,
        bands=plan.config.band_names,
        times_utc=tuple(period.datetime_utc for period in zone.periods),
        chunk_px=plan.config.chunk_px,
        generated=plan.system.generated_bands,
        with_scl=plan_has_scl(plan),
        with_uncertainty=plan.draws > 1 and plan.system.stochastic,
        shard_px=plan.config.chunk_px * plan.config.shard_chunks,
        by_band=plan.config.chunk_bands == "1",
        quality_meanings=QUALITY_MEANINGS,
        mtf=plan.mtf,
        finer_bands=plan.finer,
        attributes=_provenance(plan, zone.epsg),
        variant_name=plan.variants,
        variants=tuple(period.variant or 0 for period in zone.periods) if plan.variants else (),
        map_raster=map_raster(plan),
        format_version=plan.format_version,
    )


def _provenance(plan: Plan, epsg: int) -> dict[str, Any]:
    zone, how, generated = plan.zone(epsg), plan.consistency, bool(plan.system.generated_bands)
    used = [plan.scenes[name] for period in zone.periods for name in period.scene_ids]
    return {
        "title": f"Sentinel-2 L2A at 2.5 m over {plan.aoi_name}",
        "plan_digest": plan.digest,
        "groups": [plan.group(z.epsg) for z in plan.zones],
        "source": f"{plan.config.catalog}: {', '.join(dict.fromkeys(s.id for s in used))}",
        "scenes": {
            s.id: {"datetime": s.datetime_utc, "baseline": s.baseline, "offset_dn": s.offset.offset_dn,
                   "offset_evidence": s.offset.evidence, "cloud_pct": s.cloud_pct}
            for s in used
        },
        "periods": [{"label": p.label, "composite": p.composite, "scenes": list(p.scene_ids)} for p in zone.periods],
        "super_resolution": plan.system.name,
        **_weights(plan),
        "bands_absent": absent_bands(plan.config.band_names, plan.scenes),
        "generated_bands": list(plan.system.generated_bands),
        **_finer(plan),
        **_given(plan),
        **_imagined(plan),
        "seed": plan.config.seed,
        "estimate": plan.config.estimate,
        "members": plan.draws,
        "consistency": how,
        **_precision(plan),
        "license": plan.licence,
        "weights_license": plan.system.licence,
        "weights_credits": plan.system.credits,
        "credit": _credit(plan),
        "comment": f"Detail finer than a band's native GSD is {MADE[generated]}, not measured. {_AGREES[how]}",
        "notes": list(plan.notes),
        "software": f"sen2fine {plan.version}",
    }  # fmt: skip


def _finer(plan: Plan) -> dict[str, Any]:
    """Return the bands stored at GSDs below 2.5 m, all of them generated."""
    bands = {f"{gsd_m:g}": list(names) for gsd_m, names in plan.finer}
    return {"finer_generated_bands": bands} if bands else {}


def _precision(plan: Plan) -> dict[str, Any]:
    """Return the number format in which networks computed, if it is not float32."""
    return {} if plan.config.precision == FLOAT32 else {"precision": plan.config.precision}


def _imagined(plan: Plan) -> dict[str, Any]:
    """Say so where the detail is no estimate of the ground, and where the colours are not those measured."""
    said: dict[str, Any] = {SYNTHETIC: 1, SYNTHETIC_COMMENT: plan.system.synthetic} if plan.system.synthetic else {}
    return said | ({RADIOMETRY: STYLED} if plan.system.restyled else {})


def _given(plan: Plan) -> dict[str, Any]:
    """Return the options and maps of the system. Maps give file names only, to not leak local paths."""
    stated: dict[str, Any] = {"options": dict(plan.system.options)} if plan.system.options else {}
    maps = {
        one.name: {"file": PurePath(one.where).name, "sha256": one.sha256}
        | ({"credit": one.credit} if one.credit else {})
        for one in plan.conditions
    }
    return stated | ({"conditions": maps} if maps else {})


def _credit(plan: Plan) -> str:
    """Return the credit of the imagery, followed by those of the maps, which users of the output owe as well."""
    maps = [f"map {PurePath(one.where).name}: {one.credit}" for one in plan.conditions if one.credit]
    return "; ".join(filter(None, (plan.credit, *maps)))


def _weights(plan: Plan) -> dict[str, str]:
    """Return name and sha256 of the weights by role. Older formats always list "sr" and "fusion", if need be empty."""
    older = plan.format_version < WEIGHTS_BY_ROLE
    files = {role: ("", "") for role in ("sr", "fusion") if older}
    files |= {file.role: (file.shown, file.sha256) for file in plan.system.weights}
    names = {f"{role}_weights": name for role, (name, _) in files.items()}
    return names | {f"{role}_weights_sha256": digest for role, (_, digest) in files.items()}


def plan_has_scl(plan: Plan) -> bool:
    """Return True if any scene of the plan has a scene classification."""
    return any("SCL" in scene.hrefs for scene in plan.scenes.values())


def absent_bands(names: tuple[str, ...], scenes: Mapping[str, Scene]) -> dict[str, str]:
    """Return {band: reason} for the bands that a store of `names` does not hold, in instrument order.

    >>> absent_bands(BAND_NAMES[1:], {})
    {'B01': 'no scene has it'}
    """
    there = {band for scene in scenes.values() for band in scene.hrefs}
    missing = (band for band in BAND_NAMES if band not in names)
    return {band: "left out by --bands" if band in there else "no scene has it" for band in missing}
