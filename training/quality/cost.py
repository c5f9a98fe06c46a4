"""Cost per km2: core-seconds for all 12 bands of one unit of a run, without reading and writing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BAND_NAMES, TARGET_GSD_M
from training.data.tiles import BANDS
from training.quality import product
from training.quality.product import DEFAULT, Way

if TYPE_CHECKING:
    from pipeline.superres.system import System

WAYS = (DEFAULT, Way("sample", "box"))
SIDE_60M_PX = 80  # 4.8 km, the side of one unit
GROUND = 0.2, 0.02  # mean and standard deviation of the reflectance


def core_seconds_per_km2(system: System, way: Way) -> float:
    """Return the CPU seconds of this process per km2 of one unit, after one warm-up window."""
    generator = np.random.default_rng(0)
    dn = {
        gsd: product.to_dn(
            generator.normal(*GROUND, (len(names), SIDE_60M_PX * 60 // gsd, SIDE_60M_PX * 60 // gsd)).astype(np.float32)
        )
        for gsd, names in BANDS.items()
    }
    options = way.options(system)
    small = {gsd: raster[:, : 240 // gsd, : 240 // gsd] for gsd, raster in dn.items()}
    product.store(small, BANDS, system, options, BAND_NAMES)
    started = time.process_time()
    product.store(dn, BANDS, system, options, BAND_NAMES)
    return (time.process_time() - started) / area_km2()


def area_km2() -> float:
    """Return the area of the unit in km2."""
    return (SIDE_60M_PX * 24 * TARGET_GSD_M / 1000) ** 2
