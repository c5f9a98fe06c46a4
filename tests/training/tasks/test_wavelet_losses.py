"""The loss terms of the wavelet cascade: against reference vectors, closed forms, and the metric that they minimise."""

import pytest
import torch

from tests.models.wavelet_vectors import DTYPES, read
from training.quality.metrics import ssim
from training.tasks.wavelet_losses import (
    consistency,
    epsilon_error,
    realness,
    squared_error,
    structural_similarity,
    total_variation,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.shared_data
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_vectors(shared_data, dtype):
    vectors = read(shared_data, dtype)
    found, truth = vectors("loss_vhd_sr"), vectors("loss_vhd_hr")
    for key, value in {
        "loss_mse_mean": squared_error(found, truth),
        "loss_mse_sum": squared_error(found, truth) * found.numel(),
        "loss_tv_l1_mean": total_variation(found, power=1),
        "loss_tv_l2_mean": total_variation(found),
        "loss_realness_0p1_0p01": realness(found, truth),
        "loss_realness_0p1_2": realness(found, truth, tv_weight=2),
    }.items():
        vectors.reproduced(key, value, batch=False)


def test_total_variation_in_closed_form():
    ramp = torch.arange(5.0)[:, None] * 2 + torch.arange(4.0) * 3
    assert total_variation(ramp[None, None], power=1) == 5
    assert total_variation(ramp[None, None]) == 13
    assert total_variation(torch.ones(1, 3, 4, 4)) == 0
    with pytest.raises(ValueError, match="expected 1 or 2"):
        total_variation(ramp, power=3)


def test_similarity_is_the_metric():
    a = normal(2, 3, 24, 20).abs()
    b = (a + 0.1 * normal(2, 3, 24, 20, seed=1)).abs()
    assert structural_similarity(a, b).item() == pytest.approx(ssim(a, b), abs=1e-12)
    assert consistency(a, b).item() == pytest.approx((a - b).abs().mean().item() + 1 - ssim(a, b), abs=1e-12)
    assert consistency(a, a).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [realness, consistency, epsilon_error])
def test_gradients_lead_towards_the_truth(loss):
    truth = normal(1, 3, 16, 16)
    found = (truth + 0.3 * normal(1, 3, 16, 16, seed=1)).requires_grad_()
    before = loss(found, truth)
    (slope,) = torch.autograd.grad(before, found)
    assert loss(found - 0.1 / slope.norm() * slope, truth) < before
