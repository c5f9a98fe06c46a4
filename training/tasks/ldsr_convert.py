"""Conversion of released latent diffusion checkpoints (OpenSR LDSR-S2) to bundles.

Sizes are read from the tensors, the noise schedule from the buffers. The release's normalisation is not stored: it is
that of releases before 1.0 if the schedule is theirs, or as chosen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models import ldsr_published
from pipeline.models.latent import STRIDE
from pipeline.models.latent_sampler import BETAS_BEFORE_1_0
from pipeline.models.ldsr_published import published_network
from training.checkpoint import CheckpointError
from training.conversion import Conversion, Flag, Made
from training.tasks.ldsr_names import (
    AUTOENCODER,
    AVERAGED,
    DENOISER,
    bundle_tensor,
    source_names,
    source_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.conversion import Choices

    Shapes = Mapping[str, tuple[int, ...]]

PAPER = "Donike et al., IEEE JSTARS 2025"
SCHEDULE = "betas"
SPREAD = "latent_spread"  # of our own weights; not in checkpoints
LOSS = "loss"  # in the names of all tensors that only training needs
_ENCODER = f"{AUTOENCODER[1]}encoder"
_EXPECTED = "a checkpoint of latent diffusion for Sentinel-2 (OpenSR)"
_INPUTS = f"{DENOISER[1]}input_blocks"
# Buffers that follow from `betas`, and the counters of the average.
FOLLOWING = frozenset(
    {
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
)
COUNTERS = frozenset({AVERAGED + "decay", AVERAGED + "num_updates"})
EMA = Flag("--ema", "take the averaged denoiser; the release runs without averaging")
BEFORE_1_0 = Flag(
    "--before-1-0",
    "of a release before 1.0, which scales reflectance; without the flag, as the schedule's first beta says (0.0015)",
)
SINCE_1_0 = Flag("--since-1-0", "of release 1.0 or later, which takes reflectance as it is, whatever the schedule")


def make(tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert the networks and the schedule of a checkpoint. Raises CheckpointError."""
    ema = bool(choices.options.get(EMA.key))
    sizes = architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    before_1_0, normalisation = _normalisation(_betas(tensors), choices)
    wanted = published_network(sizes, "meta").state_dict()
    sources = source_names((name for name in wanted if name != SPREAD), sizes, ema)
    not_taken = (DENOISER[1] if ema else AVERAGED, *sorted(COUNTERS))

    def settle(found: dict[str, Tensor]) -> dict[str, Tensor]:
        settled = {name: bundle_tensor(name, found[source], sizes["head"]) for name, source in sources.items()}
        return settled | {SPREAD: torch.ones(sizes["latents"])}

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return ldsr_published.published_bundle(sizes, provenance, licence, before_1_0)

    return Made(
        expected=source_tensors(wanted, sources),
        tensors={
            name: tensor
            for name, tensor in tensors.items()
            if not (name.startswith(not_taken) or name in FOLLOWING or LOSS in name)
        },
        bundle=bundle,
        remarks={
            "denoiser": "averaged" if ema else "not averaged",
            "normalisation": normalisation,
            "not_taken": f"{not_taken[0]}*, names with {LOSS}, buffers that follow from {SCHEDULE}",
        },
        settle=settle,
    )


def architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the networks from the names and shapes of a checkpoint's tensors.

    Raises CheckpointError that names a missing tensor, or the sizes that the networks do not have.
    """
    bands = _axis(shapes, f"{_ENCODER}.conv_in.weight", 1)
    sizes = {
        **ldsr_published.ARCHITECTURE,
        "bands": bands,
        "latents": _axis(shapes, f"{AUTOENCODER[1]}post_quant_conv.weight", 0),
        **_autoencoder(shapes),
        **_denoiser(shapes),
    }
    if bands not in ldsr_published.BANDS:
        expected = " or ".join(f"{n} ({', '.join(names)})" for n, names in ldsr_published.BANDS.items())
        raise CheckpointError(f"its autoencoder takes {bands} bands", expected)
    if 2 ** (len(sizes["autoencoder_channels"]) - 1) != STRIDE:
        raise CheckpointError(
            f"its autoencoder has {len(sizes['autoencoder_channels'])} levels", f"3, for latents at 1/{STRIDE}"
        )
    uneven = {n for n in (*sizes["autoencoder_channels"], *sizes["channels"]) if n % ldsr_published.GROUPS}
    if uneven:
        raise CheckpointError(f"levels of {', '.join(map(str, sorted(uneven)))} channels", "multiples of 32")
    return sizes


def _autoencoder(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, f"{_ENCODER}.down")
    return {
        "autoencoder_channels": [
            _axis(shapes, f"{_ENCODER}.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ],
        "autoencoder_blocks": _count(shapes, f"{_ENCODER}.down.0.block"),
    }


def _denoiser(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the U-Net, each level of which ends in a convolution `op`, but the last."""
    entries = _count(shapes, _INPUTS)
    per_level = next((n for n in range(1, entries) if f"{_INPUTS}.{n}.0.op.weight" in shapes), 0)
    if per_level < 2 or entries % per_level:
        raise CheckpointError(
            f"{_INPUTS} has {entries} entries, of which the first with a stride is {per_level or 'none'}",
            "levels of equally many entries, each ending in one with a stride (op) but the last",
        )
    firsts = range(1, entries, per_level)
    return {
        "channels": [_axis(shapes, f"{_INPUTS}.{first}.0.in_layers.2.weight", 0) for first in firsts],
        "blocks": per_level - 1,
        "attention_levels": [k for k, first in enumerate(firsts) if f"{_INPUTS}.{first}.1.qkv.weight" in shapes],
    }


def _count(shapes: Shapes, name: str) -> int:
    """Return how many numbered parts `name` has: one more than the largest. Raises CheckpointError if none."""
    numbers = [int(found[1]) for other in shapes if (found := re.match(rf"{re.escape(name)}\.(\d+)\.", other))]
    if not numbers:
        raise CheckpointError(f"it holds no tensor {name}.*", _EXPECTED)
    return 1 + max(numbers)


def _axis(shapes: Shapes, name: str, axis: int) -> int:
    """Return the length of an axis. Raises CheckpointError if the tensor is missing or has fewer axes."""
    if name not in shapes:
        raise CheckpointError(f"it holds no tensor {name}", _EXPECTED)
    if len(shapes[name]) <= axis:
        raise CheckpointError(f"{name} has shape {list(shapes[name])}", "a kernel")
    return shapes[name][axis]


def _betas(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the noise schedule (T,). Raises CheckpointError if it is absent, invalid or not that of other buffers."""
    if SCHEDULE not in tensors:
        raise CheckpointError(f"it holds no tensor {SCHEDULE}", "the noise schedule of its training")
    betas = tensors[SCHEDULE].double()
    if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
        raise CheckpointError(
            f"{SCHEDULE} of shape {list(betas.shape)} outside (0, 1)", "variances of noise, by timestep"
        )
    alphas, rounding = tensors.get("alphas_cumprod"), 10 * torch.finfo(tensors[SCHEDULE].dtype).eps
    if alphas is not None and (
        alphas.shape != betas.shape
        or not torch.allclose((1 - betas).cumprod(0), alphas.double(), rtol=0, atol=max(1e-5, rounding))
    ):
        raise CheckpointError("alphas_cumprod is not the cumulative product of 1 - betas", "one schedule")
    return betas


def _normalisation(betas: Tensor, choices: Choices) -> tuple[bool, str]:
    """Return whether the weights are of a release before 1.0, and why. Raises CheckpointError if both are chosen."""
    before, since = (bool(choices.options.get(flag.key)) for flag in (BEFORE_1_0, SINCE_1_0))
    if before and since:
        raise CheckpointError(f"{BEFORE_1_0.name} and {SINCE_1_0.name}", "one of them, or none")
    first = float(betas[0])
    if before or since:
        return before, f"of a release {'before 1.0' if before else 'since 1.0'}, as chosen"
    before = abs(first / BETAS_BEFORE_1_0[0] - 1) < 0.01
    return before, f"of a release {'before 1.0' if before else 'since 1.0'}, by the first beta of {first:.4g}"


LDSR = Conversion(
    "ldsr",
    "latent diffusion networks",
    "--sr ldsr --weights",
    make,
    flags=(EMA, BEFORE_1_0, SINCE_1_0),
    source=PAPER,
)
