"""Finds the scene classification (SCL) among a STAC item's assets by key, band name, title, role or file name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_KEY = re.compile(r"(?:mask)?(?:scl|sceneclass\w*?)(?:20m)?(?:jp2|tif|tiff|cog)?")
_TITLE = re.compile(r"scene[ _-]*class|^scl\b|\(scl\)", re.IGNORECASE)
_FILE = re.compile(r"(?:.*[_.-])?SCL(?:[_.-]20m)?(?:\.[a-z0-9]+)?", re.IGNORECASE)
_RESAMPLED = re.compile(r"(?<!\d)(?:10|60) ?m(?![a-z0-9])", re.IGNORECASE)
_CLASSES = frozenset(range(12))  # of Sen2Cor
_PICTURES = {"thumbnail", "overview", "visual", "metadata"}


def scl_keys(assets: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    """Keys of assets that may be the classification at 20 m, most certain first, GeoTIFF before JPEG 2000."""
    usable = {key: value for key, value in assets.items() if _usable(value)}
    yield from (key for key in known if key in usable)
    native = {key: value for key, value in usable.items() if not _resampled(key, value)}
    tests: tuple[Callable[[str, dict[str, Any]], bool], ...] = (_by_key, _by_band, _by_file, _by_title, _by_role)
    for test in tests:
        hits = [key for key, value in native.items() if test(key, value)]
        yield from sorted(hits, key=lambda key: "jp2" in f"{native[key].get('type')} {key}")


def _usable(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("href"), str) and not _PICTURES.intersection(_texts(value))


def _texts(value: dict[str, Any]) -> list[str]:
    """Roles, in lower case."""
    roles = value.get("roles")
    return [str(role).lower() for role in roles] if isinstance(roles, list) else []


def _resampled(key: str, value: dict[str, Any]) -> bool:
    """True for copies at 10 or 60 m, by key, title or file name; where the GSD is stated, that decides later."""
    return any(_RESAMPLED.search(text) for text in (key, str(value.get("title") or ""), _file_name(value)))


def _file_name(value: dict[str, Any]) -> str:
    return unquote(urlsplit(str(value["href"])).path).rsplit("/", 1)[-1]


def _by_key(key: str, _value: dict[str, Any]) -> bool:
    return _KEY.fullmatch(re.sub(r"[^a-z0-9]", "", key.lower())) is not None


def _by_band(_key: str, value: dict[str, Any]) -> bool:
    entries = value.get("eo:bands") or value.get("bands")
    names = [str(entry.get("name")).upper() for entry in _objects(entries)]
    return names == ["SCL"]


def _by_file(_key: str, value: dict[str, Any]) -> bool:
    return _FILE.fullmatch(_file_name(value)) is not None


def _by_title(_key: str, value: dict[str, Any]) -> bool:
    return _TITLE.search(str(value.get("title") or "")) is not None


def _by_role(_key: str, value: dict[str, Any]) -> bool:
    """By a role of that name, or by Sen2Cor's twelve classes; role "classification" alone may be any mask."""
    if any(re.fullmatch(r"scl|scene[-_ ]?class\w*", role) for role in _texts(value)):
        return True
    layers = [value, *_objects(value.get("raster:bands")), *_objects(value.get("bands"))]
    classes = [_objects(layer.get("classification:classes")) for layer in layers]
    return any(
        {entry.get("value") for entry in found if type(entry.get("value")) is int} >= _CLASSES for found in classes
    )


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
