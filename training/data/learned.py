"""Which ground weights were trained on, as their provenance records it, and which images show some of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.places import SPLITS, split_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from training.data.images import Image

LISTED = 20_000  # places, and boxes
_DECIMALS = 5  # of degrees: about a metre
_COMMON = 0.1  # share of the smaller box: those of neighbours overlap a little, as north is not up in every CRS
Box = tuple[float, float, float, float]  # west, south, east, north in degrees


def described(images: Iterable[Image]) -> dict[str, Any]:
    """Training places as digests of their names, and boxes of georeferenced training images, JSON-able."""
    places: set[str] = set()
    boxes: set[Box] = set()
    for image in images:
        if image.ground is not None and image.split is None:
            places |= {place for place in image.ground.places if split_of(place) == SPLITS[0]}
        elif image.split == SPLITS[0]:
            places.add(image.place)
            if (box := box_of(image)) is not None:
                boxes.add(box)
    return {"places": sorted(map(digest, places))[:LISTED], "boxes": [list(box) for box in sorted(boxes)][:LISTED]}


def shown_again(images: Sequence[Image], learned: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """How many held-out images show ground of `learned` (see `described`), by source and place."""
    places = set(learned.get("places", ()))
    boxes = np.array(learned.get("boxes", ()), np.float64).reshape(-1, 4)
    found: dict[tuple[str, str], int] = {}
    for image in images:
        if image.share("held-out") == 0:
            continue
        if image.ground is not None and image.split is None:
            again = [place for place in image.ground.places if split_of(place) != SPLITS[0] and digest(place) in places]
        else:
            again = [image.place] if digest(image.place) in places or _overlaps(box_of(image), boxes) else []
        for place in again:
            found[image.source, place] = found.get((image.source, place), 0) + 1
    return found


def digest(place: str) -> str:
    """Eight hexadecimal digits of a place's name."""
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def box_of(image: Image) -> Box | None:
    """The box around a georeferenced image; None for others, and for those that touch the antimeridian."""
    from pyproj import CRS, Transformer

    if image.georeference is None:
        return None
    ny, nx = image.georeference.shape
    rows, cols = np.meshgrid([0.0, ny / 2, ny], [0.0, nx / 2, nx], indexing="ij")
    x, y = image.georeference.ground(rows, cols)
    crs = CRS.from_user_input(image.georeference.crs)
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    if lon.max() - lon.min() > 180:
        return None
    west, south, east, north = (round(float(v), _DECIMALS) for v in (lon.min(), lat.min(), lon.max(), lat.max()))
    return west, south, east, north


def _overlaps(box: Box | None, boxes: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> bool:
    if box is None or not len(boxes):
        return False
    west, south, east, north = box
    width = np.minimum(boxes[:, 2], east) - np.maximum(boxes[:, 0], west)
    height = np.minimum(boxes[:, 3], north) - np.maximum(boxes[:, 1], south)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    common = width.clip(0) * height.clip(0)
    return bool((common > _COMMON * np.minimum(areas, (east - west) * (north - south))).any())
