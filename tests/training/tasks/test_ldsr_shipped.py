"""The shipped denoiser on held-out places: it needs the right condition, and its draws lie around its mean."""

import pytest
import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.latent_sampler import forward
from pipeline.models.ldsr import BANDS, LDSR
from pipeline.superres.weights import SHIPPED
from training.data.sources import shipped_data
from training.degradation.degrade import Degradation
from training.quality.pairs import held_out_pairs

pytestmark = [pytest.mark.shared_data, pytest.mark.slow]
SIDE_PX, COUNT = 48, 32


@pytest.fixture(scope="module")
def pairs(shared_data):
    """Truths (COUNT, 4, 48, 48) and coarse images of as many held-out places."""
    chips = shipped_data(shared_data).held_out_chips(BANDS)
    found = [pair for pair in held_out_pairs(chips, Degradation()) if min(pair.hr.shape[-2:]) >= SIDE_PX]
    chosen = found[:: len(found) // COUNT][:COUNT]
    hr = torch.cat([pair.hr[..., :SIDE_PX, :SIDE_PX] for pair in chosen])
    lr = torch.cat([pair.lr[..., : SIDE_PX // 4, : SIDE_PX // 4] for pair in chosen])
    return hr, lr


@torch.inference_mode()
def test_another_places_condition_raises_the_loss(pairs):
    hr, lr = pairs
    system = LDSR.from_bundle(load_bundle(SHIPPED / "ldsr.safetensors"))
    network, generator = system.network, torch.Generator().manual_seed(0)
    truth = network.encode(system.normalisation.to_network(hr))
    condition = system.condition(lr)
    schedule = (1 - network.get_buffer("betas")).cumprod(0)
    t = torch.randint(len(schedule), (len(hr),), generator=generator)
    alpha = schedule[t][:, None, None, None]
    noise = torch.randn(truth.shape, generator=generator)

    def loss(condition):
        found = network.unet(forward(truth, alpha, noise), network.unet.prepare(condition), t)
        return float((found - noise).square().mean())

    assert loss(condition.roll(1, 0)) > 1.1 * loss(condition)
