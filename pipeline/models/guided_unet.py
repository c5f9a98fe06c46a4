"""The noise that a U-Net of Stable Diffusion's shape estimates, with controls added inside (SGDM, section 3.4).

The U-Net is diffusers' UNet2DConditionModel, whose blocks are called here one by one. Controls are arguments: the
network holds nothing of them, so that threads may share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def guided_noise(
    unet: nn.Module, noisy: Tensor, timestep: Tensor, context: Tensor, controls: Sequence[Tensor] = ()
) -> Tensor:
    """Return the noise (B, L, h, w) in `noisy`, given timesteps (B,) from 0 and context (B, tokens, dim).

    controls[k] (B, C, h / 2**k, w / 2**k), rounded up, is added behind the first attention of encoder level k, and of
    the decoder level of the same size; behind the first residual block where a level has no attention. Without
    controls, the result is that of the U-Net itself.
    """
    net: Any = unet
    embedded = net.time_embedding(net.time_proj(timestep).to(noisy.dtype))
    added: list[Tensor | None] = [*controls, *[None] * (len(net.down_blocks) - len(controls))]
    h = net.conv_in(noisy)
    skips = [h]
    for block, control in zip(net.down_blocks, added, strict=True):
        for k in range(len(block.resnets)):
            h = _layer(block, k, h, embedded, context, control)
            skips.append(h)
        for down in block.downsamplers or ():
            h = down(h)
            skips.append(h)
    h = net.mid_block.resnets[0](h, embedded)
    for attention, residual in zip(net.mid_block.attentions, net.mid_block.resnets[1:], strict=True):
        h = residual(_attended(attention, h, context), embedded)
    for block, control in zip(net.up_blocks, reversed(added), strict=True):
        for k in range(len(block.resnets)):
            h = _layer(block, k, torch.cat([h, skips.pop()], 1), embedded, context, control)
        for up in block.upsamplers or ():
            h = up(h, skips[-1].shape[2:])  # odd sizes were rounded up on the way down
    out: Tensor = net.conv_out(net.conv_act(net.conv_norm_out(h)))
    return out


def _layer(block: nn.Module, k: int, h: Tensor, embedded: Tensor, context: Tensor, control: Tensor | None) -> Tensor:
    """Apply residual block k and, where there is one, attention k; then add the control if it is the first."""
    attentions, residuals = getattr(block, "attentions", None), block.get_submodule("resnets")
    h = residuals.get_submodule(str(k))(h, embedded)
    if attentions is not None:
        h = _attended(attentions[k], h, context)
    return h if k or control is None else h + control


def _attended(attention: nn.Module, h: Tensor, context: Tensor) -> Tensor:
    found: Tensor = attention(h, encoder_hidden_states=context, return_dict=False)[0]
    return found
