"""Reverse diffusion under the projection of eq. 9: against diffusers, and against Gaussian data."""

import numpy as np
import pytest
import torch

from pipeline.models.diffusion import timesteps
from pipeline.models.wavelet import low_pass
from pipeline.models.wavelet_diffusion import (
    alpha_bar_of,
    detail_sample,
    gaussian_epsilon,
    linear_alpha_bar,
    mean_reverting_alpha_bar,
    reverse_diffusion,
    towards,
)

ALPHA_BAR = linear_alpha_bar()
EVERY = list(range(999, -1, -1))
MEAN, SD = 0.3, 0.2


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian():
    return gaussian_epsilon(torch.tensor(MEAN), torch.tensor(SD**2), ALPHA_BAR)


def test_schedule():
    assert ALPHA_BAR[0] == pytest.approx(1 - 1e-4)
    assert ALPHA_BAR[-1] == pytest.approx(4.04e-5, rel=0.01)
    betas = 1 - ALPHA_BAR[1:] / ALPHA_BAR[:-1]
    np.testing.assert_allclose(np.diff(betas), (0.02 - 1e-4) / 999, rtol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_equal_those_of_diffusers(eta):
    from diffusers import DDIMScheduler

    oracle = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)
    oracle.set_timesteps(10)
    grid = timesteps(10, spacing="published")
    assert oracle.timesteps.tolist() == grid
    noise, start = normal(10, 1, 2, 4, 4, seed=1), normal(1, 2, 4, 4)

    def epsilon(x, t):
        return torch.tanh(x + t / 1000)

    x = start
    for k, t in enumerate(grid):
        x = oracle.step(epsilon(x, t), t, x, eta=eta, variance_noise=noise[k]).prev_sample
    found = reverse_diffusion(epsilon, start, grid, ALPHA_BAR, eta, noise.__getitem__)
    torch.testing.assert_close(found, x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gaussian_data_come_back_with_their_mean_and_spread(eta):
    found = reverse_diffusion(
        gaussian(), normal(1, 1, 200, 200), EVERY, ALPHA_BAR, eta, lambda k: normal(1, 1, 200, 200, seed=k + 1)
    )
    assert found.mean() == pytest.approx(MEAN, rel=0.02)
    assert found.std() == pytest.approx(SD, rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("block_px", [1, 2, 4])
def test_the_result_has_the_low_pass_of_its_condition(eta, block_px):
    tau = normal(1, 1, 8, 12, seed=5)
    project = towards(tau, block_px, lambda k: normal(1, 1, 8, 12, seed=100 + k))
    grid = timesteps(10, spacing="published")
    found = reverse_diffusion(
        gaussian(), normal(1, 1, 8, 12), grid, ALPHA_BAR, eta, lambda k: normal(1, 1, 8, 12, seed=k + 1), project
    )
    torch.testing.assert_close(low_pass(found, block_px), low_pass(tau, block_px))
    if block_px > 1:
        assert (found - tau).abs().max() > 0.05


def test_what_the_projection_leaves_free_keeps_its_distribution():
    """Independent Gaussian pixels: differences within a block do not depend on its mean."""
    tau = torch.full((1, 1, 96, 96), 5.0, dtype=torch.float64)
    found = reverse_diffusion(
        gaussian(),
        normal(1, 1, 96, 96),
        EVERY,
        ALPHA_BAR,
        1.0,
        lambda k: normal(1, 1, 96, 96, seed=k + 1),
        towards(tau, 2, lambda k: normal(1, 1, 96, 96, seed=5000 + k)),
    )
    assert found.mean() == pytest.approx(5.0)
    expected = SD * (3 / 4) ** 0.5  # one of four degrees of freedom is the mean
    assert (found - low_pass(found, 2)).std() == pytest.approx(expected, rel=0.04)


def test_noise_is_asked_for_only_where_it_is_used():
    asked = []
    grid = timesteps(4, spacing="published")

    def noise(k):
        asked.append(k)
        return normal(1, 1, 4, 4, seed=k)

    reverse_diffusion(gaussian(), normal(1, 1, 4, 4), grid, ALPHA_BAR, 0.0, noise)
    assert asked == []
    reverse_diffusion(gaussian(), normal(1, 1, 4, 4), grid, ALPHA_BAR, 1.0, noise)
    assert asked == [0, 1, 2]
    asked.clear()
    reverse_diffusion(gaussian(), normal(1, 1, 4, 4), grid, ALPHA_BAR, project=towards(normal(1, 1, 4, 4), 1, noise))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("grid", [[], [5, 5], [1, 2], [1000, 0], [3, -1]])
def test_senseless_timesteps_are_refused(grid):
    with pytest.raises(ValueError, match="fall strictly"):
        reverse_diffusion(gaussian(), normal(1, 1, 2, 2), grid, ALPHA_BAR)


@pytest.mark.parametrize("eta", [-0.1, 1.5, 0.5])
def test_senseless_etas_are_refused(eta):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        reverse_diffusion(gaussian(), normal(1, 1, 2, 2), [10, 0], ALPHA_BAR, eta)


def test_noise_of_the_details_has_the_covariance_of_eq_10():
    """U repeats each of two numbers twice: r^2 U U^T + sigma^2 I has blocks of r^2, plus sigma^2 on the diagonal."""
    draws = 200_000
    mean, r, sigma = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5, 0.2
    found = detail_sample(
        lambda x: x.repeat_interleave(2, -1), mean, r, normal(draws, 2), sigma, normal(draws, 4, seed=1)
    )
    torch.testing.assert_close(found.mean(0), mean.repeat_interleave(2), rtol=0, atol=5e-3)
    expected = r**2 * torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double() + sigma**2 * torch.eye(4)
    torch.testing.assert_close(found.T.cov(), expected.double(), rtol=0, atol=5e-3)


def test_the_mean_reverting_schedule_leaves_what_it_says():
    found = mean_reverting_alpha_bar(100, 0.005)
    assert len(found) == 100
    assert bool((np.diff(found) < 0).all())
    assert found[-1] == pytest.approx(0.005**2)
    theta = -0.5 * np.diff(np.log(np.concatenate([[1.0], found])))
    assert bool((np.diff(theta) > 0).all()), "theta grows from 0, as the cosine schedule says"
    np.testing.assert_array_equal(alpha_bar_of("ir-sde"), found)
    with pytest.raises(ValueError, match="expected one of vp, ir-sde"):
        alpha_bar_of("ve")


def test_its_step_is_the_mean_of_the_posterior():
    """x_s* = a e^-(T-S) x_t + b e^-S x0, a and b as below, with mu = 0 (IR-SDE, proposition 3.2)."""
    alpha_bar = mean_reverting_alpha_bar()
    x, x0 = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    grid = [80, 40, 0]
    expected = x
    for here, there in ((80, 40), (40, 0), (0, None)):
        t, s = -0.5 * np.log(alpha_bar[here]), 0.0 if there is None else -0.5 * np.log(alpha_bar[there])
        kept = (1 - np.exp(-2 * s)) / (1 - np.exp(-2 * t)) * np.exp(-(t - s))
        drawn = (1 - np.exp(-2 * (t - s))) / (1 - np.exp(-2 * t)) * np.exp(-s)
        expected = kept * expected + drawn * x0

    def epsilon(state, t):
        return (state - alpha_bar[t] ** 0.5 * x0) / (1 - alpha_bar[t]) ** 0.5

    found = reverse_diffusion(epsilon, x, grid, alpha_bar, optimal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-9)
