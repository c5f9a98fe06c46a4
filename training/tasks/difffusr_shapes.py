"""Keyword arguments of DiffFuSR networks, from the names and shapes of a checkpoint's tensors.

Shapes do not show the number of normalisation groups, nor whether the second norm of each residual block is used.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from training.checkpoint import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Shapes = Mapping[str, tuple[int, ...]]

RGB = 3
_SECOND_NORM = ".block2.block.0."


def has_second_norms(shapes: Shapes) -> bool:
    """Return whether the residual blocks of the U-Net store a second norm."""
    return any(_SECOND_NORM in name for name in shapes)


def is_second_norm(name: str) -> bool:
    """Return whether the tensor belongs to the second norm of a residual block."""
    return _SECOND_NORM in name


def difffusr_architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the super-resolution networks: U-Net `ema`, `encoder`, `E.encoder_q`.

    Raises CheckpointError that names the tensor, if a needed one is missing or has an invalid shape.
    """
    base, folded = _axes(shapes, "ema.first_conv_x.weight", (0, 1))
    (features,) = _axes(shapes, "ema.first_conv_ctx.weight", (1,))
    (growth,) = _axes(shapes, "encoder.body.0.rdb1.conv1.weight", (0,))
    (degradation_base,) = _axes(shapes, "E.encoder_q.E.0.weight", (0,))
    fold = math.isqrt(folded // RGB)
    if folded != RGB * fold**2 or not fold:
        raise CheckpointError(
            f"ema.first_conv_x.weight takes {folded} channels", "3 bands folded into squares: 3, 12, 27, 48"
        )
    levels = _levels(shapes)
    channels, res_blocks = [widths[0] for widths, _ in levels], {len(widths) for widths, _ in levels}
    uneven = [widths for widths, _ in levels if len(set(widths)) > 1 or widths[0] % base]
    if len(res_blocks) > 1 or uneven:
        found = " | ".join(" ".join(map(str, widths)) for widths, _ in levels)
        raise CheckpointError(
            f"ema.downs has residual blocks of {found} channels, level by level",
            f"equally many on each level, of one multiple of {base} (ema.first_conv_x.weight)",
        )
    return {
        "base": base,
        "mults": [width // base for width in channels],
        "res_blocks": res_blocks.pop(),
        "fold": fold,
        "attention_strides": [2**k for k, (_, attention) in enumerate(levels) if attention],
        "features": features,
        "growth": growth,
        "encoder_blocks": _count(shapes, "encoder.body."),
        "degradation_base": degradation_base,
    }


def fusion_architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the fusion networks, from the 10 m one. The others are equal. Raises CheckpointError."""
    net = "rrdb_block_10_fusion"
    (channels,) = _axes(shapes, f"{net}.rgb_conv_first.weight", (0,))
    (growth,) = _axes(shapes, f"{net}.rgb_rrdb.0.RDB1.conv1.weight", (0,))
    (squeezed,) = _axes(shapes, f"{net}.rgb_channel_attention.fc1.weight", (0,))
    return {
        "channels": channels,
        "growth": growth,
        "blocks": _count(shapes, f"{net}.rgb_rrdb."),
        "reduction": channels // squeezed,
    }


def _levels(shapes: Shapes) -> list[tuple[list[int], bool]]:
    """Return (channels of each residual block, whether it has attention) per level of the U-Net's encoder."""
    levels: list[tuple[list[int], bool]] = [([], False)]
    for index in range(1, _count(shapes, "ema.downs.")):  # 0 is the input layer
        stage = f"ema.downs.{index}."
        if any(name.startswith(stage + "conv.") for name in shapes):
            levels.append(([], False))
            continue
        widths, attention = levels[-1]
        (width,) = _axes(shapes, stage + "res_block.block2.da_conv.conv.weight", (0,))
        levels[-1] = [*widths, width], attention or any(name.startswith(stage + "attn.") for name in shapes)
    if not all(widths for widths, _ in levels):
        raise CheckpointError("ema.downs has a level without residual blocks", "at least one on each level")
    return levels


def _count(shapes: Shapes, prefix: str) -> int:
    """Return the number of consecutive parts `prefix`0, `prefix`1, ... Raises CheckpointError on a gap."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    gaps = sorted(set(range(max(found, default=0) + 1)) - found)
    if gaps:
        raise CheckpointError(f"it holds no tensor {prefix}{gaps[0]}.*", "the parts of a list, numbered without gaps")
    return len(found)


def _axes(shapes: Shapes, name: str, axes: Sequence[int]) -> list[int]:
    """Return the lengths of some axes of a convolution's weight (out, in, h, w), at least 1.

    Raises CheckpointError if the tensor is missing or has another shape.
    """
    if name not in shapes:
        raise CheckpointError(f"it holds no tensor {name}", "the names of the released checkpoints")
    shape = shapes[name]
    if len(shape) != 4 or not min(shape):
        raise CheckpointError(f"{name} has shape {list(shape)}", "a convolution's weight (out, in, h, w)")
    return [shape[axis] for axis in axes]
