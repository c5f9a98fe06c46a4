"""Block means after projection, whatever the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.superres.consistency import (
    approach,
    back_project,
    bicubic_up,
    block_mean,
    project_to_dn,
    round_to_dn,
    tent_mean,
)


def block_means(dn, factor):
    ny, nx = dn.shape[0] // factor, dn.shape[1] // factor
    return dn.astype(np.float64).reshape(ny, factor, nx, factor).mean((1, 3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 24]), st.sampled_from([0.0, 3.0, 300.0, 30000.0]))
def test_every_block_mean_is_the_input_exactly(seed, factor, contrast):
    rng = np.random.default_rng(seed)
    native = rng.choice([0, 1, 2, 1500, 4000, 65534, 65535], (5, 3)).astype(np.uint16)
    image = (
        native.repeat(factor, 0).repeat(factor, 1) + rng.normal(40, 1 + contrast, (5 * factor, 3 * factor))
    ).astype(np.float32)
    dn = project_to_dn(image, native, factor)
    assert np.abs(block_means(dn, factor) - native).max() == 0
    valid = native.repeat(factor, 0).repeat(factor, 1) > 0
    assert ((dn > 0) == valid).all()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([4, 8, 24]),
    st.sampled_from([(1, 2, 3), (2, 3, 4, 5), (65534,), (65533, 65535), (65531, 65532), (1, 65535)]),
    st.sampled_from([0.5, 1.0, 2.0, 200.0, 1e6]),
)
def test_block_means_are_exact_near_both_ends_of_the_range(seed, factor, ends, contrast):
    """Noise, and two values half a DN to 2 DN apart, whose sums meet the rounding at its ties."""
    rng = np.random.default_rng(seed)
    native = rng.choice(ends, (8, 8)).astype(np.uint16)
    flat = native.repeat(factor, 0).repeat(factor, 1).astype(np.float32)
    for detail in (rng.normal(0, contrast, flat.shape), contrast * rng.choice([-1.0, 1.0], flat.shape)):
        dn = project_to_dn((flat + detail).astype(np.float32), native, factor)
        assert np.array_equal(block_means(dn, factor), native)
        assert dn.min() >= 1


def test_rounding_beyond_the_range_is_given_back_by_others():
    """Unit noise around 65534: every one of these images came out a sixteenth of a DN too low somewhere."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        native = np.full((20, 20), 65534, np.uint16)
        image = (65534 + rng.normal(0, 1, (80, 80))).astype(np.float32)
        assert np.array_equal(block_means(project_to_dn(image, native, 4), 4), native), seed


def test_projection_keeps_detail_within_one_dn():
    rng = np.random.default_rng(1)
    native = np.full((6, 6), 3000, np.uint16)
    image = (3000 + rng.normal(0, 50, (24, 24))).astype(np.float32)
    dn = project_to_dn(image, native, 4).astype(float)
    shift = 3000 - block_means(image, 4)
    assert np.abs(dn - (image + shift.repeat(4, 0).repeat(4, 1))).max() < 1.0


def test_an_image_that_already_fits_is_only_rounded():
    native = np.array([[1000, 2000]], np.uint16)
    image = native.repeat(4, 0).repeat(4, 1).astype(np.float32)
    assert np.array_equal(project_to_dn(image, native, 4), image)


@pytest.mark.parametrize("factor", [4, 8, 24])
def test_back_projection_converges_on_box_and_tent(factor):
    rng = torch.Generator().manual_seed(0)
    native = torch.rand((1, 2, 8, 8), generator=rng)
    image = bicubic_up(native, factor) * 0.9 + 0.02
    for name, down in (("box", block_mean), ("tent", tent_mean)):
        errors = [
            (down(back_project(image, native, factor, kernel=name, rounds=n), factor) - native).abs().mean()
            for n in (0, 1, 3, 6)
        ]
        assert errors[0] > errors[1] > errors[2] > errors[3]


@pytest.mark.parametrize("factor", [4, 8, 24])
def test_rounds_of_the_tent_leave_little_unrelated_detail(factor):
    """Worst case: white noise against white noise. There is no exact step after it, as there is for the box."""
    rng = torch.Generator().manual_seed(0)
    native = 0.5 * torch.rand((1, 1, 20, 20), generator=rng)
    image = 0.5 * torch.rand((1, 1, 20 * factor, 20 * factor), generator=rng)
    before = (tent_mean(image, factor) - native).abs().mean()
    once = approach(image, native, factor, "tent")
    assert (tent_mean(once, factor) - native).abs().mean() < before / 10
    often = back_project(image, native, factor, kernel="tent", rounds=40)
    assert (tent_mean(often, factor) - native).abs().mean() < before / 1000


def test_no_consistency_changes_nothing():
    image = torch.rand((1, 1, 8, 8))
    assert approach(image, torch.zeros((1, 1, 2, 2)), 4, "none") is image


def test_bicubic_does_not_shift():
    """A linear ramp of pixel centres stays that ramp: 0.01 of a fine pixel, away from the border."""
    coarse = torch.arange(16.0).reshape(1, 1, 1, 16).expand(1, 1, 16, 16)
    fine = bicubic_up(coarse, 4)[0, 0, 32]
    expected = (torch.arange(64) + 0.5) / 4 - 0.5
    assert (fine - expected)[12:-12].abs().max() < 0.01 / 4


def test_detail_beside_a_bright_edge_stays_positive():
    """Ringing of 600 DN around a measured reflectance of 0.009; dark pixels measured below 0 keep their value."""
    native = np.array([[1090, 3000, 960]], np.uint16)
    ringing = 600 * np.sin(np.arange(12) * np.pi / 2).astype(np.float32)
    dn = project_to_dn(native.repeat(4, 0).repeat(4, 1) + ringing[None, :], native, 4)
    assert np.array_equal(block_means(dn, 4), native)
    assert 949 <= dn[:, :4].min() <= 951
    assert dn[:, 4:8].min() == 2400
    assert 909 <= dn[:, 8:].min() <= 911


def test_rounding_keeps_nodata_and_range():
    native = np.array([[0, 5]], np.uint16)
    dn = round_to_dn(np.array([[-9.0, -9, -9, -9, -4.0, 0, 5.4, 99999]] * 4, np.float32), native, 4)
    assert dn[0].tolist() == [0, 0, 0, 0, 1, 1, 5, 65535]
