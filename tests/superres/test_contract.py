"""The contract with the sensor on images that no good network would give: far beyond the physical range."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.bands import BANDS
from pipeline.grid.grid import Window
from pipeline.grid.sensor import observed, sensor
from pipeline.superres.consistency import least_dn
from pipeline.superres.contract import agreeing, reach_px
from tests.superres.fakes import cut_from

SENSORS = {band.name: sensor(band.product_mtf, band.gsd_m * 2 // 5) for band in BANDS}
CELLS = 40


def wild(of, seed=0):
    """An image (1, side, side) with a seventh to a third of its values below any physical DN, and what was measured."""
    random, k = np.random.default_rng(seed), of.factor
    side = CELLS * k + 2 * (reach_px(of) + k)
    truth = gaussian_filter(random.normal(size=(side, side)), 0.5 * k)
    truth = (600 + 150 * truth / truth.std()).astype(np.float32)
    texture = gaussian_filter(random.normal(size=(side, side)), 0.3 * k)
    image = (700 + 900 * texture / texture.std()).astype(np.float32)
    native = np.zeros((side // k, side // k), np.uint16)
    native[1:-1, 1:-1] = np.rint(observed(truth, of))
    return image[None], native


def measured(native, of):
    return lambda band, part: native[part.coarsen(of.factor).slices(Window(0, 0, *native.shape))]


@pytest.mark.parametrize("of", SENSORS.values(), ids=SENSORS)
def test_what_clipping_adds_is_taken_back_without_bias(of):
    image, native = wild(of)
    area = Window(0, 0, *image.shape[1:])
    window = area.pad(-(reach_px(of) + of.factor))
    (out,) = agreeing(cut_from(image, area), window, [of], measured(native, of), [])
    inside = window.pad(-of.factor).coarsen(of.factor)
    given = native[inside.slices(Window(0, 0, *native.shape))].astype(np.float32)
    off = given - observed(out, of)
    assert out.min() >= least_dn(given).min()
    assert (out < 0).mean() == 0
    assert abs(off.mean()) < 2
    clipped = given - observed(np.maximum(image[0], 1.0)[window.slices(area)], of)
    assert np.abs(off).mean() < 0.2 * np.abs(clipped).mean()
