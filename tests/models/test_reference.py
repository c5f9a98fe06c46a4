"""A reference takes the image's radiometry, whatever its unit, and counts only where it shows the same ground."""

import pytest
import torch
from torch.nn import functional

from pipeline.models.reference import RADIUS_PX, fitted
from pipeline.models.wavelet import block_means, twice

SIDE = 48  # px of the image


def ground(seed=0, height=2 * SIDE, width=2 * SIDE):
    """Reflectance (1, 3, H, W) with structure at many scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for cell in (1, 2, 4, 8, 16):
        size = (-(-height // cell), -(-width // cell))
        field = torch.randn(1, 3, *size, generator=generator)
        total += cell**0.5 * functional.interpolate(field, size=(height, width), mode="bilinear", align_corners=False)
    return 0.2 + 0.02 * total


def inner(image):
    border = 2 * RADIUS_PX
    return image[..., border:-border, border:-border]


@pytest.mark.parametrize("of", [lambda x: x, lambda x: 40 + 400 * x, lambda x: 1e4 * x, lambda x: 0.02 + 0.3 * x])
def test_any_unit_becomes_the_images(of):
    truth = ground()
    found = fitted(of(truth), block_means(truth, 2))
    assert bool(inner(found).isfinite().all())
    torch.testing.assert_close(inner(found), inner(truth), rtol=0, atol=2e-3)


def test_another_light_keeps_most_of_its_detail():
    truth = ground()
    image = block_means(truth, 2)
    found = fitted(truth.clamp_min(0.01) ** 0.7, image)
    error = inner(found - truth).square().mean().sqrt()
    assert error < 0.3 * inner(twice(image) - truth).square().mean().sqrt()


def test_other_ground_is_left_out():
    image = block_means(ground(0), 2)
    found = fitted(ground(1), image)
    used = inner(found).isfinite()
    assert float(used.float().mean()) < 0.05
    changed = torch.where(used, inner(found - twice(image)), 0.0).square().mean().sqrt()
    assert changed < 0.1 * inner(ground(1) - twice(image)).square().mean().sqrt()


def test_changed_ground_is_left_out_where_it_changed():
    truth, other = ground(0), ground(1)
    seen = truth.clone()
    seen[..., :SIDE] = other[..., :SIDE]
    found = fitted(seen, block_means(truth, 2))
    assert float(found[..., 16 : SIDE - 20].isfinite().float().mean()) < 0.1
    assert bool(found[..., SIDE + 20 : -16].isfinite().all())


def test_unknown_and_flat_ground_stay_unknown():
    truth = ground()
    image = block_means(truth, 2)
    holed = truth.clone()
    holed[..., 20:30, 40:60] = torch.nan
    found = fitted(holed, image)
    assert bool(found[..., 20:30, 40:60].isnan().all())
    assert bool(found[..., 60:80, 20:80].isfinite().all())
    assert bool(fitted(torch.full_like(truth, 0.3), image).isnan().all())
    assert bool(fitted(torch.full_like(truth, torch.nan), image).isnan().all())


def test_pixels_do_not_depend_on_the_window():
    truth = ground(height=4 * SIDE)
    seen = truth.clamp_min(0.01) ** 0.8
    image = block_means(truth, 2)
    whole, part = fitted(seen, image), fitted(seen[..., SIDE:, :], image[..., SIDE // 2 :, :])
    margin = 4 * RADIUS_PX
    torch.testing.assert_close(part[..., margin:, :], whole[..., SIDE + margin :, :], equal_nan=True)
