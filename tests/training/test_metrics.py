"""Metrics on cases whose answers are known by hand; baselines on images that they must restore exactly."""

import math

import numpy as np
import pytest
import torch

from training import baselines
from training.degrade import Degradation, degrade
from training.metrics import ergas, psnr, sam, ssim, trimmed


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


def scene(side=64, seed=0):
    """A smooth random image (1, 3, side, side) with detail at every scale."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.nn.functional.interpolate(torch.rand(1, 3, n, n, generator=generator), size=(side, side), mode="bilinear")
        for n in (4, 16, side)
    ]
    return 0.1 * (parts[0] + parts[1] + 0.5 * parts[2])


def test_back_projection_agrees_with_the_sensor_it_assumes():
    lr = baselines.box(scene())
    before = (baselines.box(baselines.bicubic(lr)) - lr).abs().mean()
    after = (baselines.box(baselines.ibp(lr)) - lr).abs().mean()
    assert after < before / 50


def test_back_projection_with_the_true_kernel_is_better():
    hr = scene(128)
    how = Degradation(noise=0.0)
    lr = degrade(hr, how)
    box_kernel, true_kernel = baselines.ibp(lr), baselines.ibp(lr, down=lambda x: degrade(x, how))
    assert psnr(true_kernel, hr) > psnr(box_kernel, hr)


def test_regression_finds_the_slopes():
    guides = torch.tensor(np.random.default_rng(0).uniform(size=(3, 20, 20)), dtype=torch.float32)
    slopes = torch.tensor([[0.5, 0.0, 0.2], [-0.3, 1.0, 0.1]])
    targets = torch.einsum("ck,khw->chw", slopes, guides) + 0.7
    torch.testing.assert_close(baselines.regress(targets, guides), slopes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [baselines.gsa, baselines.atprk_like])
def test_sharpening_restores_bands_that_are_sums_of_guides(method):
    guides = scene(48)[0]
    truth = 0.6 * guides[:1] + 0.2 * guides[2:] + 0.05
    coarse = baselines.box(truth[None], 2)[0]
    error = (method(coarse, guides, 2) - truth).abs().mean()
    assert error < 0.1 * (baselines.bicubic(coarse[None], 2)[0] - truth).abs().mean()


def test_atprk_keeps_block_means_nearly():
    guides = scene(48)[0]
    coarse = baselines.box(scene(48, seed=5), 2)[0]
    back = baselines.box(baselines.atprk_like(coarse, guides, 2)[None], 2)[0]
    torch.testing.assert_close(back, coarse, atol=1e-4, rtol=0)
