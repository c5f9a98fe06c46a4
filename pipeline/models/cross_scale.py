"""The two cross-scale modules of CSP-WaveDiffUR: the encoder T_theta (eqs. 12, 18) and the restoration M (eq. 17).

Block shapes follow the paper's text (sections 3.2.1 and 3.2.2) and those of its ancestor DiffLL (Jiang et al. 2023).
All convolutions pad with zeros. Tensors are (B, C, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.layout import laid_out
from pipeline.models.rrdb import conv3x3

if TYPE_CHECKING:
    from torch import Tensor

DETAILS = ("V", "H", "D")  # high-frequency bands in the order of eq. 10
DILATIONS = (1, 2, 3, 2, 1)  # of the progressive dilation block; the outer two are the local convolutions
BLOCK_REACH = sum(DILATIONS)
_LEAK = 0.01
_FIRST_SHARE = 0.1  # of the last convolution of a residual block, which then starts close to the identity


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3 convolution, then 1x1: (B, channels_in, H, W) to (B, width, H, W)."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in)
        self.pw = nn.Conv2d(channels_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        out: Tensor = self.pw(self.dw(laid_out(x)))
        return out


class CrossAttention(nn.Module):
    """Attention of queries to pixels of one or more sources: softmax(Q K^T / sqrt(d)) V with d = width / heads.

    The paper's eq. 18 puts V inside the softmax, which we take for a slip. Without `window` each pixel attends to all
    pixels; with it, to those in its square of `window` px, counted from the image's first pixel. Squares at the far
    border may be cut. Cost per pixel is then bounded, and images that begin at multiples of `window` agree.
    """

    def __init__(self, width: int, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.q = nn.Conv2d(width, width, 1, bias=False)
        self.k = nn.Conv2d(width, width, 1, bias=False)
        self.v = nn.Conv2d(width, width, 1, bias=False)
        self.o = nn.Conv2d(width, width, 1)
        self.heads, self.window = heads, window

    def forward(self, query: Tensor, *sources: Tensor) -> Tensor:
        """Return what `query` (B, width, H, W) takes from `sources` of the same shape, as keys and values."""
        height, width = query.shape[-2:]
        rows, columns = (self.window, self.window) if self.window else (height, width)
        q = self._tokens(self.q(query), rows, columns)
        k, v = (
            torch.cat([self._tokens(of(source), rows, columns) for source in sources], dim=-2)
            for of in (self.k, self.v)
        )
        inside = self._inside(query, rows, columns, len(sources))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=inside)
        out: Tensor = self.o(self._image(attended, query.shape, rows, columns))
        return out

    def _tokens(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(B, C, H, W) to (B * squares, heads, rows * columns, C / heads), zeros beyond the far border."""
        b, c, height, width = x.shape
        if height % rows or width % columns:  # pad copies the image even where it adds nothing
            x = functional.pad(x, (0, -width % columns, 0, -height % rows))
        down, across = x.shape[-2] // rows, x.shape[-1] // columns
        x = x.permute(0, 2, 3, 1).reshape(b, down, rows, across, columns, self.heads, c // self.heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(b * down * across, self.heads, rows * columns, c // self.heads)

    def _image(self, tokens: Tensor, shape: torch.Size, rows: int, columns: int) -> Tensor:
        """Undo `_tokens`."""
        b, c, height, width = shape
        down, across = -(-height // rows), -(-width // columns)
        x = tokens.reshape(b, down, across, self.heads, rows, columns, c // self.heads).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.reshape(b, down * rows, across * columns, c)[:, :height, :width].permute(0, 3, 1, 2)
        return laid_out(x)

    def _inside(self, query: Tensor, rows: int, columns: int, sources: int) -> Tensor | None:
        """Return which keys lie within the image, (B * squares, 1, 1, keys), or None if all do."""
        b, _, height, width = query.shape
        if height % rows == 0 and width % columns == 0:
            return None
        true = query.new_ones(1, 1, height, width)
        true = functional.pad(true, (0, -width % columns, 0, -height % rows)) > 0
        down, across = true.shape[-2] // rows, true.shape[-1] // columns
        squares = true.reshape(down, rows, across, columns).transpose(1, 2).reshape(-1, 1, 1, rows * columns)
        return squares.repeat(b, 1, 1, sources)


class DilatedBlock(nn.ModuleList):
    """Five 3x3 convolutions of `DILATIONS`, LeakyReLU after the first four, plus the input. Keeps the shape."""

    def __init__(self, width: int) -> None:
        convolutions = [nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in DILATIONS]
        for conv in convolutions:
            _he(conv)
        _he(convolutions[-1], _FIRST_SHARE)
        super().__init__(convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, H, W)."""
        h = x
        for k, conv in enumerate(self):
            h = conv(h)
            if k < len(DILATIONS) - 1:
                h = functional.leaky_relu(h, _LEAK)
        return x + h


class LocalBlock(nn.Module):
    """Two 3x3 convolutions with LeakyReLU between them, plus the input. Keeps the shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3x3(width, width), conv3x3(width, width)
        _he(self.conv1)
        _he(self.conv2, _FIRST_SHARE)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, H, W)."""
        out: Tensor = x + self.conv2(functional.leaky_relu(self.conv1(x), _LEAK))
        return out


class CspEncoder(nn.Module):
    """Cross-scale pyramid encoder T_theta: an image and a reference to the condition tau on the image's grid.

    `blocks` local blocks come before the dilated one. With `details`, that many further channels per band follow tau,
    which is then a condition of the high frequencies too. `flags` more channels of the image tell what it is. The last
    convolution starts at zero.
    """

    def __init__(
        self,
        bands: int,
        width: int,
        heads: int = 12,
        window: int | None = None,
        *,
        blocks: int = 0,
        details: int = 0,
        flags: int = 0,
    ) -> None:
        super().__init__()
        self.head_lr = DepthwiseSeparable(bands + flags, width)
        self.head_ref = DepthwiseSeparable(bands, width)
        self.attn = CrossAttention(width, heads, window)
        self.local = nn.Sequential(*(LocalBlock(width) for _ in range(blocks)))
        self.pdr = DilatedBlock(width)
        self.out = _zero(conv3x3(width, (1 + details) * bands))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return tau (B, bands, H, W) of an image of that shape and a reference (B, bands, H', W') of its ground.

        With `details`, (B, (1 + details) * bands, H, W). With `flags`, the image has as many more channels.
        """
        f = self.head_lr(image)
        g = functional.interpolate(self.head_ref(reference), size=f.shape[-2:], mode="bilinear", align_corners=False)
        tau: Tensor = self.out(self.pdr(self.local(f + self.attn(f, f, g))))
        return tau


class DetailRestoration(nn.Module):
    """Cross-scale high-frequency restoration M: bands V, H, D at (H, W) to those at (2H, 2W).

    Queries come from V and H, keys and values from D, as in DiffLL; both results are merged into the features of D.
    Each band has `blocks` dilated blocks. The last convolutions start at zero. `lr_channels` and `ref_channels` are the
    channels of the image's and the reference's input per band.
    """

    def __init__(
        self,
        bands: int,
        width: int,
        heads: int = 8,
        window: int | None = None,
        *,
        blocks: int = 1,
        lr_channels: int | None = None,
        ref_channels: int | None = None,
    ) -> None:
        super().__init__()
        channels_in = (lr_channels or bands) + (ref_channels or bands)
        self.attn_v = CrossAttention(width, heads, window)
        self.attn_h = CrossAttention(width, heads, window)
        self.merge_D = conv3x3(2 * width, width)
        for band in DETAILS:
            self.add_module(f"head_{band}", DepthwiseSeparable(channels_in, width))
            self.add_module(f"pdr_{band}", DilatedBlock(width))
            self.add_module(f"deeper_{band}", nn.Sequential(*(DilatedBlock(width) for _ in range(blocks - 1))))
            self.add_module(f"up_{band}", _zero(conv3x3(width, 4 * bands)))

    def features(self, image: tuple[Tensor, Tensor, Tensor], reference: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Return features (B, width, H, W) of V, H, D from inputs of the image and the reference for V, H, D.

        The inputs are (B, lr_channels, H, W) and (B, ref_channels, H, W).
        """
        v, h, d = (
            self.get_submodule(f"head_{band}")(torch.cat(pair, dim=1))
            for band, *pair in zip(DETAILS, image, reference, strict=True)
        )
        d = self.merge_D(torch.cat((self.attn_v(v, d), self.attn_h(h, d)), dim=1))
        blocks = ((self.get_submodule(f"pdr_{band}"), self.get_submodule(f"deeper_{band}")) for band in DETAILS)
        return [deeper(first(x)) for (first, deeper), x in zip(blocks, (v, h, d), strict=True)]

    def details(self, features: list[Tensor]) -> Tensor:
        """Return V, H, D one after the other, (B, 3 * bands, 2H, 2W), of `features`."""
        ups = (self.get_submodule(f"up_{band}")(x) for band, x in zip(DETAILS, features, strict=True))
        return torch.cat([functional.pixel_shuffle(up, 2) for up in ups], dim=1)

    def forward(self, image: tuple[Tensor, Tensor, Tensor], reference: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return V, H, D one after the other, (B, 3 * bands, 2H, 2W), of the inputs of `features`."""
        return self.details(self.features(image, reference))


def _he(conv: nn.Conv2d, share: float = 1.0) -> None:
    """Initialise weights for LeakyReLU (He et al. 2015) times `share`, and the bias to zero.

    PyTorch's own initial weights let a chain of five convolutions fade to a hundredth, and it hardly learns.
    """
    nn.init.kaiming_normal_(conv.weight, a=_LEAK)
    with torch.no_grad():
        conv.weight.mul_(share)
        conv.get_parameter("bias").zero_()


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Set weights and bias to zero and return the convolution."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def reach_px(blocks: int, window: int | None) -> int | None:
    """Return how far, in px of its input grid, the output of M (or T_theta, with one block) sees; None: everywhere.

    Heads, merging and last convolutions see 1 px each, a square of attention up to window - 1 px.
    """
    return None if window is None else 3 + window - 1 + blocks * BLOCK_REACH
