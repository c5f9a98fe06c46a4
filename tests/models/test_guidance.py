"""Encoder, adapter and injection of map guidance: what they may depend on, and what they do before training."""

import pytest
import torch

from pipeline.models.bundle import BundleError
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, SMALL_PRIOR, Prior
from pipeline.models.guidance import PUBLISHED, PUBLISHED_NO_MAP, PUBLISHED_SYNTHETIC, Guidance
from pipeline.models.guidance_parts import PixelNorm, Spade, Style, adain, pooled, statistics
from pipeline.models.guided_unet import guided_noise
from pipeline.models.style_flow import COUPLINGS_OF_CODE, StyleFlow

OURS = {
    "norm": "pixel",
    "map_channels": 5,
    "stem": 8,
    "widths": [8, 16],
    "spade_width": 16,
    "merged": 24,
    "controls": [32, 64, 64],
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(module, by=0.1):
    """The module with all parameters moved away from their initial values."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def ours():
    torch.manual_seed(0)
    return trained(Guidance(OURS))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [(PUBLISHED, 48_201_504), (PUBLISHED_SYNTHETIC, 52_987_008), (PUBLISHED_NO_MAP, 49_756_544)],
    ids=["real", "synthetic", "no map"],
)
def test_parameters_of_the_published_guidance(architecture, parameters):
    with torch.device("meta"):
        assert count(Guidance(architecture)) == parameters


def test_parameters_of_a_published_flow():
    assert count(StyleFlow(COUPLINGS_OF_CODE)) == 117_312


def test_parameters_of_stable_diffusion():
    with torch.device("meta"):
        prior = Prior(PUBLISHED_PRIOR)
    assert (count(prior.unet), count(prior.vae)) == (865_910_724, 83_653_863)
    trained_names = prior.attention_names()
    assert len(trained_names) == 160
    assert sum(prior.get_parameter(name).numel() for name in trained_names) == 99_926_400


def test_the_small_prior_is_small():
    assert 3e6 < count(Prior(SMALL_PRIOR)) < 4.5e6


# --- SPADE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "pixel", "none"])
def test_spade_begins_as_its_norm(norm):
    spade = Spade(8, 16, norm).eval()
    x = random(2, 8, 6, 5)
    assert torch.equal(spade(x, random(2, 16, 6, 5, seed=1)), spade.norm(x))
    if norm == "batch":  # of running statistics 0 and 1
        assert torch.allclose(spade(x, random(2, 16, 6, 5)), x, atol=1e-4)


def test_modulation_is_constant_where_the_condition_is():
    spade = trained(Spade(8, 16, "pixel"))
    condition = random(1, 16, 1, 1).expand(1, 16, 12, 10)
    for found in spade.modulation(condition):
        inner = found[..., 2:-2, 2:-2]  # zeros beyond the edge reach 2 pixels far
        assert (inner - inner[..., :1, :1]).abs().max() < 1e-6
        assert found.abs().max() > 1e-3


def test_a_constant_map_gives_constant_modulation_of_an_even_image(ours):
    of_map = torch.full((1, 5, 128, 128), -1.0)
    of_map[:, 2] = 1
    image = torch.full((1, 3, 128, 128), 0.2)
    for features in ours.content(image, of_map):
        inner = features[..., 8:-8, 8:-8]
        assert (inner - inner[..., :1, :1]).abs().max() < 1e-5
    half = of_map.clone()
    half[..., 64:] = -1
    features, _ = ours.content(image, half)
    assert (features[..., 8] - features[..., -8]).abs().max() > 1e-3, "another map changes the image's features"


def test_normalisation_of_pixels_depends_on_each_alone():
    norm = trained(PixelNorm(8))
    x = random(1, 8, 4, 4)
    changed = x.clone()
    changed[..., 0, 0] += 3
    same = (norm(x) == norm(changed)).all(1)
    assert not same[0, 0, 0]
    assert same.sum() == 15


# --- styles ----------------------------------------------------------------------------------------------------------


def test_statistics_are_unbiased():
    features = random(2, 4, 3, 5)
    found = statistics(features)
    assert torch.allclose(found.mean, features.mean((2, 3)))
    assert torch.allclose(found.std, (features.var((2, 3), correction=1)).sqrt() + 1e-6)


def test_statistics_of_a_scene_follow_from_those_of_its_windows():
    features = random(1, 4, 6, 20) + torch.arange(20.0)
    windows = torch.cat(features.split(5, 3))
    found, expected = pooled(statistics(windows), 30), statistics(features)
    assert torch.allclose(found.mean, expected.mean, atol=1e-5)
    assert torch.allclose(found.std, expected.std, atol=1e-5)


def test_features_take_the_statistics_of_a_style():
    features, style = random(2, 4, 6, 6), Style(random(2, 4, seed=1), random(2, 4, seed=2).abs())
    found = statistics(adain(features, style, statistics(features)))
    assert torch.allclose(found.mean, style.mean, atol=1e-5)
    assert torch.allclose(found.std, style.std, atol=1e-4)


def test_given_statistics_make_a_window_independent_of_what_else_is_in_it(ours):
    """With its own statistics a change in one corner changes all of it; with those of the scene only what is near."""
    image, of_map = random(1, 3, 128, 128), random(1, 5, 128, 128, seed=1)
    changed = image.clone()
    changed[..., :16, :16] += 2
    style, scene = Style(random(1, 16, seed=2), torch.ones(1, 16)), Style(torch.zeros(1, 16), 0.5 * torch.ones(1, 16))
    far = (..., slice(16, None), slice(16, None))

    def difference(content):
        return (ours.condition(image, of_map, style, content) - ours.condition(changed, of_map, style, content))[far]

    assert difference(None).abs().max() > 1e-4
    assert difference(scene).abs().max() < 1e-6


def test_without_a_style_the_features_keep_their_own(ours):
    image, of_map = random(1, 3, 32, 32), random(1, 5, 32, 32, seed=1)
    own = ours.content_statistics(image, of_map)
    assert torch.allclose(ours.condition(image, of_map), ours.condition(image, of_map, own), atol=1e-5)
    other = Style(own.mean + 1, own.std)
    assert (ours.condition(image, of_map) - ours.condition(image, of_map, other)).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", [PUBLISHED_NO_MAP, PUBLISHED_SYNTHETIC])
def test_variants_without_styles_say_so(architecture):
    with torch.device("meta"):
        network = Guidance(architecture)
    assert network.style_width == 0
    with pytest.raises(ValueError, match="has no styles"):
        network.style_statistics(torch.empty(1, 3, 8, 8, device="meta"))


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_does_not_depend_on_its_batch(ours):
    image, of_map = random(3, 3, 32, 48), random(3, 5, 32, 48, seed=1)
    style = Style(random(3, 16, seed=2), random(3, 16, seed=3).abs())
    together = ours(image, of_map, style)
    assert [tuple(control.shape[1:]) for control in together] == [(32, 8, 12), (64, 4, 6), (64, 2, 3)]
    alone = ours(image[1:2], of_map[1:2], Style(style.mean[1:2], style.std[1:2]))
    for one, all_of_them in zip(alone, together, strict=True):
        assert (one[0] - all_of_them[1]).abs().max() <= 1e-5 * one.abs().max()


@pytest.mark.parametrize(
    ("wrong", "named"), [({"width": 3}, "width"), ({"variant": "best"}, "best"), ({"norm": "group"}, "group")]
)
def test_architectures_that_do_not_exist_are_refused(wrong, named):
    with pytest.raises(BundleError, match=named):
        Guidance({**OURS, **wrong})


# --- injection -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes = {**PUBLISHED_PRIOR["unet"], "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
    sizes |= {"attention_head_dim": [1, 2, 2, 2], "cross_attention_dim": 8, "layers_per_block": 2}
    net = UNet2DConditionModel(**{key: tuple(x) if isinstance(x, list) else x for key, x in sizes.items()})
    return trained(net, 0.05)


def given(batch=2, size=(16, 24)):
    return random(batch, 4, *size), torch.tensor([7, 900])[:batch], random(batch, 3, 8, seed=1)


@pytest.mark.parametrize("size", [(16, 24), (13, 9)], ids=["multiples of 8", "odd"])
def test_without_controls_the_unet_is_itself(unet, size):
    noisy, timestep, context = given(size=size)
    assert torch.equal(guided_noise(unet, noisy, timestep, context), unet(noisy, timestep, context).sample)


def test_controls_are_added_behind_the_first_attentions(unet):
    """As hooks on diffusers' own pass would."""
    noisy, timestep, context = given()
    controls = [0.3 * random(2, *shape, seed=9) for shape in ((8, 16, 24), (16, 8, 12), (16, 4, 6))]
    places = [
        (unet.down_blocks[k].attentions[0], unet.up_blocks[3 - k].attentions[0], x) for k, x in enumerate(controls)
    ]
    hooks = [
        attention.register_forward_hook(lambda module, args, out, x=control: (out[0] + x,))
        for *both, control in places
        for attention in both
    ]
    expected = unet(noisy, timestep, context).sample
    for hook in hooks:
        hook.remove()
    found = guided_noise(unet, noisy, timestep, context, controls)
    assert torch.allclose(found, expected, atol=1e-6)
    plain = guided_noise(unet, noisy, timestep, context)
    assert (found - plain).abs().max() > 1e-2
    assert torch.equal(plain, unet(noisy, timestep, context).sample), "nothing of the controls stays"


def test_levels_without_attention_take_controls_behind_the_first_residual_block():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    net = trained(net, 0.05)
    noisy, timestep, context = given()
    control = random(2, 8, 16, 24, seed=3)
    hooks = [
        block.register_forward_hook(lambda module, args, out: out + control)
        for block in (net.down_blocks[0].resnets[0], net.up_blocks[1].resnets[0])
    ]
    expected = net(noisy, timestep, context).sample
    for hook in hooks:
        hook.remove()
    assert torch.allclose(guided_noise(net, noisy, timestep, context, [control]), expected, atol=1e-6)
