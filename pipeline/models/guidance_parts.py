"""Parts of SGDM's content-style encoder: SPADE, basic and downsample blocks, AdaIN with given statistics.

Wang and Sun, "Semantic Guided Large Scale Factor Remote Sensing Image Super-resolution with Generative Diffusion
Prior", figures 4 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

Normalisation = Literal["batch", "pixel", "none"]
SLOPE = 0.1  # of LeakyReLU in the branches of image and map
STYLE_SLOPE = 0.01  # in the style encoder, and in the image branch without a map
STYLE_EPS = 1e-6  # added to standard deviations
_PIXEL_EPS = 1e-5


@dataclass(frozen=True)
class Style:
    """Mean and standard deviation of each channel of features, (B, C) each."""

    mean: Tensor
    std: Tensor

    def to(self, device: torch.device | str) -> Style:
        """Return the style on `device`."""
        return Style(self.mean.to(device), self.std.to(device))


def statistics(features: Tensor) -> Style:
    """Return the style of features (B, C, h, w): the deviation is unbiased (n - 1), plus `STYLE_EPS`."""
    pixels = features.flatten(2)
    return Style(pixels.mean(2), pixels.std(2) + STYLE_EPS)


def pooled(parts: Style, pixels: int) -> Style:
    """Return the style (1, C) of all features together of N equally large parts, of `pixels` each and styles (N, C).

    So a scene's statistics follow from those of its windows.
    """
    count, mean = len(parts.mean), parts.mean.mean(0, keepdim=True)
    within = (parts.std - STYLE_EPS).square().sum(0, keepdim=True) * (pixels - 1)
    between = (parts.mean - mean).square().sum(0, keepdim=True) * pixels
    return Style(mean, ((within + between) / (count * pixels - 1)).sqrt() + STYLE_EPS)


def adain(features: Tensor, style: Style, own: Style) -> Tensor:
    """Return features (B, C, h, w) of statistics `own` with those of `style` instead (eq. 11)."""
    scale = style.std / own.std
    shift = style.mean - own.mean * scale
    return features * scale[:, :, None, None] + shift[:, :, None, None]


class PixelNorm(nn.Module):
    """Normalisation over the channels of each pixel, with a learned scale and shift. It depends on nothing around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same."""
        centred = x - x.mean(1, keepdim=True)
        unit = centred * (centred.square().mean(1, keepdim=True) + _PIXEL_EPS).rsqrt()
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


class Spade(nn.Module):
    """Spatially adaptive denormalisation: norm(x) * (1 + gamma) + beta, both convolved from a condition.

    Equation 10 has gamma * norm(x); the released code adds 1, so that it begins as the norm alone (gamma and beta start
    at 0). The published norm is BatchNorm, whose running statistics are used: call `eval` before inference. Without a
    norm, how bright the image is stays in its features, which a little training does not find again otherwise.
    """

    def __init__(self, width: int, condition: int, norm: Normalisation = "batch", hidden: int = 128) -> None:
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "pixel": PixelNorm, "none": nn.Identity}
        self.norm: nn.Module = norms[norm](width)
        self.shared = conv(condition, hidden)
        self.gamma = conv(hidden, width)
        self.beta = conv(hidden, width)
        for last in (self.gamma, self.beta):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.get_parameter("bias"))

    def modulation(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and beta (B, width, h, w) of a condition (B, condition, h, w)."""
        shared = functional.relu(self.shared(condition))
        return self.gamma(shared), self.beta(shared)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, width, h, w) and (B, condition, h, w) -> (B, width, h, w)."""
        gamma, beta = self.modulation(condition)
        normed: Tensor = self.norm(x)
        return normed * (1 + gamma) + beta


class Stage(nn.Module):
    """Convolution, a residual block unless `plain`, and a downsample block: pixels folded by 2, then 1x1."""

    def __init__(self, before: int, width: int, plain: bool = False) -> None:
        super().__init__()
        self.entry = conv(before, width)
        self.residual = None if plain else nn.ModuleList([conv(width, width), conv(width, width)])
        self.fold = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, width, h / 2, w / 2)."""
        x = functional.leaky_relu(self.entry(x), SLOPE)
        if self.residual is not None:
            first, second = self.residual
            x = x + second(functional.leaky_relu(first(x), SLOPE))
        folded: Tensor = self.fold(functional.pixel_unshuffle(x, 2))
        return folded


class Strided(nn.Module):
    """A convolution, then per width a convolution and one of stride 2, each with LeakyReLU."""

    def __init__(self, channels: int, stem: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = conv(channels, stem)
        befores = (stem, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList([conv(before, width), conv(width, width, 2)])
            for before, width in zip(befores, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, widths[-1], H / 2**n, W / 2**n) of n widths."""
        x = self.stem(x)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for layer in stage:
                x = functional.leaky_relu(layer(x), STYLE_SLOPE)
        return x


def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size, or with `stride` 2 halves it, rounding up."""
    return nn.Conv2d(before, after, 3, stride, padding=1)
