"""Sections on a cascade of x2 levels by scale: PSNR against one step and back-projection, and what else declines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.terminal import counted
from training.degradation.degrade import Degradation
from training.quality.cascade_scores import (
    BICUBIC,
    CASCADE,
    IBP,
    IBP_TRUE,
    KINDS,
    LEAST_COARSE_PX,
    METHODS,
    NIQE,
    ONE_STEP,
    Naturalness,
    Seen,
    judge,
    stopped,
    truths,
)
from training.quality.leaks import leaks_text
from training.quality.niqe import BLOCK_PX
from training.quality.pairs import BORDER_PX
from training.quality.report import with_remark
from training.quality.tables import (
    NULL,
    Record,
    Section,
    markdown,
    methods_of,
    metrics_of,
    number,
    over_sets,
    reasons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.degradation.degrade import Decimator
    from training.quality.cascade import Cascade
    from training.quality.cascade_scores import Kind

    Image = tuple[str, int]
    ByScale = Mapping[int, Sequence[Record]]

DIGITS = {
    "PSNR": 2,
    "SSIM": 4,
    "SAM": 2,
    "SRE dB": 2,
    "spectral RMSE": 2,
    "AG": 2,
    "AG / truth": 3,
    NIQE: 2,
    "consistency": 5,
}
WORDS: Mapping[Kind, str] = {
    "sensor": "The coarse image is a sensor's: blurred by its kernel, which grows with the coarse pixel, decimated, "
    "with noise. The first level may undo the blur.",
    "means": "The coarse image holds block means, without noise. Every level keeps them.",
}
LEVELS_WORDS = "What every finer level is worth: PSNR where a cascade stops after it, the remaining factor by IBP."
ONE_STEP_WORDS = "`one step`: the network once, and the remaining factor by IBP with the box kernel."


@dataclass(frozen=True)
class Cascaded:
    """A network of x2 under test, by a short name, with its weights' description and the seed of its draws."""

    name: str
    bundle: Bundle
    cascade: Cascade
    seed: int = 0

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the evaluation images."""
        return self.bundle.out_bands

    @property
    def settings(self) -> str:
        """Description of digest, sampler and seed."""
        bundle = self.bundle
        sampler = ", ".join(f"{name} {value}" for name, value in bundle.sampler.items())
        weights = f"{bundle.system} sha256 {bundle.digest[:12]}"
        return f"levels of x2 of {', '.join(self.bands)}; {weights}; {sampler}; seed {self.seed}"


def cascade_sections(
    weights: Cascaded,
    data: TrainingData,
    scales: Sequence[int],
    decimator: Decimator,
    per_set: int | None,
    say: Callable[[str], None],
    *,
    draws: bool = True,
) -> list[Section]:
    """Return the sections of a cascade at ascending `scales`, two per way of making coarse images.

    `per_set`: maximum number of images per set. `draws`: whether one draw of each image is scored too, which takes most
    of the time.
    """
    images = truths(data.held_out_chips(weights.bands), scales, per_set)
    if not any(images.values()):
        text = f"{NULL}: no image of the data is held out at {min(scales) * LEAST_COARSE_PX} px or more a side, or "
        text += "those that are show nothing."
        return [Section(f"{weights.name}: cascade on held-out places", text, name=weights.name)]
    say(f"{weights.name}: NIQE of the sharp images to train on")
    natural = Naturalness.fitted(data.training_chips(weights.bands, BLOCK_PX))
    remark, sections = leaks_text(weights, data), []
    for kind in KINDS:
        how = Seen(kind, Degradation(decimator=decimator))
        found: dict[int, list[Record]] = {}
        for scale in scales:
            say(f"{weights.name}: x{scale}, {kind}, {counted(len(images[scale]), 'image')}")
            found[scale] = judge(
                weights.cascade, images[scale], how.of_scale(scale), weights.seed, natural, draws=draws
            )
        sections += [with_remark(section, remark) for section in sections_of(weights, kind, how, found, natural)]
    return sections


def sections_of(weights: Cascaded, kind: Kind, how: Seen, found: ByScale, natural: Naturalness) -> list[Section]:
    """Return the sections of one way of making coarse images, from the records of every scale."""
    common = in_all(found)
    shared = f"The {_count(common)} that are in all scales with images"
    psnr = (
        f"{WORDS[kind]} PSNR in dB, data range 1 reflectance, {BORDER_PX} px border left out, averages over sets. "
        f"Images have at least {LEAST_COARSE_PX} coarse px a side. {ONE_STEP_WORDS}\n\n{psnr_table(found)}\n\n"
        f"{shared}:\n\n{psnr_table(common)}\n\n{LEVELS_WORDS}\n\n{levels_table(found)}"
    )
    units = (
        "Averages over sets. SAM in degrees; SRE dB higher and spectral RMSE (percent of reflectance) lower is better; "
        "AG: average gradient, in steps of 1/255 reflectance per px, and over that of the truth (1 is as sharp); "
        "consistency: mean absolute difference in reflectance of the input and the estimate seen again"
        f"{' by the sensor, without its noise' if how.measured else ' as block means'}. {niqe_words(natural)}"
        f"{ONE_STEP_WORDS}"
    )
    both = f"{units} {shared}:\n\n{decline_table(common)}\n\nAll images of each scale:\n\n{decline_table(found)}"
    every = [record for records in found.values() for record in records]
    notes = reasons(every, DIGITS)
    return [
        _section(weights, f"{weights.name}: cascade on held-out places, {kind}", psnr, every, how),
        _section(weights, f"{weights.name}: decline with scale on held-out places, {kind}", both + notes, (), how),
    ]


def niqe_words(natural: Naturalness) -> str:
    """Return a sentence on the model of NIQE; "" without one."""
    model = natural.model
    if model is None:
        return ""
    fitted = f"{model.blocks} sharp blocks of {model.block_px} px of the images to train on, at the GSD of the truth"
    return f"{NIQE}: distance from the statistics of {fitted}; lower is better. "


def _section(weights: Cascaded, title: str, text: str, records: Sequence[Record], how: Seen) -> Section:
    of = f"{how.how} at x{how.how.scale}, in proportion at others" if how.measured else "block means"
    settings = f"{weights.settings}; {of}"
    caption = f"{text}\n\n<sub>{settings}</sub>"
    return Section(title, caption, records, weights.name, weights.bundle.system, weights.bundle.digest, settings)


def in_all(found: ByScale) -> dict[int, list[Record]]:
    """Return the records of the images that are in every scale which has any."""
    images = [{_image(record) for record in records} for records in found.values() if records]
    shared = set.intersection(*images) if images else set()
    return {scale: [r for r in records if _image(r) in shared] for scale, records in found.items() if records}


def _image(record: Record) -> Image:
    return record.set, record.image


def _counts(records: Iterable[Record]) -> tuple[int, int]:
    """Return the number of images and of sets."""
    images = {_image(record) for record in records}
    return len(images), len({name for name, _ in images})


def _count(common: ByScale) -> str:
    images, sets = _counts(record for records in common.values() for record in records)
    return f"{counted(images, 'image')} of {counted(sets, 'set')}"


def psnr_table(found: ByScale) -> str:
    """Return PSNR per scale and method, with the number of images and sets."""
    methods = [m for m in (BICUBIC, IBP, IBP_TRUE, ONE_STEP, CASCADE) if m in _methods(found)]
    rows = []
    for scale, records in found.items():
        psnr = {method: over_sets(records, method, "PSNR") for method in methods}
        ours, theirs = psnr.get(CASCADE), psnr.get(IBP)
        gain = NULL if ours is None or theirs is None else f"{ours - theirs:+.2f}"
        rows.append([f"x{scale}", *map(str, _counts(records)), *map(number, psnr.values()), gain])
    return markdown(["scale", "images", "sets", *methods, f"{CASCADE} - {IBP}"], rows)


def levels_table(found: ByScale) -> str:
    """Return PSNR per scale by the number of levels that the network makes, all of them in the last cell of a row."""
    deepest = max(found).bit_length() - 1
    rows = []
    for scale, records in found.items():
        levels = scale.bit_length() - 1
        before = [ONE_STEP, *map(stopped, range(2, levels))] if levels > 1 else []
        cells = [number(over_sets(records, name, "PSNR")) for name in (*before, CASCADE)]
        rows.append([f"x{scale}", *cells, *[""] * (deepest - levels)])
    return markdown(["scale", "1 level", *map(stopped, range(2, deepest + 1))], rows)


def decline_table(found: ByScale) -> str:
    """Return all metrics per scale and method. A metric that a method does not have is left empty."""
    rows = []
    for scale, records in found.items():
        for method in (name for name in methods_of(records) if name in METHODS):
            own = metrics_of(record for record in records if record.method == method)
            cells = [number(over_sets(records, method, m), n) if m in own else "" for m, n in DIGITS.items()]
            rows.append([f"x{scale}", method, *cells])
    return markdown(["scale", "method", *DIGITS], rows)


def _methods(found: ByScale) -> list[str]:
    return methods_of(record for records in found.values() for record in records)
