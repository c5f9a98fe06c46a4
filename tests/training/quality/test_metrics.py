"""Metrics on cases whose answers are known by hand, and properties that hold for all images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.quality.metrics import (
    average_gradient,
    band_correlation,
    band_psnr,
    block_mean_r2,
    correlation,
    cosine,
    eight_bit,
    ergas,
    ergas_table_iv,
    gradient_ratio,
    neighbour_correlation,
    power_ratio_db,
    psnr,
    r_squared,
    sam,
    spearman,
    spectral_rmse,
    sre_db,
    ssim,
    trimmed,
)


def image(seed, bands=3, side=24):
    """Random reflectance (bands, side, side) between 0.02 and 0.6."""
    return 0.02 + 0.58 * torch.rand(bands, side, side, generator=torch.Generator().manual_seed(seed))


SEEDS = st.integers(0, 10**6)


def test_psnr_of_a_constant_error():
    x = torch.zeros(3, 8, 8)
    assert psnr(x, x + 0.01) == pytest.approx(40.0)
    assert psnr(x, x + 0.01, data_range=0.1) == pytest.approx(20.0)
    assert psnr(x, x) == math.inf


def test_ergas_is_walds():
    truth = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.2)])
    error = torch.tensor([0.01, 0.04])[:, None, None]
    # relative errors 0.1 and 0.2: 100 / 4 * sqrt((0.01 + 0.04) / 2)
    assert ergas(truth + error, truth, 4) == pytest.approx(25 * math.sqrt(0.025), rel=1e-5)


def test_sam_is_an_angle_and_skips_empty_spectra():
    truth = torch.zeros(2, 2, 2)
    truth[:, 0, 0] = torch.tensor([1.0, 0.0])
    turned = torch.zeros(2, 2, 2)
    turned[:, 0, 0] = torch.tensor([1.0, 1.0])
    assert sam(turned, truth) == pytest.approx(45.0)
    assert sam(3 * turned, turned) == pytest.approx(0.0, abs=1e-4)


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(noisy, image) < 0.99


def test_trimming():
    assert trimmed(torch.zeros(1, 3, 20, 30), 4).shape == (1, 3, 12, 22)
    assert trimmed(torch.zeros(3, 20, 30), 0).shape == (3, 20, 30)


def test_ssim_is_that_of_the_definition():
    """One window of 11 px: the five sums written out."""
    a, b = image(0, 1, 11)[0].double(), image(1, 1, 11)[0].double()
    r = np.arange(11) - 5
    g = np.exp(-0.5 * (r / 1.5) ** 2)
    w = torch.from_numpy(np.outer(g, g) / g.sum() ** 2)
    mean_a, mean_b = float((w * a).sum()), float((w * b).sum())
    var_a, var_b = float((w * a * a).sum()) - mean_a**2, float((w * b * b).sum()) - mean_b**2
    both = float((w * a * b).sum()) - mean_a * mean_b
    wanted = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    wanted /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim(a[None].float(), b[None].float()) == pytest.approx(wanted, rel=1e-5)


def test_band_psnr_takes_each_bands_peak():
    truth = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.5)])
    error = torch.tensor([0.01, 0.05])[:, None, None]
    assert band_psnr(truth + error, truth) == pytest.approx(20.0, rel=1e-4)


def test_table_iv_scales_8_bit_values_of_the_product():
    truth = torch.full((1, 8, 8), 100 / 255)
    product = torch.full((1, 8, 8), 110.3 / 255)  # stored as 110
    assert ergas_table_iv(product, truth, 4) == pytest.approx(400 * 10 / 110, rel=1e-6)
    assert torch.equal(eight_bit(torch.tensor([-0.1, 0.5, 1.2])), torch.tensor([0.0, 128.0, 255.0]).double())
    assert ergas_table_iv(torch.zeros(1, 8, 8), truth, 4) == math.inf


def test_r_squared_and_correlations_of_a_straight_line():
    truth = image(0)
    assert r_squared(truth, truth) == 1.0
    flat = truth.mean((1, 2), keepdim=True).expand_as(truth)
    assert r_squared(flat, truth) == pytest.approx(0.0, abs=1e-6)
    assert correlation(0.3 * truth + 0.1, truth) == pytest.approx(1.0)
    assert correlation(0.5 - 0.3 * truth, truth) == pytest.approx(-1.0)
    assert cosine(0.3 * truth, truth) == pytest.approx(1.0)
    x, y = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    assert cosine(x, y) == pytest.approx(math.sqrt(0.5))


def test_what_does_not_vary_has_no_correlation():
    flat = torch.full((1, 4, 4), 0.2)
    assert math.isnan(correlation(flat, image(0, 1, 4)))
    assert math.isnan(r_squared(image(0, 1, 4), flat))
    assert math.isnan(gradient_ratio(image(0, 1, 4), flat))
    assert math.isnan(spearman(flat, image(0, 1, 4)))
    assert math.isnan(cosine(torch.zeros(1, 4, 4), flat))


def test_sre_is_the_band_mean_over_the_error():
    truth = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.4)])
    assert sre_db(truth + torch.tensor([0.01, 0.004])[:, None, None], truth) == pytest.approx(30.0, rel=1e-4)


def test_average_gradient_of_a_ramp():
    ramp = 0.01 * torch.arange(10.0).expand(1, 10, 10)
    assert average_gradient(ramp) == pytest.approx(0.01 / math.sqrt(2), rel=1e-5)
    both = ramp + 0.01 * torch.arange(10.0)[:, None]
    assert average_gradient(both) == pytest.approx(0.01, rel=1e-5)
    assert gradient_ratio(0.5 * both, both) == pytest.approx(0.5, rel=1e-5)


def test_block_means_are_compared_with_what_was_measured():
    fine = image(0, side=32)
    coarse = torch.nn.functional.avg_pool2d(fine[None], 4)[0]
    assert block_mean_r2(fine, coarse) == pytest.approx(1.0)
    assert block_mean_r2(fine + 0.1, coarse) < 0


def test_spearman_sees_order_only():
    x = image(0)
    assert spearman(x, x**3) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)


def test_coloured_noise_is_independent_by_band_and_pixel():
    noise = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert abs(band_correlation(noise)) < 0.05
    assert abs(neighbour_correlation(noise)) < 0.05
    assert band_correlation(noise[:1].expand(3, -1, -1)) == pytest.approx(1.0)
    smooth = torch.nn.functional.avg_pool2d(noise[None], 3, 1)[0]  # one pixel on, two thirds of a window are the same
    assert neighbour_correlation(smooth) == pytest.approx(2 / 3, abs=0.03)


def test_one_band_has_no_spectral_angle():
    assert math.isnan(sam(image(0, 1), image(1, 1)))


@given(SEEDS, st.floats(0.5, 2.0))
def test_relative_metrics_do_not_know_the_unit(seed, unit):
    x, truth = image(seed), image(seed + 1)
    for metric in (sre_db, r_squared, correlation, cosine, gradient_ratio, lambda a, b: ergas(a, b, 4), sam):
        assert metric(unit * x, unit * truth) == pytest.approx(metric(x, truth), rel=1e-4, abs=1e-4)


@given(SEEDS, st.floats(1.1, 4.0))
def test_more_of_the_same_error_is_worse(seed, factor):
    truth, error = image(seed), 0.05 * (image(seed + 1) - 0.31)
    less, more = truth + error, truth + factor * error
    for metric in (psnr, ssim, sre_db, r_squared, correlation, band_psnr):
        assert metric(more, truth) < metric(less, truth)
    for falling in (sam, lambda a, b: ergas(a, b, 4)):
        assert falling(more, truth) > falling(less, truth)


@given(SEEDS)
def test_turning_both_images_changes_nothing(seed):
    x, truth = image(seed), image(seed + 1)
    for metric in (psnr, ssim, sam, sre_db, r_squared, correlation, cosine, spearman):
        assert metric(x.rot90(1, (1, 2)), truth.rot90(1, (1, 2))) == pytest.approx(metric(x, truth), rel=1e-6)


def test_power_is_compared_ring_by_ring():
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(4))
    smooth = (noise[..., :-1, :] + noise[..., 1:, :]) / 2
    rings = [(8.0, 5.0), (2.5, 2.0)]
    assert [power_ratio_db(2 * noise, noise, ring) for ring in rings] == pytest.approx([20 * math.log10(2)] * 2)
    coarse, fine = (power_ratio_db(smooth, noise[..., 1:, :], ring) for ring in rings)
    assert fine < coarse - 2 < 0
    assert math.isnan(power_ratio_db(noise[..., :2, :2], noise[..., :2, :2], (8.0, 5.0)))


def test_spectral_rmse_is_the_mean_length_of_the_error_per_band_in_percent():
    truth = torch.zeros(4, 1, 2)
    x = torch.tensor([[[0.1, 0.0]]]).repeat(4, 1, 1)
    x[0, 0, 1] = 0.2
    assert spectral_rmse(x, truth) == pytest.approx(100 * (0.1 + 0.2 / 2) / 2)
