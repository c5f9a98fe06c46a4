"""The ridge regression of the fusion: its solver against a library's, and its pivots where guides say nothing."""

import pytest
import torch

from pipeline.models.lite_fusion import local_fit, ridge_solved

RIDGE = 1e-6


def systems(k, c, size=12):
    """Positive semidefinite matrices of k guides (1, k, k, h, w), of varying rank, and right-hand sides."""
    generator = torch.Generator().manual_seed(k)
    samples = torch.randn((1, k, 9, size, size), generator=generator, dtype=torch.float64) * 0.05
    samples[..., : size // 3] = samples[:, :1, :, :, : size // 3]  # guides that are the same
    samples[..., -size // 3 :] = 0  # flat ground
    gg = torch.einsum("bknhw,blnhw->bklhw", samples, samples) / 9
    return gg, torch.randn((1, k, c, size, size), generator=generator, dtype=torch.float64) * 1e-3


@pytest.mark.parametrize("k", [1, 3, 4])
def test_it_solves_the_system(k):
    gg, gt = systems(k, 5)
    found = ridge_solved({(i, j): gg[:, i, j] for i in range(k) for j in range(i + 1)}, gt, RIDGE)
    eye = torch.eye(k, dtype=gg.dtype)[None, :, :, None, None]
    back = torch.einsum("bklhw,blchw->bkchw", gg + RIDGE * eye, found)
    assert torch.allclose(back, gt, rtol=0, atol=1e-9)
    moved = (gg + RIDGE * eye).permute(0, 3, 4, 1, 2)
    exact = torch.cholesky_solve(gt.permute(0, 3, 4, 1, 2), torch.linalg.cholesky(moved)).permute(0, 3, 4, 1, 2)
    assert torch.allclose(found, exact, rtol=1e-7, atol=1e-9)


def test_slopes_are_those_of_known_ground():
    """A band that is a weighted sum of its guides has the weights for slopes, but for the ridge."""
    guides = torch.rand((1, 3, 24, 24), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, -0.2, 0.9])
    band = (guides * weights[:, None, None]).sum(1, keepdim=True)
    slopes, _ = local_fit(band, guides, 7, RIDGE)
    assert slopes.dtype == torch.float32
    assert torch.allclose(slopes[0, :, 0], weights[:, None, None].expand(3, 24, 24), atol=1e-3)


def test_on_flat_ground_there_is_no_slope():
    slopes, spread = local_fit(torch.full((1, 2, 9, 9), 0.25), torch.full((1, 3, 9, 9), 0.5), 7, RIDGE)
    assert not slopes.any()
    assert not spread.any()
