"""Shifts between sharp and coarse images: found to a hundredth of a coarse pixel, or said to be unknown."""

import numpy as np
import pytest

from tests.training.pairs_for_tests import GAINS, OFFSETS, ground, seen
from training.data.registration import NOTHING, register

SHIFTS = [(0.0, 0.0), (0.4, 0.0), (0.4, -0.4), (0.13, 0.77), (-1.6, 2.3)]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_and_radiometry_are_found(shift, scale):
    sharp = ground(1, 48 * scale)
    found = register(sharp, seen(sharp, shift, scale), scale)
    assert found.fault == ""
    np.testing.assert_allclose(found.shift_px, shift, atol=0.02)
    np.testing.assert_allclose(found.gains, GAINS[:3], rtol=0.02)
    np.testing.assert_allclose(found.offsets, OFFSETS[:3], atol=0.005)
    assert found.deviation_px < 0.02
    assert found.correlation > 0.98


def test_what_changed_in_between_counts_little():
    """A fifth of the ground was built over, and a cloud came in."""
    sharp = ground(2)
    coarse = seen(sharp, (0.4, -0.3))
    coarse[:, 10:40, 20:45] = 1.4 * coarse[:, 10:40, 20:45][:, ::-1]
    coarse[:, 55:75, 50:70] = 0.9
    found = register(sharp, coarse, 4)
    assert found.fault == ""
    np.testing.assert_allclose(found.shift_px, (0.4, -0.3), atol=0.05)
    np.testing.assert_allclose(found.gains, GAINS[:3], rtol=0.05)
    assert 0.6 < found.alike < 0.85


def test_nodata_of_either_image_is_left_out():
    sharp = ground(3)
    coarse = seen(sharp, (0.4, 0.2))
    coarse[:, :, :15] = np.nan
    sharp[0, :90] = np.nan
    found = register(sharp, coarse, 4)
    np.testing.assert_allclose(found.shift_px, (0.4, 0.2), atol=0.02)


def other_ground():
    return ground(5), seen(ground(4), (0.0, 0.0))


def far_apart():
    return ground(5), seen(ground(5), (0.0, 5.0))


def flat():
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, 3, 320, 320)).astype(np.float32)
    return 0.2 + noise[0], 0.2 + noise[1, :, :80, :80]


def mostly_changed():
    sharp = ground(6)
    coarse = seen(sharp, (0.0, 0.0))
    coarse[:, :60] = seen(ground(7), (0.0, 0.0))[:, :60]
    return sharp, coarse


@pytest.mark.parametrize("make", [other_ground, far_apart, flat, mostly_changed])
def test_what_cannot_be_registered_is_refused(make):
    assert register(*make(), 4).fault != ""


def test_images_without_common_pixels_have_no_registration():
    sharp = ground(8)
    coarse = seen(sharp, (0.0, 0.0))
    assert register(np.full_like(sharp, np.nan), coarse, 4) == NOTHING
    assert register(sharp, np.full_like(coarse, np.nan), 4) == NOTHING
    assert register(sharp[:, :40, :40], coarse[:, :10, :10], 4) == NOTHING
    assert NOTHING.fault != ""
