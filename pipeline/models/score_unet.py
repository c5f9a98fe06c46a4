"""The score network s_theta of WaveDiffUR: a U-Net for noisy wavelet bands that sees a bounded neighbourhood.

In contrast to the U-Net of DiffFuSR it normalises each pixel over its channels and attends within squares, so that
statistics of the window do not enter. What it gives depends on where the window begins modulo `multiple_px`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.cross_scale import CrossAttention
from pipeline.models.rrdb import conv3x3
from pipeline.models.unet import LevelEncoding, LevelShift, downward, upward
from pipeline.models.wavelet import padded_to_multiple
from pipeline.models.wavelet_diffusion import alpha_bar_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_EPS = 1e-6


class PixelNorm(nn.Module):
    """Divides each pixel by the root mean square over its channels, times a gain per channel. Keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features (B, C, H, W)."""
        scale = (x.square().mean(1, keepdim=True) + _EPS).rsqrt()
        return x * scale * self.gain[:, None, None]


class ScoreBlock(nn.Module):
    """Residual block with an additive shift by timestep, then attention within squares if `heads` is given."""

    def __init__(self, channels_in: int, channels_out: int, width: int, heads: int | None, window: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = PixelNorm(channels_in), PixelNorm(channels_out)
        self.conv1, self.conv2 = conv3x3(channels_in, channels_out), conv3x3(channels_out, channels_out)
        self.shift = LevelShift(width, channels_out)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
        self.norm3 = PixelNorm(channels_out) if heads else None
        self.attn = CrossAttention(channels_out, heads, window) if heads else None
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_in, H, W) and (B, width) to (B, channels_out, H, W)."""
        h = self.shift(self.conv1(functional.silu(self.norm1(x))), embedding)
        out: Tensor = self.skip(x) + self.conv2(functional.silu(self.norm2(h)))
        if self.attn is not None and self.norm3 is not None:
            normed = self.norm3(out)
            out = out + self.attn(normed, normed)
        return out


class ScoreUNet(nn.Module):
    """Estimate of the noise in `channels` bands, given the timestep of a `process` and `condition` further channels.

    `widths` are the channels at strides 1, 2, 4, ..., with `blocks` residual blocks each on the way down. The lowest
    stride attends. The estimate is sqrt(1 - ab) * x + sqrt(ab) * network, exact for data of unit variance where the
    network gives 0 (after Karras et al., arXiv 2206.00364); the last convolution starts at zero.
    """

    def __init__(
        self,
        channels: int,
        condition: int,
        widths: Sequence[int] = (64, 128, 192),
        blocks: int = 2,
        heads: int = 8,
        window: int | None = 8,
        process: str = "vp",
    ) -> None:
        super().__init__()
        self.process = process
        base, deepest = widths[0], widths[-1]
        self.condition, self.multiple = condition, 2 ** (len(widths) - 1)
        self.register_buffer("alpha_bar", torch.from_numpy(alpha_bar_of(process)), persistent=False)
        self.embed = nn.Sequential(LevelEncoding(base), nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, base))
        self.entry = conv3x3(channels + condition, base)

        def stage(channels_in: int, channels_out: int, attention: bool) -> ScoreBlock:
            return ScoreBlock(channels_in, channels_out, base, heads if attention else None, window)

        levels = [(width, k == len(widths) - 1) for k, width in enumerate(widths)]
        downs, skips = downward(base, levels, blocks, stage)
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList([stage(deepest, deepest, True), stage(deepest, deepest, False)])
        self.ups = nn.ModuleList(upward(skips, levels, blocks, stage))
        self.norm, self.exit = PixelNorm(base), conv3x3(base, channels)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the noise (B, channels, H, W) in `noisy` at integer timesteps (B,), given (B, condition, H, W).

        Without a condition its channels are 0: the unconditional score. Sides that are no multiples of 2^(levels - 1)
        are padded by repetition.
        """
        height, width = noisy.shape[-2:]
        if condition is None:
            condition = noisy.new_zeros(len(noisy), self.condition, height, width)
        x = padded_to_multiple(torch.cat((noisy, condition), dim=1), self.multiple)
        correction = self._network(x, timestep)[..., :height, :width]
        ab = self.get_buffer("alpha_bar")[timestep].to(noisy.dtype)[:, None, None, None]
        return (1 - ab).sqrt() * noisy + ab.sqrt() * correction

    def _network(self, x: Tensor, timestep: Tensor) -> Tensor:
        embedding = self.embed(timestep.to(x.dtype)[:, None])
        x = self.entry(x)
        skips = [x]
        for layer in self.downs:
            x = layer(x, embedding) if isinstance(layer, ScoreBlock) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, embedding)
        for layer in self.ups:
            x = layer(torch.cat((x, skips.pop()), dim=1), embedding) if isinstance(layer, ScoreBlock) else layer(x)
        out: Tensor = self.exit(functional.silu(self.norm(x)))
        return out


def reach_px(levels: int, blocks: int, window: int | None) -> int | None:
    """Return an upper limit, in px, of how far one evaluation sees; None if it attends everywhere."""
    if window is None:
        return None
    strides = [1 << k for k in range(levels)]
    lowest = strides[-1]
    convolutions = sum(2 * (2 * blocks + 1) * stride for stride in strides) + 4 * lowest + 2
    resampling = sum(4 * stride for stride in strides[:-1])
    attention = (2 * blocks + 2) * (window - 1) * lowest
    return convolutions + resampling + attention
