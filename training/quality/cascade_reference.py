"""What a finer image of the same ground is worth to a cascade, right, coarser, shifted, or of other ground.

References are made of the truth: in another radiometry, band by band, and in 8 bits, as an orthophoto is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from training.data.rasters import area_average
from training.degradation.degrade import Degradation
from training.quality import baselines
from training.quality.cascade import Finer
from training.quality.cascade_scores import BICUBIC, IBP, KINDS, LEAST_COARSE_PX, Seen, scores, seen, table_of, truths
from training.quality.leaks import leaks_text
from training.quality.pairs import BORDER_PX
from training.quality.report import with_remark
from training.quality.tables import NULL, Record, Section, markdown, methods_of, number, over_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.degradation.degrade import Decimator
    from training.quality.cascade_report import Cascaded
    from training.quality.pairs import Pair

SELF, OTHER = "no reference", "other ground"
GAMMAS = 0.8, 1.25  # of a band of a reference, drawn evenly
BRIGHTEST_SD = 3.0  # standard deviations above the mean of a band that become 255
DIGITS = {"SSIM": 4, "SAM": 2, "AG / truth": 3, "consistency": 5}
WORDS = (
    f"A reference is the truth with a gamma of {GAMMAS[0]} to {GAMMAS[1]} per band, stretched to 8 bits; averaged "
    "to pixels of so many px of the truth, or moved by so many; or the truth of another image. It is warped and fitted "
    "as in a run. PSNR in dB, averages over sets."
)


@dataclass(frozen=True)
class Kind:
    """A kind of reference: pixels of `pixel_px` px of the truth, off by `shift_px` of them in both directions."""

    name: str
    pixel_px: float = 1.0
    shift_px: int = 0
    other: bool = False


REFERENCES = (
    Kind("1 px"),
    Kind("1.5 px", pixel_px=1.5),
    Kind("2 px", pixel_px=2.0),
    Kind("1 px, off by 1 px", shift_px=1),
    Kind("1 px, off by 2 px", shift_px=2),
    Kind(OTHER, other=True),
)


def reference_of(truth: Tensor, kind: Kind, scale: int, seed: int) -> Finer:
    """Return a reference made of a truth (1, C, H, W) whose sides are multiples of `scale`."""
    height, width = truth.shape[-2:]
    whole = 3 * scale  # px that every level and every kind divides
    moved = functional.pad(truth, (kind.shift_px, 0, kind.shift_px, 0), mode="replicate")[..., :height, :width]
    padded = functional.pad(moved, (0, -width % whole, 0, -height % whole), mode="replicate")
    coarse = area_average(padded[0].numpy(), kind.pixel_px, kind.pixel_px)
    return Finer(torch.from_numpy(_eight_bit(coarse, seed))[None], kind.pixel_px)


def _eight_bit(image: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return (C, h, w) as numbers from 0 to 255, each band with a gamma and a stretch of its own."""
    power = np.random.default_rng(seed).uniform(*GAMMAS, len(image))[:, None, None]
    bent = np.clip(image, 0, None) ** power
    most = bent.mean((1, 2), keepdims=True) + BRIGHTEST_SD * bent.std((1, 2), keepdims=True)
    found: NDArray[np.float32] = np.rint(255 * bent / np.maximum(most, 1e-6)).clip(0, 255).astype(np.float32)
    return found


def covering(image: Tensor, like: Tensor) -> Tensor:
    """Return an image (1, C, h, w) repeated and cut to the size of another."""
    times = max(-(-side // own) for side, own in zip(like.shape[-2:], image.shape[-2:], strict=True))
    return image.repeat(1, 1, times, times)[..., : like.shape[-2], : like.shape[-1]]


@torch.inference_mode()
def judge(weights: Cascaded, sharp: Sequence[Pair], how: Seen) -> list[Record]:
    """Score the mean estimate with every kind of reference on sharp images seen by `how`."""
    records = []
    for place, one in enumerate(sharp):
        pair = seen(one, how)
        other = covering(sharp[(place + 1 + len(sharp) // 2) % len(sharp)].hr, pair.hr)
        estimates = {BICUBIC: baselines.bicubic(pair.lr, pair.scale), IBP: baselines.ibp(pair.lr, pair.scale)}
        estimates[SELF] = weights.cascade.every_level(pair, measured=how.measured)[-1]
        for kind in REFERENCES if len(sharp) > 1 else REFERENCES[:-1]:
            finer = reference_of(other if kind.other else pair.hr, kind, pair.scale, pair.index)
            estimates[kind.name] = weights.cascade.every_level(pair, measured=how.measured, finer=finer)[-1]
        for method, estimate in estimates.items():
            values, why = scores(estimate, pair, how)
            table = f"reference, {table_of(how.kind, pair.scale)}"
            records.append(Record(table, pair.source, pair.place, pair.index, method, values, why))
    return records


def reference_sections(
    weights: Cascaded,
    data: TrainingData,
    scales: Sequence[int],
    decimator: Decimator,
    per_set: int | None,
    say: Callable[[str], None],
) -> list[Section]:
    """Return one section per way of making coarse images. `per_set`: maximum number of images per set."""
    images = truths(data.held_out_chips(weights.bands), scales, per_set)
    if not any(images.values()):
        text = f"{NULL}: no image of the data is held out at {min(scales) * LEAST_COARSE_PX} px or more a side."
        return [Section(f"{weights.name}: what a reference is worth", text, name=weights.name)]
    sections = []
    for kind in KINDS:
        how, found = Seen(kind, Degradation(decimator=decimator)), dict[int, list[Record]]()
        for scale in scales:
            say(f"{weights.name}: references at x{scale}, {kind}")
            found[scale] = judge(weights, images[scale], how.of_scale(scale))
        text = f"{WORDS} {BORDER_PX} px border left out.\n\n{reference_table(found)}"
        every = [record for records in found.values() for record in records]
        title = f"{weights.name}: what a reference is worth on held-out places, {kind}"
        section = Section(
            title,
            f"{text}\n\n<sub>{weights.settings}</sub>",
            every,
            weights.name,
            weights.bundle.system,
            weights.bundle.digest,
            weights.settings,
        )
        sections.append(with_remark(section, leaks_text(weights, data)))
    return sections


def reference_table(found: Mapping[int, Sequence[Record]]) -> str:
    """Return PSNR, its gain over no reference, and other metrics per scale and kind of reference."""
    rows = []
    for scale, records in found.items():
        without = over_sets(records, SELF, "PSNR")
        for method in methods_of(records):
            psnr = over_sets(records, method, "PSNR")
            gain = NULL if psnr is None or without is None else f"{psnr - without:+.2f}"
            cells = [number(over_sets(records, method, name), digits) for name, digits in DIGITS.items()]
            rows.append([f"x{scale}", method, number(psnr), gain, *cells])
    return markdown(["scale", "reference", "PSNR", f"over {SELF}", *DIGITS], rows)
