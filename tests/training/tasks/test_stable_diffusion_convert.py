"""Stable Diffusion becomes a prior: from a folder or one file, checked by configuration, name, shape and behaviour."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UsageError
from pipeline.models.bundle import BundleError, load_bundle
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, Prior
from pipeline.models.map_words import prompts
from pipeline.models.stable_diffusion import check_folder, check_predicts_noise, text_contexts
from tests.models.sgdm_small import PRIOR, moved
from training import convert
from training.checkpoint import CheckpointError
from training.conversion import Choices
from training.tasks.stable_diffusion_convert import TEXT, conversion, source

SMALL = {**PRIOR, "contexts": [16, 77, 8]}
CONVERSION = conversion(SMALL)
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def tuples(config):
    return {key: tuple(x) if isinstance(x, list) else x for key, x in config.items()}


def predicts_noise(unet):
    """Weights with which the network gives back its input: past all blocks by the last skip connection."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".conv2." in name or ".proj_out." in name or name.startswith(("conv_in", "conv_out")):
                parameter.zero_()
        last = unet.up_blocks[-1].resnets[-1].conv_shortcut
        last.weight.zero_()
        last.weight[:, -8:, 0, 0] = torch.eye(8)
        last.bias.zero_()
        for channel in range(4):
            for k, sign in enumerate((1, -1)):
                unet.conv_in.weight[2 * channel + k, channel, 1, 1] = sign
                unet.conv_out.weight[channel, 2 * channel + k, 1, 1] = sign
    return unet


def write_tokenizer(folder):
    """Every character is a token of its own."""
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )
    return len(pieces)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small model as diffusers and transformers save it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("models") / "sd"
    folder.mkdir()
    torch.manual_seed(0)
    predicts_noise(moved(UNet2DConditionModel(**tuples(SMALL["unet"])))).save_pretrained(folder / "unet")
    moved(AutoencoderKL(**tuples(SMALL["vae"]))).save_pretrained(folder / "vae")
    tokens = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=0,
        hidden_act="gelu",
    )
    moved(CLIPTextModel(text)).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "stable-diffusion-2-1-base")


def changed(folder, part, **values):
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def single_file(folder, path, **others):
    """The folder's networks as the LDM code saves them: its names, and attention of the autoencoder as convolutions."""
    tensors = {}
    for part in ("unet", "vae"):
        for name, tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").items():
            convolved = part == "vae" and ".attentions." in name and tensor.ndim == 2
            tensors[source(f"{part}.{name}", SMALL)] = tensor[..., None, None] if convolved else tensor
    tensors |= {"betas": torch.ones(1000), "cond_stage_model.model.logit_scale": torch.ones(1), **others}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def converted(path, **options):
    return convert.convert(path, CONVERSION, Choices(options=options))


def same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# --- what becomes of it ----------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_prior(folder, tmp_path):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    bundle, tensors = converted(folder)
    convert.write(bundle, tensors, tmp_path / "prior.safetensors")
    read = load_bundle(tmp_path / "prior.safetensors")
    assert read.licence.startswith("CreativeML Open RAIL++-M")
    assert read.provenance["converted_from"] == folder.name
    assert read.provenance["source_kind"] == "diffusers folder"
    assert len(read.provenance["source_sha256"]) == 64
    prior = Prior.from_bundle(read)
    same(prior.unet.state_dict(), UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    same(prior.vae.state_dict(), AutoencoderKL.from_pretrained(folder / "vae").state_dict())
    assert torch.equal(prior.contexts, text_contexts(folder, 8))


def test_one_file_becomes_the_same_prior(folder, tmp_path):
    expected = converted(folder)[1]
    path = single_file(folder, tmp_path / "v2-1_512-ema-pruned.safetensors")
    bundle, found = converted(path, **{TEXT.key: folder})
    same(found, expected)
    assert bundle.licence.startswith("CreativeML")
    assert "cond_stage_model" in bundle.provenance["not_taken"]


def test_names_of_one_file_are_those_that_diffusers_knows():
    """At the published depth: diffusers' own conversion of a single file gives back its names."""
    from diffusers.loaders import single_file_utils as theirs

    with torch.device("meta"):
        prior = Prior(PUBLISHED_PRIOR)
    names = {name: source(name, PUBLISHED_PRIOR) for name in prior.state_dict() if name != "contexts"}
    marks = {name: torch.tensor([float(k)]) for k, name in enumerate(names.values())}
    config = prior.unet.config | {"class_embed_type": None, "addition_embed_type": None}
    back = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(marks), config),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(marks), prior.vae.config),
    }
    found = {f"{part}.{name}": mark for part, marked in back.items() for name, mark in marked.items()}
    assert sorted(found) == sorted(names)
    assert all(torch.equal(found[name].flatten(), marks[theirs]) for name, theirs in names.items())


def test_the_command_takes_a_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.tasks.stable_diffusion_convert.CONVERSIONS", (CONVERSION,))
    out = tmp_path / "prior.safetensors"
    assert convert.main(["--from", "stable-diffusion", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"use it: python -m pipeline.run --sr sgdm --weights prior={out}" in said.out
    assert "no licence" not in said.err
    assert load_bundle(out).system == "sgdm-prior"


def test_half_precision_and_old_names_are_read(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    held = load_file(path)
    for new, name in old.items():
        held = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): x for key, x in held.items()}
    assert any("proj_attn" in name for name in held)
    expected = converted(folder)[1]
    path.unlink()
    save_file({name: x.half() for name, x in held.items()}, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found = converted(folder)[1]
    same(found, {name: x.half().float() if name.startswith("vae.") else x for name, x in expected.items()})


# --- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_embedded_by_the_model(folder):
    from transformers import CLIPTextModel

    found = text_contexts(folder, 8)
    assert found.shape == (16, 77, 8)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    for number in (0, 5, 15):
        words = prompts()[number].replace(",", " ,").split()
        letters = [piece for word in words for piece in (*word[:-1], f"{word[-1]}</w>")]
        tokens = [vocabulary[piece] for piece in ("<|startoftext|>", *letters, "<|endoftext|>")]
        tokens += [vocabulary["!"]] * (77 - len(tokens))
        with torch.no_grad():
            expected = encoder(torch.tensor([tokens])).last_hidden_state[0]
        assert torch.allclose(found[number], expected, atol=1e-5)


def test_without_transformers_the_cure_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r"transformers, which is not installed.*sen2fine\[stable-diffusion\]"):
        text_contexts(folder, 8)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_folder_without_texts_is_refused(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(BundleError, match=f"has no {part}/"):
        converted(folder)


def test_texts_of_another_width_are_refused(folder):
    changed(folder, "text_encoder", hidden_size=768)
    with pytest.raises(BundleError, match="gives 768 channels; expected 8"):
        converted(folder)


def test_a_single_file_needs_texts(folder, tmp_path):
    path = single_file(folder, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="no tokenizer for the texts; expected --text FOLDER"):
        converted(path)


# --- other models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("scheduler", {"prediction_type": "v_prediction"}, "v_prediction, as of Stable Diffusion 2.1 for 768 px"),
        ("scheduler", {"beta_schedule": "linear"}, "beta_schedule linear; expected scaled_linear"),
        ("unet", {"cross_attention_dim": 768}, "cross_attention_dim 768, as of Stable Diffusion 1; expected 8"),
        ("unet", {"cross_attention_dim": 2048}, "as of Stable Diffusion XL"),
        ("unet", {"attention_head_dim": 8}, "attention_head_dim 8"),
        ("vae", {"latent_channels": 16}, "latent_channels 16"),
    ],
)
def test_configurations_of_other_models_are_refused(folder, part, values, named):
    changed(folder, part, **values)
    with pytest.raises(BundleError, match=named) as caught:
        converted(folder)
    assert "\n" not in str(caught.value)
    assert "cure: give a folder of Stable Diffusion 2.1-base" in str(caught.value)


def test_the_configurations_of_the_published_model_pass(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        described = {**PUBLISHED_PRIOR[part], "_class_name": "of diffusers", "sample_size": 64}
        (tmp_path / part / "config.json").write_text(json.dumps(described))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    check_folder(tmp_path, PUBLISHED_PRIOR)
    changed(tmp_path, "unet", cross_attention_dim=768)
    with pytest.raises(BundleError, match="768, as of Stable Diffusion 1; expected 1024"):
        check_folder(tmp_path, PUBLISHED_PRIOR)


def test_other_shapes_are_named(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    del held["conv_out.bias"]
    save_file({**held, "class_embedding.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError) as caught:
        converted(folder)
    for named in (
        "missing unet.conv_out.bias",
        "unknown unet.class_embedding.weight",
        "unet.conv_in.weight (float32 [8, 9",
    ):
        assert named in str(caught.value)


def test_pickles_are_not_opened(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(BundleError, match=r"holds diffusion_pytorch_model.bin; expected one file"):
        converted(folder)


def test_a_damaged_file_is_named(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="vae/diffusion_pytorch_model.safetensors cannot be read"):
        converted(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no file .*unet/config.json"):
        converted(tmp_path)


def test_a_network_of_velocity_in_one_file_is_refused(folder, tmp_path):
    """It has all names and shapes of one of noise."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["conv_out.weight"] = -held["conv_out.weight"]
    save_file(held, path)
    with pytest.raises(BundleError, match="does not predict noise"):
        converted(single_file(folder, tmp_path / "one.safetensors"), **{TEXT.key: folder})


def test_what_is_predicted_decides(written):
    torch.manual_seed(0)
    prior = Prior(SMALL)
    prior.unet.load_state_dict(load_file(written / "unet" / "diffusion_pytorch_model.safetensors"))
    check_predicts_noise(prior, "it")
    with torch.no_grad():
        prior.unet.conv_out.weight.copy_(torch.randn(prior.unet.conv_out.weight.shape))
    with pytest.raises(BundleError, match="a correlation of"):
        check_predicts_noise(prior, "it")


def test_something_else_in_one_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "else.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no tensor model.diffusion_model"):
        converted(tmp_path / "else.safetensors")
