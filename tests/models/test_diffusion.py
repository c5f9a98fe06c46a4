"""Samplers against diffusers as an oracle and against distributions whose answer is known in closed form."""

import math

import numpy as np
import pytest
import torch

from pipeline.models.diffusion import SAMPLERS, cosine_alpha_bar, ddim, dpmpp_2m, levels, timesteps

ALPHA_BAR = cosine_alpha_bar()
EVERY_LEVEL = [math.sqrt(a) for a in ALPHA_BAR[::-1]]
MEAN, SD = 0.3, 0.2


def toy_denoise(x, level):
    """A smooth, bounded, nonlinear stand-in for a network."""
    return torch.tanh(0.7 * x + 0.3 * level) * (0.5 + 0.5 * level)


def gaussian_denoise(x, level):
    """Posterior mean of x0 ~ N(MEAN, SD^2) given x = s x0 + sqrt(1 - s^2) eps."""
    gain = level * SD**2 / (level**2 * SD**2 + 1 - level**2)
    return MEAN + gain * (x - level * MEAN)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def diffusers_sample(scheduler, x):
    for t in scheduler.timesteps:
        level = math.sqrt(scheduler.alphas_cumprod[int(t)].item())
        x = scheduler.step(toy_denoise(x, level), t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
def test_ddim_equals_diffusers(steps):
    from diffusers import DDIMScheduler

    oracle = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing", clip_sample=False
    )
    oracle.set_timesteps(steps)
    assert oracle.timesteps.tolist() == timesteps(steps)
    x = noise(1, 2, 8, 8)
    torch.testing.assert_close(
        ddim(toy_denoise, x, levels(steps, ALPHA_BAR)), diffusers_sample(oracle, x), rtol=0, atol=2e-5
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers hands tensors to numpy the old way
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
def test_dpmpp_2m_equals_diffusers(steps):
    from diffusers import DPMSolverMultistepScheduler

    oracle = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    oracle.set_timesteps(steps)
    assert oracle.timesteps.tolist() == timesteps(steps)
    x = noise(1, 2, 8, 8)
    torch.testing.assert_close(
        dpmpp_2m(toy_denoise, x, levels(steps, ALPHA_BAR)), diffusers_sample(oracle, x), rtol=0, atol=2e-5
    )


@pytest.mark.shared_data
def test_schedule_is_the_released_one(shared_data):
    released = np.load(shared_data / "reference_vectors" / "difffusr_reference_vectors.npz")["alphas_cumprod"]
    np.testing.assert_allclose(ALPHA_BAR, released, rtol=1e-5, atol=0)


def test_schedule_at_known_points():
    assert [round(ALPHA_BAR[t], 3) for t in (49, 99, 499)] == [0.992, 0.972, 0.494]
    assert ALPHA_BAR[998] == pytest.approx(2.4e-6, rel=0.05)


def test_timesteps_of_both_spacings():
    assert timesteps(20, spacing="published") == list(range(950, -1, -50))
    assert timesteps(20) == list(range(999, 0, -50))
    assert timesteps(1) == [999]
    for steps in range(1, 51):
        for spacing in ("trailing", "published"):
            found = timesteps(steps, spacing=spacing)
            assert len(set(found)) == steps
            assert found == sorted(found, reverse=True)
            assert 0 <= found[-1] <= found[0] <= 999


@pytest.mark.parametrize("steps", [0, 51, -3])
def test_step_counts_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 50"):
        levels(steps, ALPHA_BAR)


def test_log_snr_levels_are_equally_spaced_for_the_solver():
    found = np.array(levels(6, ALPHA_BAR, "log-snr"))
    np.testing.assert_allclose(np.diff(np.log(found / np.sqrt(1 - found**2)), 2), 0, atol=1e-12)
    assert (found[0], found[-1]) == pytest.approx((0.02, 0.98))
    assert levels(1, ALPHA_BAR, "log-snr") == pytest.approx([0.02])


@pytest.mark.parametrize("steps", [0, 51])
def test_log_snr_levels_are_counted_as_others_are(steps):
    with pytest.raises(ValueError, match="1 to 50"):
        levels(steps, ALPHA_BAR, "log-snr")


def test_a_few_log_snr_levels_do_what_many_timesteps_do():
    x = noise(1, 1, 64, 64)
    exact = dpmpp_2m(gaussian_denoise, x, EVERY_LEVEL)
    errors = [
        (dpmpp_2m(gaussian_denoise, x, levels(6, ALPHA_BAR, spacing)) - exact).abs().mean().item()
        for spacing in ("log-snr", "trailing")
    ]
    assert errors[0] < 0.9 * errors[1]


def test_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="leading"):
        levels(4, ALPHA_BAR, "leading")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("wrong", [[], [0.5, 0.5], [0.9, 0.1], [0.0, 0.5], [0.5, 1.0]])
def test_senseless_levels_are_refused(name, wrong):
    with pytest.raises(ValueError, match="signal levels"):
        SAMPLERS[name](toy_denoise, noise(1, 1, 2, 2), wrong)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_data_come_back_with_their_mean_and_spread(name):
    x = noise(1, 1, 200, 200)
    for grid, tolerance in ((EVERY_LEVEL, 0.01), (levels(50, ALPHA_BAR), 0.08)):
        sample = SAMPLERS[name](gaussian_denoise, x, grid)
        assert sample.mean().item() == pytest.approx(MEAN, abs=0.01)
        assert sample.std().item() == pytest.approx(SD, rel=tolerance)


@pytest.mark.parametrize("name", SAMPLERS)
def test_error_falls_with_more_steps(name):
    """For Gaussian data the probability flow is an affine map, known in closed form."""
    x = noise(1, 1, 64, 64)
    start = levels(1, ALPHA_BAR)[0]
    exact = MEAN + SD * (x - start * MEAN) / math.sqrt(start**2 * SD**2 + 1 - start**2)
    errors = [
        (SAMPLERS[name](gaussian_denoise, x, levels(n, ALPHA_BAR)) - exact).abs().mean().item() for n in (2, 5, 15, 50)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15 * errors[0]


def test_second_order_beats_first_order():
    x = noise(1, 1, 64, 64)
    exact = ddim(gaussian_denoise, x, EVERY_LEVEL)
    first, second = (
        (sampler(gaussian_denoise, x, levels(20, ALPHA_BAR)) - exact).abs().mean().item()
        for sampler in (ddim, dpmpp_2m)
    )
    assert second < first


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("spacing", ["trailing", "published", "log-snr"])
def test_an_oracle_is_returned_exactly(name, steps, spacing):
    truth = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    grid = levels(steps, ALPHA_BAR, spacing)
    seen = []

    def oracle(x, level):
        seen.append(level)
        assert x.dtype == torch.float32
        return truth

    assert torch.equal(SAMPLERS[name](oracle, noise(1, 1, 8, 8, dtype=torch.float32), grid), truth)
    assert seen == grid


@pytest.mark.parametrize("name", SAMPLERS)
def test_x0_range_clamps_every_evaluation(name):
    def overshoot(x, level):
        return torch.full_like(x, 3.0) + 0 * level

    result = SAMPLERS[name](overshoot, noise(1, 1, 4, 4), levels(4, ALPHA_BAR), x0_range=(-1.0, 1.0))
    assert torch.equal(result, torch.ones_like(result))
    clamped = SAMPLERS[name](toy_denoise, noise(1, 1, 4, 4), levels(4, ALPHA_BAR), x0_range=(-0.2, 0.2))
    by_hand = SAMPLERS[name](
        lambda x, level: toy_denoise(x, level).clamp(-0.2, 0.2), noise(1, 1, 4, 4), levels(4, ALPHA_BAR)
    )
    assert torch.equal(clamped, by_hand)


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_denoising_at_the_last_level_its_noise_remains(name):
    truth, x = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8), noise(1, 1, 8, 8)
    grid = levels(20, ALPHA_BAR, "published")
    eps = (x - grid[0] * truth) / math.sqrt(1 - grid[0] ** 2)
    arrived = SAMPLERS[name](lambda x, level: truth, x, grid, denoise_last=False)
    torch.testing.assert_close(arrived, grid[-1] * truth + math.sqrt(1 - grid[-1] ** 2) * eps)
    assert math.sqrt(1 - grid[-1] ** 2) == pytest.approx(0.0064, abs=5e-5)
    with pytest.raises(ValueError, match="at least 2 levels"):
        SAMPLERS[name](toy_denoise, x, grid[:1], denoise_last=False)
