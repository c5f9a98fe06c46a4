"""Which stream of the noise generator a zone and a pass draw from."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

_LAUNCH = date(2015, 6, 23)  # Sentinel-2A


def noise_stream(epsg: int, datetime_utc: str) -> int:
    """Noise stream of a zone and a pass (ISO 8601, or empty): 8 bits of zone and hemisphere, 16 of days since launch.

    The day is that of mean solar time at the zone's central meridian. All scenes of a pass have it in common, so the
    stream does not depend on which of them a run found first; nor does it depend on the run's other passes.
    """
    zone = epsg % 100 + (100 if epsg // 100 == 327 else 0)
    days = (_solar_day(epsg, datetime_utc) - _LAUNCH).days if datetime_utc else 0
    return (zone << 16) | (days & 0xFFFF)


def _solar_day(epsg: int, datetime_utc: str) -> date:
    """Date of mean solar time at the zone's central meridian; a time of 00:00:00 is a date without a time."""
    moment = datetime.fromisoformat(datetime_utc)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    central_deg = 6 * (epsg % 100) - 183
    return moment.date() if moment.time() == time() else (moment + timedelta(hours=central_deg / 15)).date()
