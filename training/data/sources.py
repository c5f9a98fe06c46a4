"""Data of a training run: patches for super-resolution, tiles for fusion, held-out images and their provenance."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bands import RGB
from pipeline.errors import UsageError
from training.data import learned, unreadable
from training.data.chips import chips_of, held_out_chips
from training.data.images import file_images
from training.data.patches import CACHE_BYTES, RECOLOURED, PatchSampler, fits
from training.data.places import SPLIT_RULE, SPLITS, split_of
from training.data.real_pairs import RealPairs, real_pairs_of
from training.data.sentinel2 import images_of, is_dsen2, scene_grounds, tiles_of
from training.data.tiles import GSD_M, MIN_SIDE_PX
from training.data.training_file import OUTPUT_GSD_M, Source, TrainingFile, read_training_file
from training.data.triplets import credits_of, triplet_images
from training.presets import SMALL_PX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from training.data.images import Image
    from training.data.places import Split
    from training.data.rasters import Chip
    from training.data.tiles import SceneGround, Tile
    from training.presets import Use

__all__ = ["SHIPPED", "Source", "TrainingData", "load_data", "load_training_file", "shipped_data"]

PLACES_LISTED = 1000  # maximum in provenance
WATCHED = "watched"
SHIPPED_FOLDERS = ("hr", "hr_more", "s2_l2a")  # below the imagery root
SHIPPED = Path(__file__).resolve().parents[1] / "shipped_weights.toml"
OURS = frozenset(SHIPPED.parent.glob("shipped_*.toml"))  # training files of all shipped weights


@dataclass(frozen=True)
class TrainingData:
    """Opened sources of a training file. Images and scenes are listed once, on first access.

    `cache_bytes` of image pixels are kept per process.
    """

    file: TrainingFile
    scale: int = 4  # of the network: that of pairs
    cache_bytes: int = CACHE_BYTES

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources in the order of the file."""
        return self.file.sources

    @property
    def licence(self) -> str:
        """Credits of all sources, as stated in the file and in stores of triplets."""
        return "; ".join(filter(None, [self.file.licence, *map(credits_of, self.of_role("triplets"))]))

    @property
    def is_shipped(self) -> bool:
        """Whether it is the training file of the shipped weights of 2.5 m, however its path is given."""
        return self.file.path.resolve() == SHIPPED

    @property
    def is_ours(self) -> bool:
        """Whether it is a training file of any shipped weights, which have the project's licence."""
        return self.file.path.resolve() in OURS

    def of_role(self, role: str) -> list[Source]:
        """Return the sources of one role."""
        return [source for source in self.sources if source.role == role]

    @cached_property
    def offered(self) -> tuple[Image, ...]:
        """High-resolution images of all splits with all bands, pairs last. Reads headers, and the pixels of pairs."""
        sharp = [image for source in self.of_role("hr") for image in images_of_source(source)]
        sharp += [image for source in self.of_role("triplets") for image in triplet_images(source, self.scale)]
        return (*sharp, *(image for pairs in self.pairs.values() for image in pairs.images))

    @cached_property
    def pairs(self) -> dict[str, RealPairs]:
        """Registered pairs by source."""
        return {source.name: real_pairs_of(source, self.scale) for source in self.of_role("pair")}

    @cached_property
    def images(self) -> tuple[Image, ...]:
        """High-resolution RGB images."""
        return tuple(_of(self.offered, RGB))

    @cached_property
    def scenes(self) -> dict[str, list[SceneGround]]:
        """Sentinel-2 scenes by source. Reads pixels only to audit the BOA offset."""
        return {source.name: scene_grounds(source) for source in self.of_role("sentinel2")}

    @cached_property
    def native(self) -> tuple[Image, ...]:
        """Sentinel-2 images of the 10 m or 20 m bands: the right sensor at the wrong scale (10 -> 40 m, 20 -> 80 m)."""
        found = (images_of(source, self.scenes[source.name]) for source in self.of_role("sentinel2"))
        return tuple(image for images in found for image in images)

    @cached_property
    def bracket(self) -> tuple[Image, ...]:
        """Sentinel-2 RGB images at 10 m."""
        return tuple(_of(self.native, RGB))

    def of_bands(self, bands: tuple[str, ...] = RGB) -> tuple[Image, ...]:
        """Return all images with `bands`, high-resolution ones first. Raises UsageError if no image has them."""
        found = (*_of(self.offered, bands), *_of(self.native, bands))
        everything = (*self.offered, *self.native)
        if everything and not found:
            held = {image.source: ", ".join(image.bands) for image in everything}
            raise UsageError(
                f"{self.file.path}: no source has {', '.join(bands)}: "
                + "; ".join(f"{name} has {names}" for name, names in held.items()),
                "at least one that has them",
                f"name all bands of its files in their order, such as bands = {json.dumps(bands)}",
            )
        return found

    @cached_property
    def all_tiles(self) -> tuple[Tile, ...]:
        """Sentinel-2 tiles with 10 and 20 m bands, all splits."""
        found = (tiles_of(source, self.scenes[source.name]) for source in self.of_role("sentinel2"))
        return tuple(tile for tiles in found for tile in tiles)

    def hr_sampler(
        self,
        split: Split = "train",
        crop_px: int = 96,
        small_px: int = SMALL_PX,
        bands: tuple[str, ...] = RGB,
        recoloured: float = RECOLOURED,
        recoloured_reflectance: float = 0.0,
    ) -> PatchSampler:
        """Return a sampler of random patches of one split in `bands`.

        `recoloured`: share of 8-bit patches with permuted bands; `recoloured_reflectance`: the same of reflectance.
        Raises UsageError if no image fits, or if an image is in both splits.
        """
        images = self.of_bands(bands)
        self._refuse_leaks(images)
        try:
            return PatchSampler(
                images, split, crop_px, small_px, cache_bytes=self.cache_bytes, recoloured=recoloured,
                recoloured_reflectance=recoloured_reflectance,
            )  # fmt: skip
        except UsageError as error:
            raise UsageError(f"{self.file.path}: {error.found}", error.expected, error.cure) from None

    def _refuse_leaks(self, images: Sequence[Image]) -> None:
        """Raise UsageError if two sources contain the same image in different splits.

        Sources split by place cannot disagree. Differently cropped images of one scene count as different images.
        """
        by_place = {source.name for source in self.sources if source.split == "by-place"}
        first: dict[tuple[str, tuple[int, ...]], Image] = {}
        for image in images:
            path = Path(image.label)
            label = str(path.resolve()) if path.exists() else image.label
            other = first.setdefault((label, tuple(image.reader.shape)), image)
            if other.split != image.split and not {other.source, image.source} <= by_place:
                how = {"train": "to train on", "held-out": "held out", None: "split by its ground"}
                raise UsageError(
                    f"{self.file.path}: {image.label} is {how[other.split]} in source {other.source!r} and "
                    f"{how[image.split]} in {image.source!r}",
                    "each image in one split",
                    "take it out of one source, or state the same split in both",
                )

    def held_out_chips(self, bands: tuple[str, ...] = RGB) -> list[Chip]:
        """Return held-out images in `bands` of the evaluated sources at their evaluation GSD, in file order.

        Where no high-resolution image has the bands, as those of 20 m, they are Sentinel-2 images at native GSD.
        """
        evaluated = {source.name: source.images_per_place for source in self.sources if source.evaluated}
        seen: Counter[tuple[str, str]] = Counter()
        chips: list[Chip] = []
        for image in tuple(_of(self.offered, bands)) or _of(self.native, bands):
            if image.source not in evaluated or image.share("held-out") == 0:
                continue
            seen[image.source, image.place] += 1
            most = evaluated[image.source]
            if not (most and image.place and seen[image.source, image.place] > most):
                chips += held_out_chips(image)
        if not chips:
            unreadable.raise_any(image.label for image in self.offered)
        return chips

    def training_chips(self, bands: tuple[str, ...] = RGB, least_px: int = 1) -> Iterator[Chip]:
        """Yield crops of the images to train on, as those of `held_out_chips` from the same sources, one by one.

        Images of less than `least_px` a side at their evaluation GSD are not read.
        """
        evaluated = {source.name for source in self.sources if source.evaluated}
        for image in _of(self.offered, bands):
            side_px = min(image.extent_m) / image.evaluate_gsd_m
            if image.source in evaluated and image.share("train") > 0 and side_px >= least_px:
                yield from chips_of(image, "train")

    def tiles(self, split: Split) -> list[Tile]:
        """Return the fusion tiles of one split, without the watched ones. Raises UsageError as `hr_sampler`."""
        self._refuse_leaks(self.bracket)
        return [tile for tile in self.all_tiles if tile.split == split and not tile.watched]

    def watched_tiles(self) -> list[Tile]:
        """Return the tiles to tune and validate fusion: those marked `watched`, else the held-out ones."""
        return [tile for tile in self.all_tiles if tile.watched] or self.tiles("held-out")

    def held_out_places(self, use: Use = "super-resolution", bands: tuple[str, ...] = RGB) -> list[str]:
        """Return the sorted names of all places excluded from training."""
        if use == "fusion":
            return sorted({tile.place for tile in self.all_tiles if tile.watched or tile.split == "held-out"})
        places: set[str] = set()
        for image in self.of_bands(bands):
            if image.ground is not None and image.split is None:
                places |= {place for place in image.ground.places if split_of(place) == "held-out"}
            elif image.split == "held-out":
                places.add(image.place)
        return sorted(places)

    def counts(self, use: Use = "super-resolution", bands: tuple[str, ...] = RGB) -> dict[str, dict[str, int]]:
        """Return the number of images (fusion: tiles) per split of every usable source; "watched" counts separately."""
        if use == "fusion":
            found = Counter((tile.source, WATCHED if tile.watched else tile.split) for tile in self.all_tiles)
        else:
            images = self.of_bands(bands)
            found = Counter((image.source, split) for image in images for split in SPLITS if image.share(split) > 0)
        listed: dict[str, dict[str, int]] = {source.name: dict.fromkeys(SPLITS, 0) for source in self.sources}
        for name, kind in found:
            listed[name][kind] = found[name, kind]
        return {name: of_source for name, of_source in listed.items() if any(of_source.values())}

    def summary(self, use: Use = "super-resolution", least_px: int = 1, bands: tuple[str, ...] = RGB) -> list[str]:
        """Return log lines: one per usable source, one for the others. Counts images smaller than `least_px`."""
        counts = self.counts(use, bands)
        images = self.of_bands(bands) if use == "super-resolution" else ()
        short = Counter(i.source for i in images if i.share("train") > 0 and not fits(i, least_px))
        lines = []
        for name, count in counts.items():
            what = ("tile" if use == "fusion" else "image") + ("" if count["train"] == 1 else "s")
            watched = f", {count[WATCHED]} watched" if count.get(WATCHED) else ""
            small = f" ({short[name]} too small for {least_px} px at target_gsd_m)" if short[name] else ""
            lines.append(f"{name}: {count['train']} {what} to train on{small}, {count['held-out']} held out{watched}")
        if use == "super-resolution":
            lines += [line for source in self.of_role("pair") for line in self.pairs[source.name].words(source)]
        aside: dict[str, list[str]] = {}
        for source in self.sources:
            if source.name not in counts:
                aside.setdefault(self._why_aside(source, use, bands), []).append(source.name)
        said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in aside.items())
        return [*lines, f"left aside, of no use for {use}: {said}"] if aside else lines

    def _why_aside(self, source: Source, use: Use, bands: tuple[str, ...]) -> str:
        """Return why a source has no images or no tiles."""
        if use == "fusion":
            lacking = f"no tile of {MIN_SIDE_PX * GSD_M} m with bands of 20 m"
            return lacking if source.role == "sentinel2" else f"role {source.role}"
        return "Level-1C, kept for judging fusion" if is_dsen2(source) else f"no image with {', '.join(bands)}"

    def describe(self, use: Use = "super-resolution", bands: tuple[str, ...] = RGB) -> dict[str, Any]:
        """Return the provenance: usable sources with counts per split, file digest, split rule, held-out places."""
        return {
            "data": self.file.name,
            "data_digest": self.file.digest,
            "sources": self.counts(use, bands),
            "split_rule": SPLIT_RULE,
            "held_out_places": self.held_out_places(use, bands)[:PLACES_LISTED],
            "licence_of_data": self.licence,
            "learned": self._learned(use, bands),
        }

    def _learned(self, use: Use, bands: tuple[str, ...]) -> dict[str, Any]:
        """Return the provenance record of the training ground."""
        if use == "fusion":
            trained = {tile.place for tile in self.all_tiles if not tile.watched and tile.split == "train"}
            return {"places": sorted(map(learned.digest, trained)), "boxes": []}
        return learned.described(self.of_bands(bands))


def _of(images: Iterable[Image], bands: tuple[str, ...]) -> Iterator[Image]:
    """Return the images that have `bands`, with these bands only."""
    return (found for image in images if (found := image.of(bands)) is not None)


def images_of_source(source: Source) -> list[Image]:
    """Return the images of a source of role "hr" from its catalogue, store or files."""
    if source.catalog:
        from training.data.remote import remote_images

        return remote_images(source)
    if source.zarr:
        from training.data.stores import store_images

        return store_images(source)
    return file_images(source)


def load_training_file(
    path: Path,
    root: Path | None = None,
    output_gsd_m: float = OUTPUT_GSD_M,
    scale: int = 4,
    cache_bytes: int = CACHE_BYTES,
) -> TrainingData:
    """Load the data of a training file, for networks of `scale` whose output has `output_gsd_m`. Raises UsageError.

    `root` replaces ${SEN2FINE_DATA}.
    """
    data = TrainingData(read_training_file(path, root, output_gsd_m), scale, cache_bytes)
    if data.offered or data.of_role("sentinel2"):
        return data
    raise UsageError(f"{path} names no image", "at least one")


def shipped_data(root: Path | None = None, output_gsd_m: float = OUTPUT_GSD_M, scale: int = 4) -> TrainingData:
    """Load the data of the shipped weights, below `root` (default: `rasters.default_data`)."""
    return load_training_file(SHIPPED, root, output_gsd_m, scale)


def load_data(
    path: Path, output_gsd_m: float = OUTPUT_GSD_M, scale: int = 4, cache_bytes: int = CACHE_BYTES
) -> TrainingData:
    """Load the data of a training file, or of the shipped weights below a folder. Raises UsageError."""
    if not path.is_dir():
        return load_training_file(path, None, output_gsd_m, scale, cache_bytes)
    lacking = [name for name in SHIPPED_FOLDERS if not (path / name).is_dir()]
    if lacking:
        raise UsageError(
            f"{path} is a folder without {', '.join(lacking)}",
            "a training file, or the root of the imagery of the shipped weights",
            f'write a training file whose source has path = "{path}", as in training/example.toml',
        )
    return load_training_file(SHIPPED, path, output_gsd_m, scale, cache_bytes)
