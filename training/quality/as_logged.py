"""The numbers that a run's log gives, from the records of an evaluation: to compare both on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.degradation.degrade import Degradation
from training.quality.pairs import HELD_OUT_PER_SET
from training.quality.tables import by_set, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.quality.tables import Record

REFERENCE = "IBP"


def watched(records: Sequence[Record]) -> list[Record]:
    """Return the records of the images that a run on the same data is watched by: the first of each set."""
    images: dict[str, list[int]] = {}
    for record in records:
        images.setdefault(record.set, []).append(record.image)
    first = {name: set(list(dict.fromkeys(seen))[:HELD_OUT_PER_SET]) for name, seen in images.items()}
    return [record for record in records if record.image in first[record.set]]


def as_logged(records: Sequence[Record], network: str, how: Degradation, per_set: int | None) -> str:
    """Return the sentence on the watched images; "" without records of `network`, or if its log judges other images.

    `per_set`: the limit that the records were made with.
    """
    chosen = watched(records)
    psnr, reference = (mean(by_set(chosen, method, "PSNR").values()) for method in (network, REFERENCE))
    other = how != Degradation().of_scale(how.scale) or (per_set is not None and per_set < HELD_OUT_PER_SET)
    if psnr is None or reference is None or other:
        return ""
    count = len({(record.set, record.image) for record in chosen})
    return (
        f"On the {count} images that a run on these data logs (at most {HELD_OUT_PER_SET} of each set): {REFERENCE} "
        f"{reference:.2f} dB, `{network}` {psnr - reference:+.2f}."
    )
