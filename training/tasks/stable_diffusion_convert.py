"""Conversion of Stable Diffusion 2.1-base to a prior: a folder in diffusers' layout, or one file of the LDM code.

A single file has no tokenizer and does not tell noise from velocity: texts come from a folder of the model, and the
network itself is asked what it predicts.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, SYSTEM, Prior, prior_bundle
from pipeline.models.sgdm import LATTICE
from pipeline.models.stable_diffusion import (
    LICENCE,
    NAME,
    check_predicts_noise,
    read_folder,
    text_contexts,
    weights_files,
)
from training.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from training.conversion import Conversion, Flag, Made
from training.tasks.ldsr_names import AUTOENCODER, DENOISER, autoencoder, denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.conversion import Choices

PAPER = "Rombach et al., CVPR 2022"
CONTEXTS = "contexts"
FOLDER = "diffusers folder"
TEXT = Flag("--text", "folder with the model's text_encoder and tokenizer, for a single file", path=True)
# Of single files: the text encoder's tensors, averages, and what follows from the schedule.
NOT_TAKEN = (
    "cond_stage_model.",
    "first_stage_model.loss.",
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "logvar",
)


def read(architecture: Mapping[str, Any], path: Path, choices: Choices) -> Checkpoint:
    """Read a folder in diffusers' layout with its texts embedded, or a single file. Raises UsageError."""
    if not path.is_dir():
        return read_checkpoint(path)
    given = choices.options.get(TEXT.key)
    tensors = read_folder(path, architecture)
    digest = hashlib.sha256()
    for file in weights_files(path).values():
        with file.open("rb") as held:
            digest.update(hashlib.file_digest(held, "sha256").digest())
    tensors[CONTEXTS] = text_contexts(given or path, architecture["unet"]["cross_attention_dim"])
    return Checkpoint(path, FOLDER, digest.hexdigest(), tensors)


def make(architecture: Mapping[str, Any], tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert the networks of a folder, or of a single file. Raises UsageError."""
    with torch.device("meta"):
        wanted = Prior(architecture).state_dict()

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return prior_bundle(architecture, LATTICE, provenance, licence)

    if CONTEXTS in tensors:
        return Made(wanted, {name: _linear(tensor, wanted.get(name)) for name, tensor in tensors.items()}, bundle)
    sources = {name: source(name, architecture) for name in wanted}
    if not any(name in tensors for name in sources.values()):
        raise CheckpointError(f"it holds no tensor {DENOISER[1]}*", f"{NAME} as one file")
    folder = choices.options.get(TEXT.key)
    if folder is None:
        raise CheckpointError(
            "a single file has no tokenizer for the texts",
            f"{TEXT.name} FOLDER beside it, with text_encoder and tokenizer of {NAME}",
            f"give {TEXT.name}, or convert the model's folder itself",
        )
    held = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_TAKEN)}
    held[CONTEXTS] = text_contexts(folder, architecture["unet"]["cross_attention_dim"])
    like = {theirs: wanted[name] for name, theirs in sources.items()}

    def settle(found: dict[str, Tensor]) -> dict[str, Tensor]:
        settled = {name: found[theirs] for name, theirs in sources.items()}
        check_predicts_noise(Prior.of_tensors(prior_bundle(architecture, LATTICE), settled), "the file")
        return settled

    return Made(
        expected=like,
        tensors={name: _linear(tensor, like.get(name)) for name, tensor in held.items()},
        bundle=bundle,
        remarks={"not_taken": ", ".join(f"{prefix}*" for prefix in NOT_TAKEN), "texts": folder.name},
        settle=settle,
    )


def source(name: str, architecture: Mapping[str, Any]) -> str:
    """Return the name in a single file of a tensor of a prior of this architecture."""
    part, _, rest = name.partition(".")
    if part == "vae":
        return AUTOENCODER[1] + autoencoder(rest, len(architecture["vae"]["block_out_channels"]))
    return DENOISER[1] + denoiser(rest, unet_sizes(architecture), True) if part == "unet" else name


def unet_sizes(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the U-Net as `ldsr_names` takes them."""
    unet = architecture["unet"]
    return {
        "blocks": unet["layers_per_block"],
        "channels": unet["block_out_channels"],
        "attention_levels": [k for k, kind in enumerate(unet["down_block_types"]) if "Attn" in kind],
    }


def _linear(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return a convolution of one pixel as the linear layer that it is, where that is expected."""
    if like is not None and like.ndim == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    return tensor


def conversion(architecture: Mapping[str, Any] = PUBLISHED_PRIOR) -> Conversion:
    """Return the conversion of a model of this architecture."""
    return Conversion(
        "stable-diffusion",
        NAME,
        f"--sr sgdm --weights {SYSTEM.removeprefix('sgdm-')}=",
        partial(make, architecture),
        flags=(TEXT,),
        source=PAPER,
        read=partial(read, architecture),
        licence=LICENCE,
    )


CONVERSIONS = (conversion(),)
