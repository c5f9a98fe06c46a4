"""DiffFuSR's denoising U-Net with degradation-aware convolutions (Wu et al. 2023 with the sizes of arXiv 2506.11764).

Module names follow the released checkpoints (`downs.7.res_block.block2.da_conv.kernel.0`). GroupNorm and attention make
every output pixel depend on the whole window, so its windows must lie on an absolute lattice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.rrdb import conv3x3

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    StageOf = Callable[[int, int, bool], nn.Module]  # of channels in, channels out and attention

_LEAK = 0.1  # slope in the degradation-aware parts (Wang et al. 2021, DASR)


class LevelEncoding(nn.Module):
    """Sinusoids of the noise level s = sqrt(alpha_bar): (B, 1) to (B, width), frequencies 10^(-4 i / (width / 2)).

    As in the released networks, the input is s itself, unscaled, not a timestep.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, level: Tensor) -> Tensor:
        """Return sines, then cosines."""
        half = self.width // 2
        exponent = torch.arange(half, dtype=level.dtype, device=level.device) / half
        angle = level * torch.exp(-math.log(1e4) * exponent)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


class LevelShift(nn.Module):
    """Adds a per-channel function of the noise-level embedding (B, width) to features (B, C, H, W)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(width, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the shifted features."""
        shift: Tensor = self.noise_func(embedding)
        return x + shift[:, :, None, None]


class DaConv(nn.Module):
    """Degradation-aware convolution: a depthwise 3x3 convolution with kernels from v' (B, width), plus a plain 3x3."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.LeakyReLU(_LEAK),
            nn.Linear(width, 9 * channels, bias=False),
        )
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor, degradation: Tensor) -> Tensor:
        """Return LeakyReLU(depthwise(x, kernel(v'))) + conv(x), (B, C, H, W). The batch is folded into groups."""
        b, c, h, w = x.shape
        kernel = self.kernel(degradation).reshape(b * c, 1, 3, 3)
        adapted = functional.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b * c)
        plain: Tensor = self.conv(x)
        return functional.leaky_relu(adapted.reshape(b, c, h, w), _LEAK) + plain


class NormConv(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution: (B, channels_in, H, W) to (B, channels_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, channels_in), nn.SiLU(), nn.Identity(), conv3x3(channels_in, channels_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolved features."""
        out: Tensor = self.block(x)
        return out


class NormDaConv(nn.Module):
    """Second half of a residual block: degradation-aware convolution, (B, C, H, W) to the same.

    The released code computes GroupNorm and SiLU here but convolves the tensor without them, and the released weights
    depend on that. With `normalised` (architecture flag `block2_norm`) the normalised tensor is convolved.
    """

    def __init__(self, channels: int, width: int, groups: int, normalised: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())
        self.da_conv = DaConv(channels, width)
        self.normalised = normalised

    def forward(self, x: Tensor, degradation: Tensor) -> Tensor:
        """Convolved features."""
        out: Tensor = self.da_conv(self.block(x) if self.normalised else x, degradation)
        return out


class ResBlock(nn.Module):
    """Residual block conditioned on noise level (additive shift) and degradation (kernels)."""

    def __init__(self, channels_in: int, channels_out: int, width: int, groups: int, block2_norm: bool) -> None:
        super().__init__()
        self.noise_func = LevelShift(width, channels_out)
        self.block1 = NormConv(channels_in, channels_out, groups)
        self.block2 = NormDaConv(channels_out, width, groups, block2_norm)
        self.res_conv = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor, degradation: Tensor) -> Tensor:
        """(B, channels_in, H, W), (B, width), (B, width) to (B, channels_out, H, W)."""
        out: Tensor = self.block2(self.noise_func(self.block1(x), embedding), degradation)
        skip: Tensor = self.res_conv(x)
        return out + skip


class SelfAttention(nn.Module):
    """Single-head self-attention over all pixels of the window, with residual: (B, C, H, W) to the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return attended features; the scale is 1 / sqrt(C)."""
        b, c, h, w = x.shape
        query, key, value = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).transpose(2, 3).unbind(1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(attended.transpose(1, 2).reshape(b, c, h, w))
        return x + out


class Stage(nn.Module):
    """A residual block, followed by self-attention if `attention`."""

    def __init__(
        self, channels_in: int, channels_out: int, width: int, groups: int, block2_norm: bool, attention: bool
    ) -> None:
        super().__init__()
        self.res_block = ResBlock(channels_in, channels_out, width, groups, block2_norm)
        self.attn = SelfAttention(channels_out, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, degradation: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H, W)."""
        out: Tensor = self.attn(self.res_block(x, embedding, degradation))
        return out


class Downsample(nn.Module):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return out


def downward(
    base: int, levels: Sequence[tuple[int, bool]], res_blocks: int, stage: StageOf
) -> tuple[list[nn.Module], list[int]]:
    """Return the contracting half for `levels` of (channels, attention), and the channels of all skips in order."""
    layers: list[nn.Module] = []
    skips = [base]
    for k, (width, attention) in enumerate(levels):
        if k > 0:
            layers.append(Downsample(skips[-1]))
            skips.append(skips[-1])
        for _ in range(res_blocks):
            layers.append(stage(skips[-1], width, attention))
            skips.append(width)
    return layers, skips


def upward(
    skips: Sequence[int],
    levels: Sequence[tuple[int, bool]],
    res_blocks: int,
    stage: StageOf,
) -> list[nn.Module]:
    """Return the expanding half: one stage per skip, last skip first."""
    layers: list[nn.Module] = []
    waiting, now = list(skips), skips[-1]
    for k, (width, attention) in reversed(list(enumerate(levels))):
        for _ in range(res_blocks + 1):
            layers.append(stage(now + waiting.pop(), width, attention))
            now = width
        if k > 0:
            layers.append(Upsample(now))
    return layers


class UNet(nn.Module):
    """Estimate of x0 from a noisy image. Defaults are the published sizes (129 M parameters).

    Level k has `base * mults[k]` channels and `res_blocks` blocks; images are folded by `fold`. Levels whose stride is
    in `attention_strides` have attention. `features` and `degradation` are the widths of u and v.
    """

    def __init__(
        self,
        bands: int = 3,
        base: int = 64,
        mults: Sequence[int] = (1, 2, 2, 4, 8),
        res_blocks: int = 5,
        fold: int = 2,
        groups: int = 32,
        attention_strides: Sequence[int] = (16,),
        features: int = 64,
        degradation: int = 256,
        block2_norm: bool = False,
    ) -> None:
        super().__init__()
        self.fold, self.multiple = fold, fold * 2 ** (len(mults) - 1)
        self.first_conv_x = conv3x3(bands * fold**2, base)
        self.first_conv_ctx = conv3x3(features, base)
        self.compress = nn.Sequential(nn.Linear(degradation, base, bias=False), nn.LeakyReLU(_LEAK))
        self.noise_level_mlp = nn.Sequential(
            LevelEncoding(base), nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, base)
        )

        def stage(channels_in: int, channels_out: int, attention: bool) -> Stage:
            return Stage(channels_in, channels_out, base, groups, block2_norm, attention)

        levels = [(base * mult, 2**k in attention_strides) for k, mult in enumerate(mults)]
        downs, skips = downward(base, levels, res_blocks, stage)
        deepest = skips[-1]
        self.downs = nn.ModuleList([conv3x3(2 * base, base), *downs])
        self.mid = nn.ModuleList([stage(deepest, deepest, True), stage(deepest, deepest, False)])
        self.ups = nn.ModuleList(upward(skips, levels, res_blocks, stage))
        self.final_conv = NormConv(levels[0][0], bands * fold**2, groups)

    def forward(self, noisy: Tensor, level: Tensor, features: Tensor, degradation: Tensor) -> Tensor:
        """Return x0 (B, bands, H, W) from noisy (same), level s (B, 1), u (B, features, h, w), v (B, degradation).

        Raises ValueError unless H and W are multiples of `multiple` (32 as published).
        """
        height, width = noisy.shape[-2:]
        if height % self.multiple or width % self.multiple:
            msg = f"window of {height} x {width} px; the U-Net needs multiples of {self.multiple} px on both sides"
            raise ValueError(msg)
        embedding, narrow = self.noise_level_mlp(level), self.compress(degradation)
        folded = self.first_conv_x(functional.pixel_unshuffle(noisy, self.fold))
        context = functional.interpolate(features, size=folded.shape[-2:], mode="bilinear", align_corners=False)
        x = torch.cat((folded, self.first_conv_ctx(context)), dim=1)
        skips: list[Tensor] = []
        for layer in self.downs:
            x = layer(x, embedding, narrow) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, embedding, narrow)
        for layer in self.ups:
            x = layer(torch.cat((x, skips.pop()), dim=1), embedding, narrow) if isinstance(layer, Stage) else layer(x)
        return functional.pixel_shuffle(self.final_conv(x), self.fold)
