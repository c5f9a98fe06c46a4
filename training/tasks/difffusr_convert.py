"""Conversion of released DiffFuSR checkpoints to bundles.

Sizes are read from the tensors; other settings are as published or as chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.models import difffusr, difffusr_fusion
from training.checkpoint import CheckpointError
from training.conversion import Conversion, Flag, Made
from training.tasks.difffusr_shapes import (
    difffusr_architecture,
    fusion_architecture,
    has_second_norms,
    is_second_norm,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.conversion import Choices

PAPER = "arXiv 2506.11764"
# Parts of a released checkpoint that inference does not use: the U-Net without weight averaging, the key encoder and
# queue of contrastive training, and the tables of the noise schedule.
IGNORED = ("model.", "E.encoder_k.", "E.queue", "diffusion.")
FLAGS = (
    Flag(
        "--denoise-last",
        "use the sampler's last evaluation; as published it is thrown away, which leaves noise of standard "
        "deviation 0.0032 reflectance (32 DN) in the output",
    ),
    Flag("--groups", "groups of the normalisations (32)", counts=True),
    Flag("--block2-norm", "trained with the second norm of each block in use"),
)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _holds(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def make_resolver(tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert the super-resolution networks of a checkpoint. Raises CheckpointError without an averaged U-Net."""
    if not _holds(tensors, "ema."):
        fusion = _holds(tensors, "rrdb_block_")
        found = "the fusion networks" if fusion else "no averaged U-Net"
        raise CheckpointError(f"it holds {found}", "tensors ema.*", f"--from {FUSION.name}" if fusion else "")
    shapes = _shapes(tensors)
    architecture = _architecture(choices, shapes)
    with torch.device("meta"):
        expected = difffusr.Networks(**architecture).state_dict()
    remarks, given = {}, dict(tensors)
    if not has_second_norms(shapes):
        given |= {name: _identity(name, like) for name, like in expected.items() if is_second_norm(name)}
        remarks["second_norms"] = "absent from the source and not used; stored as ones and zeros"
    sampler = {**difffusr.SAMPLER, "denoise_last": bool(choices.options.get("denoise_last"))}

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return difffusr.difffusr_bundle(architecture, provenance, licence, sampler)

    return Made(expected, given, bundle, remarks)


def make_fusion(tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert the fusion networks of a checkpoint. Raises CheckpointError if there are none."""
    del choices
    if not _holds(tensors, "rrdb_block_"):
        cure = f"--from {RESOLVER.name}" if _holds(tensors, "ema.") else ""
        raise CheckpointError("it holds no fusion networks", "tensors rrdb_block_*_fusion.*", cure)
    architecture = {**difffusr_fusion.ARCHITECTURE, **fusion_architecture(_shapes(tensors))}
    with torch.device("meta"):
        expected = difffusr_fusion.FusionNetworks(**architecture).state_dict()

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return difffusr_fusion.difffusr_fusion_bundle(architecture, provenance, licence)

    return Made(expected, tensors, bundle)


def _architecture(choices: Choices, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the networks' keyword arguments: from the shapes, else as chosen, else as published.

    Raises CheckpointError if they do not fit together.
    """
    block2_norm = bool(choices.options.get("block2_norm"))
    architecture = {**difffusr.ARCHITECTURE, **difffusr_architecture(shapes), "block2_norm": block2_norm}
    architecture["groups"] = choices.options.get("groups") or architecture["groups"]
    if block2_norm and not has_second_norms(shapes):
        raise CheckpointError("it stores no second norms (block2.block.0)", "them, for --block2-norm", "drop the flag")
    if architecture["base"] % architecture["groups"]:
        raise CheckpointError(
            f"{architecture['base']} channels do not divide into {architecture['groups']} groups",
            "the number of normalisation groups of the training",
            "give it with --groups",
        )
    multiple = architecture["fold"] * 2 ** (len(architecture["mults"]) - 1)
    if difffusr.LATTICE.window_px % multiple:
        raise CheckpointError(
            f"the U-Net wants windows of multiples of {multiple} px", f"a divisor of {difffusr.LATTICE.window_px} px"
        )
    return architecture


def _identity(name: str, like: Tensor) -> Tensor:
    """Return the weight (ones) or bias (zeros) of a norm without an affine effect."""
    return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)


RESOLVER = Conversion(
    "difffusr",
    "super-resolution networks",
    "--sr difffusr --weights",
    make_resolver,
    IGNORED,
    FLAGS,
    PAPER,
)
FUSION = Conversion("difffusr-fusion", "fusion networks", "--sr difffusr --fusion-weights", make_fusion, source=PAPER)
