"""Patches: read as windows, only what is needed; drawn by the generator alone; bright enough to teach something."""

import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
from rasterio.io import DatasetReader

from pipeline.errors import UsageError
from tests.training.imagery import placed, texture, write_raster
from training.data import chips, patches
from training.data.chips import held_out_chips
from training.data.images import Image, Values, file_images
from training.data.patches import Address, ChunkCache, PatchSampler
from training.data.rasters import harmonise
from training.data.training_file import Source


class Array:
    """A reader of an array, which keeps count of what was asked of it."""

    def __init__(self, pixels, valid=None):
        self.pixels, self.valid, self.windows = pixels, valid, []
        self.shape, self.itemsize = pixels.shape[1:], pixels.itemsize

    def read(self, y, x, ny, nx):
        self.windows.append((y, x, ny, nx))
        return self.pixels[:, y : y + ny, x : x + nx]

    def mask(self, y, x, ny, nx):
        return None if self.valid is None else self.valid[y : y + ny, x : x + nx]


def image_of(pixels, gsd_m=1.0, target=(2.0, 3.0), encoded=False, weight=1.0, scale=1.0) -> Image:
    values = Values(encoded, scale)
    return Image("a", "a", "a/1", "train", None, Array(pixels), values, (gsd_m, gsd_m), target, 2.5, weight)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (3, height, width)).astype(np.float32)


def test_a_patch_is_the_area_average_of_its_own_ground():
    """On pixels whose values are their places, a patch's values are the places of its pixels."""
    rows, cols = np.mgrid[0:300, 0:400] + 0.5
    image = image_of(np.stack([rows, cols, rows + cols]).astype(np.float32))
    sampler = PatchSampler([image], "train", 32, small_px=16)
    patch = sampler.read(Address(0, 20, 110, 32, 2.5))
    centres = (np.arange(32) + 0.5) * 2.5
    np.testing.assert_allclose(patch[0], np.broadcast_to(20 + centres[:, None], (32, 32)), atol=0.06)
    np.testing.assert_allclose(patch[1], np.broadcast_to(110 + centres, (32, 32)), atol=0.06)


@pytest.mark.parametrize("wrong", [1e4, -9999.0])
def test_numbers_that_are_no_reflectance_are_refused(wrong):
    pixels = noise(200, 200) * 1e4 if wrong > 0 else np.where(noise(200, 200) > 0.5, noise(200, 200), wrong)
    image = image_of(pixels.astype(np.float32))
    with pytest.raises(
        UsageError, match=r"source 'a': a has numbers around -?\d+; expected reflectance, 0 to 1; cure: scale"
    ):
        PatchSampler([image], "train", 64).batch(np.random.default_rng(0), 1)
    with pytest.raises(UsageError, match="source 'a': a has numbers"):
        held_out_chips(replace(image, split="held-out"))
    scaled = image_of((noise(200, 200) * 1e4).astype(np.float32), scale=1e-4)
    assert 0.1 < PatchSampler([scaled], "train", 64).batch(np.random.default_rng(0), 1).mean() < 0.9


def test_pixels_that_are_not_square_come_out_square():
    image = replace(image_of(noise(200, 300)), gsd_m=(1.0, 0.8))
    sampler = PatchSampler([image], "train", 64, small_px=64)
    patch = sampler.read(Address(0, 0, 0, 64, 2.0))
    assert patch.shape == (3, 64, 64)
    np.testing.assert_allclose(
        patch[:, 0, 0], image.reader.read(0, 0, 2, 3)[:, :, :].mean(1) @ [0.4, 0.4, 0.2], rtol=1e-5
    )


def test_gsds_are_drawn_from_the_range_the_image_holds():
    rng = np.random.default_rng(0)
    drawn = []
    sampler = PatchSampler([image_of(noise(160, 400))], "train", 64, small_px=64)

    def watch(address):
        drawn.append(address)
        return PatchSampler.read(sampler, address)

    sampler.read = watch
    sampler.batch(rng, 40)
    gsds = [address.gsd_m for address in drawn]
    assert 2.0 <= min(gsds) < 2.05
    assert 2.45 < max(gsds) <= 2.5  # 160 m hold 64 px of 2.5 m
    assert all(address.y + 64 * address.gsd_m <= 160 + 1e-9 for address in drawn)


def test_a_large_image_is_read_where_patches_are(monkeypatch):
    """Only the chunks that a patch touches, each once while it is held."""
    monkeypatch.setattr(patches, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(patches, "CHUNK_PX", 128)
    image = image_of(noise(1000, 1500))
    sampler = PatchSampler([image], "train", 32, small_px=16)
    sampler.read(Address(0, 300, 700, 32, 2.5))  # rows 300 to 380, columns 700 to 780
    reader = image.reader
    assert reader.windows == [(256, 640, 128, 128), (256, 768, 128, 128)]
    sampler.read(Address(0, 310, 710, 32, 2.0))
    assert len(reader.windows) == 2
    sampler.read(Address(0, 960, 1450, 16, 2.5))
    assert reader.windows[2:] == [(896, 1408, 104, 92)]


def test_a_small_image_is_read_once():
    image = image_of(noise(300, 300))
    sampler = PatchSampler([image], "train", 64)
    sampler.batch(np.random.default_rng(0), 20)
    assert image.reader.windows == [(0, 0, 300, 300)]


def test_windows_across_chunks_are_whole(monkeypatch):
    monkeypatch.setattr(patches, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(patches, "CHUNK_PX", 64)
    image = image_of(noise(300, 300))
    window = ChunkCache().window(0, image, 50, 60, 100, 140)
    np.testing.assert_array_equal(window.stored, image.reader.pixels[:, 50:150, 60:200])
    assert window.valid.shape == (100, 140)


def test_the_cache_keeps_to_its_limit(monkeypatch):
    monkeypatch.setattr(patches, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(patches, "CHUNK_PX", 64)
    image, size = image_of(noise(640, 640)), 64 * 64 * (3 * 4 + 1)  # stored values, and validity
    cache = ChunkCache(limit_bytes=4 * size)
    for step in range(10):
        cache.window(0, image, 64 * step, 0, 64, 64)
        assert cache.held_bytes <= 4 * size
    cache.window(0, image, 64 * 9, 0, 64, 64)
    assert len(image.reader.windows) == 10
    cache.window(0, image, 0, 0, 64, 64)
    assert len(image.reader.windows) == 11


def test_batches_follow_from_the_generator_alone():
    """Whatever was read before, and in whichever process."""
    pool = [image_of((noise(300, 200, seed) * 255).astype(np.uint8), encoded=True) for seed in range(3)]
    one, other = (PatchSampler(pool, "train", 48, small_px=32) for _ in range(2))
    other.batch(np.random.default_rng(9), 5)
    first = one.batch(np.random.default_rng(3), 4)
    np.testing.assert_array_equal(first, other.batch(np.random.default_rng(3), 4))
    np.testing.assert_array_equal(first, pickle.loads(pickle.dumps(other)).batch(np.random.default_rng(3), 4))
    assert not np.array_equal(first, one.batch(np.random.default_rng(4), 4))
    assert first.dtype == np.float32


def test_views_share_image_scale_and_radiometry():
    """Neighbours in the batch; on constant images every pixel of both is the same, and images differ."""
    pool = [image_of(np.full((3, 200, 200), value, np.uint8), encoded=True) for value in (60, 90, 120, 150)]
    sampler = PatchSampler(pool, "train", 32, small_px=32)
    batch = sampler.batch(np.random.default_rng(0), 6, views=2)
    assert batch.shape == (12, 3, 32, 32)
    np.testing.assert_allclose(batch[0::2], batch[1::2], atol=1e-6)
    assert len({round(float(value), 4) for value in batch[::2, 0, 0, 0]}) > 3
    textured = PatchSampler([image_of(noise(400, 400))], "train", 32, small_px=32)
    pairs = textured.batch(np.random.default_rng(0), 4, views=2)
    assert not np.array_equal(pairs[0], pairs[1])


def test_small_images_have_crops_of_their_own():
    pool = [image_of(noise(side, side, side), target=(1.0, 1.0)) for side in (40, 16, 20)]
    sampler = PatchSampler(pool, "train", crop_px=32, small_px=16, small_share=0.5)
    shapes = {sampler.batch(np.random.default_rng(seed), 4).shape for seed in range(8)}
    assert shapes == {(4, 3, 32, 32), (16, 3, 16, 16)}


def test_borders_and_flat_places_are_avoided():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.2, 0.6, (3, 64, 256)).astype(np.float32)
    pixels[:, :, :100] = 0
    pixels[:, :, 180:] = 0.4
    batch = PatchSampler([image_of(pixels, target=(1.0, 1.0))], "train", 24, small_px=24).batch(rng, 60)
    assert (batch.max(axis=1) > 0).all()
    assert (batch.std(axis=(1, 2, 3)) < 0.03).mean() < 0.25


def test_larger_ground_and_weight_are_drawn_more_often():
    small, large, heavy = (noise(side, side) for side in (100, 300, 100))
    pool = [image_of(small), image_of(large), image_of(heavy, weight=4.0)]
    odds = PatchSampler(pool, "train", 32, small_px=16)._odds[32]
    np.testing.assert_allclose(odds / odds[0], [1.0, 3.0, 4.0])


def test_nothing_to_draw_from_says_so():
    with pytest.raises(UsageError, match=r"no train image holds 16 px at its target_gsd_m, among 1; expected larger"):
        PatchSampler([image_of(noise(20, 20))], "train", 32, small_px=16)
    black = PatchSampler([image_of(np.zeros((3, 90, 90), np.float32))], "train", 16, small_px=16)
    with pytest.raises(UsageError, match="no patch that shows anything in 100 images"):
        black.batch(np.random.default_rng(0), 1)


def test_nodata_and_masks_are_no_ground():
    stored = np.array([[[255, 255, 0]], [[255, 100, 0]], [[255, 100, 0]]], np.uint8)
    assert Values(True, nodata=255).valid(stored).tolist() == [[False, True, True]], "of brightness, all bands"
    assert Values(False, nodata=255).valid(stored).tolist() == [[False, False, True]], "of reflectance, any band"
    assert Values(True).valid(stored, np.array([[True, False, True]])).tolist() == [[True, False, True]]
    gaps = np.array([[[np.nan, 0.1, 0.1]], [[0.1, 0.1, np.inf]]], np.float32)
    assert Values(False).valid(gaps).tolist() == [[False, True, False]]
    reflectance = Values(False, 1e-4, -0.1).decode(np.array([[[1000, 1500]]] * 3, np.uint16))
    np.testing.assert_allclose(reflectance[0, 0], [0, 0.05], atol=1e-7)


@pytest.mark.parametrize("nodata", [None, 7.0])
@pytest.mark.parametrize("encoded", [True, False])
def test_averages_of_stored_values_are_those_of_decoded_ones(nodata, encoded):
    stored = texture(60, 60)
    values = Values(encoded, 2e-3, 0.1, nodata)
    slow = Values(encoded, 2e-3, 0.1, None).decode(stored)
    expected = slow.reshape(3, 20, 3, 20, 3).mean((2, 4))
    np.testing.assert_allclose(values.averaged(stored, 3.0, 3.0), expected, rtol=1e-5)


def test_held_out_chips_are_the_middle_at_the_evaluation_gsd(monkeypatch):
    monkeypatch.setattr(chips, "CHIP_PX", 40)
    image = image_of(noise(200, 160))
    (chip,) = held_out_chips(image)
    assert (chip.pixels.shape, chip.gsd_m, chip.place) == ((3, 40, 40), 2.5, "a/1")
    middle = image.reader.pixels[:, 50:150, 30:130]
    np.testing.assert_allclose(chip.pixels.mean(), middle.mean(), rtol=1e-5)
    assert held_out_chips(image_of(noise(200, 70))) == []  # 28 px of 2.5 m: what borders leave says nothing


def source_of(tmp_path, **keys) -> Source:
    return Source(**{"name": "mine", "role": "hr", "path": str(tmp_path), "label": "mine.toml: source 'mine'", **keys})


def test_a_file_is_read_by_window(tmp_path, monkeypatch):
    """Counted at GDAL: a patch of a large tiled file reads its chunks, not the file."""
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    path = write_raster(tmp_path / "large.tif", texture(2048, 2048), **placed(600_000, 5_000_000, 0.5), **tiled)
    monkeypatch.setattr(patches, "WHOLE_BYTES", 1_000_000)
    monkeypatch.setattr(patches, "CHUNK_PX", 256)
    read: list[int] = []
    plain = DatasetReader.read

    def counted(self, *args, **kwargs):
        pixels = plain(self, *args, **kwargs)
        read.append(pixels.size)
        return pixels

    (image,) = file_images(source_of(path, split="train"))
    sampler = PatchSampler([image], "train", 64, small_px=64)
    monkeypatch.setattr(DatasetReader, "read", counted)
    sampler.read(Address(0, 300, 700, 64, 2.0))  # 256 px: two chunks each way
    assert sum(read) == 4 * 3 * 256 * 256


def _in_worker(sampler, seed, answer):
    answer.put(sampler.batch(np.random.default_rng(seed), 3))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_draw_the_same(tmp_path, method):
    """With files open before the fork, and with nothing but a pickle."""
    for seed in range(2):
        write_raster(
            tmp_path / f"{seed}.tif", texture(400, 400, seed), **placed(600_000, 5_000_000 + 9_000 * seed, 1.0)
        )
    sampler = PatchSampler(file_images(source_of(tmp_path, split="train")), "train", 64)
    expected = sampler.batch(np.random.default_rng(5), 3)
    context = multiprocessing.get_context(method)
    answer = context.Queue()
    fresh = PatchSampler(sampler.images, "train", 64) if method == "fork" else sampler
    workers = [context.Process(target=_in_worker, args=(fresh, 5, answer)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answer.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    for batch in found:
        np.testing.assert_array_equal(batch, expected)


def test_brightness_is_brought_to_reflectance():
    image = image_of(np.full((3, 80, 80), 128, np.uint8), encoded=True)
    sampler = PatchSampler([image], "train", 16, small_px=16)
    batch = sampler.batch(np.random.default_rng(1), 50)
    low, high = (float(harmonise(np.full((3, 1, 1), 128 / 255, np.float32), np.full(3, g)).max()) for g in (0.15, 0.6))
    assert low - 1e-6 <= batch.min() < 0.12 < batch.max() <= high
