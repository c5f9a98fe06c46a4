"""Sections of an evaluation report: tables, their data and their captions."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from pipeline.bands import RGB, SCALE_10M
from pipeline.terminal import counted
from training.quality import judge, perceptual, real, spreads
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
    from training.degradation.degrade import Degradation
    from training.quality.judge import Candidate
    from training.quality.pairs import Pair

    Say = Callable[[str], None]

OTHER_SIGMAS_PX = (1.5, 1.8)  # at x4, besides the default; these cover the plausible blur of Sentinel-2
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
REAL = (
    "real pairs, whose coarse image the sensor has seen itself. Its blur is not known: `true kernel` assumes that of "
    "the other sets. Other dates and other light count as errors too."
)


def sr_sections(
    candidate: Candidate,
    plain: System,
    data: TrainingData,
    how: Degradation,
    per_set: int | None,
    say: Say,
    members: int = judge.MEMBERS,
) -> list[Section]:
    """Return all sections of a super-resolver, compared with `plain` interpolation.

    `per_set`: maximum number of images and of real patches per set. `members`: draws per image of the section on
    members, 0 to leave it out.
    """
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
        remarks = [leaks_text(candidate, data), real_text(chips)]
        logged = as_logged(records, f"{candidate.name}, network alone", how, per_set)
        for section in truth_sections(candidate, records, how, logged):
            sections.append(reduce(with_remark, remarks, section))
        degraded = [chip for chip in chips if chip.coarse is None]
        if degraded:
            say(f"{candidate.name}: other blurs")
            known = {chip.source for chip in degraded}
            quality = [record for record in records if record.table == "quality" and record.set in known]
            sections.append(blur_section(candidate, plain, degraded, how, per_set, quality))
        few = min(per_set or MEMBERS_PER_SET, MEMBERS_PER_SET)
        if candidate.draws and members:
            say(f"{candidate.name}: {members} members of {counted(few, 'image')} of each set")
            sections.append(members_section(candidate, held_out_pairs(chips, how, few), how, few, members))
    say(f"{candidate.name}: real patches")
    found = real.judge(candidate.system, plain, data.all_tiles, candidate.seed, candidate.bands, per_set)
    return sections + real_sections(candidate, found)


def real_text(chips: Sequence[Chip]) -> str:
    """Return a sentence on the sets of real pairs, whose coarse image is the sensor's own; "" without any."""
    sets = list(dict.fromkeys(chip.source for chip in chips if chip.coarse is not None))
    return f"{', '.join(sets)}: {REAL}" if sets else ""


def with_remark(section: Section, remark: str) -> Section:
    """Return the section with a paragraph before its text. Of leaks, its title then claims no held-out places."""
    if not remark:
        return section
    silent = remark == UNKNOWN or remark.endswith(REAL)
    title = section.title if silent else section.title.replace("held-out places", "places, some trained on")
    return replace(section, title=title, text=f"{remark}\n\n{section.text}")


def _section(candidate: Candidate, title: str, text: str, records: Sequence[Record], how: str) -> Section:
    """Return a section with the settings in its caption."""
    settings = f"{candidate.settings}; {how}" if how else candidate.settings
    caption = f"\n\n<sub>{settings}</sub>"
    return Section(
        title, text + caption, records, candidate.name, candidate.kind, candidate.digest, settings, candidate.shape
    )


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


def members_section(
    candidate: Candidate, pairs: Sequence[Pair], how: Degradation, per_set: int, members: int = judge.MEMBERS
) -> Section:
    """Return the section on members: PSNR of their mean, and their spread against errors."""
    records = judge.judge_members(candidate, pairs, members)
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
    for sigma in (sigma * how.scale / SCALE_10M for sigma in OTHER_SIGMAS_PX):
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
