"""Lists the files below a folder: links are followed once, zip archives opened, hidden files left out with a note."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.archive.read import zipped
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

RASTERS = (".tif", ".tiff", ".jp2")
_TELLING = (*RASTERS, ".xml", ".json", ".zip")
_PACKED = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".7z", ".rar")
_HIDDEN_FOLDERS = ("__MACOSX",)


@dataclass
class Tree:
    """Folders with the files directly in them, in the order of their discovery: folders, then links, then archives."""

    top: Path
    folders: dict[Path, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def below(self, folder: Path) -> list[Path]:
        """All files in and below a folder."""
        return [path for place, files in self.folders.items() if place.is_relative_to(folder) for path in files]


def walk(top: Path) -> Tree:
    """Everything below `top` that may belong to a scene, with notes on what was skipped."""
    tree = Tree(top)
    hidden: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:  # links are followed last, so that a folder goes by its real name
        links: list[Path] = []
        for start in waiting:
            for place, names in _folders(start, seen, hidden, links):
                tree.folders[place] = [place / name for name in names]
        waiting = sorted(links)
    archives = [path for files in tree.folders.values() for path in files if path.suffix.lower() == ".zip"]
    for archive in archives:
        _unzip(archive, tree, hidden)
    packed = [path for files in tree.folders.values() for path in files if path.name.lower().endswith(_PACKED)]
    tree.notes += [f"{path} is not looked into: unpack it first" for path in packed]
    if hidden:
        shown = ", ".join(path.name for path in hidden[:3]) + (" ..." if len(hidden) > 3 else "")
        tree.notes.append(f"{len(hidden)} hidden file{'s' * (len(hidden) > 1)} ignored: {shown}")
    return tree


def _folders(
    start: Path, seen: set[tuple[int, int]], hidden: list[Path], links: list[Path]
) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) from `start` down, each real folder once; links to folders go to `links`."""
    for at, below, names in os.walk(start):
        place = Path(at)
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in below:
            if _is_hidden(name):
                hidden += [path for path in sorted((place / name).rglob("*")) if path.suffix.lower() in RASTERS]
        links += [place / name for name in below if (place / name).is_symlink() and not _is_hidden(name)]
        below[:] = sorted(name for name in below if not _is_hidden(name) and not (place / name).is_symlink())
        hidden += [place / name for name in sorted(names) if _is_hidden(name) and name.lower().endswith(_TELLING)]
        yield place, sorted(name for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    """Names that begin with a dot: AppleDouble copies (._B02.tif), trash, caches."""
    return name.startswith(".") or name in _HIDDEN_FOLDERS


def _unzip(archive: Path, tree: Tree, hidden: list[Path]) -> None:
    """Add the folders inside an archive, as paths through it."""
    try:
        members = zipped.names(archive)
    except (UsageError, OSError) as error:
        tree.notes.append(f"{archive} left out: {error}")
        return
    folders: dict[Path, list[Path]] = defaultdict(list)
    for member in members:
        path = archive / member
        if not any(_is_hidden(part) for part in Path(member).parts):
            folders[path.parent].append(path)
        elif path.suffix.lower() in _TELLING:
            hidden.append(path)
        if path.suffix.lower() == ".zip":
            tree.notes.append(f"{path} is an archive inside an archive and is not looked into: unpack it first")
    tree.folders.update(sorted(folders.items()))
