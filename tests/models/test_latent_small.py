"""Small networks of latent diffusion: where they start, what they see, and that draws are around the mean."""

import pytest
import torch
from torch.nn import functional

from pipeline.models.bundle import BundleError, load_bundle
from pipeline.models.latent import Moments, interpolated
from pipeline.models.latent_small import LEAST_LOG_VARIANCE, small_network
from pipeline.models.ldsr import BANDS, LDSR, Root, Sampling, normalisation_of
from tests.models.ldsr_small import TINY, latent_bundle, moved, write_latent


def image(count=2, side=48, bands=4, seed=0):
    rough = torch.rand(count, bands, side // 4 + 2, side // 4 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(rough, size=(side, side), mode="bicubic", align_corners=False)
    return 0.05 + 0.3 * smooth.clamp(0, 1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return small_network(TINY, 4)


@pytest.mark.parametrize("sees_coarse", [False, True])
def test_the_autoencoder_starts_as_principal_components(sees_coarse):
    autoencoder = small_network({**TINY, "sees_coarse": sees_coarse}, 4).autoencoder
    given, coarse = image(8), image(8, seed=1)[..., ::4, ::4]  # any coarse image: components are of the difference
    assert autoencoder.untrained
    autoencoder.start_from_components(given, coarse, 5.0)
    known = interpolated(coarse) if sees_coarse else torch.zeros_like(given)
    folded = functional.pixel_unshuffle(given - known, 4).transpose(0, 1).flatten(1)
    centred = folded - folded.mean(1, keepdim=True)
    basis = torch.linalg.svd(centred, full_matrices=False).U[:, :4]
    lost = (centred - basis @ (basis.T @ centred)).reshape(64, 8, 12, 12).transpose(0, 1)  # all that four latents lose
    with torch.no_grad():
        error = given - autoencoder(given, coarse)
        latent = autoencoder.encode(given).mean
    inner = (..., slice(4, -4), slice(4, -4))  # the convolution pads with zeros where interpolation repeats the edge
    torch.testing.assert_close(error[inner], functional.pixel_shuffle(lost, 4)[inner], atol=2e-5, rtol=0)
    assert float(latent.transpose(0, 1).flatten(1).var(1).mean().sqrt()) == pytest.approx(5.0, rel=1e-3)


def test_each_latent_may_start_with_unit_variance():
    autoencoder = small_network({**TINY, "sees_coarse": False}, 4).autoencoder
    given = image(8)
    autoencoder.start_from_components(given, None, 2.0, each=True)
    with torch.no_grad():
        spreads = autoencoder.encode(given).mean.transpose(0, 1).flatten(1).std(1)
        each = autoencoder(given)
        autoencoder.start_from_components(given, None, 2.0)
        torch.testing.assert_close(autoencoder(given), each, atol=1e-4, rtol=0)
    torch.testing.assert_close(spreads, torch.full_like(spreads, 2.0), rtol=1e-3, atol=0)


def test_a_decoder_that_sees_the_coarse_image_has_to_be_given_it():
    autoencoder = small_network({**TINY, "sees_coarse": True}, 4).autoencoder
    with pytest.raises(ValueError, match="no coarse image"):
        autoencoder(image())
    with pytest.raises(ValueError, match="no coarse image"):
        autoencoder.start_from_components(image(), None, 5.0)


def test_the_noise_of_latents_is_bounded(network):
    with torch.no_grad():
        moved(network, 50.0)
        found = network.autoencoder.encode(image())
    assert float(found.log_variance.max()) <= 0
    assert float(found.log_variance.min()) >= LEAST_LOG_VARIANCE


def test_moments_sample_around_their_mean():
    moments = Moments.of(torch.cat([torch.full((1, 2, 3, 3), 7.0), torch.full((1, 2, 3, 3), -40.0)], 1))
    assert float(moments.log_variance.max()) == -30.0
    torch.testing.assert_close(moments.sample(torch.ones(1, 2, 3, 3)), torch.full((1, 2, 3, 3), 7.0))
    normal = Moments(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    torch.testing.assert_close(normal.divergence(), torch.zeros(2))


def test_an_untrained_denoiser_knows_unit_noise_around_the_condition(network):
    """Its estimate is the best linear one: for a residual of its spread, the noise that is expected."""
    unet, alpha = network.unet, network.alpha_bar()
    condition = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))  # latents, then the coarse image
    latent = condition[:, :4]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        prepared = unet.prepare(condition)
        spread = unet.spread(prepared)
        for t in (0, 500, 999):
            a, b = alpha[t] ** 0.5, (1 - alpha[t]) ** 0.5
            found = unet(a * latent + b * noise, prepared, torch.tensor([t]))
            share = b**2 / (a**2 * spread**2 + b**2)
            torch.testing.assert_close(found, (share * noise).float(), rtol=1e-4, atol=1e-4)


def test_the_reach_is_finite():
    """A change of one coarse pixel changes nothing beyond the convolutions' reach."""
    torch.manual_seed(0)
    network = moved(small_network(TINY, 4))
    system = LDSR(network, latent_bundle())
    lr = image(1, 96)
    other = lr.clone()
    other[..., 10, 10] += 0.1
    drawn = {0: torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(3))}
    with torch.no_grad():
        changed = (system.sample(lr, drawn.__getitem__) - system.sample(other, drawn.__getitem__)).abs().amax((0, 1))
    rows = torch.nonzero(changed.amax(1) > 0).flatten()
    assert int(rows.min()) == 0
    assert int(rows.max()) < 4 * 90


def test_bundles_hold_all_that_is_needed(tmp_path):
    path = write_latent(tmp_path / "w.safetensors")
    system = LDSR.from_bundle(load_bundle(path))
    assert system.latents == 4
    lr = image(1, 24)
    with torch.no_grad():
        mean = system.mean(lr)
        assert mean.shape == (1, 4, 96, 96)
        noise = torch.zeros(1, 4, 24, 24)
        drawn = system.sample(lr, lambda k: noise)
        assert float((drawn - mean).abs().max()) < 0.5
        asked = []
        system.sample(lr, lambda k: asked.append(k) or noise, Sampling(5, eta=1.0))
    assert asked == [0, 2, 3, 4, 5, 6]


def test_steps_that_do_not_divide_the_schedule_are_refused():
    with pytest.raises(ValueError, match="30 sampling steps do not divide 1000"):
        Sampling(30).grid(1000)
    assert Sampling(10, start=0.5).grid(1000) == [1, 101, 201, 301, 401]


def test_normalisations_invert_each_other():
    root = normalisation_of(latent_bundle())
    assert isinstance(root, Root)
    rho = torch.linspace(0, 1.6, 50)
    torch.testing.assert_close(root.to_reflectance(root.to_network(rho)), rho, rtol=1e-5, atol=1e-6)


def test_unknown_networks_and_normalisations_are_refused(tmp_path):
    from dataclasses import replace

    from pipeline.models.ldsr import network_of

    with pytest.raises(BundleError, match="expected 'small' or 'published'"):
        network_of({"networks": "large"}, 4)
    bundle = replace(latent_bundle(), normalisation={"kind": "log"})
    with pytest.raises(BundleError, match="normalisation 'log'"):
        normalisation_of(bundle)
    assert bundle.in_bands == BANDS
