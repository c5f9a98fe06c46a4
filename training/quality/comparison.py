"""One table that compares the super-resolvers of an evaluation, with the methods without a network once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.terminal import counted
from training.quality.product import DEFAULT
from training.quality.tables import Record, Section, by_set, markdown, methods_of, number, over_sets

if TYPE_CHECKING:
    from collections.abc import Sequence

REFERENCE = "IBP"
METRICS = {"PSNR": 2, "SSIM": 3, "SAM": 2, "gradient": 2}
_NETWORK = "network alone"
_STORED = "stored "


def comparison(sections: Sequence[Section]) -> list[Section]:
    """Return the sections that compare the super-resolvers of `sections` with others of the same bands and scale.

    Averages over the sets of images that all of them were judged on.
    """
    shapes = dict.fromkeys(section.shape for section in sections if _quality(section))
    return [one for shape in shapes for one in _of_shape(shape, [s for s in sections if s.shape == shape])]


def _of_shape(shape: str, sections: Sequence[Section]) -> list[Section]:
    records = {s.name: _quality(s) for s in sections if _quality(s)}
    if len(records) < 2:
        return []
    shared = set.intersection(*({(r.set, r.image) for r in of} for of in records.values()))
    common = {name: [r for r in of if (r.set, r.image) in shared] for name, of in records.items()}
    first = next(iter(common.values()))
    if not first:
        return [Section("comparison", "The super-resolvers were judged on different images: nothing to compare.")]
    rows = [_row(method, first, method, first) for method in methods_of(first) if _is_baseline(method)]
    for name, of in common.items():
        stored = [m for m in methods_of(of) if m.startswith(_STORED) and m.endswith(f": {DEFAULT}")]
        rows += [_row(name, of, method, first) for method in stored if not method.startswith(f"{_STORED}bicubic:")]
        rows += [_row(f"{name}, {_NETWORK}", of, m, first) for m in methods_of(of) if m.endswith(_NETWORK)]
    heads = [f"{name}, PSNR" for name in by_set(first, REFERENCE, "PSNR")]
    intro = f"{shape}: {counted(len(shared), 'image')} that all were judged on; averages over sets."
    table = markdown(["", *METRICS, f"over {REFERENCE}", *heads], rows)
    text = f"{intro} What a run stores by default, and the network alone.\n\n{table}"
    return [Section("comparison", text)]


def _quality(section: Section) -> list[Record]:
    return [record for record in section.records if record.table == "quality"]


def _is_baseline(method: str) -> bool:
    return not method.startswith(_STORED) and not method.endswith(_NETWORK)


def _row(label: str, records: Sequence[Record], method: str, baseline: Sequence[Record]) -> list[str]:
    psnr = over_sets(records, method, "PSNR") or 0.0
    gain = psnr - (over_sets(baseline, REFERENCE, "PSNR") or 0.0)
    values = [number(over_sets(records, method, metric), digits) for metric, digits in METRICS.items()]
    return [label, *values, f"{gain:+.2f}", *map(number, by_set(records, method, "PSNR").values())]
