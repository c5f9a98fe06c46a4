"""`python -m training.evaluate --sr FILE --fusion FILE --data ROOT`: the numbers of the model card.

Super-resolution is measured on places held out by location, fusion by Wald's protocol on a scene no training sees; each
beside the methods it has to beat, on the same pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.lite import LiteSuperResolver
from pipeline.models.lite_fusion import LiteFusion
from training import baselines, wald
from training.data import GAMMA_MEDIAN, default_data, harmonise
from training.degrade import Decimator, Degradation, degrade
from training.metrics import psnr, trimmed
from training.sentinel2 import read_dsen2_scene
from training.sources import load_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from training.data import Chip

    Method = Callable[["Pair"], Tensor]

BORDER_PX = 8  # left out of every score, of all methods alike
MAX_SIDE_PX = 256
FLAT = 0.02  # spread of 8-bit values / 255 below which an image shows nothing to sharpen
MEMBERS = 8
WINDOW_PX = 120  # one window of the lattice, at 10 m


@dataclass(frozen=True)
class Pair:
    """One held-out image (1, 3, H, W) in reflectance and its degraded form (1, 3, H/4, W/4)."""

    source: str
    index: int
    hr: Tensor
    lr: Tensor


def held_out_pairs(chips: Sequence[Chip], how: Degradation, per_set: int | None = None) -> list[Pair]:
    """Pairs of the chips that show something: centre crops, median harmonisation, noise seeded per image."""
    pairs: list[Pair] = []
    for index, chip in enumerate(chips):
        seen = sum(pair.source == chip.source for pair in pairs)
        if float(chip.pixels.std()) <= FLAT or (per_set is not None and seen >= per_set):
            continue
        height, width = (min(side, MAX_SIDE_PX) // how.scale * how.scale for side in chip.pixels.shape[1:])
        top, left = (chip.pixels.shape[1] - height) // 2, (chip.pixels.shape[2] - width) // 2
        crop = chip.pixels[:, top : top + height, left : left + width]
        hr = torch.from_numpy(harmonise(crop, GAMMA_MEDIAN) if chip.encoded else crop.copy())[None]
        lr = degrade(hr, how, torch.Generator().manual_seed(index))
        pairs.append(Pair(chip.source, index, hr, lr))
    return pairs


def score(estimate: Tensor, pair: Pair) -> float:
    """PSNR in dB (data range 1 reflectance) without the border."""
    return psnr(trimmed(estimate, BORDER_PX), trimmed(pair.hr, BORDER_PX))


def per_set_mean(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, float]:
    """Mean of the scores of each set's images."""
    sets: dict[str, list[float]] = {}
    for pair, value in zip(pairs, scores, strict=True):
        sets.setdefault(pair.source, []).append(value)
    return {name: sum(values) / len(values) for name, values in sets.items()}


def average(per_set: dict[str, float]) -> float:
    """Mean over sets, each counting once."""
    return sum(per_set.values()) / len(per_set)


def ibp_scores(pairs: Sequence[Pair]) -> list[float]:
    """Iterative back-projection with the box kernel on every pair."""
    return [score(baselines.ibp(pair.lr), pair) for pair in pairs]


def noise_of(pair: Pair, member: int) -> Tensor:
    """Standard normal noise of one member of one image, the same in every evaluation."""
    generator = torch.Generator().manual_seed(pair.index * 1000 + member)
    return torch.randn(pair.hr.shape, generator=generator)


def members_mean(system: LiteSuperResolver, pair: Pair, members: int) -> Tensor:
    """Mean of the first `members` samples."""
    total = torch.zeros_like(pair.hr)
    for member in range(members):
        total += system.sample(pair.lr, noise_of(pair, member))
    return total / members


def sr_methods(system: LiteSuperResolver, how: Degradation) -> dict[str, Method]:
    """What stands side by side in the table of super-resolution."""
    down = partial(degrade, how=how)
    return {
        "bicubic": lambda pair: baselines.bicubic(pair.lr),
        "IBP": lambda pair: baselines.ibp(pair.lr),
        "IBP, true kernel": lambda pair: baselines.ibp(pair.lr, down=down),
        "lite, regression": lambda pair: system.mean(pair.lr),
        "lite, one member": lambda pair: members_mean(system, pair, 1),
        f"lite, mean of {MEMBERS}": lambda pair: members_mean(system, pair, MEMBERS),
    }


@torch.inference_mode()
def sr_table(system: LiteSuperResolver, chips: Sequence[Chip], how: Degradation) -> str:
    """Markdown: PSNR by set and method, and the average over sets with the gain over IBP."""
    pairs = held_out_pairs(chips, how)
    methods = sr_methods(system, how)
    columns = {
        name: per_set_mean(pairs, [score(method(pair), pair) for pair in pairs]) for name, method in methods.items()
    }
    counts = {name: sum(pair.source == name for pair in pairs) for name in columns["IBP"]}
    lines = ["| set (images) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, count in counts.items():
        lines.append(f"| {name} ({count}) | " + " | ".join(f"{column[name]:.2f}" for column in columns.values()) + " |")
    means = {name: average(column) for name, column in columns.items()}
    lines.append("| **average over sets** | " + " | ".join(f"**{mean:.2f}**" for mean in means.values()) + " |")
    lines.append("| over IBP | " + " | ".join(f"{mean - means['IBP']:+.2f}" for mean in means.values()) + " |")
    return "\n".join(lines)


@torch.inference_mode()
def fusion_table(fusion: LiteFusion, scene: Path) -> str:
    """Markdown: ERGAS (and after projection onto the input's block means) and PSNR by task and method."""
    rows = wald.measure(fusion.network, read_dsen2_scene(scene))
    methods = list(rows[0].ergas)
    lines = ["| task | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for row in rows:
        cells = [f"{row.ergas[m]:.3f} / {row.projected[m]:.3f} / {row.psnr[m]:.1f}" for m in methods]
        lines.append(f"| {row.task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def window_seconds(call: Callable[[], Tensor]) -> float:
    """Core-seconds of one call, after one to warm up."""
    call()
    started = time.process_time()
    call()
    return time.process_time() - started


def sr_report(path: Path, root: Path, decimator: Decimator) -> str:
    """The section on super-resolution."""
    system = LiteSuperResolver.from_bundle(load_bundle(path))
    how = Degradation(decimator=decimator)
    lr = torch.rand(1, 3, WINDOW_PX, WINDOW_PX, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 4 * WINDOW_PX, 4 * WINDOW_PX, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seconds = window_seconds(lambda: system.sample(lr, noise))
    return (
        f"PSNR in dB, data range 1 reflectance, {BORDER_PX} px border left out. Degradation: {how}.\n"
        f"One window of 480 px: {seconds:.2f} core-seconds.\n\n"
        + sr_table(system, load_data(root).held_out_chips(), how)
    )


def fusion_report(path: Path, root: Path) -> str:
    """The section on fusion."""
    fusion = LiteFusion.from_bundle(load_bundle(path))
    return (
        f"Wald's protocol on {wald.TEST_SCENE}: ERGAS / after block-mean projection / PSNR (dB of band maximum).\n\n"
        + fusion_table(fusion, root / "s2_l1c" / wald.TEST_SCENE)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--sr", type=Path, help="bundle of a lite super-resolver")
    parser.add_argument("--fusion", type=Path, help="bundle of a lite fusion")
    parser.add_argument("--data", type=Path, default=default_data(), help="root of the imagery (default: %(default)s)")
    parser.add_argument("--decimator", choices=["box", "bicubic"], default="box", help="of the test degradation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    sections = [sr_report(args.sr, args.data, args.decimator)] if args.sr else []
    sections += [fusion_report(args.fusion, args.data)] if args.fusion else []
    report = "\n\n".join(sections)
    print(report)
    if args.out:
        args.out.write_text(report + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
