"""The lite networks: what goes in, what comes out, how far they reach, and that chance comes only from the caller."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pipeline.models.bundle import Bundle, BundleError, load_bundle, save_bundle
from pipeline.models.lite import (
    LATTICE,
    NORMALISATION,
    RGB_BANDS,
    SYSTEM,
    LiteNetwork,
    LiteSuperResolver,
    finer,
    lattice_of_scale,
    upsample,
)
from pipeline.models.phase_pattern import REACH_PX

ARCHITECTURE = {"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1}
REACH = 2 + 2 * 1 + 2 + 2 + 2 + 2  # LR px of encoder, head, one denoiser evaluation and bicubic, rounded up


def bundle_of(steps: int = 1) -> Bundle:
    return Bundle(
        SYSTEM,
        ARCHITECTURE,
        RGB_BANDS,
        RGB_BANDS,
        4,
        LATTICE,
        NORMALISATION,
        {"name": "ddim", "steps": steps},
        licence="MIT",
    )


def scrambled_network(seed: int = 0) -> LiteNetwork:
    """Weights away from their zero initialisation, so that every path carries something."""
    network = LiteNetwork(**ARCHITECTURE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def normal(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(system, lr, seed=0):
    return system.sample(lr, normal((len(lr), 3, 4 * lr.shape[2], 4 * lr.shape[3]), seed))


def test_untrained_regression_is_bicubic():
    lr = 0.3 * torch.rand(2, 3, 12, 18, generator=torch.Generator().manual_seed(1))
    system = LiteSuperResolver(LiteNetwork(**ARCHITECTURE), bundle_of())
    # The head's weights start at zero; its bias does not.
    torch.nn.init.zeros_(system.network.mean_head.bias)
    torch.testing.assert_close(system.mean(lr), upsample(lr, 4))


def test_a_sample_follows_its_noise_only():
    lr = 0.3 * torch.rand(2, 3, 12, 18, generator=torch.Generator().manual_seed(1))
    system = LiteSuperResolver(scrambled_network(), bundle_of(3))
    before = torch.get_rng_state()
    one, again, other = sample(system, lr, 0), sample(system, lr, 0), sample(system, lr, 1)
    assert one.shape == (2, 3, 48, 72)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3


def test_windows_of_a_batch_do_not_see_each_other():
    lr = 0.3 * torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    system = LiteSuperResolver(scrambled_network(), bundle_of(2))
    noise = normal((2, 3, 48, 48))
    together = system.sample(lr, noise)
    alone = torch.cat([system.sample(lr[i : i + 1], noise[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_reach_is_finite():
    """A changed pixel moves nothing beyond the reach that the layers add up to, not even by rounding."""
    lr = 0.3 * torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    system = LiteSuperResolver(scrambled_network(), bundle_of(1))
    noise = normal((1, 3, 384, 384))
    changed = lr.clone()
    changed[:, :, 48, 48] += 0.5
    moved = (system.sample(lr, noise) != system.sample(changed, noise)).any(1)[0].nonzero() // 4 - 48
    assert 0 < moved.abs().max() <= REACH + REACH_PX


def test_bundle_round_trip_keeps_the_function(tmp_path):
    lr = 0.3 * torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    system = LiteSuperResolver(scrambled_network(), bundle_of(2))
    save_bundle(tmp_path / "a.safetensors", system.bundle, system.network.state_dict())
    loaded = LiteSuperResolver.from_bundle(load_bundle(tmp_path / "a.safetensors"))
    assert torch.equal(sample(loaded, lr), sample(system, lr))
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_weights_of_another_size_are_refused(tmp_path):
    system = LiteSuperResolver(scrambled_network(), bundle_of())
    other = replace(system.bundle, architecture={**ARCHITECTURE, "blocks": 2})
    save_bundle(tmp_path / "a.safetensors", other, system.network.state_dict())
    with pytest.raises(BundleError, match="missing"):
        LiteSuperResolver.from_bundle(load_bundle(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("scale", [2, 3])
def test_finer_images_keep_the_means_of_what_they_refine(scale):
    image = normal((1, 2, 24, 24)).abs()
    bicubic, fine = (of(image, scale) for of in (upsample, finer))
    assert fine.shape == (1, 2, 24 * scale, 24 * scale)
    errors = [(functional.avg_pool2d(up, scale) - image).std() / image.std() for up in (bicubic, fine)]
    assert errors[1] < 0.03 < 0.1 < errors[0]


@pytest.mark.parametrize(("bands", "scale"), [(4, 4), (3, 2), (1, 8)])
def test_networks_of_other_shapes(bands, scale):
    network = LiteNetwork(**ARCHITECTURE, bands=bands, scale=scale)
    system = LiteSuperResolver(network, replace(bundle_of(), scale=scale))
    lr = normal((2, bands, 12, 10)).abs()
    torch.nn.init.zeros_(network.mean_head.bias)
    torch.testing.assert_close(system.mean(lr), upsample(lr, scale))
    noise = normal((2, bands, 12 * scale, 10 * scale))
    assert system.sample(lr, noise).shape == noise.shape


def test_the_lattice_of_a_finer_output_covers_the_same_ground():
    assert lattice_of_scale(2) == lattice_of_scale(4) == LATTICE
    fine = lattice_of_scale(8)
    assert (fine.window_px, fine.stride_px, fine.ramp_px, fine.margin_px) == (960, 768, 96, 48)
