"""Other systems as steps of a cascade, beside the same systems applied again to their own output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB, SCALE_10M
from pipeline.errors import UsageError
from pipeline.superres.system import load
from pipeline.superres.systems import PLAIN
from pipeline.superres.weights import choose
from training import placement
from training.degradation.degrade import Degradation
from training.quality import baselines
from training.quality.cascade_scores import KINDS, Seen, scores, seen, table_of, truths
from training.quality.pairs import BORDER_PX, mirrored, noise_of, state_windows
from training.quality.sampler import bands_of, of_system
from training.quality.tables import NULL, Record, Section, markdown, methods_of, number, over_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from training.data.sources import TrainingData
    from training.degradation.degrade import Decimator
    from training.quality.cascade import Cascade, Cascades
    from training.quality.cascade_scores import Kind
    from training.quality.pairs import Pair

OVER, AGAIN = "cascade over it", "it again and again"
DIGITS = {"PSNR": 2, "SSIM": 4, "SAM": 2, "AG / truth": 3, "consistency": 6}
WORDS = (
    "A system as the step of a cascade, whose output keeps the means of its input, beside the system applied to its "
    "own output. Networks alone: with coarse images of a sensor, the contract that a run has for the measured level is "
    "left out. Averages over sets; metrics as in the tables of a cascade."
)


@dataclass(frozen=True)
class Named:
    """A system by name, with files of its weights if it takes others than the shipped ones: NAME or NAME=FILE."""

    name: str
    files: tuple[str, ...] = ()

    @classmethod
    def parsed(cls, text: str) -> Named:
        """Parse one of a list of systems."""
        name, _, file = text.partition("=")
        return cls(name.strip(), (file,) if file else ())


class Again:
    """A x4 system applied to its own output: its mean, or one draw where it has none. Raises UsageError."""

    def __init__(self, of: Named, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.plain = of.name == PLAIN
        self.system = load(choose(of.name, of.files), str(device))
        self.sampler = None if self.plain else of_system(self.system)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that the system reads and gives."""
        return RGB if self.plain else bands_of(self.system)

    def image(self, pair: Pair) -> Tensor:
        """Return the image (1, C, H, W) at the scale of a pair, a power of 4."""
        found = pair.lr
        while found.shape[-1] < pair.hr.shape[-1]:
            found = self._step(found, pair)
        return found

    def _step(self, image: Tensor, pair: Pair) -> Tensor:
        if self.sampler is None:
            return baselines.bicubic(image, SCALE_10M)
        padded, (height, width) = mirrored(image, self.sampler.multiple_px), image.shape[-2:]
        if self.sampler.mean is not None:
            fine = placement.run(self.device, self.sampler.mean, padded)
        else:
            fine = self._drawn(padded, pair)
        return fine[..., : SCALE_10M * height, : SCALE_10M * width]

    def _drawn(self, image: Tensor, pair: Pair) -> Tensor:
        assert self.sampler is not None
        shape = (*image.shape[:2], *(SCALE_10M * side for side in image.shape[-2:]))
        first = noise_of(pair, 0, self.seed)
        times = [-(-side // own) for side, own in zip(shape[-2:], first.shape[-2:], strict=True)]
        noise = first.repeat(1, 1, *times)[..., : shape[-2], : shape[-1]]
        windows = state_windows(image).to(self.device)
        state = None if self.sampler.scene_state is None else self.sampler.scene_state(windows)
        return self.sampler.sample(image.to(self.device), noise.to(self.device), state).cpu()


@torch.inference_mode()
def judge(of: Named, cascade: Cascade, again: Again, sharp: Sequence[Pair], how: Seen) -> list[Record]:
    """Score a cascade over a system, and the system applied again, on sharp images seen by `how`."""
    records = []
    for one in sharp:
        pair = seen(one, how)
        over = cascade.every_level(pair, measured=how.measured, seed=again.seed)[-1]
        for method, estimate in {OVER: over, AGAIN: again.image(pair)}.items():
            values, why = scores(estimate, pair, how)
            table = f"backbone {of.name}, {table_of(how.kind, pair.scale)}"
            records.append(Record(table, pair.source, pair.place, pair.index, method, values, why))
    return records


def backbone_sections(
    systems: Sequence[Named],
    cascades: Cascades,
    data: TrainingData,
    scales: Sequence[int],
    decimator: Decimator,
    per_set: int | None,
    device: torch.device,
    seed: int,
    say: Callable[[str], None],
) -> list[Section]:
    """Return one section per way of making coarse images. Raises UsageError for systems that are no step.

    `per_set`: maximum number of images per set.
    """
    wrong = [scale for scale in scales if scale not in {SCALE_10M**power for power in range(1, scale.bit_length())}]
    if wrong:
        raise UsageError(f"--backbones at x{wrong[0]}", f"powers of {SCALE_10M}, such as 16")
    rows: dict[Kind, list[list[str]]] = {kind: [] for kind in KINDS}
    records: dict[Kind, list[Record]] = {kind: [] for kind in KINDS}
    for of in systems:
        again = Again(of, seed, device)
        images = truths(data.held_out_chips(again.bands), scales, per_set)
        for scale in scales:
            cascade = cascades.over(of.name, of.files, scale, device)
            for kind in KINDS:
                say(f"{of.name}: x{scale}, {kind}, {len(images[scale])} images")
                how = Seen(kind, Degradation(decimator=decimator)).of_scale(scale)
                found = judge(of, cascade, again, images[scale], how)
                rows[kind] += table_rows(of.name, scale, found)
                records[kind] += found
    header = ["system", "scale", "images", "sets", "", *DIGITS]
    return [
        Section(
            f"systems as steps of a cascade on held-out places, {kind}",
            f"{WORDS} {BORDER_PX} px border left out.\n\n{markdown(header, rows[kind])}",
            records[kind],
        )
        for kind in KINDS
    ]


def table_rows(name: str, scale: int, records: Sequence[Record]) -> list[list[str]]:
    """Return the rows of one system at one scale; one row of nulls without images."""
    images = {(record.set, record.image) for record in records}
    counts = [str(len(images)), str(len({of for of, _ in images}))]
    return [
        [name, f"x{scale}", *counts, method, *(number(over_sets(records, method, m), n) for m, n in DIGITS.items())]
        for method in methods_of(records)
    ] or [[name, f"x{scale}", *counts, *[NULL] * (1 + len(DIGITS))]]
