"""Stable Diffusion 2.1-base as a prior: a local folder in diffusers' layout, checked, and its text contexts.

Rombach et al., CVPR 2022. Nothing is fetched, and only safetensors files are opened. Other models of the family are
refused: they have other sizes, or predict velocity, not noise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import BundleError
from pipeline.models.map_words import prompts
from pipeline.models.spaced_sampler import STABLE_DIFFUSION_BETAS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from pipeline.models.diffusion_prior import Prior

NAME = "Stable Diffusion 2.1-base"
LICENCE = "CreativeML Open RAIL++-M (use restrictions apply)"
CURE = f"give a folder of {NAME} in diffusers' layout (unet, vae, text_encoder, tokenizer, scheduler)"
TEXT_TOKENS = 77
_SCHEDULER: dict[str, Any] = {
    "prediction_type": "epsilon",
    "beta_schedule": "scaled_linear",
    "beta_start": STABLE_DIFFUSION_BETAS[0],
    "beta_end": STABLE_DIFFUSION_BETAS[1],
    "num_train_timesteps": 1000,
}
_RELATIVES = {768: "Stable Diffusion 1", 2048: "Stable Diffusion XL"}  # by channels of the text
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# Attention of autoencoders saved by diffusers before 0.12.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_LAYERS = {1024: 23}  # by channels: Stable Diffusion 2 takes the last but one of OpenCLIP-H's 24 layers
_NOISE_FOUND = 0.5  # least correlation, at the noisiest timestep, of the noise with what the network predicts


def check_folder(folder: Path, architecture: Mapping[str, Any]) -> None:
    """Raise BundleError unless the configurations in `folder` are those of a prior of this architecture.

    `architecture`: as `diffusion_prior.PUBLISHED_PRIOR`.
    """
    unet = _config(folder, "unet")
    text = unet.get("cross_attention_dim")
    of = f", as of {_RELATIVES[text]}" if text in _RELATIVES else ""
    _check(f"{folder}/unet/config.json", unet, architecture["unet"], of)
    _check(f"{folder}/vae/config.json", _config(folder, "vae"), architecture["vae"])
    scheduler = _config(folder, "scheduler")
    of = ", as of Stable Diffusion 2.1 for 768 px" if scheduler.get("prediction_type") == "v_prediction" else ""
    _check(f"{folder}/scheduler/scheduler_config.json", {"prediction_type": "epsilon"} | scheduler, _SCHEDULER, of)


def weights_files(folder: Path) -> dict[str, Path]:
    """Return the files of U-Net and autoencoder in `folder`. Raises BundleError if there are none in safetensors."""
    found = {}
    for part in ("unet", "vae"):
        held = [folder / part / name for name in _WEIGHTS if (folder / part / name).is_file()]
        if not held:
            others = sorted(path.name for path in (folder / part).glob("diffusion_pytorch_model*"))
            raise BundleError(
                f"{folder / part} holds {', '.join(others) or 'no weights'}",
                f"one file {_WEIGHTS[0]}",
                "get the model's safetensors files, unsharded; others are not opened",
            )
        found[part] = held[0]
    return found


def read_folder(folder: Path, architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors `unet.*` and `vae.*` of a folder, checked by its configurations. Raises BundleError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_folder(folder, architecture)
    tensors: dict[str, Tensor] = {}
    for part, path in weights_files(folder).items():
        try:
            held = load_file(path)
        except (SafetensorError, OSError) as error:
            found = f"{path} cannot be read ({' '.join(str(error).split())})"
            raise BundleError(found, "a safetensors file", "download or copy it again") from error
        tensors |= {f"{part}.{_renewed(name)}": tensor for name, tensor in held.items()}
    return tensors


@torch.inference_mode()
def text_contexts(folder: Path, width: int) -> Tensor:
    """Return the embeddings (16, 77, `width`) of `map_words.prompts` by the text encoder in `folder`.

    Raises UsageError without transformers, and BundleError if the folder has no text encoder of this width.
    """
    for part, file in (
        ("text_encoder", "model.safetensors"),
        ("text_encoder", "config.json"),
        ("tokenizer", "vocab.json"),
    ):
        if not (folder / part / file).is_file():
            raise BundleError(f"{folder} has no {part}/{file}", "text encoder and tokenizer", CURE)
    config = _config(folder, "text_encoder")
    if config.get("hidden_size") != width:
        found = f"{folder}/text_encoder gives {config.get('hidden_size')} channels"
        raise BundleError(found, f"{width}, as the U-Net takes", CURE)
    if (layers := config.get("num_hidden_layers")) != _TEXT_LAYERS.get(width, layers):
        raise BundleError(f"{folder}/text_encoder has {layers} layers", f"{_TEXT_LAYERS[width]}", CURE)
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise UsageError(
            "the text encoder needs transformers, which is not installed",
            "the extra stable-diffusion",
            'pip install "sen2fine[stable-diffusion]"',
        ) from error
    tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    encoder: Any = CLIPTextModel.from_pretrained(
        str(folder / "text_encoder"), local_files_only=True, use_safetensors=True
    )
    # OpenCLIP fills up with 0, whatever the folder says that the tokenizer does.
    rows = [(row + [0] * TEXT_TOKENS)[:TEXT_TOKENS] for row in tokenizer(prompts()).input_ids]
    embedded: Tensor = encoder.float().eval()(torch.tensor(rows)).last_hidden_state
    return embedded.clone()


@torch.inference_mode()
def check_predicts_noise(prior: Prior, what: str) -> None:
    """Raise BundleError if the U-Net of `what` does not predict the noise of pure noise, as one of velocity does not.

    At the noisiest timestep, velocity is the image with the opposite sign, which does not resemble the noise.
    """
    noise = torch.randn(1, prior.latents, 32, 32, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([len(prior.alpha_bar) - 1])
    found = prior.noise(noise, last, torch.zeros(1, dtype=torch.long))
    alike = float(torch.corrcoef(torch.stack([noise.flatten(), found.flatten()]))[0, 1])
    if not alike >= _NOISE_FOUND:
        raise BundleError(
            f"{what} does not predict noise: in noise alone, what it predicts has a correlation of {alike:.2f} with it",
            f"{NAME} (512 px), not a model of velocity such as 2.1 for 768 px",
            CURE,
        )


def _config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of a part. Raises BundleError without one."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"no file {path}", f"{NAME} in diffusers' layout", CURE) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error})", "the model's configuration", CURE) from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} is no configuration", "the model's configuration", CURE)
    return found


def _check(what: str, found: Mapping[str, Any], expected: Mapping[str, Any], of: str = "") -> None:
    """Raise BundleError if a value differs from the one expected. Values that a file leaves out are diffusers' own."""
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise BundleError(f"{what} says {key} {found[key]}{of}", f"{value}, of {NAME}", CURE)


def _renewed(name: str) -> str:
    """Return the present name of a tensor."""
    module, _, leaf = name.rpartition(".")
    path, _, last = module.rpartition(".")
    return f"{path}.{_OLD_ATTENTION[last]}.{leaf}" if ".attentions." in name and last in _OLD_ATTENTION else name
