"""The spaced ancestral sampler on distributions whose noise is known exactly."""

import numpy as np
import pytest
import torch

from pipeline.models.spaced_sampler import ancestral, posterior, spread_timesteps, stable_diffusion_alpha_bar

MEAN, SPREAD = 0.7, 0.2


def exact(schedule):
    """The noise expected in x, of data distributed normally with MEAN and SPREAD."""

    def epsilon(x, t):
        alpha = schedule[t]
        return (1 - alpha) ** 0.5 * (x - alpha**0.5 * MEAN) / (alpha * SPREAD**2 + 1 - alpha)

    return epsilon


def noise(shape):
    generator = torch.Generator().manual_seed(0)
    return lambda step=0: torch.randn(shape, generator=generator, dtype=torch.float64)


def test_samples_have_the_distribution_of_the_data():
    schedule, draw = stable_diffusion_alpha_bar(), noise((1, 1, 100, 100))
    found = ancestral(exact(schedule), draw(), schedule, spread_timesteps(1000), draw)
    assert abs(found.mean() - MEAN) < 0.01
    assert abs(found.std() - SPREAD) < 0.01


def test_noise_is_asked_for_by_step_and_never_for_the_last():
    schedule, asked = stable_diffusion_alpha_bar(), []

    def drawn(step):
        asked.append(step)
        return torch.zeros(1)

    states = []
    found = ancestral(
        exact(schedule), torch.ones(1), schedule, spread_timesteps(5), drawn, seen=lambda x, _: states.append(x)
    )
    assert asked == [0, 1, 2, 3]
    assert len(states) == 5
    assert torch.equal(states[-1], found)


def test_clipping_is_off_unless_asked_for():
    schedule = stable_diffusion_alpha_bar()

    def run(clip):
        return ancestral(lambda x, t: -x, torch.full((1,), 9.0), schedule, [0, 999], lambda k: torch.zeros(1), clip)

    assert run(None).abs() > 9
    assert run(1.0).abs() <= 1


def test_the_posterior_on_all_timesteps_is_that_of_the_schedule():
    schedule = stable_diffusion_alpha_bar()
    whole = posterior(schedule, range(1000))
    betas = 1 - schedule / np.concatenate([[1.0], schedule[:-1]])
    assert whole.variance[0] == 0
    assert np.allclose(whole.variance[1:], betas[1:] * (1 - schedule[:-1]) / (1 - schedule[1:]))
    # x0 = x means that the noise is none: the mean then is the signal of the step before
    assert np.allclose(whole.of_x0 + whole.of_x * np.sqrt(schedule), np.sqrt(np.concatenate([[1.0], schedule[:-1]])))


@pytest.mark.parametrize("steps", [1, 1001])
def test_grids_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match="expected 2 to 1000"):
        spread_timesteps(steps)
