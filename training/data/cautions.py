"""What a user may not expect of their training data: tiles that count as places, and detail that was generated."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.images import Image
    from training.data.sources import TrainingData
    from training.data.training_file import Source

FAR = (0.6, 1.8)  # patches of a GSD below or above, relative to that of the network's output, are unlike its use
MANY_FILES = 4  # of one stem look like tiles of a mosaic
_COUNTER = re.compile(r"(?:[_\-. ]?(?:[rcxy]|row|col|tile|part)?[_\-]?\d+)+$", re.IGNORECASE)


def cautions(data: TrainingData) -> list[str]:
    """One line for each, by source."""
    found = []
    for source in data.of_role("hr"):
        images = [image for image in data.offered if image.source == source.name]
        found += [*_tiles(source, images), *_far(source, images, data.file.output_gsd_m)]
        if source.zarr and (made := generated_bands(source.zarr)):
            found.append(
                f"{source.name}: {source.zarr} holds detail in {', '.join(made)} that a network generated: "
                "as truth it teaches that network's inventions"
            )
    return found


def _far(source: Source, images: list[Image], output_m: float) -> list[str]:
    """A caution where patches are much finer or coarser than what the network is to make."""
    middles = [sum(image.target_gsd_m) / 2 for image in images]
    middle = sum(middles) / len(middles) if middles else output_m
    if not source.evaluated or FAR[0] * output_m <= middle <= FAR[1] * output_m:
        return []
    return [
        f"{source.name}: patches of about {middle:.3g} m train a network whose output has {output_m:g} m; "
        f"target_gsd_m = {output_m:g} (or none, for the default) is what it will be used at"
    ]


def _tiles(source: Source, images: list[Image]) -> list[str]:
    """A caution where files without georeferencing have names as tiles of one mosaic have."""
    if source.place or source.split != "by-place" or any(image.georeference for image in images):
        return []
    names = sorted({Path(image.label).stem for image in images})
    stems = Counter(_COUNTER.sub("", name) for name in names)
    stem, count = stems.most_common(1)[0] if stems else ("", 0)
    if count < MANY_FILES or not stem:
        return []
    return [
        f"{source.name}: {len(names)} files without georeferencing count as {len(names)} places, and {count} of them "
        f"are called {stem}...; if they are tiles of one mosaic, neighbours are trained on and judged: "
        f"place = '({re.escape(stem)})' makes one place of them"
    ]


def generated_bands(store: str) -> list[str]:
    """Bands of a store of this pipeline whose detail a network generated; none for other stores."""
    import zarr

    try:
        root = zarr.open_group(store, mode="r")
    except (OSError, ValueError, KeyError):
        return []
    groups = [root, *(group for _, group in root.groups())]
    return sorted({str(band) for group in groups for band in _listed(group.attrs.get("generated_bands"))})


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
