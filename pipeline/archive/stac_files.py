"""STAC without a server: ItemCollections, our own indexes, single items, static catalogues, folders of items.

In: a path. Out: items with the folder that their relative hrefs start from. Never touches the network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.scene import OFFSET_KEY
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILES = 1_000_000  # of one static catalogue
_EXPECTED = "a STAC item, ItemCollection or static catalogue, or a folder of them"


def file_items(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(item, folder of its relative hrefs) of everything below `path`. UsageError when that is not STAC."""
    if path.is_dir():
        yield from _folder_items(path)
        return
    content = _load(path)
    yield from _walk(content, path.resolve(), root=path.resolve().parent)


def file_roots(path: Path) -> tuple[str, ...]:
    """Folders under which files named in `path` may be opened: its own; for our own index also where its files are.

    Anybody's catalogue may name any path; an index was written on this machine by its user.
    """
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if path.is_dir() or path.suffix.lower() not in (".json", ".geojson"):
        return (str(folder),)
    content = _load(path)
    features = content.get("features") if content.get("type") == "FeatureCollection" else None
    hrefs = [
        str(asset.get("href"))
        for item in features or []
        if isinstance(item, dict) and OFFSET_KEY in (item.get("properties") or {})
        for asset in (item.get("assets") or {}).values()
        if os.path.isabs(str(asset.get("href")))
    ]
    if not hrefs:
        return (str(folder),)
    common = os.path.commonpath([os.path.dirname(href) for href in hrefs])
    if common != os.path.sep:
        return tuple(sorted({str(folder), common}))
    return tuple(sorted({str(folder), *(os.path.join(os.path.sep, Path(href).parts[1]) for href in hrefs)}))


def _folder_items(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for name in ("catalog.json", "collection.json"):
        if (folder / name).is_file():
            yield from file_items(folder / name)
            return
    paths = sorted([*folder.glob("*.json"), *folder.glob("*.geojson")])
    if not paths:
        raise UsageError(f"{folder} holds no catalog.json and no items", _EXPECTED)
    for path in paths:
        content = _load(path)
        if content.get("type") in ("Feature", "FeatureCollection"):
            yield from _walk(content, path.resolve(), root=folder.resolve())


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
    for link in content.get("links") or []:
        if not isinstance(link, dict) or link.get("rel") not in ("child", "item", "items"):
            continue
        href = str(link.get("href", ""))
        if "://" in href:
            raise UsageError(
                f"{path} links to {href[:100]}", "a catalogue of files", "give the address of its API instead"
            )
        target = (path.parent / href).resolve()
        if not target.is_relative_to(root):
            raise UsageError(f"{path} links to {href[:100]}, outside its folder", f"files below {root}")
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
