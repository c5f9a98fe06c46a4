"""Images of any bands: declared by their source, chosen by a task, and read as three colours where it needs no more."""

import hashlib
import json

import numpy as np
import pytest
import torch

from pipeline.bands import RGB
from pipeline.errors import UsageError
from tests.training.data.test_sources import data_of
from tests.training.imagery import placed, texture, write_raster
from training.data.patches import RECOLOURED
from training.data.rasters import median_gamma, sample_gamma
from training.degradation.degrade import Degradation, DegradationRange, degrade, degrade_randomly
from training.degradation.sensor import relative_widths, sensor_sigma_px

RGBN = ("B02", "B03", "B04", "B08")
VALUES = "3f87243344910e89a28c59e2802db7dbd0843f5590eaeec437d62b9adb131d0e"
CHANCE = "eb2c304912addafba5f130283c890f3b43781aec620045953bfb832f4afc9a59"
WHERE = (399_960.0, 5_000_040.0)


def images_in(folder, pixels, gsd_m=2.5, count=1):
    for number in range(count):
        write_raster(folder / "images" / f"{number}.tif", pixels + number, **placed(*WHERE, gsd_m))


@pytest.mark.parametrize("bands", ['["B02", "B03", "B04", "B08"]', "{ B08 = 4, B04 = 3, B03 = 2, B02 = 1 }"])
def test_a_source_declares_its_bands_in_order_or_by_number(tmp_path, bands):
    pixels = texture(60, 60, bands=4)
    images_in(tmp_path, pixels)
    data = data_of(tmp_path, bands=bands)
    assert data.offered[0].bands == (*RGB, "B08")
    (image,) = data.of_bands(RGBN)
    np.testing.assert_array_equal(image.reader.read(5, 6, 7, 8), pixels[:, 5:12, 6:14])
    np.testing.assert_array_equal(data.images[0].reader.read(5, 6, 7, 8), pixels[[2, 1, 0], 5:12, 6:14])
    np.testing.assert_array_equal(data.of_bands(("B08",))[0].reader.read(0, 0, 2, 2), pixels[3:, :2, :2])


def test_bands_keep_their_places_in_batches(tmp_path):
    """Every band has a range of its own, whatever is turned and averaged; recoloured, the colours change places."""
    levels = np.array([1000, 2000, 3000, 4000])[:, None, None]
    images_in(tmp_path, (levels + 3 * texture(200, 200, bands=1)).astype(np.uint16), gsd_m=2.0)
    keys = {"values": '"reflectance"', "scale": "1e-4", "split": '"train"', "target_gsd_m": "[2.0, 2.6]"}
    data = data_of(tmp_path, bands='["B02", "B03", "B04", "B08"]', **keys)
    batch = data.hr_sampler("train", 48, bands=RGBN, recoloured=0.0).batch(np.random.default_rng(0), 8)
    assert batch.shape == (8, 4, 48, 48)
    np.testing.assert_array_equal(
        (batch * 10).astype(int), np.broadcast_to([[[[1]], [[2]], [[3]], [[4]]]], batch.shape)
    )
    calibrated = data.hr_sampler("train", 48, bands=RGBN, recoloured=1.0).batch(np.random.default_rng(0), 8)
    np.testing.assert_array_equal((calibrated * 10).astype(int), (batch * 10).astype(int))
    mixed = data.hr_sampler("train", 48, bands=RGBN, recoloured_reflectance=1.0).batch(np.random.default_rng(0), 8)
    orders = {tuple(int(level) for level in (patch[:, 0, 0] * 10)) for patch in mixed}
    assert len(orders) > 3
    assert {order[3] for order in orders} == {4}, "near infrared is no colour to exchange"


def fingerprint(folder):
    """SHA-256 of two batches of reflectance as stored, and of the generator's state after three of brightness."""
    images_in(folder, (1000 + 9 * texture(300, 300).astype(int)).astype(np.uint16), count=3)
    keys = {"values": '"reflectance"', "scale": "1e-4", "split": '"train"', "target_gsd_m": "2.5"}
    sampler = data_of(folder, **keys).hr_sampler("train", 96, 64, recoloured_reflectance=RECOLOURED)
    rng = np.random.default_rng(7)
    stored = [np.rint(sampler.batch(rng, 4) / 1e-4).astype("<u2").tobytes() for _ in range(2)]
    images_in(folder, texture(300, 300), count=3)
    sampler = data_of(folder, split='"train"').hr_sampler("train", 96, 64)
    for _ in range(3):
        sampler.batch(rng, 4)
    state = json.dumps(rng.bit_generator.state, sort_keys=True, default=str).encode()
    return hashlib.sha256(b"".join(stored)).hexdigest(), hashlib.sha256(state).hexdigest()


def test_batches_of_three_colours_are_those_of_before(tmp_path):
    """The digests are those of commit 518a10e, which knew three bands only."""
    assert fingerprint(tmp_path) == (VALUES, CHANCE)


def test_gammas_of_near_infrared_are_the_published_ones():
    drawn = np.stack([sample_gamma(np.random.default_rng(seed), RGBN) for seed in range(3000)])
    assert abs(drawn[:, 3].mean() - 0.457) < 0.02
    assert np.corrcoef(drawn[:, 2], drawn[:, 1])[0, 1] > 0.8
    assert 0.2 < np.corrcoef(drawn[:, 2], drawn[:, 3])[0, 1] < 0.6  # 0.00365 / sqrt(0.00592 * 0.01427) = 0.40
    colours = sample_gamma(np.random.default_rng(1), ("B02", "B04"))
    np.testing.assert_array_equal(colours, sample_gamma(np.random.default_rng(1))[[2, 0]])
    assert median_gamma(RGBN).tolist() == [*median_gamma()[::-1].tolist(), 0.45706]


def width_px(image):
    """Standard deviation of a blurred point (h, w) along one axis."""
    profile = image.sum(0) / image.sum()
    at = torch.arange(len(profile), dtype=torch.float32)
    return float(((at - (profile * at).sum()).square() * profile).sum().sqrt())


def test_every_band_is_blurred_by_its_own_mtf():
    bands = ("B04", "B08", "B05")
    widths = relative_widths(bands)
    mean = sum(sensor_sigma_px(band, 4) for band in RGB) / 3
    assert widths == pytest.approx([sensor_sigma_px(band, 4) / mean for band in bands])
    assert widths[0] > widths[1] > widths[2]
    point = torch.zeros(1, 3, 65, 65)
    point[:, :, 32, 32] = 1
    how = Degradation(sigma_px=2.0, noise=0.0, scale=1)
    found = [width_px(image) for image in degrade(point, how, widths=widths)[0]]
    assert found == pytest.approx([2.0 * width for width in widths], rel=0.01)


def test_three_colours_are_blurred_alike_and_as_before():
    assert relative_widths(RGB) == (1.0, 1.0, 1.0)
    sharp = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    within = DegradationRange((1.3, 2.9), 0.2, 0.3, (4e-4, 2e-3))
    plain, alike, apart = (
        degrade_randomly(sharp, within, torch.Generator().manual_seed(1), widths=widths)
        for widths in ((), (1.0, 1.0, 1.0), (1.0, 1.0, 0.9))
    )
    assert torch.equal(plain, alike)
    torch.testing.assert_close(plain[:, :2], apart[:, :2])
    assert not torch.allclose(plain[:, 2], apart[:, 2], atol=1e-3)


def test_no_source_with_the_bands_is_said_with_what_there_is(tmp_path):
    images_in(tmp_path, texture(60, 60))
    with pytest.raises(UsageError, match=r"no source has B04, B08: a has B04, B03, B02; expected .*; cure: .*B08"):
        data_of(tmp_path).of_bands(("B04", "B08"))


def test_patches_tell_their_ground_and_how_they_were_turned(tmp_path):
    """Values are the metres east and south of the image's corner, so that a patch tells its own place."""
    y, x = (axis.astype(np.uint16) for axis in np.mgrid[:200, :200])
    images_in(tmp_path, np.stack([1000 + 10 * x, 1000 + 10 * y, np.full_like(x, 1500)]), gsd_m=2.0)
    keys = {"values": '"reflectance"', "scale": "1e-4", "split": '"train"', "target_gsd_m": "2.0"}
    sampler = data_of(tmp_path, **keys).hr_sampler("train", 48, 32, recoloured=0.0)
    patches = sampler.patches(np.random.default_rng(0), 12)
    drawn = np.stack([patch.pixels for patch in patches])
    np.testing.assert_array_equal(drawn, sampler.batch(np.random.default_rng(0), 12))
    assert {(patch.turns, patch.mirrored) for patch in patches} > {(0, False), (0, True)}
    for patch in patches:
        crs, (left, bottom, right, top) = sampler.bounds(patch.address)
        assert "32632" in crs
        east, south = (np.rint((patch.pixels[band] / 1e-4 - 1000) / 10) for band in (0, 1))
        assert (left, right) == (WHERE[0] + 2 * east.min(), WHERE[0] + 2 * (east.max() + 1))
        assert (top, bottom) == (WHERE[1] - 2 * south.min(), WHERE[1] - 2 * (south.max() + 1))
        rows, cols = np.mgrid[: len(east), : len(east)]
        np.testing.assert_array_equal(
            patch.turned(np.stack([cols, rows])), np.stack([east - east.min(), south - south.min()])
        )


def test_images_without_georeferencing_have_no_known_ground(tmp_path):
    write_raster(tmp_path / "images" / "0.png", texture(300, 300), driver="PNG")
    sampler = data_of(tmp_path, gsd_m="2.0", split='"train"').hr_sampler("train", 48, 32)
    assert sampler.bounds(sampler.patches(np.random.default_rng(0), 1)[0].address) is None
