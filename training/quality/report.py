"""Sections of an evaluation report: tables, their data and their captions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB
from training.quality import judge, perceptual, real, spreads, wald
from training.quality.as_logged import as_logged
from training.quality.leaks import UNKNOWN, leaks_text
from training.quality.pairs import BORDER_PX, held_out_pairs
from training.quality.product import DEFAULT
from training.quality.tables import (
    NULL,
    Record,
    Section,
    by_set,
    markdown,
    methods_of,
    methods_table,
    metrics_of,
    number,
    over_sets,
    reasons,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.superres.system import System
    from training.data.rasters import Chip
    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.degradation.degrade import Degradation
    from training.quality.judge import Candidate
    from training.quality.pairs import Pair
    from training.quality.wald import Fuser, Judge

    Say = Callable[[str], None]

OTHER_SIGMAS_PX = (1.5, 1.8)  # besides the default; these cover the plausible blur of Sentinel-2
MEMBERS_PER_SET = 6  # images per set for which members are drawn
EASY_SET = "naip_iowa_1m"  # has by far the largest gain; averages are given with and without it
BEATEN = ("bicubic", "IBP, true kernel")  # baselines that the default should beat in every set
QUALITY_DIGITS = {
    "PSNR": 2,
    "SSIM": 4,
    "SAM": 2,
    "ERGAS": 2,
    "SRE": 2,
    "CC": 4,
    "R2": 4,
    "gradient": 3,
    "block R2": 4,
    "LPIPS": 4,
    "CLIP": 4,
}
OPENSR_DIGITS = {
    "reflectance": 4,
    "spectral": 2,
    "spatial": 3,
    "synthesis": 4,
    "hallucination": 3,
    "omission": 3,
    "improvement": 3,
}
REFERENCE = "IBP"
FUSION = "fusion, "  # prefix of fusion tables
SCENES = 12  # maximum per source


def sr_sections(
    candidate: Candidate, plain: System, data: TrainingData, how: Degradation, per_set: int | None, say: Say
) -> list[Section]:
    """Return all sections of a super-resolver, compared with `plain` interpolation."""
    chips = data.held_out_chips(candidate.bands)
    pairs = held_out_pairs(chips, how, per_set)
    sections = []
    if not pairs:
        needed = "" if candidate.bands == RGB else f" Images need {', '.join(candidate.bands)}."
        text = f"{NULL}: no image of the data is held out, or those that are show nothing.{needed}"
        sections.append(_section(candidate, f"{candidate.name}: held-out places", text, (), ""))
    else:
        say(f"{candidate.name}: {len(pairs)} held-out images")
        records = judge.judge(candidate, plain, pairs, how, perceptual.distances())
        leaks = leaks_text(candidate, data)
        logged = as_logged(records, f"{candidate.name}, network alone", how, per_set)
        sections += [with_remark(section, leaks) for section in truth_sections(candidate, records, how, logged)]
        say(f"{candidate.name}: other blurs")
        quality = [record for record in records if record.table == "quality"]
        sections.append(blur_section(candidate, plain, chips, how, per_set, quality))
        few = min(per_set or MEMBERS_PER_SET, MEMBERS_PER_SET)
        if candidate.draws:
            say(f"{candidate.name}: {judge.MEMBERS} members of {few} images of each set")
            sections.append(members_section(candidate, held_out_pairs(chips, how, few), how, few))
    say(f"{candidate.name}: real patches")
    found = real.judge(candidate.system, plain, data.all_tiles, candidate.seed, candidate.bands)
    return sections + real_sections(candidate, found)


def with_remark(section: Section, remark: str) -> Section:
    """The section with a paragraph before its text, and no claim of held-out places in its title."""
    if not remark:
        return section
    title = section.title if remark == UNKNOWN else section.title.replace("held-out places", "places, some trained on")
    return replace(section, title=title, text=f"{remark}\n\n{section.text}")


def _section(candidate: Candidate, title: str, text: str, records: Sequence[Record], how: str) -> Section:
    """Return a section with the settings in its caption."""
    settings = f"{candidate.settings}; {how}" if how else candidate.settings
    caption = f"\n\n<sub>{settings}</sub>"
    return Section(title, text + caption, records, candidate.name, candidate.kind, candidate.digest, settings)


def truth_sections(
    candidate: Candidate, records: Sequence[Record], how: Degradation, logged: str = ""
) -> list[Section]:
    """Return the sections of held-out images with known truth. `logged`: the numbers that a run's log gives."""
    quality = [record for record in records if record.table == "quality"]
    detail = [record for record in records if record.table == judge.DETAIL]
    under = repr(how)
    seconds = f"One member of one window of {judge.WINDOW_PX} px: {candidate.window_seconds():.2f} core-seconds."
    psnr = (
        f"PSNR in dB, data range 1 reflectance, {BORDER_PX} px border left out. `stored`: what a run stores, masks, "
        f"blending, contract and quantisation included, by estimate and --consistency. {seconds}\n\n"
        f"{psnr_table(quality)}\n\n{below_text(candidate, quality)} {logged}"
    )
    against = (
        f"Averages over sets. SAM in degrees, ERGAS with Wald's factor, SRE in dB, gradient over that of the truth "
        f"(1 is as sharp), block R2 of block means against the input.\n\n{methods_table(quality, QUALITY_DIGITS)}"
    )
    opened = (
        "Averages over sets. Reflectance, spectral (degrees), spatial (LR px): consistency with the input, 0 is best. "
        "Synthesis: what was added. Hallucination, omission and improvement sum to 1; their default distance.\n\n"
        + methods_table(quality, OPENSR_DIGITS)
    )
    return [
        _section(candidate, f"{candidate.name}: PSNR on held-out places", psnr, quality, under),
        _section(candidate, f"{candidate.name}: against the truth", against, (), under),
        _section(candidate, f"{candidate.name}: OpenSR-test on held-out places", opened, (), under),
        _section(candidate, f"{candidate.name}: generated detail", detail_text(detail), detail, under),
    ]


def psnr_table(records: Sequence[Record]) -> str:
    """Return PSNR per method and set: averages with and without `EASY_SET`, gain over IBP, deviation over images."""
    methods = methods_of(records)
    columns = {method: by_set(records, method, "PSNR") for method in methods}
    counts = {name: sum(r.set == name and r.method == methods[0] for r in records) for name in columns[methods[0]]}
    averages = [("**average over sets**", records), *_without_easy(records)]
    reference = over_sets(records, REFERENCE, "PSNR") or 0.0
    rows = []
    for method in methods:
        means = [over_sets(inside, method, "PSNR") for _, inside in averages]
        gain = f"{(means[0] or 0.0) - reference:+.2f}"
        deviation = spread(r.values["PSNR"] for r in records if r.method == method)
        sets = [number(columns[method][name]) for name in counts]
        rows.append([method, *sets, f"**{number(means[0])}**", *map(number, means[1:]), gain, number(deviation)])
    heads = [f"{name} ({count})" for name, count in counts.items()]
    return markdown(["method", *heads, *(name for name, _ in averages), f"over {REFERENCE}", "sd over images"], rows)


def _without_easy(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Return the named records without `EASY_SET`, if it is one of several sets."""
    rest = [record for record in records if record.set != EASY_SET]
    return [(f"without {EASY_SET}", rest)] if rest and len(rest) < len(records) else []


def below_text(candidate: Candidate, records: Sequence[Record]) -> str:
    """List the sets in which the default is worse than a `BEATEN` method, and by how much."""
    method, lines = candidate.label(DEFAULT), []
    ours = by_set(records, method, "PSNR")
    for other in BEATEN:
        gaps = {name: (theirs or 0.0) - (ours[name] or 0.0) for name, theirs in by_set(records, other, "PSNR").items()}
        said = ", ".join(f"{name} (by {gap:.2f} dB)" for name, gap in gaps.items() if gap > 0) or "none"
        lines.append(f"Sets in which `{method}` is below {other}: {said}.")
    return " ".join(lines)


def detail_text(records: Sequence[Record]) -> str:
    """Return the share of pixels with generated detail per set. None of these images has clouds."""
    method = methods_of(records)[0]
    columns = {name: by_set(records, method, name) for name in judge.SHARES}
    rows = [
        [name, *(f"{100 * (column[name] or 0.0):.1f} %" for column in columns.values())]
        for name in columns["generated"]
    ]
    return f"Share of the pixels of `{method}` by `quality`.\n\n{markdown(['set', *columns], rows)}"


def members_section(candidate: Candidate, pairs: Sequence[Pair], how: Degradation, per_set: int) -> Section:
    """Return the section on members: PSNR of their mean, and their spread against errors."""
    records = judge.judge_members(candidate, pairs)
    text = f"The first {per_set} images of each set. {members_text(records)}"
    return _section(candidate, f"{candidate.name}: what members know of errors", text, records, repr(how))


def members_text(records: Sequence[Record]) -> str:
    """Return a table per set: PSNR, correlation of `uncertainty` with errors, and texture added by members."""
    single = [record for record in records if record.table == spreads.TABLE]
    pooled = [record for record in records if record.table == spreads.POOLED]
    method, rank = methods_of(single)[0], spreads.RANK
    whole = by_set(pooled, method, rank)
    by_metric = {metric: by_set(single, method, metric) for metric in metrics_of(single)}
    rows = [
        [name, number(whole.get(name)), *(number(column[name]) for column in by_metric.values())]
        for name in next(iter(by_metric.values()))
    ]
    means = [over_sets(pooled, method, rank), *(over_sets(single, method, metric) for metric in by_metric)]
    rows.append(["**average over sets**", *map(number, means)])
    return (
        f"Spearman: rank correlation of `uncertainty` of `{method}` with the absolute error of its reflectance: "
        "over all pixels of a set, and per image. Spread / error: ratio of their root mean squares; below 1 members "
        "agree too much. Then the texture of what a draw adds to the mean, and of what the mean lacks of the truth: "
        "correlation between bands and between neighbouring pixels (plain noise has 0), and how much more power the "
        "first has.\n\n"
        f"{markdown(['set', f'{rank} over the set', *by_metric], rows)}" + reasons(single, by_metric)
    )


def blur_section(
    candidate: Candidate,
    plain: System,
    chips: Sequence[Chip],
    how: Degradation,
    per_set: int | None,
    known: Sequence[Record],
) -> Section:
    """Return PSNR and gradient per blur. `known` are the records of `how`."""
    by_sigma: dict[float, Sequence[Record]] = {how.sigma_px: known}
    for sigma in OTHER_SIGMAS_PX:
        if sigma != how.sigma_px:
            blur = replace(how, sigma_px=sigma)
            pairs = held_out_pairs(chips, blur, per_set)
            by_sigma[sigma] = judge.judge_quickly(candidate, plain, pairs, blur, f"sigma {sigma:g} px")
    heads, columns, below = [], [], []
    for sigma in sorted(by_sigma):
        for name, inside in [("", by_sigma[sigma]), *_without_easy(by_sigma[sigma])]:
            heads.append(f"{sigma:g} px{f', {name}' if name else ''}")
            columns.append(inside)
        below.append(f"{sigma:g} px: {below_text(candidate, by_sigma[sigma])}")
    rows = [
        [
            method,
            *(
                f"{number(over_sets(inside, method, 'PSNR'))} / {number(over_sets(inside, method, 'gradient'))}"
                for inside in columns
            ),
        ]
        for method in methods_of(known)
    ]
    text = (
        "PSNR in dB / gradient over that of the truth, averages over sets. Methods other than `IBP, true kernel` do "
        f"not know the blur.\n\n{markdown(['method', *heads], rows)}\n\n" + "\n\n".join(below)
    )
    new = [record for sigma, records in by_sigma.items() if sigma != how.sigma_px for record in records]
    return _section(candidate, f"{candidate.name}: other blurs", text, new, repr(how))


def real_sections(candidate: Candidate, records: Sequence[Record]) -> list[Section]:
    """Return the consistency with real patches: all, and those without snow or cloud."""
    title = f"{candidate.name}: consistency with real patches"
    if not records:
        text = f"{NULL}: no held-out scene of the data holds a patch of {real.PATCH_PX} px at 10 m."
        return [_section(candidate, title, text, (), "")]
    bright = {r.image for r in records if (r.values.get(real.BRIGHTEST) or 0) > real.SNOW_REFLECTANCE}
    clear = [record for record in records if record.image not in bright]
    patches = len({record.image for record in records})
    sources = ", ".join(dict.fromkeys(record.set for record in records))
    intro = (
        f"{patches} patches of {sources}, none of which took part in training, as a run stores their mean under each "
        "--consistency. Reflectance, spectral (degrees), spatial (LR px) as OpenSR-test measures them; R2 of block "
        "means; the rest on what the tent makes of it; PSNR, cosine, Table IV on 8-bit values as in DiffFuSR.\n\n"
    )
    text = f"{intro}{methods_table(_as_one_set(records), real.DIGITS)}"
    if bright and clear:
        text += f"\n\nWithout the {len(bright)} that hold snow or cloud (above {real.SNOW_REFLECTANCE:g}):\n\n"
        text += methods_table(_as_one_set(clear), real.DIGITS)
    return [_section(candidate, title, text, records, "")]


def _as_one_set(records: Sequence[Record]) -> list[Record]:
    """Return the records as one set, so that every patch has equal weight."""
    return [replace(record, set="patches") for record in records]


@torch.inference_mode()
def fusion_sections(name: str, fuser: Fuser, how: Judge, data: TrainingData, say: Say) -> list[Section]:
    """Return Wald's protocol per source, on held-out scenes and on scenes watched in training."""
    held_out = [tile for tile in data.tiles("held-out") if tile.evaluated]
    watched = [tile for tile in data.watched_tiles() if tile not in held_out]
    bundle = fuser.bundle
    settings = f"{bundle.system} sha256 {bundle.digest[:12]}; Wald's protocol, Gaussian of 1/s px before block means"
    sections = []
    for kind, tiles in (("held out", held_out), ("watched in training, never learned from", watched)):
        for source in dict.fromkeys(tile.source for tile in tiles):
            say(f"{name}: {source}")
            inside = [tile for tile in tiles if tile.source == source][:SCENES]
            records = [record for index, tile in enumerate(inside) for record in _of_tile(fuser, how, tile, index)]
            text = f"{fusion_text(records)}\n\n<sub>{settings}</sub>"
            title = f"{name}: {source}, {len(inside)} scene{'s' if len(inside) > 1 else ''} ({kind})"
            sections.append(Section(title, text, records, name, bundle.system, bundle.digest, settings))
    if not sections:
        text = f"{NULL}: no Sentinel-2 scene of the data is held out."
        sections.append(Section(name, text, (), name, bundle.system, bundle.digest, settings))
    return sections


def _of_tile(fuser: Fuser, how: Judge, tile: Tile, index: int) -> list[Record]:
    """Return the records of all tasks that one scene allows."""
    part = wald.largest_measured(tile.rho, tile.valid)
    if part is None:
        return []
    return [
        Record(f"{FUSION}{row.task}", tile.source, tile.place, index, method, values)
        for row in how.measure(fuser, part, tile.present)
        for method, values in row.scores.items()
    ]


def fusion_text(records: Sequence[Record]) -> str:
    """Return two tables of averages over scenes: ERGAS, projected ERGAS and PSNR; then SSIM, SAM, CC and SRE."""
    if not records:
        return f"{NULL}: the scenes are too small, or lack the bands."
    groups = (("ERGAS", 3), ("ERGAS, projected", 3), ("PSNR", 1)), (("SSIM", 4), ("SAM", 2), ("CC", 4), ("SRE", 1))
    captions = (
        "ERGAS / after the block means were made the input's / PSNR (dB of the band's maximum).",
        "SSIM / SAM (degrees) / CC / SRE (dB).",
    )
    methods = methods_of(records)
    tables = []
    for caption, group in zip(captions, groups, strict=True):
        rows = []
        for task in dict.fromkeys(record.table for record in records):
            inside = [record for record in records if record.table == task]
            known = methods_of(inside)
            cells = [
                " / ".join(number(over_sets(inside, m, name), digits) for name, digits in group) if m in known else "–"
                for m in methods
            ]
            rows.append([task.removeprefix(FUSION), *cells])
        tables.append(f"{caption}\n\n{markdown(['task', *methods], rows)}")
    return "\n\n".join(tables)
