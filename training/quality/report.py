"""The sections of an evaluation: which tables there are, what they are measured on, and what their captions say.

In: loaded systems and training data. Out: `Section`s. Imports the measuring modules; writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline.models.lite_fusion import LiteFusion
from pipeline.superres import masks
from training.quality import judge, perceptual, real, spreads, wald
from training.quality.pairs import BORDER_PX, held_out_pairs
from training.quality.tables import (
    NULL,
    Record,
    Section,
    by_set,
    markdown,
    mean,
    methods_of,
    methods_table,
    number,
    over_sets,
    reasons,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.superres.systems import Fuser, System
    from training.data.rasters import Chip
    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.degradation.degrade import Degradation
    from training.quality.judge import Candidate

    Say = Callable[[str], None]

OTHER_SIGMAS_PX = (1.8, 2.8)  # beside the default; the band of what is known of Sentinel-2's blur
OTHER_PER_SET = 6
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
FUSION = "fusion, "  # how tables of fusion begin
SCENES = 12  # of each source at most


def sr_sections(
    candidate: Candidate,
    systems: tuple[System, System],
    data: TrainingData,
    how: Degradation,
    per_set: int | None,
    say: Say,
) -> list[Section]:
    """Everything that is measured of a super-resolver. `systems`: the one it belongs to, and plain interpolation."""
    chips = data.held_out_chips()
    pairs = held_out_pairs(chips, how, per_set)
    sections = []
    if not pairs:
        text = f"{NULL}: no image of the data is held out, or those that are show nothing."
        sections.append(_section(candidate, f"{candidate.name}: held-out places", text, (), ""))
    else:
        say(f"{candidate.name}: {len(pairs)} held-out images, {judge.MEMBERS} members each")
        records = judge.judge(candidate, pairs, how, perceptual.distances())
        sections += truth_sections(candidate, records, how)
        say(f"{candidate.name}: other degradations")
        sections.append(degradation_section(candidate, chips, how, min(per_set or OTHER_PER_SET, OTHER_PER_SET)))
    say(f"{candidate.name}: real Level-2A patches")
    found = real.judge(*systems, data.all_tiles, seed=candidate.seed)
    return sections + real_sections(candidate, found)


def _section(candidate: Candidate, title: str, text: str, records: Sequence[Record], how: str) -> Section:
    """A section whose caption tells what it was measured under."""
    settings = f"{candidate.settings}; {how}" if how else candidate.settings
    caption = f"\n\n<sub>{settings}</sub>"
    bundle = candidate.bundle
    return Section(title, text + caption, records, candidate.name, bundle.system, bundle.digest, settings)


def truth_sections(candidate: Candidate, records: Sequence[Record], how: Degradation) -> list[Section]:
    """Tables of held-out images whose truth is known."""
    quality = [record for record in records if record.table == "quality"]
    of_spread = [record for record in records if record.table in (spreads.TABLE, spreads.POOLED)]
    under = repr(how)
    seconds = f"One member of one window of {judge.WINDOW_PX} px: {candidate.window_seconds():.2f} core-seconds."
    psnr = (
        f"PSNR in dB, data range 1 reflectance, {BORDER_PX} px border left out. `stored`: after the pipeline's "
        f"projection onto the block means of its input. {seconds}\n\n{psnr_table(quality)}"
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
        _section(candidate, f"{candidate.name}: what members know of errors", spread_text(of_spread), of_spread, under),
    ]


def psnr_table(records: Sequence[Record]) -> str:
    """PSNR by set and method, the average over sets, its spread over images, and the gain over IBP."""
    methods = methods_of(records)
    columns = {method: by_set(records, method, "PSNR") for method in methods}
    counts = {name: sum(r.set == name and r.method == methods[0] for r in records) for name in columns[methods[0]]}
    rows = [[f"{name} ({count})", *(number(columns[m][name]) for m in methods)] for name, count in counts.items()]
    means = {method: mean(column.values()) or 0.0 for method, column in columns.items()}
    rows.append(["**average over sets**", *(f"**{number(value)}**" for value in means.values())])
    rows.append([f"over {REFERENCE}", *(f"{value - means[REFERENCE]:+.2f}" for value in means.values())])
    deviations = [spread(r.values["PSNR"] for r in records if r.method == method) for method in methods]
    rows.append(["sd over images", *(number(value) for value in deviations)])
    return markdown(["set (images)", *methods], rows)


def spread_text(records: Sequence[Record]) -> str:
    """By set: how well the members' standard deviation tells where their mean is wrong, and what members add."""
    single = [record for record in records if record.table == spreads.TABLE]
    pooled = [record for record in records if record.table == spreads.POOLED]
    methods, metrics, rank = methods_of(single), spreads.METRICS, spreads.RANK
    by_metric = {metric: by_set(single, methods[0], metric) for metric in metrics}
    whole = {method: by_set(pooled, method, rank) for method in methods_of(pooled)}
    rows = [
        [name, *(number(column.get(name)) for column in (*whole.values(), *by_metric.values()))]
        for name in by_metric[metrics[0]]
    ]
    means = [over_sets(pooled, method, rank) for method in whole]
    means += [over_sets(single, methods[0], metric) for metric in metrics]
    rows.append(["**average over sets**", *map(number, means)])
    heads = [f"{rank} over the set{', stored' if 'stored' in method else ''}" for method in whole]
    return (
        f"Spearman: rank correlation of the standard deviation of {methods[0]} with the absolute error of their mean: "
        "over all pixels of a set, and per image. Spread / error: ratio of their root mean squares; below 1 members "
        "agree too much. Then the texture of what a member adds to the mean, and of what the mean lacks of the truth: "
        "correlation between bands and between neighbouring pixels; plain noise has 0.\n\n"
        f"{markdown(['set', *heads, *metrics], rows)}" + reasons(single, metrics)
    )


def degradation_section(candidate: Candidate, chips: Sequence[Chip], how: Degradation, per_set: int) -> Section:
    """PSNR and sharpness where the blur is another than the default one."""
    records: list[Record] = []
    tables = {}
    for sigma in sorted({how.sigma_px, *OTHER_SIGMAS_PX}):
        blur = replace(how, sigma_px=sigma)
        tables[sigma] = f"sigma {sigma:g} px"
        records += judge.judge_quickly(candidate, held_out_pairs(chips, blur, per_set), blur, tables[sigma])
    methods = methods_of(records)
    rows = []
    for sigma, table in tables.items():
        inside = [record for record in records if record.table == table]
        cells = [(over_sets(inside, m, "PSNR"), over_sets(inside, m, "gradient")) for m in methods]
        rows.append([f"{sigma:g} px", *(f"{number(psnr)} / {number(gradient)}" for psnr, gradient in cells)])
    text = (
        f"PSNR in dB / gradient over that of the truth, averages over sets, the first {per_set} images of each. "
        "Methods other than `IBP, true kernel` do not know the blur.\n\n" + markdown(["blur", *methods], rows)
    )
    return _section(candidate, f"{candidate.name}: other degradations", text, records, repr(how))


def real_sections(candidate: Candidate, records: Sequence[Record]) -> list[Section]:
    """Consistency with real patches: all of them, and those without snow or cloud."""
    title = f"{candidate.name}: consistency with real Level-2A patches"
    if not records:
        text = f"{NULL}: no scene of the data holds a whole window of the lattice."
        return [_section(candidate, title, text, (), "")]
    bright = {record.place for record in records if (record.values.get(real.BRIGHTEST) or 0) > masks.BRIGHT_REFLECTANCE}
    clear = [record for record in records if record.place not in bright]
    patches = len({(record.place, record.image) for record in records})
    intro = (
        "One window of each through the pipeline: no projection (`none`), block means (`box`, the default), tent "
        "(`tent`). Reflectance, spectral (degrees), spatial (LR px) as OpenSR-test measures them; R2 of block "
        "means; the rest on what the tent makes of it; PSNR, cosine, Table IV on 8-bit values as in DiffFuSR.\n\n"
    )
    text = f"{intro}{patches} patches:\n\n{methods_table(_as_one_set(records), real.DIGITS)}"
    if bright and clear:
        text += f"\n\nWithout the {len(bright)} that hold snow or cloud (above {masks.BRIGHT_REFLECTANCE:g}):\n\n"
        text += methods_table(_as_one_set(clear), real.DIGITS)
    return [_section(candidate, title, text, records, "")]


def _as_one_set(records: Sequence[Record]) -> list[Record]:
    """Every patch counting once."""
    return [replace(record, set="patches") for record in records]


@torch.inference_mode()
def fusion_sections(name: str, fuser: Fuser, data: TrainingData, say: Say) -> list[Section]:
    """Wald's protocol on scenes that are held out by place, by source, and on those by which training decided."""
    held_out = [tile for tile in data.tiles("held-out") if tile.evaluated]
    watched = [tile for tile in data.watched_tiles() if tile not in held_out]
    bundle = fuser.bundle
    settings = f"{bundle.system} sha256 {bundle.digest[:12]}; Wald's protocol, Gaussian of 1/s px before block means"
    sections = []
    for kind, tiles in (("held out", held_out), ("watched in training, never learned from", watched)):
        for source in dict.fromkeys(tile.source for tile in tiles):
            say(f"{name}: {source}")
            inside = [tile for tile in tiles if tile.source == source][:SCENES]
            records = [record for index, tile in enumerate(inside) for record in _of_tile(fuser, tile, index)]
            text = f"{fusion_text(records)}\n\n<sub>{settings}</sub>"
            title = f"{name}: {source}, {len(inside)} scene{'s' if len(inside) > 1 else ''} ({kind})"
            sections.append(Section(title, text, records, name, bundle.system, bundle.digest, settings))
    if not sections:
        text = f"{NULL}: no Sentinel-2 scene of the data is held out."
        sections.append(Section(name, text, (), name, bundle.system, bundle.digest, settings))
    return sections


def _of_tile(fuser: Fuser, tile: Tile, index: int) -> list[Record]:
    """All tasks that one scene allows; the pipeline's other fusions do 20 m x8 only."""
    part = wald.largest_measured(tile.rho, tile.valid)
    if part is None:
        return []
    if isinstance(fuser, LiteFusion):
        rows = wald.measure(fuser.network, part, present=tile.present)
    else:
        rows = wald.measure_by_predict(fuser, part, fuser.bundle.system, tile.present)
    return [
        Record(f"{FUSION}{row.task}", tile.source, tile.place, index, method, values)
        for row in rows
        for method, values in row.scores.items()
    ]


def fusion_text(records: Sequence[Record]) -> str:
    """Two tables, averages over scenes: ERGAS with and without projection and PSNR; then what errors look like."""
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
