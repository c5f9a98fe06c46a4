"""Classical methods on images that they must restore exactly."""

import numpy as np
import pytest
import torch

from training.degradation.degrade import Degradation, degrade
from training.quality import baselines
from training.quality.metrics import psnr


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


@pytest.mark.parametrize("method", [baselines.gsa, baselines.atprk_like, baselines.glp_hpm])
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


def test_gram_schmidt_restores_a_band_with_the_guides_detail():
    guides = scene(48)[0]
    truth = 0.5 * guides.mean(0, keepdim=True) + 0.05
    coarse = baselines.box(truth[None], 2)[0]
    plain = (baselines.bicubic(coarse[None], 2)[0] - truth).abs().mean()
    assert (baselines.gram_schmidt(coarse, guides, 2) - truth).abs().mean() < 0.5 * plain
    assert (baselines.gram_schmidt_as_published(coarse, guides, 2) - truth).abs().mean() > plain


def test_published_gram_schmidt_takes_level_for_detail():
    guides = scene(48)[0]
    coarse = baselines.box(guides[None], 2)[0]
    levels = [
        method(coarse + 0.2, guides, 2).mean() - (coarse.mean() + 0.2)
        for method in (baselines.gram_schmidt, baselines.gram_schmidt_as_published)
    ]
    assert float(levels[0]) == pytest.approx(0.0, abs=2e-3)
    assert float(levels[1]) == pytest.approx(-0.2, abs=0.01)


def test_gram_schmidt_as_published_looks_at_red_green_blue_only():
    guides = scene(48)[0]
    more = torch.cat([guides, 5 * guides[:1]])
    coarse = baselines.box(guides[None], 2)[0]
    both = [baselines.gram_schmidt_as_published(coarse, g, 2) for g in (guides, more)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("name", baselines.SHARPENERS)
def test_flat_bands_stay_flat_and_finite(name):
    guides = scene(48)[0]
    out = baselines.SHARPENERS[name](torch.full((2, 24, 24), 0.3), guides, 2)
    assert out.shape == (2, 48, 48)
    torch.testing.assert_close(out, torch.full_like(out, 0.3), atol=1e-4, rtol=0)
