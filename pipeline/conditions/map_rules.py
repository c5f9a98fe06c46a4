"""Which features of a layer belong to which class of a map, by their attributes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.conditions.vector_layers import Features, Layer
    from pipeline.superres.declared import MapClass, MapRule

_OTHER_TAGS = "other_tags"  # GDAL's OSM driver collects there what has no column, as PostgreSQL's hstore
_NO = "no"


def widths(one: MapClass, layer: Layer, found: Features) -> NDArray[np.float64]:
    """Return the width in metres of each feature (n,) if it were a line, NaN for features of other classes."""
    if not one.rules:
        return np.full(len(found), one.width_m)
    wide = np.full(len(found), np.nan)
    for rule in one.rules:
        if applies(rule, layer):
            wide[np.isnan(wide) & _fits(rule, found.columns, len(found))] = rule.width_m
    return wide


def applies(rule: MapRule, layer: Layer) -> bool:
    """Return whether a layer has the attributes of a rule."""
    there = {name.lower() for name in layer.fields}
    named = {name.lower() for name, _ in rule.tags}
    return {name.lower() for name in rule.fields} <= there and (_OTHER_TAGS in there or named <= there)


def may_have(classes: Sequence[MapClass], layer: Layer) -> bool:
    """Return whether a layer has the attributes of any class."""
    return any(not one.rules or any(applies(rule, layer) for rule in one.rules) for one in classes)


def _fits(rule: MapRule, columns: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.bool_]:
    fits = np.ones(count, bool)
    for name, values in rule.tags:
        fits &= _has(name, values, columns, count)
    for name, values in rule.without:
        if fits.any():
            fits &= ~_has(name, values, columns, count)
    return fits


def _has(name: str, values: tuple[str, ...], columns: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.bool_]:
    """Return where an attribute has one of the values, or without values, any but "no"."""
    found = _texts(name, columns, count)
    if values:
        return np.isin(found, np.array(values, dtype=object))
    return np.asarray((found != "") & (found != _NO), bool)


def _texts(name: str, columns: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.object_]:
    """Return an attribute of all features as text, empty where they have none."""
    lower = {column.lower(): column for column in columns}
    if name.lower() in lower:
        values = columns[lower[name.lower()]].tolist()
        return np.array(["" if one is None or one != one else str(one) for one in values], dtype=object)
    if _OTHER_TAGS not in lower:
        return np.full(count, "", dtype=object)
    tag = re.compile(rf'"{re.escape(name)}"=>"((?:[^"\\]|\\.)*)"')
    found = (tag.search(one) if isinstance(one, str) else None for one in columns[lower[_OTHER_TAGS]].tolist())
    return np.array([re.sub(r"\\(.)", r"\1", one[1]) if one else "" for one in found], dtype=object)
