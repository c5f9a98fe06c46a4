"""DiffFuSR's degradation encoder g_psi, which describes the blur and noise of a scene by one vector.

Module names follow the released checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pipeline.models.rrdb import conv3x3

if TYPE_CHECKING:
    from torch import Tensor

_LEAK = 0.1  # Wang et al. 2021, DASR
_SHAPE = ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # (width in units of base, stride) of the six convolutions


class DegradationEncoder(nn.Module):
    """Six convolutions with BatchNorm, then the mean over the window. Trained by contrast (MoCo)."""

    def __init__(self, bands: int = 3, base: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        now = bands
        for mult, stride in _SHAPE:
            width = base * mult
            layers += [conv3x3(now, width, stride), nn.BatchNorm2d(width), nn.LeakyReLU(_LEAK)]
            now = width
        self.E = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.mlp = nn.Sequential(nn.Linear(now, now), nn.LeakyReLU(_LEAK), nn.Linear(now, now))

    def forward(self, lr: Tensor) -> Tensor:
        """Return degradation vectors v (B, 4 * base) of windows (B, bands, h, w) in network range."""
        out: Tensor = self.E(lr).flatten(1)
        return out

    def projection(self, vector: Tensor) -> Tensor:
        """Project v for the contrastive loss, to (B, 4 * base). Not used in prediction."""
        out: Tensor = self.mlp(vector)
        return out
