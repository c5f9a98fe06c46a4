"""Names and layouts of latent diffusion's tensors: diffusers' in bundles, those of the LDM code in checkpoints.

A tensor of a checkpoint is one of the bundle, or with attention of the denoiser three: `qkv` holds the channels of
queries, keys and values head by head.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AUTOENCODER = "autoencoder.net.", "first_stage_model."  # prefixes in bundles and in checkpoints
DENOISER = "unet.net.", "model.diffusion_model."
AVERAGED = "model_ema."
_ATTENTIONS = ".attentions."
_QKV = ("to_q", "to_k", "to_v")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_PART = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.(?:(?P<level>\d+)\.)?"
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<inner>.+)"
)


def source_names(names: Iterable[str], sizes: Mapping[str, Any], averaged: bool = False) -> dict[str, str]:
    """Return the checkpoint's name of each of these tensors of a bundle, for networks of the architecture `sizes`.

    `averaged`: those of the denoiser are the averaged ones, which LitEma saves under names without dots.
    """
    found = {name: _source_name(name, sizes) for name in names}
    if averaged:
        copies = {name: found[name].removeprefix("model.").replace(".", "") for name in found if _of_denoiser(name)}
        found |= {name: AVERAGED + copy for name, copy in copies.items()}
    return found


def source_tensors(tensors: Mapping[str, Tensor], sources: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors on "meta" of the names, shapes and dtypes of a checkpoint of these `tensors` of a bundle."""
    found = {}
    for name, source in sources.items():
        tensor, shape = tensors[name], list(tensors[name].shape)
        if _is_part_of_qkv(name):
            shape[0] *= len(_QKV)
        if _ATTENTIONS in name and tensor.ndim == 2:  # a convolution of one pixel
            shape += [1] if _of_denoiser(name) else [1, 1]
        found[source] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return found


def bundle_tensor(name: str, source: Tensor, head: int) -> Tensor:
    """Return the bundle's tensor of this name from its source in a checkpoint. `head`: channels per head."""
    if _ATTENTIONS not in name:
        return source
    if _is_part_of_qkv(name):
        by_head = source.reshape(-1, len(_QKV), head, *source.shape[1:])
        source = by_head[:, _QKV.index(name.split(".")[-2])].flatten(0, 1)
    return (source.flatten(1) if source.ndim > 1 else source).contiguous()


def _source_name(name: str, sizes: Mapping[str, Any]) -> str:
    if name.startswith(AUTOENCODER[0]):
        return AUTOENCODER[1] + autoencoder(name.removeprefix(AUTOENCODER[0]), len(sizes["autoencoder_channels"]))
    if _of_denoiser(name):
        return DENOISER[1] + denoiser(name.removeprefix(DENOISER[0]), sizes)
    return name


def _of_denoiser(name: str) -> bool:
    return name.startswith(DENOISER[0])


def _is_part_of_qkv(name: str) -> bool:
    return _of_denoiser(name) and name.split(".")[-2] in _QKV


def autoencoder(name: str, levels: int) -> str:
    """Return the LDM code's name of a tensor of diffusers' AutoencoderKL, without prefixes."""
    net, _, rest = name.partition(".")
    if net not in ("encoder", "decoder"):
        return name
    return f"{net}.{_half(rest, levels)}"


def _half(name: str, levels: int) -> str:
    """Return the source name of a tensor of the encoder or the decoder."""
    part = _PART.fullmatch(name)
    if part is None:
        return name.replace("conv_norm_out", "norm_out")
    kind, index, inner = part["kind"], int(part["index"]), part["inner"]
    if kind == "attentions":
        return f"mid.attn_{index + 1}.{_renamed(inner, _ATTENTION)}"
    if kind == "resnets":
        inner = inner.replace("conv_shortcut", "nin_shortcut")
        if part["side"] == "mid":
            return f"mid.block_{index + 1}.{inner}"
        return f"{part['side']}.{_level(part, levels)}.block.{index}.{inner}"
    return f"{part['side']}.{_level(part, levels)}.{kind.removesuffix('rs')}.{inner}"


def _level(part: re.Match[str], levels: int) -> int:
    """Return the level of a block. Both directions count from the finest in a checkpoint."""
    level = int(part["level"])
    return level if part["side"] == "down" else levels - 1 - level


def denoiser(name: str, sizes: Mapping[str, Any], transformers: bool = False) -> str:
    """Return the LDM code's name of a tensor of diffusers' UNet2DModel, without prefixes.

    `sizes`: "blocks" per level, "channels" by level, and "attention_levels". `transformers`: of UNet2DConditionModel,
    whose attention has the same names in both.
    """
    part = _PART.fullmatch(name)
    if part is None:
        return _renamed(name, _ENDS)
    kind, index, inner = part["kind"], int(part["index"]), part["inner"]
    if kind == "resnets":
        inner = _renamed(inner, _RESIDUAL)
    elif kind == "attentions" and not transformers:
        inner = _renamed(inner, _ATTENTION | dict.fromkeys(_QKV, "qkv"))
    if part["side"] == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{inner}"
    level, per_level = int(part["level"]), sizes["blocks"] + 1
    if part["side"] == "down":
        if kind == "downsamplers":
            return f"input_blocks.{per_level * (level + 1)}.0.{inner.replace('conv', 'op')}"
        return f"input_blocks.{1 + per_level * level + index}.{int(kind == 'attentions')}.{inner}"
    if kind == "upsamplers":
        attends = len(sizes["channels"]) - 1 - level in sizes["attention_levels"]
        return f"output_blocks.{per_level * (level + 1) - 1}.{1 + attends}.{inner}"
    return f"output_blocks.{per_level * level + index}.{int(kind == 'attentions')}.{inner}"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return "module.weight" or "module.bias" with the module's name replaced."""
    module, _, leaf = name.rpartition(".")
    return f"{names[module]}.{leaf}"
