"""Tables of scores: CSV with one row per image, and Markdown with means.

Values that could not be measured are `null`, with the reason.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

NULL = "null"
ALL_SETS = "average over sets"
_KEYS = ("table", "name", "system", "digest", "settings", "set", "place", "image", "method", "statistic")


@dataclass(frozen=True)
class Record:
    """Scores of one method on one image. `why` gives the reason for every value that is None."""

    table: str
    set: str
    place: str
    image: int
    method: str
    values: Mapping[str, float | None]
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One table of a report: Markdown, the underlying scores, and their settings.

    `name` distinguishes weights of one system; `shape` is what a super-resolver makes, such as "x4 of B04, B03, B02".
    """

    title: str
    text: str
    records: Sequence[Record] = ()
    name: str = ""
    system: str = ""
    digest: str = ""
    settings: str = ""
    shape: str = ""


def known(values: Iterable[float | None]) -> list[float]:
    """Return the values that are neither None nor NaN."""
    return [value for value in values if value is not None and not math.isnan(value)]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values, or None without any."""
    found = known(values)
    return sum(found) / len(found) if found else None


def spread(values: Iterable[float | None]) -> float | None:
    """Return the standard deviation (ddof 1) of the known values, or None for fewer than two or infinite ones."""
    found = known(values)
    if len(found) < 2 or not all(math.isfinite(value) for value in found):
        return None
    centre = sum(found) / len(found)
    return math.sqrt(sum((value - centre) ** 2 for value in found) / (len(found) - 1))


def by_set(records: Iterable[Record], method: str, metric: str) -> dict[str, float | None]:
    """Return the mean over the images of each set, in the order of the records."""
    sets: dict[str, list[float | None]] = {}
    for record in records:
        if record.method == method:
            sets.setdefault(record.set, []).append(record.values.get(metric))
    return {name: mean(values) for name, values in sets.items()}


def over_sets(records: Iterable[Record], method: str, metric: str) -> float | None:
    """Return the mean over sets, with equal weights."""
    return mean(by_set(records, method, metric).values())


def methods_of(records: Iterable[Record]) -> list[str]:
    """Return the methods in the order of the records."""
    return list(dict.fromkeys(record.method for record in records))


def metrics_of(records: Iterable[Record]) -> list[str]:
    """Return the metrics in the order of the records."""
    return list(dict.fromkeys(name for record in records for name in record.values))


def number(value: float | None, digits: int = 2) -> str:
    """Format a value; `null` if it could not be measured."""
    return NULL if value is None or math.isnan(value) else f"{value:.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def methods_table(records: Sequence[Record], digits: Mapping[str, int], title: str = "method") -> str:
    """Return averages over sets, a row per method and a column per metric of `digits`, with reasons for gaps."""
    rows = [
        [method, *(number(over_sets(records, method, metric), places) for metric, places in digits.items())]
        for method in methods_of(records)
    ]
    return markdown([title, *digits], rows) + reasons(records, digits)


def reasons(records: Iterable[Record], metrics: Iterable[str]) -> str:
    """Return the reasons for missing values of these metrics, one paragraph each, or an empty string."""
    wanted = set(metrics)
    found = {(name, text): None for record in records for name, text in record.why.items() if name in wanted}
    return "".join(f"\n\n`{NULL}`, or left out of an average, in {name}: {text}." for name, text in found)


def csv_text(sections: Sequence[Section]) -> str:
    """Return all records as CSV, with mean and standard deviation per set and over sets by table and method."""
    metrics = metrics_of(record for section in sections for record in section.records)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_KEYS, *metrics, "why_null"])
    for section in sections:
        head = (section.name, section.system, section.digest, section.settings)
        for record in section.records:
            why = "; ".join(f"{name}: {text}" for name, text in record.why.items())
            keys = [record.table, *head, record.set, record.place, record.image, record.method, "value"]
            writer.writerow([*keys, *_cells(record.values, metrics), why])
        for (table, name, method, kind), values in _statistics(section.records):
            writer.writerow([table, *head, name, "", "", method, kind, *_cells(values, metrics), ""])
    return out.getvalue()


def _statistics(records: Sequence[Record]) -> Iterable[tuple[tuple[str, str, str, str], Mapping[str, float | None]]]:
    """Yield (table, set, method, statistic) and its values."""
    kinds: tuple[tuple[str, Callable[[Iterable[float | None]], float | None]], ...] = (("mean", mean), ("sd", spread))
    for table in dict.fromkeys(record.table for record in records):
        inside = [record for record in records if record.table == table]
        metrics = metrics_of(inside)
        for method in methods_of(inside):
            mine = [record for record in inside if record.method == method]
            for name in dict.fromkeys(record.set for record in mine):
                of_set = [record for record in mine if record.set == name]
                for kind, statistic in kinds:
                    yield (
                        (table, name, method, kind),
                        {metric: statistic(record.values.get(metric) for record in of_set) for metric in metrics},
                    )
            for kind, statistic in kinds:
                yield (
                    (table, ALL_SETS, method, kind),
                    {metric: statistic(by_set(mine, method, metric).values()) for metric in metrics},
                )


def _cells(values: Mapping[str, float | None], metrics: Sequence[str]) -> list[str]:
    """Format values: empty if the table does not have the metric, `null` if it could not be measured."""
    return [
        "" if name not in values else NULL if (value := values[name]) is None or math.isnan(value) else f"{value:.6g}"
        for name in metrics
    ]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: call `write` with a temporary name, then rename it to `path`. Raises StorageError."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"{path} cannot be written ({error.strerror})", "a place to write to", "name another in the command"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises StorageError."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def check_writable(path: Path) -> None:
    """Raise StorageError if `write_text` would fail. Leaves no files."""
    probe = path.with_name(path.name + ".probe")
    try:
        folder_in_the_way = path.is_dir()
        absent = [folder for folder in path.parents if not folder.exists()]
    except OSError as error:
        raise StorageError(f"{path} cannot be reached ({error.strerror})", "a place to write to") from error
    if folder_in_the_way:
        raise StorageError(f"{path} is a folder", "a file to write", "name one in the command")
    try:
        write_text(probe, "")
        probe.unlink()
    except StorageError as error:
        raise StorageError(error.found.replace(probe.name, path.name), error.expected, error.cure) from error
    finally:
        for folder in absent:  # innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
