"""Checkpoints of map guidance in the released layout become bundles: every tensor in its place, all of them checked."""

import pytest
import torch

from pipeline.models.bundle import load_bundle, load_tensors
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, Prior
from pipeline.models.guidance import PUBLISHED, PUBLISHED_NO_MAP, PUBLISHED_SYNTHETIC, Guidance
from pipeline.models.sgdm import RENDERED, SGDM, guidance_tensors
from pipeline.models.style_model import StyleModel
from tests.models.sgdm_small import GUIDANCE, PRIOR, STYLE, moved, write_prior
from tests.models.sgdm_vectors import flow_tensors, read
from tests.models.test_difffusr import ruled
from training import convert
from training.checkpoint import CheckpointError
from training.conversion import Choices
from training.tasks.sgdm_convert import SCALE, STYLES, conversion, guidance_architecture, read_flows
from training.tasks.sgdm_convert import SGDM as SGDM_CONVERSION
from training.tasks.sgdm_names import guidance_source
from training.tasks.stable_diffusion_convert import source

CONVERSION = conversion(PRIOR)
SIZES = {**GUIDANCE, "norm": "batch", "map_channels": 3}
VARIANTS = {
    "real": SIZES,
    "synthetic": {**SIZES, "variant": "synthetic"},
    "no-map": {**SIZES, "variant": "no-map", "map_channels": 0},
}


def released(architecture, seed=0):
    """Networks, and their checkpoint: all of the U-Net, and one stored NaN for each tensor that is not to be taken."""
    torch.manual_seed(seed)
    guidance, prior = moved(Guidance(architecture), seed=seed), moved(Prior(PRIOR), seed=seed + 1)
    state = {guidance_source(name, architecture["variant"]): x for name, x in guidance.state_dict().items()}
    nan = torch.tensor(torch.nan)
    for name, tensor in prior.unet.state_dict().items():
        state[source(f"unet.{name}", PRIOR)] = tensor if "attn" in name else nan.expand(tensor.shape)
    state |= {"first_stage_model.post_quant_conv.bias": nan, "cond_stage_model.model.ln_final.weight": nan}
    state |= {"lpips_metric.net.lin0.weight": nan, "betas": nan.expand(1000), "sqrt_alphas_cumprod": nan.expand(1000)}
    return guidance, prior, state


def saved(state, path):
    torch.save({"epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.9", "state_dict": state}, path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_guidance_comes_back(tmp_path, variant):
    guidance, prior, state = released(VARIANTS[variant])
    bundle, tensors = convert.convert(saved(state, tmp_path / "last.ckpt"), CONVERSION, Choices(licence="none given"))
    expected = guidance_tensors(guidance, prior)
    assert sorted(tensors) == sorted(expected)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert bundle.architecture["words"] == RENDERED
    assert {**bundle.architecture["guidance"], "spade_width": 8} == VARIANTS[variant]
    assert bundle.scale == {"real": 16}.get(variant, 32)
    assert bundle.provenance["variant"] == variant

    convert.write(bundle, tensors, tmp_path / "sgdm.safetensors")
    path = write_prior(tmp_path)
    system = SGDM.from_bundles(load_bundle(tmp_path / "sgdm.safetensors"), load_bundle(path))
    image = torch.rand(1, 3, 32, 32)
    of_map = torch.rand(1, 3, 32, 32) if variant != "no-map" else None
    noise = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        assert system.sample(image, of_map, None, lambda step: noise, steps=2).isfinite().all()
        controls = guidance.eval()(2 * image - 1, None if of_map is None else 2 * of_map - 1)
        found = system.guidance(2 * image - 1, None if of_map is None else 2 * of_map - 1)
    assert all(map(torch.equal, controls, found))


def test_the_scale_can_be_given(tmp_path):
    path = saved(released(SIZES)[2], tmp_path / "last.ckpt")
    assert convert.convert(path, CONVERSION, Choices(options={SCALE.key: 8}))[0].scale == 8


@pytest.mark.parametrize(
    "dropped",
    [
        "adapter.merge_encoder.SR_Ref_Encoder.spade2.mlp_gamma.bias",
        "adapter.merge_encoder.HR_Style_Encoder.last_layer.0.weight",
        "adapter.body.1.block2.bias",
        "adapter.conv_in.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    ],
)
def test_missing_tensors_are_named(tmp_path, dropped):
    state = released(SIZES)[2]
    del state[dropped]
    with pytest.raises(CheckpointError, match=dropped):
        convert.convert(saved(state, tmp_path / "last.ckpt"), CONVERSION, Choices())


@pytest.mark.parametrize(
    "added",
    ["adapter.merge_encoder.SR_Ref_Encoder.spade9.mlp_gamma.bias", "model.diffusion_model.label_emb.0.0.weight"],
)
def test_unknown_tensors_are_named(tmp_path, added):
    state = released(SIZES)[2] | {added: torch.zeros(2)}
    path = saved(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=f"unknown {added}"):
        convert.convert(path, CONVERSION, Choices())
    assert convert.convert(path, CONVERSION, Choices(ignore=(added,)))[1]


def test_another_prior_is_refused(tmp_path):
    """Attention of other widths: the checkpoint is of another Stable Diffusion."""
    wider = conversion({**PRIOR, "unet": {**PRIOR["unet"], "cross_attention_dim": 12}})
    with pytest.raises(
        CheckpointError, match=r"wrong model.diffusion_model.*attn2.to_k.weight .*\[8, 8\] instead of .*\[8, 12\]"
    ):
        convert.convert(saved(released(SIZES)[2], tmp_path / "last.ckpt"), wider, Choices())


def test_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it holds no tensor adapter.merge_encoder.layer1_sr"):
        convert.convert(saved({"weight": torch.zeros(2)}, tmp_path / "last.ckpt"), CONVERSION, Choices())


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("net", "architecture"),
    [
        ("adapter_real", PUBLISHED),
        ("adapter_synthetic", PUBLISHED_SYNTHETIC),
        ("adapter_no_map", PUBLISHED_NO_MAP),
    ],
)
def test_all_tensors_of_the_released_encoders_have_a_place(shared_data, net, architecture):
    """In full size, by names and shapes."""
    expected = read(shared_data).nets[net]
    sizes = guidance_architecture({name: tuple(shape) for name, shape in expected.items()})
    assert sizes == architecture
    with torch.device("meta"):
        found = Guidance(sizes).state_dict()
    assert {guidance_source(name, sizes["variant"]): list(x.shape) for name, x in found.items()} == expected


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_released_encoder_reproduces_its_vectors_through_the_bundle(shared_data, tmp_path):
    """In full size, with weights by the vectors' rule."""
    vectors = read(shared_data)
    state = {name: x for name, x in released(SIZES)[2].items() if not name.startswith("adapter.")}
    path = saved(state | vectors.tensors("adapter_real"), tmp_path / "SGDM-real.ckpt")
    bundle, tensors = convert.convert(path, CONVERSION, Choices())
    convert.write(bundle, tensors, tmp_path / "sgdm.safetensors")
    path.unlink()
    bundle = load_bundle(tmp_path / "sgdm.safetensors")
    guidance = Guidance(bundle.architecture["guidance"])
    held = load_tensors(bundle)
    guidance.load_state_dict({name: held[f"guidance.{name}"] for name in guidance.state_dict()})
    image, of_map = 2 * vectors("lr_up") - 1, 2 * vectors("map_rgb") - 1
    with torch.inference_mode():
        style = guidance.eval().style_statistics(2 * vectors("style_rgb") - 1)
        for level, control in enumerate(guidance(image, of_map, style)):
            vectors.reproduced(f"control_{level}", control)
    (tmp_path / "sgdm.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.shared_data
def test_all_attention_of_the_released_unet_is_taken(shared_data, tmp_path):
    """In full size: 148 M trained parameters, the number of the paper, with one stored NaN for all others."""
    with torch.device("meta"):
        unet = Prior(PUBLISHED_PRIOR).unet.state_dict()
    nan = torch.tensor(torch.nan)
    state = {source(f"unet.{name}", PUBLISHED_PRIOR): (name, x.shape) for name, x in unet.items()}
    attention = ruled({name: shape for name, (ours, shape) in state.items() if "attn" in ours})
    state = {name: attention[name] if name in attention else nan.expand(shape) for name, (_, shape) in state.items()}
    path = saved(state | read(shared_data).tensors("adapter_real"), tmp_path / "SGDM-real.ckpt")
    del state
    bundle, tensors = convert.convert(path, SGDM_CONVERSION, Choices())
    path.unlink()
    assert sum(x.numel() for name, x in tensors.items() if name.startswith("unet.")) == 99_926_400
    trained = sum(x.numel() for name, x in tensors.items() if "running" not in name and "num_batches" not in name)
    assert trained == 99_926_400 + 48_201_504
    block = "transformer_blocks.0.attn2.to_k.weight"
    for ours, theirs in {
        f"unet.down_blocks.2.attentions.1.{block}": f"model.diffusion_model.input_blocks.8.1.{block}",
        f"unet.mid_block.attentions.0.{block}": f"model.diffusion_model.middle_block.1.{block}",
        f"unet.up_blocks.1.attentions.2.{block}": f"model.diffusion_model.output_blocks.5.1.{block}",
    }.items():
        assert torch.equal(tensors[ours], attention[theirs])
    assert bundle.scale == 16


# --- styles ----------------------------------------------------------------------------------------------------------


def flow_shapes(dim=STYLE, couplings=3, hidden=6):
    shapes = {"q0.loc": [1, dim], "q0.log_scale": [1, dim]}
    for k in range(0, 2 * couplings, 2):
        net = f"flows.{k}.flows.1.param_map.net"
        for layer, (before, after) in {0: (dim // 2, hidden), 2: (hidden, hidden), 4: (hidden, dim)}.items():
            shapes |= {f"{net}.{layer}.weight": [after, before], f"{net}.{layer}.bias": [after]}
        shapes |= {f"flows.{k + 1}.perm": [dim], f"flows.{k + 1}.inv_perm": [dim]}
    return shapes


def flow(which, dim=STYLE):
    shapes = flow_shapes(dim)
    made = ruled({f"{which}.{name}": shape for name, shape in shapes.items() if "perm" not in name})
    made = {name.removeprefix(f"{which}."): tensor for name, tensor in made.items()}
    for k, name in enumerate(name for name in shapes if name.endswith(".perm")):
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(k))
        made |= {name: order, name.replace(".perm", ".inv_perm"): order.argsort()}
    return made


@pytest.fixture
def flows(tmp_path):
    folder = tmp_path / "flows"
    folder.mkdir()
    torch.save(flow("mean"), folder / "flow_tanh_mini_mean")
    torch.save(flow("std"), folder / "flow_tanh_mini_std")
    return folder


def test_a_folder_of_two_flows_becomes_a_style_model(flows, tmp_path):
    bundle, tensors = convert.convert(flows, STYLES, Choices())
    assert bundle.architecture == {"model": "flow", "dim": STYLE, "couplings": 3, "hidden": [6, 6], "log_std": False}
    assert bundle.provenance["source_kind"] == "folder of flows"
    convert.write(bundle, tensors, tmp_path / "style.safetensors")
    model = StyleModel.from_bundle(load_bundle(tmp_path / "style.safetensors"))
    expected = flow("std")
    assert torch.equal(model.std.loc, expected["q0.loc"][0])
    assert torch.equal(model.std.couplings[1].order, expected["flows.3.perm"])
    assert torch.equal(model.std.couplings[2].net[4].weight, expected["flows.4.flows.1.param_map.net.4.weight"])
    assert torch.equal(model.mean.log_scale, flow("mean")["q0.log_scale"][0])


def test_one_file_of_both_flows_is_read(flows, tmp_path):
    both = {f"flow_{which}.{name}": x for which in ("mean", "std") for name, x in flow(which).items()}
    torch.save(both, tmp_path / "both.ckpt")
    found = convert.convert(tmp_path / "both.ckpt", STYLES, Choices())[1]
    expected = convert.convert(flows, STYLES, Choices())[1]
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.shared_data
def test_a_flow_of_the_reference_vectors_draws_their_samples(shared_data, tmp_path):
    """In the layout of a file, through the bundle."""
    vectors = read(shared_data)
    theirs = {name.removeprefix("flow_mean."): x for name, x in flow_tensors(vectors.nets["flow"]).items()}
    (tmp_path / "flows").mkdir()
    torch.save(theirs, tmp_path / "flows" / "mean")
    torch.save({name: -x if ".net." in name else x for name, x in theirs.items()}, tmp_path / "flows" / "std")
    bundle, tensors = convert.convert(tmp_path / "flows", STYLES, Choices())
    convert.write(bundle, tensors, tmp_path / "style.safetensors")
    model = StyleModel.from_bundle(load_bundle(tmp_path / "style.safetensors"))
    noise = vectors("flow_base_noise")
    style = model.draw(torch.stack([noise, torch.zeros_like(noise)], 1))
    vectors.reproduced("flow_sample", style.mean)


def test_a_folder_without_one_of_the_flows_is_refused(flows):
    (flows / "flow_tanh_mini_std").rename(flows / "other")
    with pytest.raises(CheckpointError, match=r"no file named \*std\*; expected two flows"):
        read_flows(flows, Choices())


def test_a_flow_in_place_of_the_other_is_refused(flows):
    torch.save(flow("mean"), flows / "flow_tanh_mini_std")
    with pytest.raises(CheckpointError, match="the flow of deviations equals that of means"):
        convert.convert(flows, STYLES, Choices())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flows.1.perm": torch.zeros(STYLE, dtype=torch.long)}, "flow_mean.flows.1.perm is no permutation"),
        ({"flows.1.inv_perm": torch.arange(STYLE)}, "flow_mean.flows.1.perm is no permutation"),
        ({"q0.loc": torch.zeros(1, STYLE + 2)}, "instead of"),
        ({"q0.loc": torch.full((1, STYLE), torch.nan)}, "NaN"),
        ({"q1.loc": torch.zeros(1)}, "unknown flow_mean.q1.loc"),
    ],
)
def test_flows_that_are_none_are_refused(flows, change, named):
    torch.save({**flow("mean"), **change}, flows / "flow_tanh_mini_mean")
    with pytest.raises(CheckpointError, match=named):
        convert.convert(flows, STYLES, Choices())


def test_a_missing_tensor_of_a_flow_is_named(flows):
    less = flow("std")
    del less["flows.2.flows.1.param_map.net.2.bias"]
    torch.save(less, flows / "flow_tanh_mini_std")
    with pytest.raises(CheckpointError, match="missing flow_std.flows.2.flows.1.param_map.net.2.bias"):
        convert.convert(flows, STYLES, Choices())


def test_a_file_that_holds_no_flow_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "else.ckpt")
    with pytest.raises(CheckpointError, match="holds no tensor flow_mean.flows.0"):
        convert.convert(tmp_path / "else.ckpt", STYLES, Choices())
