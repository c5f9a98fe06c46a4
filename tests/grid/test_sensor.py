"""What a sensor sees of an image, and the image nearest to another that it would measure as it did."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline.bands import BANDS
from pipeline.grid.sensor import NOISE_DN, correction, observed, sensor

SENSORS = {f"{band.name}": sensor(band.product_mtf, band.gsd_m * 2 // 5) for band in BANDS}


def scene(cells, factor, seed=0, smooth=0.35):
    """Land-like DN of cells x cells native pixels."""
    noise = np.random.default_rng(seed).normal(size=(cells * factor, cells * factor))
    image = gaussian_filter(noise, smooth * factor)
    return (2000 + 400 * image / image.std()).astype(np.float32)


@pytest.mark.parametrize("name", SENSORS)
def test_the_transfer_at_nyquist_is_the_mtf(name):
    """A wave of two native pixels, seen at its crests and troughs, keeps MTF of its amplitude."""
    of = SENSORS[name]
    band = next(band for band in BANDS if band.name == name)
    position = (np.arange(16 * of.factor) + 0.5) / of.factor
    wave = np.sin(np.pi * position)[None].repeat(16 * of.factor, 0)
    seen = observed((1000 + 500 * wave).astype(np.float32), of)
    peak_in_pixel = np.sin(np.pi * (np.arange(of.factor) + 0.5) / of.factor)
    assert peak_in_pixel.max() <= 1
    amplitude = np.abs(seen - 1000)[4:-4, 4:-4].mean() / 500
    assert amplitude == pytest.approx(band.product_mtf, abs=2e-4)


@pytest.mark.parametrize("of", SENSORS.values(), ids=SENSORS)
def test_flat_fields_are_seen_and_corrected_as_they_are(of):
    cells = 2 * of.cells + 3
    flat = np.full(((cells + 2) * of.factor,) * 2, 1234, np.float32)
    assert np.abs(observed(flat, of) - 1234).max() < 1e-3
    assert np.abs(correction(np.full((cells, cells), 3, np.float32), of) - 3).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(SENSORS)), st.integers(0, 2**16), st.integers(0, 3), st.integers(0, 3))
def test_a_pixel_depends_on_its_surroundings_alone(name, seed, row, col):
    """Bit for bit, wherever the ground is cut."""
    of = SENSORS[name]
    cells = 2 * of.cells + 6
    residual = np.random.default_rng(seed).normal(0, 80, (cells, cells)).astype(np.float32)
    whole = correction(residual, of)
    size = 2 * of.cells + 2
    part = correction(np.ascontiguousarray(residual[row : row + size, col : col + size]), of)
    k = of.factor
    assert np.array_equal(part, whole[row * k : (row + 2) * k, col * k : (col + 2) * k])
    image = scene(8, k, seed)
    seen = observed(np.ascontiguousarray(image[row * k : (row + 4) * k, col * k : (col + 4) * k]), of)
    assert np.array_equal(seen, observed(image, of)[row : row + 2, col : col + 2])


@pytest.mark.parametrize("of", SENSORS.values(), ids=SENSORS)
def test_a_corrected_image_is_measured_right_and_nearer_truth(of):
    k, cells = of.factor, 2 * of.cells + 42
    truth = scene(cells, k)
    guess = gaussian_filter(truth, 0.5 * k)  # what a network might have missed
    lacking = observed(truth, of) - observed(guess, of)
    inside = slice((of.cells + 1) * k, -(of.cells + 1) * k)
    better = guess.copy()
    better[inside, inside] += correction(lacking, of)
    at = slice(of.cells + 1, -of.cells - 1)
    left = (observed(truth, of) - observed(better, of))[at, at]
    assert np.abs(lacking[at, at]).max() > 50
    assert np.percentile(np.abs(left), 99) < 3 * NOISE_DN
    assert abs(left.mean()) < 0.3  # over many pixels: what is left to noise cancels but for the rim
    error = [np.std((image - truth)[inside, inside]) for image in (guess, better)]
    assert error[1] < 0.9 * error[0]


def test_what_noise_explains_is_left_alone():
    """Grain of a few DN in the measurement makes no texture at 2.5 m; a step of the same height does not vanish."""
    of = SENSORS["B02"]
    cells = 2 * of.cells + 20
    grain = np.random.default_rng(1).normal(0, NOISE_DN / 2.5, (cells, cells)).astype(np.float32)
    assert correction(grain, of).std() < 0.75 * NOISE_DN / 2.5
    step = np.zeros((cells, cells), np.float32)
    step[:, cells // 2 :] = NOISE_DN
    middle = correction(step, of)
    assert middle[:, -16:].mean() == pytest.approx(NOISE_DN, abs=0.01)
    assert middle[:, :16].mean() == pytest.approx(0, abs=0.01)
