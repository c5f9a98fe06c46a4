"""SPAN, the swift parameter-free attention network (Wan et al., arXiv 2311.12770), with 3x3 reach per convolution.

Two graphs share one set of tensors. `published` is the forward pass of the networks released with SEN2SR, which feeds
the first features to every block; blocks between the first and the last have no influence on its output and exist so
that the released tensors load. `chained` is ours: each block reads the features of the one before.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Graph = Literal["published", "chained"]
GRAPHS: tuple[Graph, ...] = ("published", "chained")
GAIN = 2  # channels inside a `Conv3XC` per channel outside


class Conv3XC(nn.Module):
    """A 3x3 convolution with more parameters than it needs to compute: 1x1, 3x3 and 1x1 in a row, plus a 1x1 skip.

    There is no activation between them, so that they fold to one 3x3 kernel, in training as in inference. Padding the
    input of the folded kernel with zeros equals padding that of the first 1x1, as the released code does.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(channels_in, channels_out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, channels_in * GAIN, 1),
            nn.Conv2d(channels_in * GAIN, channels_out * GAIN, 3),
            nn.Conv2d(channels_out * GAIN, channels_out, 1),
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (out, in, 3, 3) and bias (out,) of the one convolution that this module computes."""
        (w1, b1), (w2, b2), (w3, b3) = (
            (part.get_parameter("weight"), part.get_parameter("bias")) for part in self.conv
        )
        outer = w3[:, :, 0, 0]
        kernel = torch.einsum("om,mjhw,ji->oihw", outer, w2, w1[:, :, 0, 0])
        kernel = kernel + functional.pad(self.sk.weight, (1, 1, 1, 1))
        bias = outer @ (w2.sum((2, 3)) @ b1 + b2) + b3 + self.sk.get_parameter("bias")
        return kernel, bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        return functional.conv2d(x, *self.folded(), padding=1)


class Block(nn.Module):
    """Three convolutions, and attention that has no parameters of its own: (o3 + x) * (sigmoid(o3) - 1/2)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.c1_r = Conv3XC(features, features)
        self.c2_r = Conv3XC(features, features)
        self.c3_r = Conv3XC(features, features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, features, h, w) -> the block's output and its first features after their activation, both as `x`."""
        first = functional.silu(self.c1_r(x))
        third = self.c3_r(functional.silu(self.c2_r(first)))
        return (third + x) * (torch.sigmoid(third) - 0.5), first


class Span(nn.Module):
    """The network. Names and shapes of its tensors are those of the release, without its derived `eval_conv`.

    `shuffle` above 1 upsamples at the end, by sub-pixel convolution. `graph` is `published`, or `chained`: there, a
    block's output is added to its input, because the attention scales features by less than a half, so that after six
    blocks in a row nothing would be left to learn from; and the last convolution begins at zero.
    """

    def __init__(
        self,
        channels_in: int = 10,
        channels_out: int = 6,
        features: int = 24,
        blocks: int = 6,
        shuffle: int = 1,
        graph: Graph = "chained",
    ) -> None:
        super().__init__()
        if graph not in GRAPHS:
            msg = f"graph {graph!r}; expected one of {', '.join(GRAPHS)}"
            raise ValueError(msg)
        self.graph = graph
        self.conv_1 = Conv3XC(channels_in, features)
        self.blocks = nn.ModuleList(Block(features) for _ in range(blocks))
        self.conv_cat = nn.Conv2d(4 * features, features, 1)
        self.conv_2 = Conv3XC(features, features)
        exit_ = nn.Conv2d(features, channels_out * shuffle**2, 3, padding=1)
        self.upsampler = nn.Sequential(exit_, nn.PixelShuffle(shuffle))
        if graph == "chained":
            nn.init.zeros_(exit_.weight)
            nn.init.zeros_(exit_.get_parameter("bias"))

    @property
    def exit(self) -> nn.Module:
        """The last convolution."""
        return self.upsampler[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, shuffle*h, shuffle*w)."""
        f = self.conv_1(x)
        first, last, inner = self._published(f) if self.graph == "published" else self._chained(f)
        joined = self.conv_cat(torch.cat([f, self.conv_2(last), first, inner], dim=1))
        out: Tensor = self.upsampler(joined)
        return out

    def _published(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs of the first and the last block, and the last one's inner features. Both read `f`."""
        last, inner = self.blocks[-1](f)
        return self.blocks[0](f)[0], last, inner

    def _chained(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same of blocks that follow one another."""
        x, outputs, inner = f, list[Tensor](), f
        for block in self.blocks:
            change, inner = block(x)
            x = x + change
            outputs.append(x)
        return outputs[0], outputs[-1], inner
