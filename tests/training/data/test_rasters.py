"""Averages by area, and the published power law from brightness to reflectance."""

import numpy as np
import pytest
import xarray as xr

from tests.training.imagery import texture, write_raster
from training.data.images import FileReader, close_files
from training.data.rasters import GAMMA_MEDIAN, area_average, harmonise, sample_gamma


@pytest.mark.parametrize("ratio", [1.0, 2.0, 2.5, 4.1667])
def test_area_average_keeps_positions_and_means(ratio):
    """On pixels whose values are their centres, averages are the centres of the new pixels.

    A pixel that is split between two averages counts with its own centre in both: at most 1 / (8 ratio) px off.
    """
    off = 0 if ratio == int(ratio) else 0.126 / ratio
    y, x = np.mgrid[0:50, 0:60].astype(np.float32) + 0.5
    out = area_average(np.stack([y, x]), ratio, ratio)
    rows, columns = np.arange(out.shape[1]), np.arange(out.shape[2])
    np.testing.assert_allclose(out[0], np.broadcast_to((rows[:, None] + 0.5) * ratio, out[0].shape), atol=off + 1e-4)
    np.testing.assert_allclose(out[1], np.broadcast_to((columns + 0.5) * ratio, out[1].shape), atol=off + 1e-4)


def test_harmonisation_is_the_published_power_law():
    out = harmonise(np.full((3, 1, 1), 128 / 255, np.float32), GAMMA_MEDIAN)
    np.testing.assert_allclose(out.ravel(), [0.141, 0.129, 0.142], atol=1e-3)


def test_sampled_gammas_stay_in_range_and_vary():
    rng = np.random.default_rng(0)
    gammas = np.stack([sample_gamma(rng) for _ in range(500)])
    assert gammas.min() >= 0.15
    assert gammas.max() <= 0.6
    np.testing.assert_allclose(gammas.mean(0), [0.332, 0.326, 0.353], atol=0.015)


def test_files_without_georeferencing_that_were_closed_meanwhile_open_without_a_warning(tmp_path):
    """xarray closes the files that were read longest ago, and opens them again for the next read."""
    images = [texture(40, 40, seed) for seed in range(3)]
    readers = [
        FileReader(str(write_raster(tmp_path / f"{i}.png", image, driver="PNG")), (1, 2, 3), (40, 40), 1)
        for i, image in enumerate(images)
    ]
    close_files()
    with xr.set_options(file_cache_maxsize=1):
        for reader, image in [*zip(readers, images, strict=True)] * 2:
            np.testing.assert_array_equal(reader.read(8, 4, 16, 24), image[:, 8:24, 4:28])
