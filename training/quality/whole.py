"""Report sections of a whole system, super-resolver and fusion together, in all 12 bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import BAND_NAMES
from training.quality import cost, judge, phases, scenes
from training.quality.product import DEFAULT
from training.quality.tables import NULL, Record, Section, known, markdown, mean, methods_of, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.superres.system import System
    from training.data.sources import TrainingData

    Say = Callable[[str], None]


def whole_sections(
    name: str, system: System, plain: System, data: TrainingData, per_set: int | None, seed: int, say: Say
) -> list[Section]:
    """Return the sections on native scenes, phase pattern and cost. `plain`: interpolation.

    `per_set`: maximum number of scenes per source; with it, the cost of a unit is not measured.
    """
    found = scenes.native_scenes(data.all_tiles, per_set)
    sections = []
    if found:
        say(f"{name}: {len(found)} native scenes seen by a sensor")
        records = scenes.judge(system, plain, found, seed)
        text = scenes_text(records, found, system)
        sections.append(_section(f"{name}: native scenes seen by a sensor", text, records, name, system))
        say(f"{name}: phase pattern")
        records = phases.measure(system, plain, found, seed)
        sections.append(_section(f"{name}: phase pattern in flat ground", phases_text(records), records, name, system))
    else:
        text = f"{NULL}: no scene of the data has all 12 bands on enough ground."
        sections.append(_section(f"{name}: native scenes", text, (), name, system))
    if per_set:
        return sections
    say(f"{name}: cost")
    sections.append(_section(f"{name}: cost", cost_text(system), (), name, system))
    return sections


def _section(title: str, text: str, records: Sequence[Record], name: str, system: System) -> Section:
    bundles = list(system.bundles.values())
    digests = "; ".join(f"{bundle.system} sha256 {bundle.digest[:12]}" for bundle in bundles)
    kinds, whole = "+".join(bundle.system for bundle in bundles), "+".join(bundle.digest for bundle in bundles)
    return Section(title, f"{text}\n\n<sub>{digests}</sub>", records, name, kinds, whole, digests)


def scenes_text(records: Sequence[Record], found: Sequence[scenes.NativeScene], system: System) -> str:
    """Return ERGAS by blur, product and band group, and its ratio to bicubic: average and worst scene."""
    untrained = {index for index, scene in enumerate(found) if not scene.trained}
    intro = (
        "Every band blurred by the same Gaussian of its own pixels, averaged over 4 x 4 of them and put through the "
        "whole pipeline; ERGAS against what was measured / its ratio to bicubic, average over scenes / the largest "
        "ratio of a scene. Less is better.\n\n"
    )
    parts = [f"{len(found)} scenes:\n\n{_scenes_table(records)}"]
    if 0 < len(untrained) < len(found):
        inside = [record for record in records if record.image in untrained]
        parts.append(f"The {len(untrained)} that the fusion was not trained on:\n\n{_scenes_table(inside)}")
    parts.append(_worse_than_plain(records, system))
    return intro + "\n\n".join(parts)


def _scenes_table(records: Sequence[Record]) -> str:
    rows = []
    for sigma in scenes.SIGMAS_PX:
        inside = [record for record in records if record.table == scenes.table(sigma)]
        methods = methods_of(inside)
        for method in methods:
            cells = []
            for group in scenes.GROUPS:
                ratios = known(_ratios(inside, method, methods[0], group).values())
                errors = mean(r.values[group] for r in inside if r.method == method)
                worst = max(ratios, default=None)
                cells.append(f"{number(errors, 3)} / {number(mean(ratios), 3)} / {number(worst, 3)}")
            rows.append([f"{sigma:g} px", method, *cells])
    return markdown(["blur", "method", *scenes.GROUPS], rows)


def _ratios(records: Sequence[Record], method: str, plain: str, group: str) -> dict[str, float | None]:
    """Return the ratio of a method's ERGAS to that of interpolation, by place."""
    values = {(record.method, record.image): record.values[group] for record in records}
    places = {record.image: record.place for record in records}
    ratios: dict[str, float | None] = {}
    for image, place in places.items():
        ours, theirs = values[method, image], values[plain, image]
        ratios[f"{place} ({image})"] = ours / theirs if ours is not None and theirs else None
    return ratios


def _worse_than_plain(records: Sequence[Record], system: System) -> str:
    """List the scenes and band groups in which the default is worse than interpolation."""
    method, lost = judge.label(system.name, DEFAULT), []
    for sigma in scenes.SIGMAS_PX:
        inside = [record for record in records if record.table == scenes.table(sigma)]
        for group in scenes.GROUPS:
            ratios = _ratios(inside, method, methods_of(inside)[0], group)
            lost += [f"{place} {group} at {sigma:g} px ({r:.3f})" for place, r in ratios.items() if r and r > 1]
    return f"Scenes in which `{method}` is worse than bicubic: {', '.join(lost) or 'none'}."


def phases_text(records: Sequence[Record]) -> str:
    """Return the pattern by product and band, average and worst scene, and the shares of generated detail."""
    rows = []
    for method in methods_of(records):
        inside = [record for record in records if record.method == method]
        cells = []
        for band in BAND_NAMES:
            rms = known(record.values[band] for record in inside)
            chance = known(record.values[phases.CHANCE.format(band)] for record in inside)
            cells.append(f"{number(mean(rms))} / {number(max(rms))} / {number(mean(chance))}")
        rows.append([method, *cells])
    first = [record for record in records if record.method == methods_of(records)[0]]
    detail = [
        [record.place, *(f"{100 * (record.values[name] or 0.0):.1f} %" for name in judge.SHARES)] for record in first
    ]
    return (
        f"Mean of pixel less block mean by phase (4 x 4), over the {phases.FLATTEST:g} % of the 10 m pixels around "
        f"which RGB varies least, less that of interpolation: RMS in DN, average over {len(first)} scenes / worst "
        "scene / what chance gives where there is none.\n\n"
        f"{markdown(['method', *BAND_NAMES], rows)}\n\nGenerated detail in these scenes, by `quality`:\n\n"
        f"{markdown(['scene', *judge.SHARES], detail)}"
    )


def cost_text(system: System) -> str:
    """Return the core-seconds per km2 of the default and of one draw."""
    rows = [[str(way), number(cost.core_seconds_per_km2(system, way), 2)] for way in cost.WAYS]
    unit = (
        f"Of one unit of {cost.area_km2():.1f} km2 in all 12 bands, without reading and writing, its border of windows "
        "included. CPU time of one process."
    )
    return f"{unit}\n\n{markdown(['estimate, --consistency', 'core-seconds per km2'], rows)}"
