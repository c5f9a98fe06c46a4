"""What a call of `run` or `plan` asks for: settings, area and place."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.api.area import aoi_of
from pipeline.api.settings import settled, with_file
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.aoi.aoi import Aoi
    from pipeline.api.settings import Manner
    from pipeline.config import RunConfig
    from pipeline.store.place import Place


@dataclass(frozen=True)
class Asked:
    """Settings of the pixels and of the manner of a run, the area, and the place of the store."""

    config: RunConfig
    manner: Manner
    area: Aoi
    place: Place


def asked(call: str, settings: Mapping[str, object]) -> Asked:
    """Return what a user's `call` asks for. `settings` hold `aoi`, `bbox` and `out` too, None where not given.

    Warnings about the area name the line of the user's call. Raises UsageError.
    """
    given = with_file(settings)
    aoi, bbox, out = (given.pop(name, None) for name in ("aoi", "bbox", "out"))
    config, manner = settled(given, call)
    area = aoi_of(aoi, bbox, max_area_km2=manner.max_area_km2, repair=manner.repair)
    for warning in area.warnings:
        warnings.warn(warning, stacklevel=3)
    return Asked(config, manner, area, place_of(f"{area.name}.zarr" if out is None else os.fspath(out)))
