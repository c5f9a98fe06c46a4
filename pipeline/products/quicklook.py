"""Pictures of a store: the quicklook PNG. In: reflectance arrays. Out: files. Imports place only; no archive.

Every picture says in its text chunks that it is one of ours, so that no other file is ever overwritten.
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
_GAP_PX = 16
_LABEL_PX = 34
_BACKGROUND, _INK, _QUIET, _FRAME = (255, 255, 255), (25, 28, 32), (110, 116, 122), (255, 196, 0)
_NODATA_GREY = 205
_SIGNATURE = ("Software", "sen2fine quicklook")  # keyword of the PNG specification, and our name


@dataclass(frozen=True)
class Panel:
    """One row of the picture: three bands as reflectance (3, y, x), nodata below 0 by exactly 0.1."""

    title: str
    bands: tuple[str, ...]
    overview: NDArray[np.float32]
    measured: NDArray[np.float32]  # 10 m
    resolved: NDArray[np.float32]  # 2.5 m


def stretch_limits(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per-band 1st and 99th percentile of measured pixels, (3, 1, 1) each."""
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


def _tile(rgb: NDArray[np.uint8]) -> PilImage.Image:
    """Enlarged by whole pixels (nearest) so that what a pixel is stays visible."""
    from PIL import Image

    ny, nx = rgb.shape[:2]
    factor = _TILE_PX / max(ny, nx)
    return Image.fromarray(rgb).resize(
        (max(1, round(nx * factor)), max(1, round(ny * factor))), Image.Resampling.NEAREST
    )


def is_quicklook(path: Path) -> bool:
    """True for a picture that `quicklook` made."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return bool(image.info.get(_SIGNATURE[0]) == _SIGNATURE[1])
    except (OSError, ValueError, SyntaxError):
        return False


def _put(path: Path, content: bytes) -> None:
    """Write a picture; StorageError where there is another file."""
    if is_quicklook(path):
        write_atomic(path, content)
    elif not LocalPlace(path.parent).create(path.name, content):
        raise StorageError(f"{path} exists and is not a picture of a store", cure="move it away, then run again")


def quicklook(path: Path, panels: list[Panel], box: tuple[float, float, float, float], title: str, system: str) -> None:
    """Write the PNG: per row the whole area with the place framed, its 10 m input and its 2.5 m output.

    StorageError where there is a file that is no picture of ours.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    width = 3 * _TILE_PX + 4 * _GAP_PX
    height = _LABEL_PX + _GAP_PX + len(panels) * (_TILE_PX + _LABEL_PX + _GAP_PX)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, _GAP_PX // 2), title, _INK, font)
    for i, panel in enumerate(panels):
        top = _LABEL_PX + _GAP_PX + i * (_TILE_PX + _LABEL_PX + _GAP_PX)
        limits = stretch_limits(panel.measured)
        images = (panel.overview, panel.measured, panel.resolved)
        names = (f"{panel.title} ({' '.join(panel.bands)}), overview", "measured, 10 m", f"{system}, 2.5 m")
        for j, (image, name) in enumerate(zip(images, names, strict=True)):
            left = _GAP_PX + j * (_TILE_PX + _GAP_PX)
            tile = _tile(_to_rgb(image, limits))
            sheet.paste(tile, (left, top + _LABEL_PX - 8))
            draw.text((left, top), name, _QUIET, small)
            if j == 0:
                x0, y0, x1, y1 = box
                corners = (x0 * tile.width, y0 * tile.height, x1 * tile.width - 1, y1 * tile.height - 1)
                origin = (left, top + _LABEL_PX - 8)
                draw.rectangle([c + origin[k % 2] for k, c in enumerate(corners)], outline=_FRAME, width=2)
    content = io.BytesIO()
    signed = PngInfo()
    signed.add_text(*_SIGNATURE)
    sheet.save(content, "PNG", pnginfo=signed)
    _put(path, content.getvalue())
