"""Conversion of the fusion networks released with SEN2SR (light cascade: `f2_model` and `model`) to bundles."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.span_fusion import (
    PUBLISHED_ARCHITECTURE,
    PUBLISHED_NORMALISATION,
    X2,
    X4,
    fusion_bundle,
    network,
)
from training.checkpoint import CheckpointError
from training.conversion import Conversion, Made

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.conversion import Choices

SOURCE = "SEN2SR, https://github.com/ESAOpenSR/SEN2SR"
DERIVED = ".eval_conv."  # in the names of folded kernels, which follow from the other tensors
ENTRY, BLOCK = "conv_1.sk.weight", "blocks."


def make(kind: str, tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert a checkpoint of `kind`. Raises CheckpointError if it holds no network of this family."""
    del choices
    given = {name: tensor for name, tensor in tensors.items() if DERIVED not in name}
    if ENTRY not in given or given[ENTRY].dim() != 4:
        raise CheckpointError("it holds no network of the SPAN family", f"tensors {ENTRY}, {BLOCK}0.c1_r.sk.weight ...")
    features = given[ENTRY].shape[0]
    numbers = {name.split(".")[1] for name in given if name.startswith(BLOCK)}
    blocks = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
    architecture = {**PUBLISHED_ARCHITECTURE, "features": features, "blocks": blocks}
    with torch.device("meta"):
        expected = network(architecture, PUBLISHED_NORMALISATION[kind]).state_dict()

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return fusion_bundle(kind, architecture, provenance, licence, published=True)

    return Made(expected, given, bundle)


CONVERSIONS = {
    kind: Conversion(
        f"sen2sr-{kind}",
        f"the network of {kind}",
        f"--sr ldsr --weights {kind.removeprefix('fusion-')}=",
        partial(make, kind),
        source=SOURCE,
    )
    for kind in (X2, X4)
}
