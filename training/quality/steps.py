"""Quality and cost of a super-resolver by number of sampling steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from training.quality import judge, metrics, opensr
from training.quality.pairs import BORDER_PX, score
from training.quality.tables import Record, Section, markdown, number, over_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.degradation.degrade import Degradation
    from training.quality.judge import Candidate
    from training.quality.pairs import Pair

PER_SET = 6
MEAN, ONE, GRADIENT, GRADIENT_OF_MEAN, REFLECTANCE = (
    f"PSNR, mean of {judge.MEMBERS}",
    "PSNR, one member",
    "gradient, one member",
    f"gradient, mean of {judge.MEMBERS}",
    "reflectance, one member",
)
DIGITS = {MEAN: 2, ONE: 2, GRADIENT: 3, GRADIENT_OF_MEAN: 3, REFLECTANCE: 5}
SECONDS = "core-seconds per window"


@torch.inference_mode()
def measure(candidate: Candidate, pairs: Sequence[Pair], method: str) -> list[Record]:
    """Score one sampler on all pairs, before projection."""
    records = []
    for pair in pairs:
        samples = candidate.members(pair)
        mean, one = samples.mean(0, keepdim=True), samples[:1]
        values = {MEAN: score(mean, pair), ONE: score(one, pair)}
        truth = metrics.trimmed(pair.hr, BORDER_PX)[0]
        for name, image in ((GRADIENT, one), (GRADIENT_OF_MEAN, mean)):
            values[name] = metrics.gradient_ratio(metrics.trimmed(image, BORDER_PX)[0], truth)
        values[REFLECTANCE] = opensr.Triplet.of(pair.lr[0], one[0], pair.hr[0]).consistency()["reflectance"]
        records.append(Record("steps", pair.source, pair.place, pair.index, method, values))
    return records


def section(
    candidate: Candidate, pairs: Sequence[Pair], steps: Sequence[int], how: Degradation, say: Callable[[str], None]
) -> Section:
    """Return a section with one row per number of steps. Raises UsageError for numbers the sampler cannot use."""
    variants = {count: candidate.with_steps(count) for count in steps}  # raises before any measurement
    records: list[Record] = []
    rows = []
    for count, variant in variants.items():
        started = time.process_time()
        found = measure(variant, pairs, f"{count} steps")
        words = "step" if count == 1 else "steps"
        say(f"{candidate.name}: {count} {words}, {time.process_time() - started:.1f} core-seconds")
        cells = [number(over_sets(found, f"{count} steps", name), digits) for name, digits in DIGITS.items()]
        rows.append([str(count), *cells, f"{variant.window_seconds():.2f}"])
        records += found
    settings = f"{candidate.settings} unless the row says otherwise; {how}"
    text = (
        f"Averages over sets of {len(pairs)} held-out images. PSNR in dB, gradient over that of the truth, reflectance "
        f"as OpenSR-test measures it, before projection.\n\n{markdown(['steps', *DIGITS, SECONDS], rows)}"
        f"\n\n<sub>{settings}</sub>"
    )
    title = f"{candidate.name}: steps against quality"
    return Section(title, text, records, candidate.name, candidate.kind, candidate.digest, settings)
