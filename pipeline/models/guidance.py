"""SGDM's content-style encoder and adapter: from a coarse image, a map and a style to what is added to a U-Net.

Wang and Sun, "Semantic Guided Large Scale Factor Remote Sensing Image Super-resolution with Generative Diffusion
Prior", sections 3.3 and 3.4, in the three forms of the released code. Images and maps are in network range, -1..1, and
on the grid of the output.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.bundle import BundleError
from pipeline.models.guidance_parts import SLOPE, Normalisation, Spade, Stage, Strided, Style, adain, conv, statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BANDS = 3
GAIN = 0.18215  # of the controls
REAL, SYNTHETIC, NO_MAP = "real", "synthetic", "no-map"
# Of SGDM+, which has styles. `variant`: REAL modulates features of the image by the map, as in the paper; SYNTHETIC
# those of the map. `widths`: per stage of stride 2. `controls`: channels at the levels of the U-Net.
PUBLISHED: dict[str, Any] = {
    "variant": REAL,
    "norm": "batch",
    "map_channels": 3,
    "stem": 32,
    "widths": [32, 32, 32],
    "spade_width": 128,
    "merged": 320,
    "controls": [320, 640, 1280],
}
PUBLISHED_SYNTHETIC = {**PUBLISHED, "variant": SYNTHETIC, "widths": [64, 128, 256], "merged": 384}
PUBLISHED_NO_MAP = {**PUBLISHED, "variant": NO_MAP, "map_channels": 0, "widths": [64, 128, 256], "merged": 384}


class MapContent(nn.Module):
    """Features of image and map at 1/2, 1/4, ... with SPADE at each stage, conditioned on [map, image]."""

    def __init__(
        self,
        map_channels: int,
        stem: int,
        widths: Sequence[int],
        modulates_map: bool,
        norm: Normalisation,
        spade_width: int,
    ) -> None:
        super().__init__()
        self.modulates_map = modulates_map
        self.image_stem = conv(BANDS, stem)
        self.map_stem = conv(map_channels, stem)
        pairs = list(zip((stem, *widths[:-1]), widths, strict=True))
        self.image_stages = nn.ModuleList(Stage(before, width) for before, width in pairs)
        self.map_stages = nn.ModuleList(Stage(before, width, plain=True) for before, width in pairs)
        self.spades = nn.ModuleList(Spade(width, 2 * width, norm, spade_width) for width in widths)

    def stages(self, image: Tensor, of_map: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the features of image and map, both (B, width, H / 2**k, W / 2**k), after every stage k."""
        image, of_map = (
            functional.leaky_relu(stem(x), SLOPE) for stem, x in ((self.image_stem, image), (self.map_stem, of_map))
        )
        found = []
        for image_stage, map_stage, spade in zip(self.image_stages, self.map_stages, self.spades, strict=True):
            image, of_map = image_stage(image), map_stage(of_map)
            both = torch.cat([of_map, image], 1)
            if self.modulates_map:
                of_map = spade(of_map, both)
            else:
                image = spade(image, both)
            found.append((image, of_map))
        return found

    def forward(self, image: Tensor, of_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of image and map after the last stage."""
        return self.stages(image, of_map)[-1]


class StyleEncoder(nn.Module):
    """Features whose statistics per channel are an image's style: strided convolutions, a last one, and tanh."""

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        self.body = Strided(BANDS, width, [width] * stages)
        self.last = conv(width, width)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / 2**stages, W / 2**stages)."""
        found: Tensor = self.last(self.body(image)).tanh()
        return found


class AdapterBlock(nn.Module):
    """x + conv1x1(ReLU(conv(x))); with `before`, first a convolution of stride 2 and one of 1x1 to `width`."""

    def __init__(self, width: int, before: int | None = None) -> None:
        super().__init__()
        self.down = None if before is None else conv(before, before, 2)
        self.entry = None if before is None else nn.Conv2d(before, width, 1)
        self.first = conv(width, width)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, width, h / 2, w / 2), rounded up; or the same size without `before`."""
        if self.down is not None and self.entry is not None:
            x = self.entry(self.down(x))
        found: Tensor = x + self.second(functional.relu(self.first(x)))
        return found


class Adapter(nn.Module):
    """Controls at the levels of a U-Net from the condition, by a convolution and two blocks per level."""

    def __init__(self, merged: int, controls: Sequence[int]) -> None:
        super().__init__()
        self.entry = conv(merged, controls[0])
        self.blocks = nn.ModuleList()
        for before, width in pairwise(controls):
            self.blocks.extend([AdapterBlock(width, before), AdapterBlock(width)])

    def forward(self, condition: Tensor) -> list[Tensor]:
        """(B, merged, h, w) -> (B, controls[k], h / 2**k, w / 2**k), rounded up, times `GAIN`."""
        x = self.entry(condition)
        found = [GAIN * x]
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k % 2:
                found.append(GAIN * x)
        return found


class Guidance(nn.Module):
    """Encoder and adapter of an architecture such as `PUBLISHED`. Sizes missing from it are the published ones.

    Raises BundleError for an unknown key or variant.
    """

    def __init__(self, architecture: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        sizes = _sizes(architecture)
        self.variant = sizes["variant"]
        widths, last = sizes["widths"], sizes["widths"][-1]
        self.stride = 2 ** len(widths)
        self.map_channels = 0 if self.variant == NO_MAP else int(sizes["map_channels"])
        self.content: nn.Module
        self.style: StyleEncoder | None = None
        if self.variant == NO_MAP:
            self.content = Strided(BANDS, sizes["stem"], widths)
            self.merge = nn.Conv2d(last, sizes["merged"], 3, padding=1, bias=False)
        else:
            self.content = MapContent(
                sizes["map_channels"],
                sizes["stem"],
                widths,
                self.variant == SYNTHETIC,
                sizes["norm"],
                sizes["spade_width"],
            )
            parts = 3 if self.variant == REAL else 2
            self.merge = nn.Conv2d(parts * last, sizes["merged"], 1, bias=False)
        if self.variant == REAL:
            self.style = StyleEncoder(last, len(widths))
        self.adapter = Adapter(sizes["merged"], sizes["controls"])

    @property
    def style_width(self) -> int:
        """Channels of a style; 0 if the variant has none."""
        return self.style.last.out_channels if self.style is not None else 0

    def style_statistics(self, image: Tensor) -> Style:
        """Return the style of an image (B, 3, H, W). Raises ValueError if the variant has none."""
        return statistics(self.style_features(image))

    def style_features(self, image: Tensor) -> Tensor:
        """Return the features (B, width, h, w) of which a style is the statistics. Raises as `style_statistics`."""
        if self.style is None:
            msg = f"guidance of variant {self.variant!r} has no styles"
            raise ValueError(msg)
        found: Tensor = self.style(image)
        return found

    def content_statistics(self, image: Tensor, of_map: Tensor) -> Style:
        """Return the statistics of the image's content features, which AdaIN replaces by a style."""
        return statistics(self.content(image, of_map)[0])

    def condition(
        self, image: Tensor, of_map: Tensor | None, style: Style | None = None, content: Style | None = None
    ) -> Tensor:
        """Return the merged features (B, merged, H / stride, W / stride).

        `style`: that the image's features take; None leaves them as they are. `content`: statistics of these features
        over more than this window; None takes those of the window, as published.
        """
        if self.variant == NO_MAP:
            merged: Tensor = self.merge(self.content(image))
            return merged
        features, map_features = self.content(image, of_map)
        parts = [map_features, features]
        if self.variant == REAL:
            own = content or statistics(features)
            parts.append(features if style is None else adain(features, style, own))
        merged = self.merge(torch.cat(parts, 1))
        return merged

    def forward(
        self, image: Tensor, of_map: Tensor | None, style: Style | None = None, content: Style | None = None
    ) -> list[Tensor]:
        """Return the controls (B, controls[k], h / 2**k, w / 2**k) of h = H / stride, finest first. See `condition`."""
        controls: list[Tensor] = self.adapter(self.condition(image, of_map, style, content))
        return controls


def _sizes(architecture: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all sizes. Raises BundleError for a size or variant that the networks do not have."""
    if unknown := sorted(set(architecture or {}) - set(PUBLISHED)):
        raise BundleError(f"architecture with {', '.join(unknown)}", f"{', '.join(PUBLISHED)}")
    sizes = {**PUBLISHED, **(architecture or {})}
    if sizes["variant"] not in (REAL, SYNTHETIC, NO_MAP):
        raise BundleError(f"variant {sizes['variant']!r}", f"{REAL!r}, {SYNTHETIC!r} or {NO_MAP!r}")
    if sizes["norm"] not in get_args(Normalisation):
        raise BundleError(f"norm {sizes['norm']!r}", "'batch', 'pixel' or 'none'")
    return sizes
