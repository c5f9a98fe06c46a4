"""STAC on disk, without network: ItemCollections, own indexes, single items, static catalogues, folders of items."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.archive.stac.hrefs import links_of
from pipeline.archive.stac.index_marks import is_ours, named_roots
from pipeline.errors import UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILES = 1_000_000  # of one static catalogue
_LOOKED_AT = 100_000  # files of a folder that are searched for images
_RASTER_SUFFIXES = (".TIF", ".TIFF", ".JP2", ".SAFE", ".ZIP")
_PRODUCT_FILES = ("MTD_MSIL2A.xml", "MTD_MSIL1C.xml")
_EXPECTED = "a STAC item, ItemCollection or static catalogue, or a folder of them"


def file_items(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(item, folder of its relative hrefs) of everything below `path`. UsageError when that is not STAC."""
    if path.is_dir():
        yield from _folder_items(path)
        return
    content = _load(path)
    yield from _walk(content, path.resolve(), root=path.resolve().parent)


def file_roots(path: Path) -> tuple[str, ...]:
    """Folders under which files named in `path` may be opened: its own, SEN2FINE_ROOTS, those of our index.

    Any catalogue may name any path; an item with this user's mark was written here by `pipeline.index`.
    """
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    roots = {str(folder), *named_roots()}
    if path.is_dir() or path.suffix.lower() not in (".json", ".geojson"):
        return tuple(sorted(roots))
    content = _load(path)
    features = content.get("features") if content.get("type") == "FeatureCollection" else None
    items = (
        [item for item in features if isinstance(item, dict) and is_ours(item)] if isinstance(features, list) else []
    )
    hrefs = [str(asset["href"]) for item in items for asset in item["assets"].values()]
    hrefs = [href for href in hrefs if os.path.isabs(href)]
    if not hrefs:
        return tuple(sorted(roots))
    common = os.path.commonpath([os.path.dirname(href) for href in hrefs])
    if common != os.path.sep:
        return tuple(sorted({*roots, common}))
    return tuple(sorted({*roots, *(os.path.join(os.path.sep, Path(href).parts[1]) for href in hrefs)}))


def refuse_rasters(path: Path) -> None:
    """UsageError naming `pipeline.index` for products and images, UsageError for a finished store."""
    name = path.name.upper()
    if path.is_dir():
        if (path / "zarr.json").is_file():
            raise UsageError(f"{path} is a Zarr store", _EXPECTED, "name the archive that scenes are to come from")
        product = name.endswith(".SAFE") or any((path / xml).is_file() for xml in _PRODUCT_FILES)
    else:
        product = name.endswith(_RASTER_SUFFIXES) or path.name in _PRODUCT_FILES
        path = path.parent if product else path
    if product:
        _refuse_images(path)


def _refuse_images(folder: Path) -> NoReturn:
    raise UsageError(
        f"{folder} holds images, not a catalogue",
        _EXPECTED,
        f"python -m pipeline.index {folder} --out archive.json, then --catalog archive.json",
    )


def _folder_items(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for name in ("catalog.json", "collection.json"):
        if (folder / name).is_file():
            yield from file_items(folder / name)
            return
    paths = sorted([*folder.glob("*.json"), *folder.glob("*.geojson")])
    documents = [(path, _load(path)) for path in paths]
    found = [(path, document) for path, document in documents if _holds_items(document)]
    if not found and _holds_images(folder):
        _refuse_images(folder)
    if not found:
        raise UsageError(f"{folder} holds no catalog.json and no items", _EXPECTED)
    for path, document in found:
        yield from _walk(document, path.resolve(), root=folder.resolve())


def _holds_items(document: dict[str, Any]) -> bool:
    """True for an item or a list of items, rather than another GeoJSON such as an area of interest."""
    features = document.get("features")
    if document.get("type") == "FeatureCollection":
        return isinstance(features, list) and any(isinstance(one, dict) and "assets" in one for one in features)
    return document.get("type") == "Feature" and "assets" in document


def _holds_images(folder: Path) -> bool:
    names = (path.name.upper() for path in islice(folder.rglob("*"), _LOOKED_AT))
    return any(name.endswith(_RASTER_SUFFIXES) for name in names)


def _walk(content: dict[str, Any], path: Path, root: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Items of one file and of the files it links to; each file once."""
    waiting, seen = [(content, path)], {path}
    while waiting:
        content, path = waiting.pop()
        kind = content.get("type")
        if kind == "Feature":
            yield content, str(path.parent)
        elif kind == "FeatureCollection" and isinstance(content.get("features"), list):
            for item in content["features"]:
                yield item, str(path.parent)
        elif kind in ("Catalog", "Collection") or "stac_version" in content:
            for link in reversed(_links(content, path, root)):
                if link not in seen:
                    seen.add(link)
                    waiting.append((_load(link), link))
            if len(seen) > MAX_FILES:
                raise UsageError(f"{path} links to more than {MAX_FILES} files", "a smaller catalogue")
        else:
            raise UsageError(f"{path} is of type {kind!r}", _EXPECTED)


def _links(content: dict[str, Any], path: Path, root: Path) -> list[Path]:
    """Files that a catalogue names as children or items; all must lie below the folder of the first one."""
    found = []
    for link in links_of(content):
        if link.get("rel") not in ("child", "item", "items"):
            continue
        href = str(link.get("href", ""))
        if "://" in href:
            raise UsageError(
                f"{path} links to {redact(href[:100])}", "a catalogue of files", "give the address of its API instead"
            )
        target = (path.parent / href).resolve()
        if not target.is_relative_to(root):
            raise UsageError(f"{path} links to {redact(href[:100])}, outside its folder", f"files below {root}")
        found.append(target)
    return found


def _load(path: Path) -> dict[str, Any]:
    """JSON object of a file; NaN and Infinity, which are not JSON, read as null."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})", _EXPECTED) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({str(error)[:100]})", _EXPECTED) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object", _EXPECTED)
    return content
