"""The released call with networks that average and repeat pixels, so that every step of it shows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.models import latent_sampler
from pipeline.models.latent import Denoiser, LatentNetwork, Moments
from pipeline.models.ldsr import CONDITION_NOISE, FIRST_NOISE, LDSR
from pipeline.models.ldsr_published import GAINS, published_bundle
from pipeline.models.ldsr_release import Normalisation, match_histograms, super_resolve, uncertainty


class Averaging(nn.Module):
    def encode(self, image):
        self.seen = image
        mean = functional.avg_pool2d(image, 4)
        return Moments(mean, torch.full_like(mean, -30.0))

    def decode(self, latent, coarse=None):
        return functional.interpolate(latent, scale_factor=4)


class Knowing(Denoiser):
    """The noise by which a latent differs from its condition."""

    def __init__(self, alphas):
        super().__init__()
        self.alphas = torch.from_numpy(alphas).float()

    def forward(self, noisy, condition, timestep):
        alpha = self.alphas[timestep][:, None, None, None]
        return (noisy - alpha.sqrt() * condition) / (1 - alpha).sqrt()


@pytest.fixture
def network():
    betas = latent_sampler.betas()
    made = LatentNetwork(Averaging(), Knowing(latent_sampler.alpha_bar(betas)), latents=4)
    made.betas.copy_(torch.from_numpy(betas))
    return made


@pytest.fixture
def coarse():
    return 0.1 + 0.3 * torch.rand(1, 4, 48, 60, generator=torch.Generator().manual_seed(0))


class Noise:
    def __init__(self):
        self.asked = []

    def __call__(self, k):
        self.asked.append(k)
        return torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(k))


def test_the_call_samples_the_condition_from_noise(network, coarse):
    """Without drawn noise a chain keeps its start, at the level at which it ends."""
    noise = Noise()
    found = super_resolve(network, coarse, noise, steps=5, eta=0.0, matching=False)
    assert found.shape == (1, 4, 192, 240)
    assert noise.asked == [0, 1]
    condition = functional.avg_pool2d(functional.interpolate(coarse, scale_factor=4, mode="bilinear"), 4)
    first, last = network.alpha_bar()[[801, 0]]
    kept = (noise(1)[..., 40:88, 34:94] - first**0.5 * condition) / (1 - first) ** 0.5
    expected = last**0.5 * condition + (1 - last) ** 0.5 * kept
    off = (functional.avg_pool2d(found, 4) - expected)[..., 1:-1, 1:-1]  # what lies around differs
    assert off.abs().max() < 1e-5


def test_noise_is_drawn_for_condition_start_and_steps(network, coarse):
    noise = Noise()
    super_resolve(network, coarse, noise, steps=4, eta=0.95)
    assert noise.asked == [0, 1, 2, 3, 4, 5]


def test_zero_stays_zero_in_its_band_alone(network, coarse):
    coarse[0, 2, 10, 20] = 0
    found = super_resolve(network, coarse, Noise(), steps=2)
    hole = found[0, :, 40:44, 80:84]
    assert not hole[2].any()
    assert bool((hole[[0, 1, 3]] > 0).all())
    assert int((found[0, 2] == 0).sum()) == 16


def test_values_are_those_of_the_coarse_image_when_matched(network, coarse):
    found = super_resolve(network, coarse, Noise(), steps=2)
    for band in range(4):
        assert found[0, band].min() >= coarse[0, band].min()
        assert found[0, band].max() <= coarse[0, band].max()
    plain = super_resolve(network, coarse, Noise(), steps=2, matching=False)
    assert plain.std() < found.std(), "as is, it is as smooth as the interpolation"


def test_condition_before_1_0_as_released_and_as_trained(network, coarse):
    coarse[0, 0, 0, 0] = 0.9  # saturates
    gains = torch.tensor(GAINS[4])[:, None, None]
    super_resolve(network, coarse, Noise(), steps=2, normalisation=Normalisation(GAINS[4]))
    at = (slice(None), slice(None), slice(4 * 40, -4 * 40), slice(4 * 34, -4 * 34))
    scaled = functional.interpolate(coarse * gains, scale_factor=4, mode="bilinear")[..., 2:-2, 2:-2]
    released = network.autoencoder.seen[at][..., 2:-2, 2:-2]
    torch.testing.assert_close(released, scaled)
    super_resolve(network, coarse, Noise(), steps=2, normalisation=Normalisation(GAINS[4], as_released=False))
    sound = network.autoencoder.seen[at][..., 2:-2, 2:-2]
    expected = functional.interpolate((coarse * gains).clamp(0, 1) * 2 - 1, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(sound, expected[..., 2:-2, 2:-2])


@pytest.mark.parametrize("before_1_0", [False, True])
@pytest.mark.parametrize("sound", [False, True])
def test_the_system_draws_what_the_release_does(network, before_1_0, sound):
    coarse = 0.1 + 0.1 * torch.rand(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    system, noise = LDSR(network, published_bundle(before_1_0=before_1_0), sound), Noise()
    order = {FIRST_NOISE: 1, CONDITION_NOISE: 0}
    found = system.sample(coarse, lambda k: noise(order.get(k, k)), system.sampling_with(4, None, 1.0, 1.0))
    normalisation = Normalisation(GAINS[4], as_released=not sound) if before_1_0 else None
    expected = super_resolve(network, coarse, noise, 4, 0.95, matching=False, normalisation=normalisation)
    torch.testing.assert_close(found.clamp(min=0), expected)


@pytest.mark.parametrize("size", [(43, 64), (64, 130), (140, 150)])
def test_sizes_that_the_release_does_not_take(network, size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} px; expected sides of 44 to 128"):
        super_resolve(network, torch.ones(1, 4, *size), Noise())


def test_histograms_of_each_image_and_band():
    generator = torch.Generator().manual_seed(3)
    image, reference = torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 16, 16, generator=generator)
    found = match_histograms(image, reference)
    torch.testing.assert_close(found.flatten(2).sort(-1)[0], reference.flatten(2).sort(-1)[0])
    assert torch.equal(found.flatten(2).argsort(-1), image.flatten(2).argsort(-1))


def test_uncertainty_is_twice_the_spread_averaged_over_bands():
    members = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1, 1) * torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1, 1)
    assert uncertainty(members).flatten().tolist() == pytest.approx([2 * (2**0.5 + 3 * 2**0.5) / 2])
