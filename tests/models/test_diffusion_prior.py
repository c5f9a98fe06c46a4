"""The small prior: its autoencoder, and a U-Net that estimates velocities."""

import pytest
import torch

from pipeline.models.diffusion_prior import NOISE, VELOCITY, Prior, stride_of
from tests.models.sgdm_small import OUR_PRIOR, PRIOR, moved


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return moved(Prior(OUR_PRIOR)).eval().requires_grad_(False)


def test_strides_are_read_off_the_architecture(prior):
    assert stride_of(OUR_PRIOR) == prior.stride == 4
    assert stride_of(PRIOR) == 4
    assert stride_of({"vae": {"block_out_channels": [1, 2, 3, 4]}}) == 8


def test_images_go_to_latents_and_back(prior):
    image = 2 * torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) - 1
    latent = prior.encode(image)
    assert latent.shape == (2, prior.latents, 8, 16)
    moments = prior.moments(image)
    assert torch.equal(latent, prior.scaling * moments.mean)
    noise = torch.ones_like(latent)
    torch.testing.assert_close(prior.encode(image, noise), prior.scaling * (moments.mean + moments.spread))
    assert prior.decode(latent).shape == image.shape


def test_the_noise_follows_from_the_velocity(prior):
    """With x_t = a x + b e and v = a e - b x, e = a v + b x_t."""
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(2, prior.latents, 8, 8, generator=generator) for _ in range(2))
    t, context = torch.tensor([3, 900]), torch.zeros(2, dtype=torch.long)
    alpha = torch.from_numpy(prior.alpha_bar).float()[t][:, None, None, None]
    a, b = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = a * x + b * e
    assert (prior.estimates, Prior(PRIOR).estimates) == (VELOCITY, NOISE)
    found = prior.noise(noisy, t, context)
    prior.estimates = NOISE
    try:
        velocity = prior.noise(noisy, t, context)  # what the U-Net gives
    finally:
        prior.estimates = VELOCITY
    torch.testing.assert_close(found, a * velocity + b * noisy)
    # errors of the noise, weighted, are those of the velocity
    error = (found - e).square().mean((1, 2, 3)) * prior.balance(t)
    torch.testing.assert_close(error, (velocity - (a * e - b * x)).square().mean((1, 2, 3)), rtol=1e-3, atol=0)


def test_errors_of_the_noise_count_alike_where_the_noise_is_estimated():
    assert Prior(PRIOR).balance(torch.tensor([0, 999])).tolist() == [1, 1]
