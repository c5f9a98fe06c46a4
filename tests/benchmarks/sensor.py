"""Residuals of the re-observed default output against the input, for every real Level-2A scene.

Also the grain of flat fields. Both depend on how much of a measured value is attributed to sensor noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import pipeline
from pipeline.bands import DN_SCALE, SCALE_10M
from tests.conftest import DATA
from tests.running import test_real_scenes as real

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SIDE_M = 2000  # larger scenes are cropped to this
FLATTEST = 20  # percent of 10 m pixels, ranked by the standard deviation in 5 x 5 windows


def scenes(folder: Path) -> Iterator[tuple[str, real.Source]]:
    """Yield (name, source) of every Level-2A scene in the shared data with bands on their native grids."""
    root = DATA / "s2_l2a"
    for patch in real.PATCHES:
        yield patch, real.Source(root / "bigearthnet" / patch)
    for cell, offset in real.MAJORTOM.items():
        yield cell, real.Source(root / "majortom_native" / cell, offset, when="2021-07-01T10:00:00Z")
    yield "argentina_pampas", real.Source(root / "argentina_pampas_32720", when="2025-06-15T14:00:00Z")
    theia, vienna = folder / "theia", folder / "vienna"
    file = root / "theia_bouconne_7dates" / "2018_3A_Theia_Bouconne.tif"
    bands = {band: 30 + i for i, band in enumerate(real.THEIA_BANDS, 1)}
    real.split_bands(file, bands, theia, real.THEIA_BANDS[4:])
    yield "theia_bouconne", real.Source(theia, when="2018-06-15T10:50:00Z")
    file = root / "ftw_vienna_rgbn" / "inference-img.tif"
    real.split_bands(file, {band: i for i, band in enumerate(real.VIENNA_BANDS, 1)}, vienna, ())
    yield "ftw_vienna", real.Source(vienna, when="2021-05-15T10:00:00Z")


def default_run(source: real.Source, folder: Path) -> Path:
    """Run with the default settings over the centre of a scene. Return the store."""
    left, bottom, right, top = source.bounds()[0]
    small = min(right - left, top - bottom) < SIDE_M + 10
    ground = None if small else real.centre(source, SIDE_M)
    return real.make(source, folder, sr="lite", ground=ground, settings={"consistency": "sensor"})


def residuals(store: Path) -> dict[int, NDArray[np.float32]]:
    """Return {GSD in m: re-observed minus measured DN of all its bands}."""
    measured, found = pipeline.open_measured(store), {}
    for gsd_m, seen in pipeline.reobserve(pipeline.open_store(store).reflectance).items():
        off = ((seen - measured[gsd_m].reflectance) / DN_SCALE).values.ravel()
        found[gsd_m] = off[np.isfinite(off)]
    return found


def grain(store: Path, band: str = "B02") -> float:
    """Return the median standard deviation of reflectance within 10 m pixels on the flattest ground."""
    fine = pipeline.open_store(store).reflectance.sel(band=band).values[0]
    h, w = (side // SCALE_10M for side in fine.shape)
    blocks = fine[: h * SCALE_10M, : w * SCALE_10M].reshape(h, SCALE_10M, w, SCALE_10M)
    around = np.lib.stride_tricks.sliding_window_view(blocks.mean((1, 3)), (5, 5)).std((2, 3))
    within = blocks.std((1, 3))[2:-2, 2:-2]
    known = np.isfinite(around) & np.isfinite(within)
    return float(np.median(within[known & (around <= np.percentile(around[known], FLATTEST))]))


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return a row per scene and GSD, and one row per scene for the grain on flat ground."""
    found = []
    for name, source in scenes(folder):
        own = folder / name
        own.mkdir(exist_ok=True)
        store = default_run(source, own)
        for gsd_m, off in residuals(store).items():
            median, most = np.percentile(np.abs(off), [50, 99])
            found.append((f"sensor, {name}", f"{gsd_m} m: residual in DN, median / 99th percentile / mean",
                          f"{median:.2f} / {most:.1f} / {off.mean():+.2f}"))  # fmt: skip
        if "B02" in source.bands:
            found.append((f"sensor, {name}", "B02, standard deviation in 10 m pixels of flat ground",
                          f"{grain(store):.5f}"))  # fmt: skip
    return found
