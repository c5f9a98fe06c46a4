"""Haar wavelets and the projections onto block means, in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.models.wavelet import (
    consistent,
    from_details,
    haar,
    inverse_haar,
    low_pass,
    noised,
    not_below_zero,
    padded_to_multiple,
    projected,
    replicated,
    twice,
)

SIDES = st.integers(1, 13)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(SIDES, SIDES)
def test_images_of_any_sides_come_back(height, width):
    image = normal(2, 3, height, width)
    bands = haar(image)
    assert bands.A.shape == (2, 3, -(-height // 2), -(-width // 2))
    torch.testing.assert_close(inverse_haar(bands, (height, width)), image)
    if height % 2 == width % 2 == 0:
        torch.testing.assert_close(from_details(bands.A, bands.details()), image)
        energy = sum(band.square().sum() for band in bands)
        torch.testing.assert_close(energy, image.square().sum())


def test_signs_and_order_of_the_bands():
    a, b, c, d = 8.0, 4.0, 2.0, 1.0
    bands = haar(torch.tensor([[[[a, b], [c, d]]]]))
    assert [band.item() for band in bands] == [7.5, 4.5, 2.5, 1.5]
    assert bands._fields == ("A", "H", "V", "D")
    assert bands.details().flatten().tolist() == [2.5, 4.5, 1.5]


def test_the_low_band_is_twice_the_block_mean():
    image = normal(1, 2, 6, 10)
    torch.testing.assert_close(haar(image).A, 2 * functional.avg_pool2d(image, 2))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    bands = haar(ramp)
    assert (bands.V == -1).all()
    assert (bands.H == 0).all()
    assert (bands.D == 0).all()


def test_an_odd_side_repeats_its_last_pixels():
    image = normal(1, 1, 3, 5)
    padded = torch.cat((image, image[..., -1:, :]), -2)
    padded = torch.cat((padded, padded[..., -1:]), -1)
    assert torch.equal(padded_to_multiple(image, 2), padded)
    assert torch.equal(haar(image).D, haar(padded).D)
    assert padded_to_multiple(padded, 2) is padded


@given(SIDES, SIDES, st.sampled_from([1, 2, 3, 4, 8]))
def test_the_low_pass_is_an_orthogonal_projector(height, width, block_px):
    image, other = normal(1, 2, height, width), normal(1, 2, height, width, seed=1)
    once = low_pass(image, block_px)
    torch.testing.assert_close(low_pass(once, block_px), once)
    torch.testing.assert_close((once * other).sum(), (image * low_pass(other, block_px)).sum())
    assert (low_pass(torch.full_like(image, 3.0), block_px) == 3).all()


@pytest.mark.parametrize("block_px", [1, 2, 4])
def test_projection_takes_the_low_pass_of_the_target_and_keeps_the_rest(block_px):
    image, target = normal(1, 2, 8, 12), normal(1, 2, 8, 12, seed=1)
    found = projected(image, target, block_px)
    torch.testing.assert_close(low_pass(found, block_px), low_pass(target, block_px))
    torch.testing.assert_close(found - low_pass(found, block_px), image - low_pass(image, block_px))
    assert projected(image, target, 0) is image
    assert torch.equal(projected(image, target, 1), target)


def test_noise_keeps_unit_variance():
    image, noise = normal(1, 1, 64, 64), normal(1, 1, 64, 64, seed=1)
    assert noised(image, 0.25, noise).var() == pytest.approx(1, abs=0.05)
    assert torch.equal(noised(image, 1.0, noise), image)
    assert torch.equal(noised(image, 0.0, noise), noise)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_fine_image_made_consistent(times):
    coarse, fine = normal(2, 3, 5, 4), normal(2, 3, 5 * times, 4 * times, seed=1)
    found = consistent(fine, coarse)
    torch.testing.assert_close(functional.avg_pool2d(found, times), coarse)
    torch.testing.assert_close(consistent(found, coarse), found)
    if times == 2:
        torch.testing.assert_close(found, from_details(2 * coarse, haar(fine).details()))
    if times == 4:
        low = from_details(4 * coarse, haar(haar(fine).A).details())
        torch.testing.assert_close(found, from_details(low, haar(fine).details()))


def test_a_fine_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="whole multiple"):
        consistent(normal(1, 1, 8, 9), normal(1, 1, 4, 4))


def test_the_detail_of_a_block_ends_at_zero():
    dark, bright, negative = [[-2.0, 2.0], [4.0, 4.0]], [[0.0, 2.0], [4.0, 9.0]], [[-3.0, 1.0], [-1.0, -1.0]]
    black = [[-1.0, 1.0], [2.0, -2.0]]
    fine, means = torch.tensor([dark, bright, negative, black]), torch.tensor([2.0, 3.75, -1.0, 0.0])[:, None, None]
    halved, flat = [[0.0, 2.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]
    expected = torch.tensor([halved, bright, negative, flat])
    assert torch.equal(not_below_zero(fine, means), expected)
    side_by_side = torch.cat(tuple(fine), -1), torch.cat(tuple(means), -1)
    assert torch.equal(not_below_zero(*side_by_side), torch.cat(tuple(expected), -1))


@pytest.mark.parametrize("times", [2, 4])
def test_no_pixel_is_below_zero_unless_its_block_is(times):
    means = normal(2, 3, 24 // times, 16 // times, seed=1)
    fine, whole = consistent(2 * replicated(means, times) + normal(2, 3, 24, 16), means), replicated(means, times)
    found = not_below_zero(fine, means)
    torch.testing.assert_close(functional.avg_pool2d(found, times), means)
    assert (found[whole >= 0] >= 0).all()
    # A block that had no such pixel is as it was, bit by bit; others keep the order of their pixels.
    lowest = replicated(-functional.max_pool2d(-fine, times), times)
    kept = (lowest >= 0) | (whole < 0)
    assert all(of.any() for of in (lowest >= 0, whole < 0, ~kept))
    assert torch.equal(found[kept], fine[kept])
    assert ((found - whole) * (fine - whole) >= 0).all()
    assert (found[~kept] != fine[~kept]).any()


def test_interpolation_keeps_constants_and_centres():
    assert (twice(torch.full((1, 1, 3, 3), 2.0)) == 2).all()
    image = normal(1, 1, 6, 7)
    torch.testing.assert_close(twice(image.flip(-1, -2)), twice(image).flip(-1, -2))
    # Keys' kernel with a = -0.75 at distances 1.25, 0.25, 0.75 and 1.75
    weights = torch.tensor([-0.1054687, 0.8789062, 0.2617188, -0.0351562], dtype=torch.float64)
    row = normal(1, 1, 1, 4, seed=1)
    torch.testing.assert_close(twice(row.expand(1, 1, 4, 4))[0, 0, 4, 3], row.flatten() @ weights, atol=1e-6, rtol=0)
