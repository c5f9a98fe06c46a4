"""Who made a map and under which licence it may be used, as its makers wish to be named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.conditions.raster_map import opened
from pipeline.conditions.vector_format import GEOJSON, OSM
from pipeline.conditions.vector_layers import layers_of, metadata_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.conditions.vector_layers import Layer

OSM_CREDIT = "© OpenStreetMap contributors, ODbL 1.0"
OVERTURE_CREDIT = f"Overture Maps Foundation; {OSM_CREDIT}"
BESIDE = ".license"  # of the file that states them, as in REUSE (reuse.software/spec): town.gpkg.license
_MAX_BYTES = 10_000
_MAX_CHARS = 300
_HEAD_BYTES = 65_536
_NAMES = ("credit", "attribution", "copyright", "tifftag_copyright", "license", "licence")
_STATED = re.compile(rf'"({"|".join(_NAMES)})"\s*:\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_REUSE = re.compile(r"SPDX-(?:FileCopyrightText|License-Identifier):\s*(.+)")
# Attributes that show where a file comes from, all of any one set.
_OF_OSM = ({"osm_id"}, {"osm_way_id"}, {"osmid"}, {"full_id", "osm_type"}, {"@id"}, {"element", "id"})
_OF_OVERTURE = ({"sources", "version", "subtype"}, {"sources", "num_floors"})


def credit_of(path: Path, kind: str) -> str:
    """Return the credit of a map ("vector" or "raster"), or an empty text if nothing states it.

    A file beside it, `NAME.license`, comes first, then the file's metadata. Files whose attributes are those of exports
    of OpenStreetMap or Overture Maps get the credit that these ask for.
    """
    if stated := _beside(path):
        return stated
    if kind == "raster":
        return _first(_raster_metadata(path))
    layers = layers_of(path)
    if layers[0].driver == OSM:
        return OSM_CREDIT
    said = _first(_head(path) if layers[0].driver == GEOJSON else metadata_of(layers[0]))
    return said or _by_attributes(layers)


def _beside(path: Path) -> str:
    try:
        with path.with_name(path.name + BESIDE).open("rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return _line(", ".join(_REUSE.findall(text)) or text)


def _first(stated: Mapping[str, str]) -> str:
    return _line("; ".join(dict.fromkeys(stated[name] for name in _NAMES if stated.get(name))))


def _head(path: Path) -> dict[str, str]:
    """Return what a GeoJSON file states before its features."""
    with path.open("rb") as file:
        text = file.read(_HEAD_BYTES).decode(errors="replace").partition('"features"')[0]
    return {name.lower(): value.replace('\\"', '"') for name, value in _STATED.findall(text)}


def _raster_metadata(path: Path) -> dict[str, str]:
    with opened(str(path), path.name, placed=False) as source:
        return {str(name).lower(): str(value) for name, value in source.tags().items()}


def _by_attributes(layers: Iterable[Layer]) -> str:
    there = [{name.lower() for name in layer.fields} for layer in layers]
    if any(one <= names for names in there for one in _OF_OVERTURE):
        return OVERTURE_CREDIT
    return OSM_CREDIT if any(one <= names for names in there for one in _OF_OSM) else ""


def _line(text: str) -> str:
    """Return a text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CHARS else f"{line[:_MAX_CHARS]}..."
