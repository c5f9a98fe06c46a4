"""The stream of the noise generator for a zone and a satellite pass."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

_LAUNCH = date(2015, 6, 23)  # Sentinel-2A


def noise_stream(epsg: int, datetime_utc: str) -> int:
    """Return the noise stream of a zone and a satellite pass (ISO 8601, or empty).

    It has 8 bits of zone and hemisphere and 16 bits of days since launch, in mean solar time at the zone's central
    meridian. All scenes of a pass share that day, so the stream depends neither on which of them a run found first nor
    on its other passes.
    """
    zone = epsg % 100 + (100 if epsg // 100 == 327 else 0)
    days = (_solar_day(epsg, datetime_utc) - _LAUNCH).days if datetime_utc else 0
    return (zone << 16) | (days & 0xFFFF)


def _solar_day(epsg: int, datetime_utc: str) -> date:
    """Return the date in mean solar time at the zone's central meridian. A time of 00:00:00 stands for a date alone."""
    moment = datetime.fromisoformat(datetime_utc)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    central_deg = 6 * (epsg % 100) - 183
    return moment.date() if moment.time() == time() else (moment + timedelta(hours=central_deg / 15)).date()
