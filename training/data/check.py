"""Reads all images of a training file once and tells what is wrong with them, file by file."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PipelineError
from training.data.cautions import cautions
from training.data.headers import local_header
from training.data.images import files_of, header_images
from training.data.patches import FLAT_PATCH, WHOLE_BYTES, chunk_shape, contrast, read_chunk
from training.data.sources import TrainingData, images_of_source
from training.data.training_file import OUTPUT_GSD_M, read_training_file
from training.data.triplets import triplet_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from training.data.headers import Header
    from training.data.images import Image
    from training.data.training_file import Source

STRIPED_ROWS = 64  # a block that is as wide as the image and this low or lower is a strip


@dataclass
class Checked:
    """Counts of a check: files, those that cannot be used, bytes of stored values, seconds of reading."""

    files: int = 0
    faults: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    ground: list[float] = field(default_factory=list)  # valid share of each image


def check(path: Path, say: Callable[[str], None], output_gsd_m: float = OUTPUT_GSD_M, scale: int = 4) -> Checked:
    """Read every image and tile that a training file names; say a line per fault and a summary per source.

    `output_gsd_m` and `scale` are those of the network that is to be trained. UsageError where the training file itself
    does not fit.
    """
    data = TrainingData(read_training_file(path, gsd_m=output_gsd_m), scale)
    whole = Checked()
    for source in data.sources:
        found = _of_role(data, source, say)
        rate = f", {found.nbytes / 1e6 / max(found.seconds, 1e-9):.0f} MB/s" if found.nbytes else ""
        ground = f", {np.mean(found.ground):.0%} of the pixels show ground" if found.ground else ""
        say(
            f"{source.name}: {found.files - found.faults} of {found.files} can be used{ground}; "
            f"{found.nbytes / 1e6:.0f} MB in {found.seconds:.1f} s{rate}"
        )
        whole.files, whole.faults = whole.files + found.files, whole.faults + found.faults
    if not whole.faults:
        for line in cautions(data):
            say(line)
    return whole


def _of_role(data: TrainingData, source: Source, say: Callable[[str], None]) -> Checked:
    if source.role in ("hr", "triplets"):
        return _images_checked(data, source, say)
    return _pairs_checked(data, source, say) if source.role == "pair" else _tiles_checked(data, source, say)


def _pairs_checked(data: TrainingData, source: Source, say: Callable[[str], None]) -> Checked:
    """Pairs: all are registered, and each is read. Those refused are faults."""
    found, started = Checked(), time.perf_counter()
    try:
        pairs = data.pairs[source.name]
    except PipelineError as error:
        say(str(error))
        return Checked(files=1, faults=1)
    for label, why in pairs.refused.items():
        say(f"{label}: {why}")
    found.files, found.faults = len(pairs.images) + len(pairs.refused), len(pairs.refused)
    for image in pairs.images:
        for remark in _looked_at(image, found):
            say(f"{image.label}: {remark}")
    found.seconds = time.perf_counter() - started
    for line in pairs.words(source):
        say(line)
    return found


def _images_checked(data: TrainingData, source: Source, say: Callable[[str], None]) -> Checked:
    found = Checked()
    for label, list_images in _listed(data, source, say):
        found.files += 1
        started = time.perf_counter()
        try:
            for image in list_images():
                for remark in _looked_at(image, found):
                    say(f"{label}: {remark}")
        except PipelineError as error:
            say(str(error))
            found.faults += 1
        found.seconds += time.perf_counter() - started
    return found


def _listed(
    data: TrainingData, source: Source, say: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], list[Image]]]]:
    """(name, what lists its images) of every file of a source; of the whole source where it has no files here."""
    if source.role == "triplets":
        yield source.where, partial(triplet_images, source, data.scale)
        return
    if source.catalog or source.zarr:
        yield source.where, partial(images_of_source, source)
        return
    for path in files_of(source):
        yield str(path), partial(_of_file, source, path, say)


def _of_file(source: Source, path: Path, say: Callable[[str], None]) -> list[Image]:
    header = local_header(source, path)
    images = header_images(source, str(path), path, header)
    for remark in _strips(header, images[0]):
        say(f"{path}: {remark}")
    return images


def _looked_at(image: Image, found: Checked) -> list[str]:
    """Read all of an image; remarks on it. PipelineError where it cannot be read, or its numbers are no reflectance."""
    height, width = image.reader.shape
    size_y, size_x = chunk_shape(image)
    valid, flat, chunks = 0, 0, 0
    for y in range(0, height, size_y):
        for x in range(0, width, size_x):
            chunk = read_chunk(image, y, x, min(size_y, height - y), min(size_x, width - x))
            found.nbytes += chunk.stored.nbytes
            valid += int(chunk.valid.sum())
            if not chunk.valid.any():
                continue
            pixels = image.values.decode(chunk.stored)[:, chunk.valid]
            image.check(pixels)
            chunks += 1
            flat += contrast(pixels, image.values.encoded) <= FLAT_PATCH
    share = valid / (height * width)
    found.ground.append(share)
    remarks = []
    if not valid:
        remarks.append("shows no ground: nodata, masked, black or white throughout")
    elif flat == chunks:
        remarks.append("is flat: four of five of its patches are left out")
    return remarks


def _strips(header: Header, image: Image) -> list[str]:
    """A remark on a large GeoTIFF that is not tiled."""
    rows, cols = header.block
    nbytes = math.prod(image.reader.shape) * image.reader.itemsize * len(image.bands)
    if header.driver != "GTiff" or cols != header.shape[1] or rows > STRIPED_ROWS or nbytes <= WHOLE_BYTES:
        return []
    return [f"lies in strips of {rows} x {cols} px: every patch reads whole rows; gdal_translate -of COG makes tiles"]


def _tiles_checked(data: TrainingData, source: Source, say: Callable[[str], None]) -> Checked:
    """Scenes, piece by piece."""
    found = Checked()
    try:
        tiles = [tile for tile in data.all_tiles if tile.source == source.name]
    except PipelineError as error:
        say(str(error))
        return Checked(files=1, faults=1)
    for tile in tiles:
        found.files += 1
        started = time.perf_counter()
        try:
            found.ground.append(float(tile.valid.mean()))
            found.nbytes += sum(values.nbytes for values in tile.rho.values())
        except PipelineError as error:
            say(str(error))
            found.faults += 1
        found.seconds += time.perf_counter() - started
    return found
