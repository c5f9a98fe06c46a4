"""Picture sheets of super-resolution: input, estimates and truth of a held-out place, as PNG.

Each sheet shows one place per set, that of median sharpness, cropped to its most detailed part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from pipeline.bands import RGB
from pipeline.superres.members import Ensemble
from training.quality import baselines, real
from training.quality.metrics import average_gradient
from training.quality.pairs import Pair
from training.quality.tables import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.tiles import Tile
    from training.quality.judge import Candidate

SHOWN_PX = 96  # side of the crop shown, at 2.5 m
ZOOM = 4  # sheet pixels per pixel
COLUMNS = 4
SETS = 8  # maximum number of held-out sets
LABEL_PX, GAP_PX, TEXT_PX = 22, 6, 15
STRETCH = (0.5, 99.5)  # percentiles of the truth (or of the input without one) shown as black and white
REAL_PX = 120  # side of a real patch at 10 m: one window of the lattice


@dataclass(frozen=True)
class Panel:
    """One image (3, n, n) or (1, n, n) with its label. `white`: own white level, instead of the sheet's stretch."""

    label: str
    pixels: Tensor
    white: float | None = None


def chosen(pairs: Sequence[Pair], sets: int = SETS) -> list[Pair]:
    """Return one pair per set, that of median sharpness."""
    picked = []
    for name in list(dict.fromkeys(pair.source for pair in pairs))[:sets]:
        inside = [pair for pair in pairs if pair.source == name]
        inside.sort(key=lambda pair: average_gradient(pair.hr))
        picked.append(inside[len(inside) // 2])
    return picked


def real_pair(tiles: Sequence[Tile], bands: tuple[str, ...] = RGB) -> Pair | None:
    """Return the sharpest clear Sentinel-2 patch, or None. Its `hr` is all zero."""
    clear = [found for found in real.patches(tiles, REAL_PX, bands=bands) if found[1].max() <= real.SNOW_REFLECTANCE]
    if not clear:
        return None
    tile, rho = max(clear, key=lambda found: average_gradient(torch.from_numpy(found[1])))
    lr = torch.from_numpy(rho)[None]
    unknown = torch.zeros(*lr.shape[:2], *(4 * side for side in lr.shape[-2:]))
    return Pair("sentinel2", 0, unknown, lr, tile.place, bands)


def detailed_part(image: Tensor, side: int, step: int = 4) -> tuple[slice, slice]:
    """Return the crop of at most `side` px of image (1, bands, H, W) with the most gradient, on a grid of `step` px."""
    height, width = (min(side, n) // step * step for n in image.shape[-2:])
    dx, dy = image[..., :-1, 1:] - image[..., :-1, :-1], image[..., 1:, :-1] - image[..., :-1, :-1]
    steepness = (dx.square() + dy.square()).sqrt().sum(1, keepdim=True)
    of_squares = functional.avg_pool2d(steepness, (height - 1, width - 1), stride=step)[0, 0]
    y, x = (step * int(at) for at in np.unravel_index(int(of_squares.argmax()), of_squares.shape))
    return slice(y, y + height), slice(x, x + width)


@torch.inference_mode()
def panels(candidate: Candidate, pair: Pair, truth: bool = True) -> list[Panel]:
    """Return the panels of one sheet, cropped to the most detailed part."""
    samples = candidate.members(pair)
    ensemble = Ensemble()
    for sample in samples:
        ensemble.add(sample)
    part = detailed_part(pair.hr if truth else baselines.bicubic(pair.lr), SHOWN_PX)

    def cut(image: Tensor) -> Tensor:
        return image[pair.shown][(slice(None), *part)]

    shown = [
        Panel("input, 10 m", cut(baselines.nearest(pair.lr)[0])),
        Panel("bicubic", cut(baselines.bicubic(pair.lr)[0])),
        Panel("IBP", cut(baselines.ibp(pair.lr)[0])),
        Panel(f"{candidate.name}, one sample", cut(samples[0])),
        Panel(f"{candidate.name}, mean of {len(samples)}", cut(ensemble.mean)),
    ]
    if ensemble.spread is not None:
        deviation = cut(ensemble.spread).mean(0, keepdim=True)
        white = float(torch.quantile(deviation, 0.99))
        shown.append(Panel(f"standard deviation, white {white:.3f}", deviation, white))
    return [*shown, Panel("truth", cut(pair.hr[0]))] if truth else shown


def sheet(shown: Sequence[Panel], title: str, columns: int = COLUMNS) -> Image.Image:
    """Arrange panels in rows of `columns`. All share one stretch, except those with their own."""
    reference = (shown[-1] if shown[-1].white is None else shown[0]).pixels
    black, white = (float(torch.quantile(reference, share / 100)) for share in STRETCH)
    height, width = (side * ZOOM for side in reference.shape[-2:])
    rows = -(-len(shown) // columns)
    size = (columns * (width + GAP_PX) + GAP_PX, LABEL_PX + rows * (height + LABEL_PX + GAP_PX))
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=TEXT_PX)
    draw.text((GAP_PX, 2), title, fill="black", font=font)
    for index, panel in enumerate(shown):
        left = GAP_PX + index % columns * (width + GAP_PX)
        top = LABEL_PX + index // columns * (height + LABEL_PX + GAP_PX)
        draw.text((left, top + 2), panel.label, fill="black", font=font)
        ends = (black, white) if panel.white is None else (0.0, panel.white)
        image.paste(Image.fromarray(_enlarged(panel.pixels, *ends)), (left, top + LABEL_PX))
    return image


def _enlarged(pixels: Tensor, black: float, white: float) -> NDArray[np.uint8]:
    """Enlarge (1 or 3, n, n) to 8-bit (ZOOM*n, ZOOM*n, 3) by replication."""
    scaled = ((pixels.numpy() - black) / max(white - black, 1e-6)).clip(0, 1)
    eight = np.rint(np.broadcast_to(scaled, (3, *scaled.shape[1:])) * 255).astype(np.uint8)
    return np.ascontiguousarray(eight.transpose(1, 2, 0).repeat(ZOOM, 0).repeat(ZOOM, 1))


def write(
    candidate: Candidate, pairs: Sequence[Pair], tiles: Sequence[Tile], folder: Path, say: Callable[[str], None]
) -> list[Path]:
    """Write one PNG per chosen place to `folder`. Return the paths. Raises StorageError."""
    written = []
    of_sentinel2 = real_pair(tiles, candidate.bands)
    for pair in [*chosen(pairs), *([of_sentinel2] if of_sentinel2 else [])]:
        shown = panels(candidate, pair, truth=pair is not of_sentinel2)
        name = re.sub(r"[^\w.-]+", "_", f"{candidate.name}-{pair.source}-{pair.place}-{pair.index}")
        path = folder / f"{name}.png"
        image = sheet(shown, f"{pair.place} (image {pair.index} of {pair.source}); {candidate.settings}")
        write_whole(path, partial(image.save, format="PNG"))
        say(f"wrote {path}")
        written.append(path)
    if not written:
        small = f"no scene holds {10 * REAL_PX} m of clear ground"
        say(f"{candidate.name}: no sheet, since no image is held out and {small}")
    return written
