"""What counts as ground: in files with nodata, masks, alpha bands and frames, for patches and held-out images alike."""

import numpy as np
import pytest
import rasterio
from PIL import Image as Pillow
from rasterio.transform import from_origin
from scipy import ndimage

from pipeline.errors import UsageError
from training.data.chips import held_out_chips
from training.data.images import file_images
from training.data.patches import PatchSampler, contrast
from training.data.rasters import check_reflectance
from training.data.training_file import Source
from training.data.validity import constant_frames, largest_square
from training.degradation.degrade import Degradation
from training.quality.pairs import held_out_pairs

SIDE = 400
HOLE = (slice(0, 400), slice(0, 170))  # 42 per cent of an image


def ground(dtype=np.uint8, low=60, high=200, side=SIDE):
    return np.random.default_rng(1).integers(low, high, (3, side, side)).astype(dtype)


def write_tiff(path, pixels, *, mask=None, alpha=False, **profile):
    bands, ny, nx = pixels.shape
    extra = {"photometric": "RGB", "alpha": "yes"} if alpha else {}
    place = from_origin(600_000, 5_100_000, 1.0, 1.0)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=bands, height=ny, width=nx, dtype=pixels.dtype, transform=place,
            crs="EPSG:32632", **{**extra, **profile},
        ) as file,
    ):  # fmt: skip
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(37, 50), (3, 40), (5, 5), (1, 1)])
def test_frames_are_morphological_openings(share, shape):
    """With everything beyond the window's edge counted as frame."""
    rng = np.random.default_rng(round(100 * share))
    dark = rng.random(shape) < share
    dark[: shape[0] // 2] |= rng.random() < 0.5
    square = np.ones((5, 5), bool)
    expected = ndimage.binary_dilation(ndimage.binary_erosion(dark, square, border_value=1), square) & dark
    stored = np.where(dark, 0, 77).astype(np.uint8)[None]
    np.testing.assert_array_equal(constant_frames(stored), expected & (dark.sum() >= 5))


def seen(shape=(SIDE, SIDE)):
    valid = np.ones(shape, bool)
    valid[HOLE] = False
    return valid


def holed(value, dtype=np.uint8, low=60, high=200):
    pixels = ground(dtype, low, high)
    pixels[(slice(None), *HOLE)] = value
    return pixels


def rgba(path):
    write_tiff(path, np.concatenate([ground(), seen()[None].astype(np.uint8) * 255]), alpha=True)


def png_with_alpha(path):
    pixels = np.concatenate([ground(), seen()[None].astype(np.uint8) * 255])
    Pillow.fromarray(pixels.transpose(1, 2, 0), "RGBA").save(path, "PNG")


FILES = {
    "declared nodata": lambda path: write_tiff(path, holed(7), nodata=7),
    "mask": lambda path: write_tiff(path, ground(), mask=seen()),
    "alpha band": rgba,
    "PNG with alpha": png_with_alpha,
    "black frame": lambda path: write_tiff(path, holed(0)),
    "white frame": lambda path: write_tiff(path, holed(255)),
    "16 bit, 65535": lambda path: write_tiff(path, holed(65535, np.uint16, 600, 2000)),
    "16 bit, declared": lambda path: write_tiff(path, holed(9, np.uint16, 600, 2000), nodata=9),
    "signed, -32768": lambda path: write_tiff(path, holed(-32768, np.int16, 600, 2000)),
    "NaN": lambda path: write_tiff(path, holed(np.nan, np.float32, 600, 2000)),
    "one band NaN": lambda path: write_tiff(
        path, np.concatenate([ground(np.float32, 600, 2000)[:2], holed(np.nan, np.float32, 600, 2000)[:1]])
    ),
    "float, -9999": lambda path: write_tiff(path, holed(-9999, np.float32, 600, 2000), nodata=-9999),
}


@pytest.fixture(params=FILES)
def image(request, tmp_path):
    """An image with a hole over its left part, however the file says so."""
    path = tmp_path / "a.tif"
    FILES[request.param](path)
    eight = "16" not in request.param and "signed" not in request.param and "NaN" not in request.param
    eight = eight and "float" not in request.param
    keys = {} if eight else {"values": "reflectance", "scale": 1e-4}
    georeferenced = "PNG" not in request.param
    (found,) = file_images(
        Source("mine", "hr", str(path), gsd_m=None if georeferenced else 1.0, split="train", label="mine", **keys)
    )
    return found


def test_patches_lie_where_ground_was_seen(image):
    sampler = PatchSampler([image], "train", 48, small_px=48)
    rng = np.random.default_rng(0)
    drawn = sampler.patches(rng, 30)
    assert len(drawn) == 30
    assert min(patch.address.x for patch in drawn) >= HOLE[1].stop
    assert all(np.isfinite(patch.pixels).all() for patch in drawn)


def test_held_out_images_are_cut_to_the_ground_that_was_seen(image):
    (chip,) = held_out_chips(image)
    side = (SIDE - HOLE[1].stop) / image.evaluate_gsd_m
    assert chip.pixels.shape[1] == chip.pixels.shape[2] == pytest.approx(side, abs=1)
    assert np.isfinite(chip.pixels).all()
    assert chip.pixels.min() > 0.02
    assert chip.pixels.max() < 0.9


def test_an_image_without_a_hole_is_judged_in_its_middle(tmp_path):
    write_tiff(tmp_path / "a.tif", ground())
    (whole,) = file_images(Source("mine", "hr", str(tmp_path / "a.tif"), split="held-out"))
    (chip,) = held_out_chips(whole)
    assert chip.pixels.shape[1:] == (SIDE / 2.5, SIDE / 2.5)


def test_ground_in_a_corner_of_a_large_image_is_found(tmp_path, monkeypatch):
    """The middle of a mosaic tile may be empty."""
    from training.data import chips

    monkeypatch.setattr(chips, "CHIP_PX", 48)
    pixels = np.zeros((3, 800, 800), np.uint8)
    pixels[:, 500:, 500:] = ground(side=300)
    write_tiff(tmp_path / "a.tif", pixels)
    (corner,) = file_images(Source("mine", "hr", str(tmp_path / "a.tif"), split="held-out"))
    (chip,) = held_out_chips(corner)
    assert chip.pixels.min() > 0.2


def test_an_image_without_ground_is_not_judged(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((3, 300, 300), np.uint8))
    (black,) = file_images(Source("mine", "hr", str(tmp_path / "a.tif"), split="held-out"))
    assert held_out_chips(black) == []


def test_single_dark_and_bright_pixels_are_ground():
    pixels = ground()
    pixels[:, ::7, ::7] = 0
    pixels[:, 100:104, 100:104] = 255  # four pixels a side: a roof
    assert not constant_frames(pixels).any()
    pixels[:, 200:205, 200:205] = 255
    assert constant_frames(pixels).sum() == 25
    pixels[0, 200:205, 200:205] = 254
    assert not constant_frames(pixels).any()


def test_frames_that_go_on_beyond_a_window_are_found_in_it():
    pixels = ground()
    pixels[:, :3] = 0
    assert constant_frames(pixels)[:3].all()
    assert constant_frames(pixels).sum() == 3 * SIDE


@pytest.mark.parametrize(
    ("rows", "wanted"), [((0, 9), (0, 0, 0)), ((0, 0), (0, 0, 9)), ((3, 9), (0, 3, 3)), ((0, 4), (4, 2, 5))]
)
def test_the_largest_square_is_valid_and_near_the_middle(rows, wanted):
    valid = np.ones((9, 9), bool)
    valid[rows[0] : rows[1]] = False
    assert largest_square(valid) == wanted


def test_flatness_is_relative_to_how_bright_the_ground_is():
    rng = np.random.default_rng(0)
    relative = 1 + 0.15 * rng.standard_normal((3, 64, 64))
    dark, bright = (level * relative for level in (0.05, 0.4))
    assert contrast(dark, encoded=False) == pytest.approx(0.02, rel=0.25)
    assert contrast(bright, encoded=False) == pytest.approx(0.038, rel=0.25)
    even = 0.3 + 0.002 * rng.standard_normal((3, 64, 64))
    assert contrast(even, encoded=False) < 0.01


def test_farmland_is_judged_and_a_flat_lake_is_not(tmp_path):
    rng = np.random.default_rng(0)
    fields = np.kron(rng.integers(300, 700, (3, 20, 20)), np.ones((20, 20))).astype(np.uint16)
    lake = (400 + rng.integers(0, 10, (3, SIDE, SIDE))).astype(np.uint16)
    pairs = []
    for name, pixels in (("fields", fields), ("lake", lake)):
        write_tiff(tmp_path / f"{name}.tif", pixels)
        (found,) = file_images(
            Source("mine", "hr", str(tmp_path / f"{name}.tif"), values="reflectance", scale=1e-4, split="held-out")
        )
        pairs.append(held_out_pairs(held_out_chips(found), Degradation()))
    assert [len(found) for found in pairs] == [1, 0]


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_scales_that_make_no_reflectance_are_refused(scale):
    with pytest.raises(UsageError, match=r"mine has numbers around .*; expected reflectance, 0 to 1; cure: scale"):
        check_reflectance("mine", ground(np.float32, 300, 900) * scale)
    check_reflectance("mine", ground(np.float32, 300, 900) * 1e-4)
    check_reflectance("water", np.full((3, 8, 8), 0.004, np.float32))
    check_reflectance("nothing", np.zeros((3, 8, 8), np.float32))


def test_a_palette_is_no_colour(tmp_path):
    Pillow.fromarray(ground().transpose(1, 2, 0)).quantize(32).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a.png holds indices into a palette; expected colours; cure: gdal_translate"):
        file_images(Source("mine", "hr", str(tmp_path / "a.png"), gsd_m=1.0, label="mine"))
