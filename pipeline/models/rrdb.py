"""Residual-in-residual dense blocks (Wang et al. 2018, ESRGAN) and DiffFuSR's spatial encoder, built from them.

There is no normalisation, so every output pixel depends on a finite neighbourhood. Module names follow the released
checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

LEAK = 0.2  # slope of every LeakyReLU here, ESRGAN section 3.1
RESIDUAL_SCALE = 0.2  # within a dense block and again over a group of three, ESRGAN section 3.1
_INIT_SCALE = 0.1  # shrinks Kaiming initial weights so that deep stacks start near identity, ESRGAN supplement


def leaky(x: Tensor) -> Tensor:
    """Apply LeakyReLU with the slope of ESRGAN."""
    return functional.leaky_relu(x, LEAK)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with bias that keeps the grid at stride 1."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)


def _shrunken(conv: nn.Conv2d) -> None:
    """Give `conv` small Kaiming weights and zero bias."""
    with torch.no_grad():
        for parameter in conv.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter).mul_(_INIT_SCALE)
            else:
                parameter.zero_()


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing all before it: (B, channels, H, W) to the same; `growth` channels a step."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, growth)
        self.conv2 = conv3x3(channels + growth, growth)
        self.conv3 = conv3x3(channels + 2 * growth, growth)
        self.conv4 = conv3x3(channels + 3 * growth, growth)
        self.conv5 = conv3x3(channels + 4 * growth, channels)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            _shrunken(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return dense features added to `x` at RESIDUAL_SCALE."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, leaky(conv(seen))), dim=1)
        residual: Tensor = self.conv5(seen)
        return x + RESIDUAL_SCALE * residual


class Rrdb(nn.Module):
    """Three dense blocks in a row with a residual over all: (B, channels, H, W) to the same.

    `name` is the prefix of the blocks in checkpoints: "rdb" in the encoder, "RDB" in the fusion networks.
    """

    def __init__(self, channels: int, growth: int, name: str = "rdb") -> None:
        super().__init__()
        for k in (1, 2, 3):
            self.add_module(f"{name}{k}", DenseBlock(channels, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the three blocks added to `x` at RESIDUAL_SCALE."""
        out = x
        for block in self.children():
            out = block(out)
        return x + RESIDUAL_SCALE * out


def rrdb_stack(blocks: int, channels: int, growth: int, name: str = "rdb") -> nn.Sequential:
    """Return `blocks` RRDBs in a row."""
    return nn.Sequential(*(Rrdb(channels, growth, name) for _ in range(blocks)))


class SpatialEncoder(nn.Module):
    """DiffFuSR's f_phi: low-resolution image (B, bands, h, w), network range, to features (B, channels, h, w).

    The auxiliary decoder turns features into a coarse x4 image; it is used in training only.
    """

    def __init__(self, bands: int = 3, channels: int = 64, growth: int = 32, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = conv3x3(bands, channels)
        self.body = rrdb_stack(blocks, channels, growth)
        self.conv_body = conv3x3(channels, channels)
        self.conv_up1 = conv3x3(channels, channels)
        self.conv_up2 = conv3x3(channels, channels)
        self.conv_hr = conv3x3(channels, channels)
        self.conv_last = conv3x3(channels, bands)

    def forward(self, lr: Tensor) -> Tensor:
        """Return features u (B, channels, h, w): trunk plus long skip, before any upsampling."""
        first: Tensor = self.conv_first(lr)
        deep: Tensor = self.conv_body(self.body(first))
        return first + deep

    def coarse(self, features: Tensor) -> Tensor:
        """Decode features (B, channels, h, w) to an image (B, bands, 4h, 4w), network range."""
        x = leaky(self.conv_up1(functional.interpolate(features, scale_factor=2, mode="nearest")))
        x = leaky(self.conv_up2(functional.interpolate(x, scale_factor=2, mode="nearest")))
        image: Tensor = self.conv_last(leaky(self.conv_hr(x)))
        return image
