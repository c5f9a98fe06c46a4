"""NIQE: known distributions are recovered, and blur and noise move an image away from what was fitted."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.training.pairs_for_tests import ground
from training.data.patches import DISPLAY_GAMMA
from training.quality.niqe import FEATURES, Niqe, aggd, features, luminance, mscn

BLOCK_PX = 48


def sharp(seed, side=192):
    """Luminance of discs and lines on a fine texture, 0 to 255."""
    texture = np.random.default_rng(seed).normal(0, 2, (side, side))
    return 255 * np.clip(ground(seed, side)[0], 0, 1) ** DISPLAY_GAMMA + ndimage.gaussian_filter(texture, 0.6)


@pytest.fixture(scope="module")
def model():
    return Niqe.fit((sharp(seed) for seed in range(12)), BLOCK_PX)


def drawn(shape, left, right, count=400_000):
    """Values of an asymmetric generalised Gaussian."""
    rng = np.random.default_rng(0)
    size = rng.gamma(1 / shape, size=count) ** (1 / shape)
    return np.where(rng.random(count) < left / (left + right), -left * size, right * size)


@pytest.mark.parametrize(
    ("shape", "left", "right"), [(2.0, 1.0, 1.0), (0.8, 0.5, 1.5), (1.0, 2.0, 0.7), (4.0, 1.0, 3.0)]
)
def test_parameters_of_an_asymmetric_gaussian_are_recovered(shape, left, right):
    found = aggd(drawn(shape, left, right))
    np.testing.assert_allclose(found, (shape, left, right), rtol=0.02)


def test_fits_are_made_for_each_row():
    rows = np.stack([drawn(2.0, 1.0, 1.0, 5000), drawn(0.8, 0.5, 1.5, 5000)])
    together = np.stack(aggd(rows), axis=1)
    np.testing.assert_allclose(together, [aggd(row) for row in rows])


def test_coefficients_of_noise_are_standardised():
    noise = np.random.default_rng(0).normal(100, 20, (256, 256))
    coefficients, deviation = mscn(noise)
    assert abs(coefficients.mean()) < 0.01
    assert deviation.mean() == pytest.approx(20, rel=0.1)
    shifted, _ = mscn(noise + 50)
    np.testing.assert_allclose(shifted, coefficients, atol=1e-9)


def test_an_image_of_the_fitted_kind_scores_lowest(model):
    image = sharp(100)
    own = model.score(image)
    rng = np.random.default_rng(0)
    blurred = [model.score(ndimage.gaussian_filter(image, sigma)) for sigma in (1, 2)]
    noisy = [model.score(image + rng.normal(0, sigma, image.shape)) for sigma in (8, 20)]
    assert own < blurred[0] < blurred[1]
    assert own < noisy[0] < noisy[1]


def test_scores_are_deterministic(model):
    again = Niqe.fit((sharp(seed) for seed in range(12)), BLOCK_PX)
    assert again.score(sharp(100)) == model.score(sharp(100))
    assert again.blocks == model.blocks > FEATURES


def test_only_sharp_blocks_are_fitted():
    half = sharp(0)
    half[:, 96:] = ndimage.gaussian_filter(half, 3)[:, 96:]
    images = [half, *(sharp(seed) for seed in range(1, 8))]
    assert Niqe.fit(images, BLOCK_PX).blocks <= sum(len(features(image, BLOCK_PX)[0]) for image in images) - 8


def test_small_images_have_no_score(model):
    assert np.isnan(model.score(sharp(0, BLOCK_PX - 1)))
    assert np.isnan(model.score(sharp(0, BLOCK_PX)))  # one block has no covariance
    assert np.isfinite(model.score(sharp(0, 2 * BLOCK_PX)))
    with pytest.raises(ValueError, match="an image of 47 x 47 px; expected at least one block of 48 px"):
        features(sharp(0, BLOCK_PX - 1), BLOCK_PX)


def test_flat_blocks_are_left_out(model):
    image = sharp(0)
    image[:BLOCK_PX] = 80
    assert len(features(image, BLOCK_PX)[0]) == 12
    assert np.isfinite(model.score(image))
    assert np.isnan(model.score(np.full((192, 192), 80.0)))


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="0 sharp blocks of 48 px; expected more than 36"):
        Niqe.fit([sharp(0, 40)], BLOCK_PX)


def test_luminance_is_what_8_bit_imagery_shows():
    image = torch.tensor([0.0, 0.25, 1.5])[:, None, None].expand(3, 2, 2)
    np.testing.assert_allclose(luminance(image), 255 * (0 + 0.25**DISPLAY_GAMMA + 1) / 3)
