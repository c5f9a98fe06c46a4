"""Every reference vector of map guidance, made by the authors' code with weights by rule."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.models.diffusion_prior import PUBLISHED_PRIOR
from pipeline.models.guidance import PUBLISHED, PUBLISHED_NO_MAP, PUBLISHED_SYNTHETIC, Guidance
from pipeline.models.guidance_parts import Spade, Style
from pipeline.models.guided_unet import guided_noise
from pipeline.models.spaced_sampler import ancestral, posterior, spread_timesteps, stable_diffusion_alpha_bar
from pipeline.models.style_flow import COUPLINGS_OF_CODE, StyleFlow
from tests.models.sgdm_vectors import EXACT, read
from training.tasks.ldsr_names import denoiser
from training.tasks.sgdm_names import flow_source, guidance_source

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


# --- encoder and adapter ---------------------------------------------------------------------------------------------


def guidance(vectors, net, architecture):
    network = Guidance(architecture)
    weights = vectors.tensors(net)
    network.load_state_dict({name: weights[guidance_source(name, network.variant)] for name in network.state_dict()})
    assert len(weights) == len(network.state_dict())
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def real(vectors):
    return guidance(vectors, "adapter_real", PUBLISHED)


def ranged(vectors, key):
    return 2 * vectors(key) - 1


def test_spade(vectors):
    spade = Spade(32, 64).eval()
    weights = vectors.tensors("spade_alone")
    spade.load_state_dict({name: weights[spade_source(name)] for name in spade.state_dict()})
    vectors.reproduced("spade_out", spade(vectors("spade_x"), vectors("spade_cond")).detach())


def spade_source(name):
    theirs = guidance_source(f"content.spades.0.{name}", "synthetic")
    return theirs.replace("adapter.merge_encoder.spade1", "spade")


def test_style(vectors, real):
    image = ranged(vectors, "style_rgb")
    vectors.reproduced("style_features", real.style(image))
    found = real.style_statistics(image)
    vectors.reproduced("style_mean", found.mean)
    vectors.reproduced("style_std", found.std)


def test_content_of_the_real_variant(vectors, real):
    stages = real.content.stages(ranged(vectors, "lr_up"), ranged(vectors, "map_rgb"))
    vectors.reproduced("content_after_spade1", stages[0][0][..., ::2, ::2])
    vectors.reproduced("content_after_spade2", stages[1][0])
    vectors.reproduced("content_after_spade3", stages[2][0])


def test_condition_and_controls_with_the_style_of_an_image(vectors, real):
    image, of_map = ranged(vectors, "lr_up"), ranged(vectors, "map_rgb")
    style = real.style_statistics(ranged(vectors, "style_rgb"))
    vectors.reproduced("cond_feature", real.condition(image, of_map, style))
    for level, control in enumerate(real(image, of_map, style)):
        vectors.reproduced(f"control_{level}", control)


def test_condition_with_given_statistics(vectors, real):
    image, of_map = ranged(vectors, "lr_up"), ranged(vectors, "map_rgb")
    style = Style(vectors("given_mean"), vectors("given_std"))
    vectors.reproduced("cond_feature_given_style", real.condition(image, of_map, style))
    own = real.content_statistics(image, of_map)
    vectors.reproduced("cond_feature_given_style", real.condition(image, of_map, style, own))


def test_synthetic_variant(vectors):
    network = guidance(vectors, "adapter_synthetic", PUBLISHED_SYNTHETIC)
    image, of_map = ranged(vectors, "lr_up"), ranged(vectors, "map_rgb")
    vectors.reproduced("syn_cond_feature", network.condition(image, of_map))
    vectors.reproduced("syn_control_2", network(image, of_map)[2])


def test_variant_without_map(vectors):
    network = guidance(vectors, "adapter_no_map", PUBLISHED_NO_MAP)
    vectors.reproduced("nomap_cond_feature", network.condition(ranged(vectors, "lr_up"), None))


# --- styles ----------------------------------------------------------------------------------------------------------


def test_flow(vectors):
    flow = StyleFlow(COUPLINGS_OF_CODE)
    weights = vectors.tensors("flow")
    flow.load_state_dict(
        {
            name: weights[f"flow_mean.{flow_source(name)}"].reshape(tensor.shape)
            for name, tensor in flow.state_dict().items()
        }
    )
    x = vectors("flow_x")
    with torch.no_grad():
        vectors.reproduced("flow_z", flow.base(x)[0])
        vectors.reproduced("flow_log_prob", flow.log_prob(x))
        vectors.reproduced("flow_nll", -flow.log_prob(x).mean())
        vectors.reproduced("flow_sample", flow.draw(vectors("flow_base_noise")))
        first = flow.couplings[0]
        unpermuted, change = first.undone(x[:, first.order])
        vectors.reproduced("flow_coupling0_inverse", unpermuted)
        vectors.reproduced("flow_coupling0_logdet", change)


# --- injection -------------------------------------------------------------------------------------------------------

TINY_UNET = {
    **PUBLISHED_PRIOR["unet"],
    "block_out_channels": [32, 64, 128, 128],
    "attention_head_dim": [2, 4, 8, 8],
    "cross_attention_dim": 24,
}
TINY_SIZES = {"blocks": 2, "channels": [32, 64, 128, 128], "attention_levels": [0, 1, 2]}


def test_injection(vectors):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**{k: tuple(v) if isinstance(v, list) else v for k, v in TINY_UNET.items()})
    weights = vectors.tensors("unet_tiny")
    sources = {name: f"model.diffusion_model.{denoiser(name, TINY_SIZES, True)}" for name in unet.state_dict()}
    assert sorted(sources.values()) == sorted(weights)
    unet.load_state_dict({name: weights[source] for name, source in sources.items()})
    unet.requires_grad_(False)
    given = vectors("inj_x"), vectors("inj_t"), vectors("inj_context")
    controls = [vectors(f"inj_control_{level}") for level in range(3)]
    vectors.reproduced("inj_eps", guided_noise(unet, *given, controls))
    vectors.reproduced("inj_eps_zero", guided_noise(unet, *given, [torch.zeros_like(control) for control in controls]))
    vectors.reproduced("inj_eps_zero", guided_noise(unet, *given))


# --- all of it -------------------------------------------------------------------------------------------------------


def test_every_array_is_named_here(vectors):
    """As an input or as what is reproduced, by the text of this file."""
    written = re.findall(r'"([a-z]\w*(?:{\w+}\w*)?)"', Path(__file__).read_text())
    named = {name.format(steps=steps, level=level) for name in written for steps in (10, 50) for level in range(3)}
    assert set(vectors.file.files) - named == set()
