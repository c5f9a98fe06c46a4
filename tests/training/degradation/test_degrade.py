"""Degradation: where pixels end up, what the kernels are, what chance may change."""

import pytest
import torch
from torch.nn import functional

from training.degradation.degrade import (
    Degradation,
    DegradationRange,
    apply_kernels,
    compose,
    decimation_taps,
    degrade,
    degrade_randomly,
    gaussian,
)

WITHIN = DegradationRange(sigma_px=(1.7, 2.9), anisotropic=0.2, bicubic=0.3, noise=(4e-4, 2e-3))


@pytest.mark.parametrize("decimator", ["box", "bicubic"])
def test_no_shift(decimator):
    """On an image whose values are its columns, coarse pixels carry the columns of their centres."""
    columns = torch.arange(96.0).expand(1, 1, 96, 96)
    coarse = degrade(columns, Degradation(decimator=decimator))
    inner = slice(6, -6)
    torch.testing.assert_close(coarse[0, 0, 12, inner], (torch.arange(24) * 4 + 1.5)[inner], atol=1e-3, rtol=0)


def test_a_narrow_blur_leaves_the_block_mean():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(degrade(image, Degradation(sigma_px=0.05)), functional.avg_pool2d(image, 4))


def test_cubic_taps_are_those_of_antialiased_bicubic():
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    mine = degrade(image, Degradation(sigma_px=0.05, decimator="bicubic"))
    theirs = functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    torch.testing.assert_close(mine[..., 3:-3, 3:-3], theirs[..., 3:-3, 3:-3], atol=2e-3, rtol=0)
    assert decimation_taps(4, "bicubic").sum() == pytest.approx(1)


def test_gaussian_has_its_widths_along_its_axes():
    kernel = gaussian(torch.tensor([3.0]), torch.tensor([1.5]), torch.tensor([torch.pi / 2]), taps=41)[0]
    r = torch.arange(41.0) - 20
    spread_y, spread_x = (kernel.sum(1) * r**2).sum().sqrt(), (kernel.sum(0) * r**2).sum().sqrt()
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert (float(spread_y), float(spread_x)) == pytest.approx((3.0, 1.5), abs=0.02)


def test_every_image_gets_its_own_kernel():
    image = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    sigma = torch.tensor([1.0, 3.0])
    kernels = compose(gaussian(sigma, sigma, torch.zeros(2)), 4, "box")
    together = apply_kernels(image, kernels, 4)
    for index in range(2):
        alone = apply_kernels(image[index : index + 1], kernels[index : index + 1], 4)
        torch.testing.assert_close(together[index : index + 1], alone)
    assert together[0].var() > together[1].var()


def test_chance_comes_from_the_generator_alone():
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one = degrade_randomly(image, WITHIN, torch.Generator().manual_seed(5))
    two = degrade_randomly(image, WITHIN, torch.Generator().manual_seed(5))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_has_the_stated_spread():
    flat = torch.full((1, 3, 256, 256), 0.1)
    noisy = degrade(flat, Degradation(noise=1e-3), torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(1e-3, rel=0.05)
    assert torch.allclose(degrade(flat, Degradation(noise=1e-3)), torch.tensor(0.1))
