"""What repeats in every coarse pixel goes; detail, means and what lies beside edges stay."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.phase_pattern import phase_pattern, without_phase_pattern

SCALE = 4


def mesh(height: int, width: int, amplitude: float = 3e-4) -> torch.Tensor:
    """A pattern of 4 x 4 px with mean 0, tiled: (1, 1, height, width)."""
    tile = torch.randn(1, 1, SCALE, SCALE, generator=torch.Generator().manual_seed(1))
    tile = amplitude * (tile - tile.mean()) / tile.std()
    return tile.repeat(1, 1, height // SCALE, width // SCALE)


def ground(height: int, width: int, deviation: float) -> torch.Tensor:
    """Uneven ground of mean 0.1 without a pattern."""
    noise = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(2))
    return 0.1 + deviation * noise


def pattern_of(image: torch.Tensor) -> torch.Tensor:
    """The pattern of an image over ground of 0.1."""
    return phase_pattern(image - 0.1, SCALE)


def without(image: torch.Tensor) -> torch.Tensor:
    """The image without it."""
    return without_phase_pattern(image, torch.full_like(image, 0.1), SCALE)


def by_phase(image: torch.Tensor) -> torch.Tensor:
    """Mean over coarse pixels by phase, less the mean of all: (16,)."""
    phases = torch.nn.functional.pixel_unshuffle(image, SCALE).mean((0, 2, 3))
    return phases - phases.mean()


def test_a_repeated_pattern_goes():
    image = ground(160, 160, 2e-4) + mesh(160, 160)
    before, after = by_phase(image).square().mean().sqrt(), by_phase(without(image))
    assert after.square().mean().sqrt() < 0.03 * before


def test_a_pattern_that_changes_over_the_ground_goes_too():
    share = torch.linspace(-1, 1, 320)[None, None, None]
    image = ground(160, 320, 1e-4) + share * mesh(160, 320)
    for half in without(image).split(160, dim=3):
        assert by_phase(half).square().mean().sqrt() < 0.1 * 1.5e-4


def test_detail_of_the_ground_stays():
    image = ground(160, 160, 0.01)
    lost = (without(image) - image).square().mean().sqrt()
    assert lost < 0.12 * 0.01


def test_bright_roofs_leave_no_trace_in_a_field():
    image = ground(160, 160, 1e-5)
    image[..., 80:, :] += 0.2 * torch.rand(1, 1, 80, 160, generator=torch.Generator().manual_seed(3))
    assert pattern_of(image)[..., :68, :].abs().max() < 1e-5


def test_means_of_coarse_pixels_stay():
    image = ground(96, 96, 0.02) + mesh(96, 96)
    means = [torch.nn.functional.avg_pool2d(of, SCALE) for of in (image, without(image))]
    torch.testing.assert_close(*means, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 4), (20, 12), (100, 148)])
def test_any_whole_number_of_coarse_pixels_will_do(shape: tuple[int, int]):
    image = ground(*shape, 1e-3)
    assert pattern_of(image).shape == image.shape


def test_flat_ground_has_none():
    assert phase_pattern(torch.full((2, 3, 48, 48), 0.3), SCALE).abs().max() < 1e-7
