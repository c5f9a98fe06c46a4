"""Every reference vector of map guidance, made by the authors' code with weights by rule."""

import pytest
import torch

from pipeline.models.spaced_sampler import ancestral, posterior, spread_timesteps, stable_diffusion_alpha_bar
from tests.models.sgdm_vectors import EXACT, read

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def vectors(shared_data):
    return read(shared_data)


# --- the sampler -----------------------------------------------------------------------------------------------------


def test_schedule(vectors):
    vectors.reproduced("sd_alphas_cumprod", stable_diffusion_alpha_bar(), EXACT)


@pytest.mark.parametrize("steps", [10, 50])
def test_grid_and_posterior(vectors, steps):
    grid = spread_timesteps(steps)
    assert grid == vectors(f"spaced{steps}_timesteps").tolist()
    to = posterior(stable_diffusion_alpha_bar(), grid)
    vectors.reproduced(f"spaced{steps}_alphas_cumprod", to.alphas, EXACT)
    vectors.reproduced(f"spaced{steps}_posterior_variance", to.variance, EXACT)
    vectors.reproduced(f"spaced{steps}_coef_x0", to.of_x0, EXACT)
    vectors.reproduced(f"spaced{steps}_coef_xt", to.of_x, EXACT)


def test_ten_ancestral_steps(vectors):
    a, b, noise = vectors("toy_a"), vectors("toy_b"), vectors("toy_noise")
    states = []
    ancestral(
        lambda x, t: a * x + t / 1000 * b,
        vectors("toy_x_T"),
        stable_diffusion_alpha_bar(),
        spread_timesteps(10),
        lambda step: noise[step],
        seen=lambda x, _: states.append(x),
    )
    vectors.reproduced("toy_x", torch.stack(states))
