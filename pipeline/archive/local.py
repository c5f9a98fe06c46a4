"""Folders of scenes on this machine."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def footprint_of(epsg: int, bounds_m: tuple[float, float, float, float]) -> dict[str, Any]:
    """GeoJSON polygon in EPSG:4326 of (left, bottom, right, top) metres, four points per edge."""
    from pyproj import Transformer

    left, bottom, right, top = bounds_m
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    steps = [i / 4 for i in range(4)]
    ring = [(a + t * (c - a), b + t * (d - b)) for (a, b), (c, d) in pairwise(corners) for t in steps]
    xs, ys = zip(*ring, ring[0], strict=True)
    longitudes, latitudes = Transformer.from_crs(epsg, 4326, always_xy=True).transform(xs, ys)
    return {
        "type": "Polygon",
        "coordinates": [[[round(x, 7), round(y, 7)] for x, y in zip(longitudes, latitudes, strict=True)]],
    }
