"""Parsing of the search period."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime

from pipeline.errors import UsageError

FIRST_DAY = datetime(2015, 6, 23, tzinfo=UTC)  # launch of Sentinel-2A
_FORMS = "2024-06-17, 2024-06, 2024 or 2024-06-17T10:30:00Z"


def parse_period(
    start: str | None, end: str | None, *, now: datetime | None = None, since: datetime | None = FIRST_DAY
) -> tuple[str | None, str | None]:
    """(start, end) as "2024-06-01T00:00:00Z"; a day, month or year as end means its last second; None is open.

    UsageError for empty or unreadable text, an end before the start, a start in the future, an end before launch
    (`since`; None for images of other origin).
    """
    first = None if start is None else _moment("start", start, last=False)
    final = None if end is None else _moment("end", end, last=True)
    if first and final and final < first:
        raise UsageError(f"end {end} is before start {start}", "start <= end", "swap the two")
    if first and first > (now or datetime.now(UTC)):
        raise UsageError(f"start {start} is in the future", "dates of scenes that exist")
    if final and since and final < since:
        raise UsageError(f"end {end} is before Sentinel-2 flew", f"{since:%Y-%m-%d} or later")
    return _iso(first) if first else None, _iso(final) if final else None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(which: str, text: str, *, last: bool) -> datetime:
    """First or last second of what the text names; times without zone are UTC."""
    stripped = text.strip()
    if not stripped:
        raise UsageError(f"{which} is empty", f"a date such as {_FORMS}")
    parts = re.fullmatch(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?", stripped)
    try:
        if parts is None:
            if "T" not in stripped.upper() and " " not in stripped:
                raise ValueError("neither a date nor a time")
            moment = datetime.fromisoformat(stripped)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        year, month, day = int(parts[1]), int(parts[2] or (12 if last else 1)), parts[3]
        on_day = int(day) if day else (calendar.monthrange(year, month)[1] if last else 1)
        clock = (23, 59, 59) if last else (0, 0, 0)
        return datetime(year, month, on_day, *clock, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{which} {text!r} is not a date ({error})", _FORMS) from None
