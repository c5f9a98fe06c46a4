"""Copies with a spatial index of the parts of vector files that a run needs.

Some formats can only be read from their beginning, for every tile anew. Their features around the area are therefore
copied once to FlatGeobuf files in the temporary folder, which the processes of a user on one machine share. The last
of them removes the copy.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import warnings
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pipeline.conditions.vector_format import UNINDEXED
from pipeline.conditions.vector_layers import Box, Layer, boxes, features, layers_of, library
from pipeline.errors import StorageError
from pipeline.temporary import locked, remove_leftovers, shared_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.conditions.frozen import Frozen

_PREFIX = "sen2fine-map-"
_ABOUT = "copy.json"  # in the folder of each copy: its box and layers
_PADDING_DEG = 0.3  # around the area; models read some kilometres beyond it
_KEPT: dict[Path, BinaryIO] = {}  # folders in use by this process, with their locks


def layers_over(frozen: Frozen, box: Box, area: Box) -> tuple[Layer, ...]:
    """Return the layers of a map that hold its features within `box`: of the file itself, or of an indexed copy.

    Boxes are in degrees. `area` is the ground for which a copy is made if there is none yet that holds `box`; it may
    lie elsewhere. Layers without features in a copy have an empty path. Raises as `vector_layers`, and StorageError if
    no copy can be written.
    """
    layers = _layers(frozen)
    if layers[0].driver not in UNINDEXED:
        return layers
    found: dict[Layer, None] = {}
    for part in boxes(box):
        found |= dict.fromkeys(_copied(frozen, part, area))
    return tuple(found)


@lru_cache(maxsize=16)
def _layers(frozen: Frozen) -> tuple[Layer, ...]:
    return layers_of(Path(frozen.where))


def _copied(frozen: Frozen, box: Box, area: Box) -> tuple[Layer, ...]:
    """Return the layers of a copy that holds `box`. The first process that asks for it makes it."""
    try:
        folder = _folder(frozen.sha256)
        if (found := _made(folder, box)) is not None:
            return found
        with locked(folder / "copying.lock"):
            if (found := _made(folder, box)) is not None:
                return found
            return _make(folder, _layers(frozen), _wanted(box, area))
    except OSError as error:
        raise StorageError(
            f"no indexed copy of {frozen.where} can be written to {tempfile.gettempdir()} ({error.strerror or error})",
            "a temporary folder with room for it",
            "set TMPDIR to another one",
        ) from error


def _wanted(box: Box, area: Box) -> Box:
    """Return the padded area if it holds the box, else the padded box."""
    padded = [_padded(part) for part in boxes(area)]
    return next((one for one in padded if _holds(one, box)), _padded(box))


def _padded(box: Box) -> Box:
    west, south, east, north = box
    across = _PADDING_DEG / max(0.1, float(np.cos(np.radians(max(abs(south), abs(north))))))
    return max(-180.0, west - across), south - _PADDING_DEG, min(180.0, east + across), north + _PADDING_DEG


def _holds(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def _folder(sha256: str) -> Path:
    """Return the folder of the copies of a file, held by this process until it ends."""
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{sha256[:20]}"
    if folder not in _KEPT:
        remove_leftovers(folder.parent, f"{_PREFIX}{os.getuid()}-")
        _KEPT[folder] = shared_folder(folder)
        if len(_KEPT) == 1:
            atexit.register(release)
    return folder


def release() -> None:
    """Let go of all copies that this process uses. Those that no other uses are removed."""
    while _KEPT:
        folder, lock = _KEPT.popitem()
        lock.close()
        remove_leftovers(folder.parent, folder.name)
    _read.cache_clear()
    atexit.unregister(release)


def _made(folder: Path, box: Box) -> tuple[Layer, ...] | None:
    """Return the layers of an existing copy that holds the box."""
    for about in _finished(folder):
        there, layers = _read(about)
        if _holds(there, box):
            return layers
    return None


def _finished(folder: Path) -> list[Path]:
    """Return the descriptions of whole copies, which have numbers for names."""
    return sorted(folder.glob(f"[0-9]*/{_ABOUT}"))


@lru_cache(maxsize=64)
def _read(about: Path) -> tuple[Box, tuple[Layer, ...]]:
    content = json.loads(about.read_text())
    west, south, east, north = content["box"]
    layers = (Layer(**{**one, "fields": tuple(one["fields"])}) for one in content["layers"])
    return (west, south, east, north), tuple(layers)


def _make(folder: Path, layers: tuple[Layer, ...], box: Box) -> tuple[Layer, ...]:
    """Copy the features that touch `box`. The copy appears whole or not at all."""
    working = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder))
    final = folder / f"{len(_finished(folder))}"
    made = []
    for at, layer in enumerate(layers):
        file = f"{at}.fgb"
        there = _write(layer, box, working / file)
        made.append(replace(layer, path=str(final / file) if there else "", driver="FlatGeobuf"))
    content = {"box": box, "layers": [asdict(layer) for layer in made]}
    (working / _ABOUT).write_text(json.dumps(content))
    working.rename(final)
    return tuple(made)


def _write(layer: Layer, box: Box, path: Path) -> bool:
    """Write the features of a layer that touch `box`. Return False if there are none."""
    found = features(layer, box)
    there = np.array([one is not None for one in found.wkb], bool)
    if not there.any():
        return False
    columns = {name: copied for name, values in found.columns.items() if (copied := _plain(values[there])) is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library().raw.write(
            path, found.wkb[there], list(columns.values()), fields=list(columns), geometry_type="Unknown",
            crs=layer.crs, driver="FlatGeobuf", layer=layer.name,
        )  # fmt: skip
    return True


def _plain(values: NDArray[Any]) -> NDArray[Any] | None:
    """Return attributes as numbers or text, or None if they are neither, such as dates."""
    if values.dtype.kind in "iuf":
        return values
    if values.dtype.kind not in "Ob":
        return None
    known = [None if one is None or one != one else str(one) for one in values.tolist()]
    return np.array(known, dtype=object)
