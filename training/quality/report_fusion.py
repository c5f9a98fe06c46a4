"""Sections of an evaluation report on fusion: Wald's protocol per source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.terminal import counted
from training.quality import wald
from training.quality.tables import NULL, Record, Section, markdown, methods_of, number, over_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.quality.wald import Judge, Loaded

    Say = Callable[[str], None]

FUSION = "fusion, "  # prefix of fusion tables
SCENES = 12  # maximum per source


@torch.inference_mode()
def fusion_sections(
    name: str, fuser: Loaded, how: Judge, data: TrainingData, say: Say, per_set: int | None = None
) -> list[Section]:
    """Return Wald's protocol per source, on held-out scenes and on scenes watched in training.

    `per_set`: maximum number of scenes per source, `SCENES` at most.
    """
    held_out = [tile for tile in data.tiles("held-out") if tile.evaluated]
    watched = [tile for tile in data.watched_tiles() if tile not in held_out]
    bundle = fuser.bundle
    settings = f"{bundle.system} sha256 {bundle.digest[:12]}; Wald's protocol, Gaussian of 1/s px before block means"
    sections = []
    for kind, tiles in (("held out", held_out), ("watched in training, never learned from", watched)):
        for source in dict.fromkeys(tile.source for tile in tiles):
            say(f"{name}: {source}")
            inside = [tile for tile in tiles if tile.source == source][: min(per_set or SCENES, SCENES)]
            records = [record for index, tile in enumerate(inside) for record in _of_tile(fuser, how, tile, index)]
            text = f"{fusion_text(records)}\n\n<sub>{settings}</sub>"
            title = f"{name}: {source}, {counted(len(inside), 'scene')} ({kind})"
            sections.append(Section(title, text, records, name, bundle.system, bundle.digest, settings))
    if not sections:
        text = f"{NULL}: no Sentinel-2 scene of the data is held out."
        sections.append(Section(name, text, (), name, bundle.system, bundle.digest, settings))
    return sections


def _of_tile(fuser: Loaded, how: Judge, tile: Tile, index: int) -> list[Record]:
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
