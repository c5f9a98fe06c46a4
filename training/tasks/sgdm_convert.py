"""Conversion of released checkpoints of map guidance (SGDM) and of its style flows to bundles.

Of the U-Net, the attention is taken, which is what guidance trains; all else there is Stable Diffusion's, which the
prior brings. Sizes of the guidance are read from the tensors.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, Prior
from pipeline.models.guidance import NO_MAP, REAL, SYNTHETIC, Guidance
from pipeline.models.sgdm import LATTICE, PUBLISHED, RENDERED, guidance_bundle, guidance_tensors
from pipeline.models.style_model import FLOW, StyleModel, style_bundle
from pipeline.models.style_model import PUBLISHED as PUBLISHED_STYLES
from training.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from training.conversion import Conversion, Flag, Made
from training.tasks.sgdm_names import ADAPTER, CONTENT_OF_REAL, ENCODER, flow_source, guidance_source
from training.tasks.stable_diffusion_convert import source as prior_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.conversion import Choices

    Shapes = Mapping[str, tuple[int, ...]]

PAPER = "Wang and Sun, SGDM"
SCALES = {REAL: 16, SYNTHETIC: 32, NO_MAP: 32}  # of the published weights
SCALE = Flag(
    "--scale", "size of an output pixel in the coarse image's, if not 16 (real) or 32 (synthetic)", counts=True
)
# Tensors that the prior brings, that follow from the schedule, that only validation needs, or that are flows.
IGNORED = (
    "first_stage_model.",
    "cond_stage_model.",
    "lpips_metric.",
    "model_ema.",
    "flow_mean.",
    "flow_std.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "logvar",
)
_EXPECTED = "a checkpoint of SGDM"
MEAN, STD = "flow_mean.", "flow_std."  # prefixes of the two flows once read
_FLOWS = "two flows, in a folder of files named *mean* and *std*, or in one file with prefixes flow_mean. and flow_std."


def make(prior: Mapping[str, Any], tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert guidance, for a prior of this architecture. Raises CheckpointError."""
    architecture = guidance_architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    variant = architecture["variant"]
    with torch.device("meta"):
        networks = Prior(prior)
        wanted = guidance_tensors(Guidance(architecture), networks)
    sources = {name: _source(name, variant, prior) for name in wanted}
    frozen = {prior_source(f"unet.{name}", prior) for name in networks.unet.state_dict()} - set(sources.values())
    scale = int(choices.options.get(SCALE.key) or SCALES[variant])

    def settle(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: found[theirs] for name, theirs in sources.items()}

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        described = {**PUBLISHED, "guidance": architecture, "words": RENDERED}
        return guidance_bundle(described, scale, provenance, licence)

    return Made(
        expected={theirs: wanted[name] for name, theirs in sources.items()},
        tensors={name: tensor for name, tensor in tensors.items() if name not in frozen},
        bundle=bundle,
        remarks={"variant": variant, "not_taken": "tensors of the U-Net without attn in their names"},
        settle=settle,
    )


def guidance_architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the guidance from the names and shapes of a checkpoint's tensors. Raises CheckpointError."""
    if f"{CONTENT_OF_REAL}last_linear.weight" in shapes:
        variant, content = REAL, CONTENT_OF_REAL
    else:
        variant, content = SYNTHETIC if any(".spade" in name for name in shapes) else NO_MAP, ENCODER
    stem = "first_layer_sr.weight" if variant == NO_MAP else "first_layer_sr.conv_in.weight"
    entry = "0.weight" if variant == NO_MAP else "0.conv_in.weight"
    layers = _count(shapes, rf"{re.escape(content)}layer(\d+)_sr\.", f"{content}layer1_sr.{entry}", first=1)
    blocks = _count(shapes, rf"{re.escape(ADAPTER)}body\.(\d+)\.", f"{ADAPTER}body.0.block1.weight")
    with_map = variant != NO_MAP
    return {
        "variant": variant,
        "norm": "batch",
        "map_channels": _axis(shapes, f"{content}first_layer_ref.conv_in.weight", 1) if with_map else 0,
        "stem": _axis(shapes, f"{content}{stem}", 0),
        "widths": [_axis(shapes, f"{content}layer{k + 1}_sr.{entry}", 0) for k in range(layers)],
        "spade_width": _axis(shapes, f"{content}spade1.mlp_shared.0.weight", 0) if with_map else 128,
        "merged": _axis(shapes, f"{content}last_linear.weight", 0),
        "controls": [
            _axis(shapes, f"{ADAPTER}conv_in.weight", 0),
            *(_axis(shapes, f"{ADAPTER}body.{k}.block1.weight", 0) for k in range(0, blocks, 2)),
        ],
    }


def _source(name: str, variant: str, prior: Mapping[str, Any]) -> str:
    if name.startswith("unet."):
        return prior_source(name, prior)
    return guidance_source(name.removeprefix("guidance."), variant)


def read_flows(path: Path, choices: Choices) -> Checkpoint:
    """Read the flows of means and deviations from a folder, or from one file. Raises CheckpointError."""
    del choices
    if not path.is_dir():
        return read_checkpoint(path)
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for prefix, word in ((MEAN, "mean"), (STD, "std")):
        named = [file for file in files if word in file.name]
        if len(named) != 1:
            found = ", ".join(file.name for file in named) or "no file"
            raise CheckpointError(f"{path} has {found} named *{word}*", _FLOWS)
        flow = read_checkpoint(named[0])
        digest.update(bytes.fromhex(flow.sha256))
        tensors |= {prefix + name: tensor for name, tensor in flow.tensors.items()}
    return Checkpoint(path, "folder of flows", digest.hexdigest(), tensors)


def make_styles(tensors: Mapping[str, Tensor], choices: Choices) -> Made:
    """Convert the two flows. Raises CheckpointError, also if one is the other's copy or a permutation is none."""
    del choices
    first = f"{MEAN}flows.0.flows.1.param_map.net."
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    steps = _count(shapes, rf"{re.escape(MEAN)}flows\.(\d+)\.", f"{first}0.weight", expected=_FLOWS)
    layers = range(0, 2 * _count(shapes, rf"{re.escape(first)}(\d+)\.", f"{first}0.weight", expected=_FLOWS), 2)
    architecture = {
        "model": FLOW,
        "dim": _axis(shapes, f"{MEAN}q0.loc", -1),
        "couplings": steps // 2,
        "hidden": [_axis(shapes, name, 0) for k in layers if (name := f"{first}{k}.weight") in shapes][:-1],
        "log_std": PUBLISHED_STYLES["log_std"],
    }
    with torch.device("meta"):
        wanted = StyleModel(architecture).state_dict()
    sources = {name: _flow_source(name) for name in wanted}
    held = {name: _checked(name, tensor, tensors) for name, tensor in tensors.items() if not name.endswith(".inv_perm")}
    if all(torch.equal(x, held[name.replace(MEAN, STD)]) for name, x in held.items() if _paired(name, held)):
        raise CheckpointError("the flow of deviations equals that of means", "two flows, each of its own statistics")

    def settle(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: found[theirs] for name, theirs in sources.items()}

    def bundle(provenance: dict[str, Any], licence: str) -> Bundle:
        return style_bundle(architecture, LATTICE, provenance, licence)

    return Made({theirs: wanted[name] for name, theirs in sources.items()}, held, bundle, settle=settle)


def _flow_source(name: str) -> str:
    part, _, rest = name.partition(".")
    return (MEAN if part == "mean" else STD) + flow_source(rest)


def _paired(name: str, held: Mapping[str, Tensor]) -> bool:
    return name.startswith(MEAN) and name.replace(MEAN, STD) in held


def _checked(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor of a flow without its leading axis of 1. Raises CheckpointError for a wrong permutation."""
    if name.endswith(".perm"):
        size = torch.arange(tensor.numel())
        inverse = tensors.get(name.replace(".perm", ".inv_perm"), tensor.argsort())
        if not torch.equal(tensor.sort().values, size) or not torch.equal(inverse, tensor.argsort()):
            raise CheckpointError(f"{name} is no permutation with its inverse", _FLOWS)
    return tensor[0] if ".q0." in name and tensor.ndim == 2 and len(tensor) == 1 else tensor


def _count(shapes: Iterable[str], pattern: str, least: str, first: int = 0, expected: str = _EXPECTED) -> int:
    """Return how many numbers match, which count from `first`. Raises CheckpointError if none, naming `least`."""
    numbers = [int(found[1]) for name in shapes if (found := re.match(pattern, name))]
    if not numbers:
        raise CheckpointError(f"it holds no tensor {least}", expected)
    return 1 - first + max(numbers)


def _axis(shapes: Shapes, name: str, axis: int) -> int:
    """Return the length of an axis. Raises CheckpointError if the tensor is missing or has fewer axes."""
    if name not in shapes:
        raise CheckpointError(f"it holds no tensor {name}", _EXPECTED)
    if len(shapes[name]) <= axis or not shapes[name]:
        raise CheckpointError(f"{name} has shape {list(shapes[name])}", "a kernel")
    return shapes[name][axis]


def conversion(prior: Mapping[str, Any] = PUBLISHED_PRIOR) -> Conversion:
    """Return the conversion of guidance of a prior of this architecture."""
    return Conversion(
        "sgdm",
        "guidance by a map, and the U-Net's attention",
        "--sr sgdm --weights",
        partial(make, prior),
        ignored=IGNORED,
        flags=(SCALE,),
        source=PAPER,
    )


SGDM = conversion()
STYLES = Conversion(
    "sgdm-style", "distributions of styles", "--sr sgdm --weights style=", make_styles, source=PAPER, read=read_flows
)
CONVERSIONS = (SGDM, STYLES)
