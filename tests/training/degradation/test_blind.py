"""DiffFuSR's degradations: kernels, noise, views, the sensor's blur, and each published departure."""

import math

import pytest
import torch
from torch.nn import functional

from pipeline.errors import UsageError
from training.degradation.blind import (
    BlindRange,
    degrade_blind,
    draw_kernels,
    draw_noise,
    eight_bit,
    range_of,
    sensor_kernels,
)
from training.degradation.published import SWITCHES, AsPublished
from training.degradation.sensor import MTF_NYQUIST, sensor_sigma_px

RGB = ("B04", "B03", "B02")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(kernels):
    """Standard deviations along both principal axes (B, 2), ascending, and the angle of the longer one in [0, pi)."""
    r = torch.arange(kernels.shape[-1], dtype=torch.float64) - (kernels.shape[-1] - 1) / 2
    k = kernels.double()
    xx, yy = (k.sum(1) * r**2).sum(1), (k.sum(2) * r**2).sum(1)
    xy = torch.einsum("byx,y,x->b", k, r, r)
    covariance = torch.stack([torch.stack([xx, xy], 1), torch.stack([xy, yy], 1)], 1)
    values, vectors = torch.linalg.eigh(covariance)
    angle = torch.atan2(vectors[:, 1, 1], vectors[:, 0, 1]) % math.pi
    return values.clamp_min(0).sqrt(), angle


def test_kernels_are_gaussians_of_21_taps_that_sum_to_one():
    kernels = draw_kernels(64, BlindRange(), seeded())
    assert kernels.shape == (64, 21, 21)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(64))


def test_eigenvalues_are_standard_deviations():
    within = BlindRange(axes_px=(1.5, 1.5001), anisotropic=1.0)
    widths, _ = moments(draw_kernels(8, within, seeded()))
    torch.testing.assert_close(widths, torch.full((8, 2), 1.5, dtype=torch.float64), atol=2e-3, rtol=0)


def test_angles_cover_the_half_circle_unless_as_published():
    narrow = BlindRange(axes_px=(0.5, 3.0), anisotropic=1.0)
    widths, angle = moments(draw_kernels(400, narrow, seeded()))
    told = angle[widths[:, 1] > 1.5 * widths[:, 0]]
    assert torch.histc(told, 6, 0, math.pi).min() > 0.5 * len(told) / 6
    published = range_of(AsPublished(angle=True))
    assert published.angle_rad == (0.0, pytest.approx(math.radians(1)))
    widths, angle = moments(draw_kernels(100, published, seeded()))
    told = angle[widths[:, 1] > 1.5 * widths[:, 0]] % (math.pi / 2)
    assert torch.minimum(told, math.pi / 2 - told).max() < math.radians(1.5)


def test_half_the_kernels_are_round_unless_as_published():
    widths, _ = moments(draw_kernels(400, BlindRange(), seeded()))
    round_ones = (widths[:, 1] - widths[:, 0]) < 1e-3
    assert float(round_ones.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert widths[round_ones].min() > 1.9
    assert range_of(AsPublished(anisotropic=True)).anisotropic == 1.0


def test_noise_is_log_uniform_unless_as_published():
    sd = draw_noise(4000, BlindRange(), seeded())
    assert (float(sd.min()) >= 5e-4, float(sd.max()) <= 1e-2) == (True, True)
    assert float(sd.log().mean()) == pytest.approx(math.log(math.sqrt(5e-4 * 1e-2)), abs=0.05)
    wild = draw_noise(4000, range_of(AsPublished(noise=True)), seeded())
    assert float(wild.mean()) == pytest.approx(12.5 / 255, rel=0.05)
    assert float(wild.max()) < 25 / 255


def test_decimation_is_antialiased_bicubic_after_a_narrow_blur():
    image = torch.rand(2, 3, 64, 64, generator=seeded())
    within = BlindRange(isotropic_px=(0.05, 0.05), anisotropic=0.0, noise=(1e-9, 1e-9))
    theirs = functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    mine = degrade_blind(image, within, seeded())
    torch.testing.assert_close(mine[..., 3:-3, 3:-3], theirs[..., 3:-3, 3:-3], atol=2e-3, rtol=0)


def test_views_share_kernel_and_noise_level_but_not_the_noise():
    image = torch.rand(3, 3, 64, 64, generator=seeded())
    quiet = BlindRange(noise=(1e-9, 1e-9))
    pairs = degrade_blind(image.repeat_interleave(2, 0), quiet, seeded(), views=2)
    torch.testing.assert_close(pairs[0::2], pairs[1::2], atol=1e-6, rtol=0)
    assert not torch.allclose(pairs[0], degrade_blind(image, quiet, seeded(1))[0], atol=1e-3)
    flat = torch.full((128, 1, 256, 256), 0.1)
    loud = degrade_blind(flat, BlindRange(), seeded(), views=2) - 0.1
    sd = loud.std((1, 2, 3))
    torch.testing.assert_close(sd[0::2], sd[1::2], rtol=0.1, atol=0)
    assert float(sd.max() / sd.min()) > 5
    assert not torch.equal(loud[0], loud[1])


def test_chance_comes_from_the_generator_alone():
    image = torch.rand(2, 3, 64, 64, generator=seeded())
    before = torch.get_rng_state()
    assert torch.equal(degrade_blind(image, BlindRange(), seeded(5)), degrade_blind(image, BlindRange(), seeded(5)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_the_sensor_blur_has_the_mtf_of_its_band_at_nyquist(scale):
    bands = tuple(MTF_NYQUIST)
    kernels = sensor_kernels(bands, scale).double()
    r = torch.arange(kernels.shape[-1], dtype=torch.float64) - (kernels.shape[-1] - 1) / 2
    wave = torch.cos(2 * math.pi * r / (2 * scale))
    transfer = torch.einsum("byx,x->b", kernels, wave)
    torch.testing.assert_close(
        transfer, torch.tensor(list(MTF_NYQUIST.values()), dtype=torch.float64), atol=5e-4, rtol=0
    )


def test_the_sensor_blur_of_red_is_that_of_the_formula():
    assert sensor_sigma_px("B04", 4) == pytest.approx(2.1511, abs=1e-4)


def test_the_sensor_blur_does_not_shift_and_differs_by_band():
    columns = torch.arange(96.0).expand(1, 3, 96, 96)
    quiet = BlindRange(noise=(1e-9, 1e-9))
    coarse = degrade_blind(columns, quiet, seeded(), sensor=RGB)
    torch.testing.assert_close(coarse[0, 1, 12, 6:-6], (torch.arange(24) * 4 + 1.5)[6:-6], atol=1e-3, rtol=0)
    noise = torch.rand(1, 1, 96, 96, generator=seeded()).expand(1, 3, 96, 96)
    spread = degrade_blind(noise, quiet, seeded(), sensor=RGB).std((2, 3))[0]
    assert spread[1] > spread[2] > spread[0]  # B03 is the sharpest, B04 the softest


def test_eight_bits_are_steps_of_a_255th():
    values = torch.tensor([-0.1, 0.0, 0.9999 / 255, 1.6 / 255, 2.0, 1.0])
    assert (eight_bit(values) * 255).tolist() == pytest.approx([0, 0, 0, 1, 255, 255])
    assert (eight_bit(values, rounded=True) * 255).tolist() == pytest.approx([0, 0, 1, 2, 255, 255])


def test_switches_are_off_by_default_and_known_by_name():
    assert AsPublished.of([]) == AsPublished()
    assert range_of(AsPublished()) == BlindRange()
    assert AsPublished.of(["noise", "squared"]) == AsPublished(noise=True, squared=True)
    assert all(getattr(AsPublished.of(SWITCHES), name) for name in SWITCHES)
    with pytest.raises(UsageError, match="angel"):
        AsPublished.of(["angel"])
