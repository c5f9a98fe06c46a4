"""The quicklook PNG of a store.

Its text chunks identify it as written by this software, so that no other file is overwritten.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StorageError
from pipeline.store.place import LocalPlace, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image as PilImage

_TILE_PX = 480
_OVERVIEW_PX = 240
_GAP_PX = 16
_LABEL_PX = 28
_LINE_PX = 26
_BACKGROUND, _INK, _QUIET, _FRAME = (255, 255, 255), (25, 28, 32), (110, 116, 122), (255, 196, 0)
_NODATA_GREY = 205
_SIGNATURE = ("Software", "sen2fine quicklook")  # keyword of the PNG specification, and its value


@dataclass(frozen=True)
class Panel:
    """One row of the picture: three bands of one place as reflectance (3, y, x), with nodata as -0.1."""

    title: str
    bands: tuple[str, ...]
    measured: NDArray[np.float32]  # 10 m
    interpolated: NDArray[np.float32]  # 2.5 m
    resolved: NDArray[np.float32]  # 2.5 m


@dataclass(frozen=True)
class Overview:
    """The area around the place, as reflectance (3, y, x), and the box of the place as fractions of its sides."""

    image: NDArray[np.float32]
    box: tuple[float, float, float, float]  # left, top, right, bottom


def stretch_limits(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the 1st and 99th percentile of measured pixels per band, (3, 1, 1) each."""
    low, high = [], []
    for band in image:
        values = band[band > -0.0999]
        edges = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
        low.append(edges[0])
        high.append(max(edges[1], edges[0] + 0.01))
    shape = (3, 1, 1)
    return np.array(low, np.float32).reshape(shape), np.array(high, np.float32).reshape(shape)


def _to_rgb(image: NDArray[np.float32], limits: tuple[NDArray[np.float32], NDArray[np.float32]]) -> NDArray[np.uint8]:
    low, high = limits
    scaled = np.clip((image - low) / (high - low), 0, 1) ** 0.8
    rgb = np.rint(scaled * 255).astype(np.uint8).transpose(1, 2, 0)
    rgb[(image <= -0.0999).any(0)] = _NODATA_GREY
    return rgb


def _tile(rgb: NDArray[np.uint8], side_px: int) -> PilImage.Image:
    """Enlarge by an integer factor so that pixels stay visible, or average if larger than the tile."""
    from PIL import Image

    image, side = Image.fromarray(rgb), max(rgb.shape[:2])
    if side <= side_px:
        factor = side_px // side
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * side_px / side)), max(1, round(image.height * side_px / side)))
    return image.resize(size, Image.Resampling.BOX)


def is_quicklook(path: Path) -> bool:
    """Return True for a picture that `quicklook` made."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return bool(image.info.get(_SIGNATURE[0]) == _SIGNATURE[1])
    except (OSError, ValueError, SyntaxError):
        return False


def _put(path: Path, content: bytes) -> None:
    """Write a picture. Raises StorageError if another file exists there."""
    if is_quicklook(path):
        write_atomic(path, content)
    elif not LocalPlace(path.parent).create(path.name, content):
        raise StorageError(f"{path} exists and is not a picture of a store", cure="move it away, then run again")


def quicklook(path: Path, panels: list[Panel], overview: Overview, title: str, about: list[str], system: str) -> None:
    """Write the PNG: an overview, and per row the 10 m pixels, their interpolation, and the output.

    `about` holds the lines below the title. Raises StorageError if a foreign file exists there.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    small = ImageFont.load_default(15)
    head = _OVERVIEW_PX + 2 * _GAP_PX
    width = 3 * _TILE_PX + 4 * _GAP_PX
    sheet = Image.new("RGB", (width, head + len(panels) * (_LABEL_PX + _TILE_PX + _GAP_PX)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_head(sheet, overview, stretch_limits(panels[0].measured), title, about)
    for i, panel in enumerate(panels):
        top = head + i * (_LABEL_PX + _TILE_PX + _GAP_PX)
        limits = stretch_limits(panel.measured)
        named = (
            (f"{panel.title} ({' '.join(panel.bands)}): measured, 10 m", panel.measured),
            ("bicubic interpolation, 2.5 m", panel.interpolated),
            (f"{system}, 2.5 m", panel.resolved),
        )
        for j, (name, image) in enumerate(named):
            left = _GAP_PX + j * (_TILE_PX + _GAP_PX)
            draw.text((left, top), name, _QUIET, small)
            sheet.paste(_tile(_to_rgb(image, limits), _TILE_PX), (left, top + _LABEL_PX))
    content = io.BytesIO()
    signed = PngInfo()
    signed.add_text(*_SIGNATURE)
    sheet.save(content, "PNG", pnginfo=signed)
    _put(path, content.getvalue())


def _draw_head(
    sheet: PilImage.Image,
    overview: Overview,
    limits: tuple[NDArray[np.float32], NDArray[np.float32]],
    title: str,
    about: list[str],
) -> None:
    """Draw the overview with the place framed, and beside it the title and lines of text."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(sheet)
    tile = _tile(_to_rgb(overview.image, limits), _OVERVIEW_PX)
    sheet.paste(tile, (_GAP_PX, _GAP_PX))
    x0, y0, x1, y1 = overview.box
    corners = (x0 * tile.width, y0 * tile.height, x1 * tile.width - 1, y1 * tile.height - 1)
    draw.rectangle([corner + _GAP_PX for corner in corners], outline=_FRAME, width=2)
    left = _OVERVIEW_PX + 2 * _GAP_PX
    draw.text((left, _GAP_PX), title, _INK, ImageFont.load_default(20))
    for i, line in enumerate(about):
        draw.text((left, _GAP_PX + 12 + (i + 1) * _LINE_PX), line, _QUIET, ImageFont.load_default(15))
