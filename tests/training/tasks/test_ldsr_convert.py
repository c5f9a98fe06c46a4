"""Checkpoints of latent diffusion become bundles: against the same networks in plain torch, and what does not fit."""

import sys

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models import latent_sampler, ldsr
from pipeline.models.bundle import BundleError, load_bundle, load_tensors
from pipeline.models.ldsr_published import ARCHITECTURE, GAINS, LATTICE, SAMPLER, published_network
from tests.models.ldsr_vectors import released
from tests.training.tasks.ldm_layout import Ldm
from training import convert
from training.tasks.ldsr_names import AVERAGED, source_names

SMALL = {
    **ARCHITECTURE,
    "autoencoder_channels": [32, 32, 64],
    "autoencoder_blocks": 1,
    "channels": [32, 64],
    "blocks": 1,
    "attention_levels": [1],
}
OTHERS = [
    SMALL,
    {**SMALL, "bands": 6, "latents": 6, "blocks": 2, "attention_levels": [0]},
    {**SMALL, "bands": 6, "autoencoder_blocks": 2, "channels": [32, 32, 64], "attention_levels": [0, 2]},
]
NAME = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


@pytest.fixture(scope="module")
def weights():
    return Ldm(SMALL).filled()


@pytest.fixture
def command(tmp_path, capsys):
    """Convert what is saved as a checkpoint: (exit code, stderr, path of the bundle)."""

    def call(content, *words):
        source, out = tmp_path / "released.ckpt", tmp_path / "ldsr.safetensors"
        torch.save(content, source)
        code = convert.main(["--from", "ldsr", str(source), "--out", str(out), "--overwrite", *words])
        return code, capsys.readouterr().err, out

    return call


def taken(outcome):
    code, complaint, out = outcome
    assert code == 0, complaint
    bundle = load_bundle(out)
    return bundle, load_tensors(bundle)


def refused(outcome, *texts):
    code, complaint, _ = outcome
    assert code == 2
    assert len(complaint.splitlines()) == 1
    for text in ("released.ckpt", *texts):
        assert text in complaint


@pytest.mark.parametrize("sizes", OTHERS, ids=["four bands", "six bands", "six bands in four"])
def test_networks_compute_what_those_of_the_checkpoint_do(command, sizes):
    ldm = Ldm(sizes)
    bundle, _ = taken(command(released(ldm.filled())))
    assert bundle.architecture == sizes
    network, generator = ldsr.LDSR.from_bundle(bundle).network, torch.Generator().manual_seed(1)
    image = torch.randn(2, sizes["bands"], 32, 64, generator=generator)
    noisy, condition = torch.randn(2, 2, sizes["latents"], 8, 16, generator=generator)
    timestep = torch.tensor([1, 991])
    with torch.inference_mode():
        moments = network.autoencoder.encode(image)
        pairs = [
            (torch.cat([moments.mean, moments.log_variance], 1), ldm.encode(image)),
            (network.decode(noisy), ldm.decode(noisy)),
            (network.unet(noisy, condition, timestep), ldm.denoise(noisy, condition, timestep)),
        ]
    for found, expected in pairs:
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_the_bundle_says(command, weights):
    bundle, tensors = taken(command(released(weights), "--licence", "MIT"))
    assert (bundle.system, bundle.scale, bundle.licence) == ("ldsr", 4, "MIT")
    assert bundle.in_bands == bundle.out_bands == ("B04", "B03", "B02", "B08")
    assert bundle.lattice == LATTICE
    assert LATTICE.window_px == LATTICE.stride_px + LATTICE.ramp_px + 2 * LATTICE.margin_px
    assert (bundle.normalisation, bundle.sampler) == ({"kind": "none"}, SAMPLER)
    assert bundle.provenance["denoiser"] == "not averaged"
    assert "model_ema.*" in bundle.provenance["not_taken"]
    assert torch.equal(tensors["latent_spread"], torch.ones(4))
    assert tensors.keys() == published_network(SMALL, "meta").state_dict().keys()
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in weights.values()) + 1000 + 4


def test_six_bands_are_those_of_20_m(command):
    bundle, _ = taken(command(released(Ldm(OTHERS[1]).filled())))
    assert bundle.in_bands == ("B05", "B06", "B07", "B8A", "B11", "B12")


def with_average(content):
    """The checkpoint with an average that differs from the denoiser by one."""
    state = content["state_dict"]
    for name in [name for name in state if name.startswith("model.")]:
        state[AVERAGED + name.removeprefix("model.").replace(".", "")] = state[name] + 1
    return content


def test_the_average_is_taken_only_when_asked(command, weights):
    _, raw = taken(command(with_average(released(weights))))
    bundle, averaged = taken(command(with_average(released(weights)), "--ema"))
    assert bundle.provenance["denoiser"] == "averaged"
    for name, tensor in raw.items():
        assert torch.equal(averaged[name], tensor + name.startswith("unet."))


def test_names_of_the_average_are_distinct_without_dots():
    names = published_network(device="meta").state_dict()
    averaged = source_names(names, ARCHITECTURE, averaged=True)
    assert len(set(averaged.values())) == len(set(source_names(names, ARCHITECTURE).values())) == 512


def test_the_schedule_is_that_of_the_buffers(command, weights):
    betas = latent_sampler.betas(2e-4, 0.01)
    bundle, tensors = taken(command(released(weights, betas)))
    assert torch.equal(tensors["betas"], torch.from_numpy(betas).float())
    assert bundle.normalisation == {"kind": "none"}


def test_half_precision_becomes_float32(command, weights):
    content = released({name: tensor.half() for name, tensor in weights.items()}, OLD)
    state = content["state_dict"]
    state |= {name: state[name].half() for name in ("betas", "alphas_cumprod")}
    bundle, tensors = taken(command(content))
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert bundle.normalisation["kind"] == "before-1.0"
    name = "first_stage_model.quant_conv.weight"
    assert torch.equal(tensors["autoencoder.net.quant_conv.weight"], weights[name].half().float())


OLD = latent_sampler.betas(*latent_sampler.BETAS_BEFORE_1_0)


@pytest.mark.parametrize(
    ("betas", "words", "before", "why"),
    [
        (OLD, [], True, "by the first beta of 0.0015"),
        (None, ["--before-1-0"], True, "as chosen"),
        (OLD, ["--since-1-0"], False, "as chosen"),
        (None, [], False, "by the first beta of 0.0001"),
    ],
)
def test_normalisation_before_1_0(command, weights, betas, words, before, why):
    bundle, _ = taken(command(released(weights, betas), *words))
    assert bundle.normalisation == ({"kind": "before-1.0", "gains": GAINS[4]} if before else {"kind": "none"})
    assert why in bundle.provenance["normalisation"]


def without(start):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(start)]


def changed(name, tensor):
    return lambda state: state.update({name: tensor})


AVERAGE = AVERAGED + NAME.removeprefix("model.").replace(".", "")
FAULTS = {
    "missing": (without(NAME.replace("in_layers.2", "out_layers.3")), [], "missing model.diffusion_model.input_blocks"),
    "missing part of attention": (without("model.diffusion_model.middle_block.1.qkv.bias"), [], "middle_block.1.qkv.b"),
    "unknown": (changed("cond_stage_model.w", torch.ones(2)), [], "unknown cond_stage_model.w"),
    "misshapen": (
        changed("first_stage_model.quant_conv.weight", torch.ones(8, 8)),
        [],
        "first_stage_model.quant_conv.weight (float32 [8, 8] instead of float32 [8, 8, 1, 1])",
    ),
    "needed for the sizes": (without(NAME), [], f"it holds no tensor {NAME}"),
    "flat": (changed("first_stage_model.encoder.conv_in.weight", torch.ones(4)), [], "has shape [4]"),
    "no denoiser": (without("model.diffusion_model."), [], "it holds no tensor model.diffusion_model.input_blocks.*"),
    "no schedule": (without("betas"), [], "it holds no tensor betas"),
    "short schedule": (
        lambda state: (state.update(betas=state["betas"][:500]), state.pop("alphas_cumprod")),
        [],
        "wrong betas (float32 [500] instead of float32 [1000])",
    ),
    "schedule beyond 1": (changed("betas", torch.full((1000,), 1.5)), [], "outside (0, 1)"),
    "two schedules": (changed("alphas_cumprod", torch.linspace(1, 0, 1000)), [], "alphas_cumprod is not"),
    "shorter buffer": (changed("alphas_cumprod", torch.linspace(1, 0, 500)), [], "alphas_cumprod is not"),
    "no average": (without(AVERAGED), ["--ema"], "missing model_ema.diffusion_model"),
    "hole in the average": (without(AVERAGE), ["--ema"], f"missing {AVERAGE}"),
    "unknown average": (changed(AVERAGED + "more", torch.ones(1)), ["--ema"], "unknown model_ema.more"),
    "three bands": (changed("first_stage_model.encoder.conv_in.weight", torch.ones(32, 3, 3, 3)), [], "takes 3 bands"),
    "odd width": (changed(NAME, torch.ones(40, 32, 3, 3)), [], "levels of 40 channels"),
    "both releases": (lambda state: None, ["--before-1-0", "--since-1-0"], "--before-1-0 and --since-1-0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(command, weights, fault):
    change, words, text = FAULTS[fault]
    content = with_average(released(weights))
    change(content["state_dict"])
    refused(command(content, *words), text)


def test_the_cure_for_missing_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"sen2fine\[diffusers\]"):
        published_network(SMALL, "meta")


@pytest.mark.parametrize("sizes", [{"depth": 3}, {"networks": "small"}])
def test_sizes_that_the_networks_do_not_have(sizes):
    with pytest.raises(BundleError, match=str(*sizes)):
        published_network(sizes, "meta")
