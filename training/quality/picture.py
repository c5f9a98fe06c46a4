"""Picture sheets of super-resolution: input, estimates and truth of a held-out place, as PNG.

A few places per set are shown, chosen by land cover (`land_cover.choose`), never by contrast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.bands import RGB, SCALE_10M
from pipeline.superres.members import Ensemble
from training.quality import baselines, land_cover, real
from training.quality.land_cover import PLACES
from training.quality.pairs import Pair
from training.quality.tables import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont
    from torch import Tensor

    from training.data.tiles import Tile
    from training.quality.judge import Candidate

    Font = FreeTypeFont | BitmapFont
    Ends = tuple[Tensor, Tensor]

SHOWN_PX = 96  # side of the crop shown, at 2.5 m
ZOOM = 4  # sheet pixels per pixel
COLUMNS = 4
LABEL_PX, GAP_PX, TEXT_PX = 22, 6, 15
PANEL_PX = 240  # minimum width of a panel, for its label
STRETCH = (0.5, 99.5)  # percentiles of the truth (or of the input without one) shown as black and white
DISPLAY_GAMMA = 1 / 1.8  # reflectance is linear, screens are not
REAL_PX = 120  # side of a real patch at 10 m: one window of the lattice
REAL_PATCHES = 12  # maximum per source to choose from


@dataclass(frozen=True)
class Panel:
    """One image (3, n, n) or (1, n, n) with its label. `ends`: own black and white, instead of the sheet's stretch."""

    label: str
    pixels: Tensor
    ends: Ends | None = None


@dataclass(frozen=True)
class Place:
    """A part of an image at 2.5 m to show, and why it was chosen. `truth`: whether `pair.hr` is known."""

    pair: Pair
    part: tuple[slice, slice]
    why: str
    truth: bool = True


def chosen(pairs: Sequence[Pair], count: int = PLACES) -> list[Place]:
    """Return at most `count` places per set that differ in land cover."""
    found = []
    for name in dict.fromkeys(pair.source for pair in pairs):
        inside = [
            (pair, part)
            for pair in pairs
            if pair.source == name
            for part in land_cover.windows(pair.hr.shape[-2], pair.hr.shape[-1], SHOWN_PX, pair.scale)
        ]
        covers = [land_cover.describe(pair.hr[0][(slice(None), *part)], pair.bands) for pair, part in inside]
        shown = land_cover.choose(covers, [pair.place or pair.index for pair, _ in inside], count)
        found += [Place(*inside[one.index], one.why) for one in shown]
    return found


def chosen_of_sentinel2(
    tiles: Sequence[Tile], bands: tuple[str, ...] = RGB, count: int = PLACES, scale: int = SCALE_10M
) -> list[Place]:
    """Return at most `count` clear Sentinel-2 places that differ in land cover, whose `hr` is all zero.

    They took no part in training unless all did, which `why` then tells.
    """
    untrained = [tile for tile in tiles if tile.watched or tile.split == "held-out"]
    inside, covers = [], []
    for source in dict.fromkeys(tile.source for tile in untrained or tiles):
        of_source = [tile for tile in untrained or tiles if tile.source == source]
        infrared = "B08" not in bands and all("B08" in tile.present for tile in of_source)
        read = (*bands, "B08") if infrared else bands
        for tile, rho in real.patches(of_source, REAL_PX, REAL_PATCHES, bands=read):
            if rho[: len(bands)].max() > real.SNOW_REFLECTANCE:
                continue
            for part in land_cover.windows(REAL_PX, REAL_PX, SHOWN_PX // scale, 1):
                inside.append((tile, torch.from_numpy(rho[None, : len(bands)]), part))
                covers.append(land_cover.describe(torch.from_numpy(rho)[(slice(None), *part)], read))
    found = []
    for index, one in enumerate(land_cover.choose(covers, [tile.label for tile, _, _ in inside], count)):
        tile, lr, part = inside[one.index]
        unknown = torch.zeros(*lr.shape[:2], *(scale * side for side in lr.shape[-2:]))
        rows, columns = (slice(scale * along.start, scale * along.stop) for along in part)
        why = one.why if untrained else f"{one.why}; trained on"
        found.append(Place(Pair("sentinel2", index, unknown, lr, tile.place, bands), (rows, columns), why, False))
    return found


@torch.inference_mode()
def panels(candidate: Candidate, place: Place) -> list[Panel]:
    """Return the panels of one sheet."""
    pair, samples = place.pair, candidate.members(place.pair)
    ensemble = Ensemble()
    for sample in samples:
        ensemble.add(sample)

    def cut(image: Tensor) -> Tensor:
        return image[pair.shown][(slice(None), *place.part)]

    shown = [
        Panel("input", cut(baselines.nearest(pair.lr, pair.scale)[0])),
        Panel("bicubic", cut(baselines.bicubic(pair.lr, pair.scale)[0])),
        Panel("IBP", cut(baselines.ibp(pair.lr, pair.scale)[0])),
        Panel(f"{candidate.name}, one sample", cut(samples[0])),
        Panel(f"{candidate.name}, mean of {len(samples)}", cut(ensemble.mean)),
    ]
    if ensemble.spread is not None:
        deviation = cut(ensemble.spread).mean(0, keepdim=True)
        white = float(torch.quantile(deviation, 0.99))
        shown.append(
            Panel(f"standard deviation, white {white:.3f}", deviation, (torch.tensor(0.0), torch.tensor(white)))
        )
    return [*shown, Panel("truth", cut(pair.hr[0]))] if place.truth else shown


def ends_of(pixels: Tensor, *, by_band: bool = False) -> Ends:
    """Return the values of pixels (bands, h, w) to show as black and white: of all bands, or of each (bands, 1, 1)."""
    flat = pixels.flatten(1) if by_band else pixels.reshape(1, -1)
    black, white = (torch.quantile(flat, share / 100, dim=1)[:, None, None] for share in STRETCH)
    return black, white


def stretched(pixels: Tensor, ends: Ends) -> Tensor:
    """Return pixels (bands, h, w) with black as 0 and white as 1, not clipped."""
    black, white = ends
    return (pixels - black) / (white - black).clamp_min(1e-6)


def sheet(shown: Sequence[Panel], title: str, columns: int = COLUMNS, *, by_band: bool = False) -> Image.Image:
    """Arrange panels in rows of `columns` below the lines of the title.

    All share one stretch, except those with their own; `by_band` stretches each band by itself, as false colour needs,
    and linearly. Text that is too long for its place is cut.
    """
    reference = (shown[-1] if shown[-1].ends is None else shown[0]).pixels
    stretch = ends_of(reference, by_band=by_band)
    zoom = max(ZOOM, -(-PANEL_PX // reference.shape[-1]))
    height, width = (side * zoom for side in reference.shape[-2:])
    lines, rows = title.split("\n"), -(-len(shown) // columns)
    above = LABEL_PX * len(lines)
    size = (columns * (width + GAP_PX) + GAP_PX, above + rows * (height + LABEL_PX + GAP_PX))
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=TEXT_PX)
    for row, line in enumerate(lines):
        draw.text((GAP_PX, row * LABEL_PX + 2), fitted(line, size[0] - 2 * GAP_PX, font), fill="black", font=font)
    for index, panel in enumerate(shown):
        left = GAP_PX + index % columns * (width + GAP_PX)
        top = above + index // columns * (height + LABEL_PX + GAP_PX)
        draw.text((left, top + 2), fitted(panel.label, width, font), fill="black", font=font)
        gamma = 1.0 if by_band or len(panel.pixels) == 1 else DISPLAY_GAMMA
        pixels = _enlarged(stretched(panel.pixels, panel.ends or stretch).clamp(0, 1) ** gamma, zoom)
        image.paste(Image.fromarray(pixels), (left, top + LABEL_PX))
    return image


def fitted(text: str, width_px: float, font: Font) -> str:
    """Return the text with its start cut, if it is wider than `width_px`: the end tells panels apart."""
    kept = text
    while kept and font.getlength(kept if kept == text else f"...{kept}") > width_px:
        kept = kept[1:]
    return kept if kept == text else f"...{kept}"


def _enlarged(shown: Tensor, zoom: int) -> NDArray[np.uint8]:
    """Enlarge (1 or 3, n, n) in 0 to 1 to 8-bit (zoom*n, zoom*n, 3) by replication."""
    eight = np.rint(shown.expand(3, -1, -1).numpy() * 255).astype(np.uint8)
    return np.ascontiguousarray(eight.transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1))


def path_of(folder: Path, *parts: object) -> Path:
    """Return the file of a sheet, named by `parts`."""
    stem = re.sub(r"[^\w.-]+", "_", "-".join(map(str, parts)))
    return folder / f"{stem}.png"


def write(
    candidate: Candidate,
    pairs: Sequence[Pair],
    tiles: Sequence[Tile],
    folder: Path,
    say: Callable[[str], None],
    count: int = PLACES,
) -> list[Path]:
    """Write one PNG per place to `folder`, at most `count` per set. Return the paths. Raises StorageError."""
    written = []
    for place in [*chosen(pairs, count), *chosen_of_sentinel2(tiles, candidate.bands, count, candidate.scale)]:
        pair, part = place.pair, place.part
        path = path_of(folder, candidate.name, pair.source, pair.place, pair.index, part[0].start, part[1].start)
        title = f"{pair.place} (image {pair.index} of {pair.source}), chosen: {place.why}\n{candidate.settings}"
        image = sheet(panels(candidate, place), title)
        write_whole(path, partial(image.save, format="PNG"))
        say(f"wrote {path}")
        written.append(path)
    if not written:
        small = f"no scene holds {10 * REAL_PX} m of clear ground"
        say(f"{candidate.name}: no sheet, since no image is held out and {small}")
    return written
