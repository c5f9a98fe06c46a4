"""Text contexts of map guidance: which of four words the map of a window holds, and the prompts of all 16 cases.

As in the released code of SGDM: a prompt begins with "land, ", and each word that the map shows follows, in this order.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = ("building of regular shape", "road", "woods", "water area")
# Colours (8 bits) of these in the rendered maps of the released weights, which have them exactly.
RENDERED: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((226, 224, 210),),
    ((254, 254, 254), (255, 204, 133)),
    ((217, 233, 198), (228, 236, 213), (208, 230, 190)),
    ((133, 203, 249),),
)

# Channels of our map classes for each of `WORDS`, by the names in `superres/map_classes.toml`.
CLASSES = (("building",), ("road-major", "road-minor"), ("wood",), ("water",))
_LAND = 240  # grey of ground without any of these; the released code does not give it


def prompts() -> list[str]:
    """Return the prompt of every case: number n has word k if bit k of n is set."""
    return [
        "".join(f"{word}, " for word in ("land", *compress(WORDS, (n >> k & 1 for k in range(len(WORDS))))))
        for n in range(2 ** len(WORDS))
    ]


def case_of_classes(of_map: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Return the number (B,) of the case of a map (B, K, H, W) with a channel of 0 or 1 per class.

    `words`: the channels of each of `WORDS`; of none if the map has no such class.
    """
    shown = of_map.flatten(2).amax(2) > 0.5
    return _case([shown[:, list(channels)].any(1) for channels in words])


def rendered(of_map: Tensor, names: Sequence[str]) -> Tensor:
    """Return the map (B, 3, H, W), 0 to 1, in the colours of the released weights, of classes (B, K, H, W) by name."""
    picture = of_map.new_full((len(of_map), 3, *of_map.shape[2:]), _LAND / 255)
    for colours, classes in zip(RENDERED, CLASSES, strict=True):
        for name in classes:
            colour = colours[min(classes.index(name), len(colours) - 1)]
            there = of_map[:, names.index(name)][:, None] > 0.5
            picture = torch.where(there, of_map.new_tensor(colour)[:, None, None] / 255, picture)
    return picture


def case_of_rendering(of_map: Tensor) -> Tensor:
    """Return the number (B,) of the case of a rendered map (B, 3, H, W) with colours from 0 to 1."""
    levels = (255 * of_map).round()
    return _case(
        [
            torch.stack([(levels == levels.new_tensor(colour)[:, None, None]).all(1) for colour in colours])
            .any(0)
            .flatten(1)
            .any(1)
            for colours in RENDERED
        ]
    )


def _case(shown: Sequence[Tensor]) -> Tensor:
    return torch.stack([here.long() << k for k, here in enumerate(shown)]).sum(0)
