"""Map guidance from its bundles: which weights go together, and what a sample depends on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from pipeline.models.bundle import BundleError, load_bundle, load_tensors, save_bundle
from pipeline.models.diffusion_prior import Prior
from pipeline.models.guidance_parts import Style
from pipeline.models.map_words import RENDERED, case_of_classes, case_of_rendering, prompts
from pipeline.models.sgdm import SGDM, SMALL, SMALL_LATTICE, guidance_bundle
from tests.models.sgdm_small import ARCHITECTURE, GUIDANCE, PRIOR, STYLE, write_guidance, write_prior, write_style

SIZE = (64, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sgdm")
    return write_guidance(folder), write_prior(folder), write_style(folder)


def system_of(*paths):
    return SGDM.from_bundles(*map(load_bundle, paths))


@pytest.fixture(scope="module")
def system(files):
    return system_of(*files)


def image(batch=2, seed=0):
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def one_hot(batch=2, shown=(0, 2)):
    found = torch.zeros(batch, 5, *SIZE)
    found[:, shown[0], :, :48] = 1
    found[:, shown[1], :, 48:] = 1
    return found


def drawn(batch=2, member=0):
    def noise(step):
        each = (torch.Generator().manual_seed(1000 * member + 10 * step + k) for k in range(batch))
        return torch.stack([torch.randn(4, SIZE[0] // 4, SIZE[1] // 4, generator=one) for one in each])

    return noise


def run(system, coarse=None, of_map=None, style=None, **others):
    with torch.inference_mode():
        return system.sample(
            image() if coarse is None else coarse,
            one_hot() if of_map is None else of_map,
            style,
            others.pop("drawn", drawn()),
            **others,
        )


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_a_function_of_its_inputs(system):
    found = run(system)
    assert found.shape == (2, 3, *SIZE)
    assert torch.equal(found, run(system))
    assert (found - run(system, drawn=drawn(member=1))).abs().max() > 1e-3
    assert (found - run(system, coarse=image(seed=1))).abs().max() > 1e-3
    assert (found - run(system, steps=2)).abs().max() > 1e-3
    assert torch.equal(found, run(system, steps=4)), "the bundle's number of steps"


def test_map_and_style_act_on_the_sample(system):
    of_map = one_hot(shown=(0, 3))
    context = system.context(one_hot())
    assert (run(system) - run(system, of_map=of_map, context=context)).abs().max() > 1e-4
    style = Style(torch.ones(1, STYLE), torch.full((1, STYLE), 2.0))
    assert (run(system) - run(system, style=style)).abs().max() > 1e-4
    content = Style(torch.zeros(1, STYLE), torch.ones(1, STYLE))
    assert (run(system, style=style) - run(system, style=style, content=content)).abs().max() > 1e-4


def test_without_a_map_it_is_one_that_shows_nothing(system):
    with torch.inference_mode():
        found = system.sample(image(), None, None, drawn())
    nothing = torch.zeros(2, 5, *SIZE)
    assert torch.equal(found, run(system, of_map=nothing))
    assert torch.equal(system.content_statistics(image(), None).mean, system.content_statistics(image(), nothing).mean)


def test_weights_may_tell_no_map_from_one_that_shows_nothing(files, tmp_path):
    absent = SMALL["absent"]
    system = system_of(write_guidance(tmp_path, absent=absent), files[1])
    with torch.inference_mode():
        found = system.sample(image(), None, None, drawn())
    assert torch.equal(found, run(system, of_map=torch.full((2, 5, *SIZE), absent)))
    assert (found - run(system, of_map=torch.zeros(2, 5, *SIZE))).abs().max() > 1e-4
    assert system.context(torch.full((2, 5, *SIZE), absent)).tolist() == [0, 0]


def test_a_window_does_not_depend_on_its_batch(system):
    coarse, of_map = image(), one_hot()
    of_map[1] = one_hot(shown=(1, 3))[0]
    both = run(system, coarse, of_map)
    alone = run(system, coarse[1:], of_map[1:], drawn=lambda step: drawn()(step)[1:])
    assert (both[1:] - alone).abs().max() <= 1e-5 * both.abs().max()


def test_threads_share_the_networks(system):
    """Each with its own map: controls of one never reach the other."""
    maps = [one_hot(shown=(0, k)) for k in (1, 2, 3, 4)]
    expected = [run(system, of_map=of_map) for of_map in maps]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda of_map: run(system, of_map=of_map), maps))
    assert all(map(torch.equal, found, expected))


# --- weights ---------------------------------------------------------------------------------------------------------


def test_trained_attention_takes_the_place_of_the_priors(system, files):
    of_guidance, of_prior = (load_tensors(load_bundle(path)) for path in files[:2])
    state = {f"unet.{name}": tensor for name, tensor in system.prior.unet.state_dict().items()}
    assert any("attn" in name for name in state)
    for name, tensor in state.items():
        assert torch.equal(tensor, (of_guidance if "attn" in name else of_prior)[name])
        if "attn" in name and tensor.ndim == 2:
            assert not torch.equal(tensor, of_prior[name])


def test_a_prior_of_other_sizes_is_refused(files, tmp_path):
    wider = {**PRIOR["unet"], "cross_attention_dim": 12}
    path = write_prior(tmp_path, unet=wider, contexts=[1, 3, 12])
    with pytest.raises(BundleError, match=r"U-Net of .*wrong shape \['unet.*attn2.to_k.weight \[8, 8\] instead of"):
        system_of(files[0], path)


def test_a_prior_other_than_the_one_it_names_is_refused(files, tmp_path):
    path = write_guidance(tmp_path, prior="0" * 64)
    with pytest.raises(BundleError, match="do not go with the prior"):
        system_of(path, files[1])
    fits = write_guidance(tmp_path, prior=load_bundle(files[1]).digest)
    assert system_of(fits, files[1]).stride == 4


def test_guidance_of_another_stride_is_refused(files, tmp_path):
    path = write_guidance(tmp_path, guidance={**GUIDANCE, "widths": [8, 8, STYLE]})
    with pytest.raises(BundleError, match="1/8 for a prior with latents at 1/4"):
        system_of(path, files[1])


@pytest.mark.parametrize(
    "dropped", ["guidance.merge.weight", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
)
def test_a_missing_tensor_is_named(files, tmp_path, dropped):
    bundle = load_bundle(files[0])
    tensors = load_tensors(bundle)
    del tensors[dropped]
    save_bundle(tmp_path / "less.safetensors", replace(bundle, digest="", path=""), tensors)
    with pytest.raises(BundleError, match=f"missing .*{dropped.split('.', 1)[1]}"):
        system_of(tmp_path / "less.safetensors", files[1])


def test_weights_in_each_others_place_are_refused(files):
    guidance, prior, style = files
    with pytest.raises(BundleError, match="of kind sgdm-style; expected sgdm-prior"):
        system_of(guidance, style)
    with pytest.raises(BundleError, match="of kind sgdm-prior; expected sgdm"):
        system_of(prior, prior)
    with pytest.raises(BundleError, match="of kind sgdm-prior; expected sgdm-style"):
        system_of(guidance, prior, prior)


# --- styles ----------------------------------------------------------------------------------------------------------


def test_styles_of_images_and_drawn_ones(system, files):
    found = system.style_statistics(image())
    assert found.mean.shape == found.std.shape == (2, STYLE)
    assert (found.std > 0).all()
    noise = torch.randn(500, 2, STYLE, generator=torch.Generator().manual_seed(0))
    styles = system.draw_style(noise)
    assert torch.allclose(styles.mean, system.styles.mean.draw(noise[:, 0]))
    assert torch.allclose(styles.std.log(), system.styles.std.draw(noise[:, 1]), atol=1e-5)
    with pytest.raises(ValueError, match="no style model"):
        system_of(*files[:2]).draw_style(noise)


def test_a_flow_can_take_the_place_of_a_gaussian(files, tmp_path):
    path = write_style(tmp_path, model="flow", couplings=3, hidden=[8], log_std=False)
    system = system_of(*files[:2], path)
    noise = torch.randn(50, 2, STYLE, generator=torch.Generator().manual_seed(0))
    styles = system.draw_style(noise)
    assert (styles.std > 0).all(), "even if the flow knows nothing of signs"
    assert system.styles.log_prob(styles).isfinite().all()


def test_styles_of_another_width_are_refused(files, tmp_path):
    with pytest.raises(BundleError, match="of 6 channels"):
        system_of(*files[:2], write_style(tmp_path, dim=6))


# --- text contexts ---------------------------------------------------------------------------------------------------


def test_prompts_of_the_released_code():
    found = prompts()
    assert len(set(found)) == 16
    assert found[0] == "land, "
    assert found[0b1010] == "land, road, water area, "
    assert found[15] == "land, building of regular shape, road, woods, water area, "


def test_classes_tell_the_case():
    of_map = torch.zeros(3, 6, 4, 5)
    of_map[0, 1, 2, 3] = 1
    of_map[1, [3, 5], 0, 0] = 1
    assert case_of_classes(of_map, [[1], [2, 3], [], [5]]).tolist() == [1, 2 + 8, 0]


def test_colours_tell_the_case():
    grey = torch.full((2, 3, 8, 9), 240 / 255)
    grey[0, :, 3, 4] = torch.tensor(RENDERED[1][1]) / 255
    grey[0, :, 0, 0] = torch.tensor(RENDERED[3][0]) / 255
    grey[1, :, 0, 0] = (torch.tensor(RENDERED[3][0]) + torch.tensor([1, 0, 0])) / 255  # not quite water
    assert case_of_rendering(grey).tolist() == [2 + 8, 0]


def test_the_case_of_the_map_chooses_the_context(system):
    of_map = one_hot(shown=(0, 2))
    assert system.context(of_map).tolist() == [2, 2]
    assert torch.equal(run(system, of_map=of_map), run(system, of_map=of_map, context=torch.tensor([2, 2])))
    assert (run(system, of_map=of_map) - run(system, of_map=of_map, context=torch.tensor([0, 0]))).abs().max() > 1e-5


def test_a_prior_with_one_context_has_no_words(files, tmp_path):
    system = system_of(files[0], write_prior(tmp_path, contexts=[1, 3, 8]))
    assert system.context(one_hot()).tolist() == [0, 0]
    assert run(system).shape == (2, 3, *SIZE)


@pytest.mark.parametrize(
    ("changes", "named"), [({"networks": "large"}, "networks 'large'"), ({"scaling": None}, "without scaling")]
)
def test_priors_of_other_architectures_are_refused(changes, named):
    architecture = {key: value for key, value in {**PRIOR, **changes}.items() if value is not None}
    with pytest.raises(BundleError, match=named):
        Prior(architecture)


def test_latents_are_scaled_to_and_fro(system):
    with torch.inference_mode():
        latent = system.prior.encode(2 * image() - 1)
        mean = system.prior.vae.encode(2 * image() - 1).latent_dist.mean
        assert torch.allclose(latent, 0.18215 * mean)
        assert torch.allclose(system.prior.decode(latent), system.prior.vae.decode(mean).sample, atol=1e-5)
        noise = torch.ones_like(latent)
        spread = system.prior.vae.encode(2 * image() - 1).latent_dist.std
        assert torch.allclose(system.prior.encode(2 * image() - 1, noise), 0.18215 * (mean + spread))


def test_the_small_lattice_holds_whole_pixels():
    lattice = guidance_bundle(SMALL, lattice=SMALL_LATTICE).lattice
    assert lattice.window_px == lattice.stride_px + lattice.ramp_px + 2 * lattice.margin_px
    assert lattice.window_px % 32 == lattice.stride_px % 16 == (lattice.margin_px + lattice.ramp_px / 2) % 16 == 0
    assert ARCHITECTURE["guidance"]["controls"] == GUIDANCE["controls"]


def test_more_of_the_unet_than_its_attention_may_be_trained(files, tmp_path):
    guidance, prior, _ = files
    bundle, of_prior = load_bundle(guidance), load_bundle(prior)
    tensors, whole = load_tensors(bundle), load_tensors(of_prior)
    name = "unet.conv_in.weight"
    tensors[name] = whole[name] + 1
    save_bundle(tmp_path / "more.safetensors", bundle, tensors)
    system = SGDM.from_bundles(load_bundle(tmp_path / "more.safetensors"), of_prior)
    assert torch.equal(system.prior.state_dict()[name], whole[name] + 1)
    tensors["unet.unknown.weight"] = torch.zeros(1)
    save_bundle(tmp_path / "unknown.safetensors", bundle, tensors)
    with pytest.raises(BundleError, match=r"unknown \['unet.unknown.weight'\]"):
        SGDM.from_bundles(load_bundle(tmp_path / "unknown.safetensors"), of_prior)


def test_sampling_may_start_from_the_coarse_image(system):
    asked = []

    def drawn(number):
        asked.append(number)
        return torch.zeros(1, system.latents, 24, 24)

    coarse = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = system.sample(coarse, None, None, drawn, steps=10)
        assert asked == list(range(10))
        asked.clear()
        late = system.sample(coarse, None, None, drawn, steps=10, start=0.2)
    assert asked == [0, 1]
    assert float((whole - late).abs().max()) > 1e-3
