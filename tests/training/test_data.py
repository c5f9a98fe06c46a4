"""Image sets: split by place, averaged by area, harmonised by the published power law."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from training.data import (
    GAMMA_MEDIAN,
    SOURCES,
    Chip,
    ChipSampler,
    Source,
    area_average,
    ground_gsd_m,
    harmonise,
    load_chip,
    load_chips,
    open_raster,
    place_of,
    random_crop,
    sample_gamma,
    split_of,
)


def write(path, pixels, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype, **profile}
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
    return path


@pytest.mark.shared_data
def test_no_place_is_in_two_splits(shared_data):
    few = [source for source in SOURCES if source.name in ("naip_midwest_1m", "naip_2m", "naip_southwest_1m")]
    train, held_out = ({chip.place for chip in load_chips(shared_data / "hr", s, few)} for s in ("train", "held-out"))
    assert held_out
    assert train
    assert not held_out & train


@pytest.mark.shared_data
def test_sets_that_show_the_same_cities_share_their_split(shared_data):
    """Both Californian sets come from the same flights: a city held out of one must not be trained on in the other."""
    splits = {}
    for source in (s for s in SOURCES if s.family == "naip_ca"):
        for path in (shared_data / "hr").glob(source.pattern):
            splits.setdefault(path.name.split("_2020")[0], set()).add(split_of(place_of(source, path)))
    assert len(splits) == 6
    assert all(len(found) == 1 for found in splits.values())


def test_the_split_of_known_places_does_not_move():
    """Weights already shipped were trained without these places; a change would make their numbers worthless."""
    held_out = ["dubai_1m/tile2", "naip_iowa_1m/m_4209449_sw", "naip_ca/long_beach", "naip_ca/palm_springs"]
    assert [split_of(place) for place in held_out] == ["held-out"] * 4
    assert [split_of(place) for place in ("dubai_1m/tile1", "naip_ca/chico", "naip_iowa_1m/m_4109450_se")] == [
        "train"
    ] * 3


def test_a_file_that_names_no_place_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="names no place"):
        place_of(Source("dubai_1m", "*", 1.0, r"(tile\d+)"), tmp_path / "image.jpg")


@pytest.mark.parametrize("ratio", [1.0, 2.0, 2.5, 4.1667])
def test_area_average_keeps_positions_and_means(ratio):
    """On pixels whose values are their centres, averages are the centres of the new pixels.

    A pixel that is split between two averages counts with its own centre in both: at most 1 / (8 ratio) px off.
    """
    off = 0 if ratio == int(ratio) else 0.126 / ratio
    y, x = np.mgrid[0:50, 0:60].astype(np.float32) + 0.5
    out = area_average(np.stack([y, x]), ratio, ratio)
    rows, columns = np.arange(out.shape[1]), np.arange(out.shape[2])
    np.testing.assert_allclose(out[0], np.broadcast_to((rows[:, None] + 0.5) * ratio, out[0].shape), atol=off + 1e-4)
    np.testing.assert_allclose(out[1], np.broadcast_to((columns + 0.5) * ratio, out[1].shape), atol=off + 1e-4)


def test_ground_gsd_of_geographic_and_mercator_files(tmp_path):
    pixels = np.zeros((3, 10, 10), np.uint8)
    degrees = write(tmp_path / "d.tif", pixels, crs="EPSG:4326", transform=from_origin(-110, 60, 1e-5, 1e-5))
    gsd_y, gsd_x = ground_gsd_m(open_raster(degrees))
    assert gsd_y == pytest.approx(1.1132)
    assert gsd_x == pytest.approx(1.1132 / 2, rel=1e-3)
    northing_60 = 8_399_737.9  # Web Mercator northing of 60 degrees north
    mercator = write(tmp_path / "m.tif", pixels, crs="EPSG:3857", transform=from_origin(0, northing_60, 1, 1))
    assert ground_gsd_m(open_raster(mercator)) == pytest.approx((0.5, 0.5), rel=1e-3)


def test_chips_come_out_at_the_target_gsd(tmp_path):
    pixels = np.full((4, 100, 200), 51, np.uint8)
    path = write(tmp_path / "tile9_part_001.tif", pixels)
    chip = load_chip(path, Source("dubai_1m", "*.tif", 1.0, r"(tile\d+)"), 2.5)
    assert chip.pixels.shape == (3, 40, 80)
    assert chip.place == "dubai_1m/tile9"
    np.testing.assert_allclose(chip.pixels, 0.2, rtol=1e-5)


def test_harmonisation_is_the_published_power_law():
    out = harmonise(np.full((3, 1, 1), 128 / 255, np.float32), GAMMA_MEDIAN)
    np.testing.assert_allclose(out.ravel(), [0.141, 0.129, 0.142], atol=1e-3)


def test_sampled_gammas_stay_in_range_and_vary():
    rng = np.random.default_rng(0)
    gammas = np.stack([sample_gamma(rng) for _ in range(500)])
    assert gammas.min() >= 0.15
    assert gammas.max() <= 0.6
    np.testing.assert_allclose(gammas.mean(0), [0.332, 0.326, 0.353], atol=0.015)


def test_crops_avoid_black_borders():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.2, 0.6, (3, 64, 128)).astype(np.float32)
    pixels[:, :, :60] = 0
    chip = Chip("a", "a/1", 2.5, pixels, encoded=False)
    blacks = sum(float(random_crop(chip, 48, rng).min()) == 0 for _ in range(40))
    assert blacks <= 8  # eight tries each; half of all places are black


def test_sampler_mixes_two_sizes_and_repeats_by_seed():
    rng = np.random.default_rng(0)
    chips = [Chip("a", f"a/{side}", 2.5, rng.random((3, side, side)).astype(np.float32), True) for side in (40, 16, 20)]
    sampler = ChipSampler(chips, crop_px=32, small_px=16, small_share=0.5)
    batches = [sampler.batch(np.random.default_rng(seed), 4) for seed in range(8)]
    assert {batch.shape for batch in batches} == {(4, 3, 32, 32), (16, 3, 16, 16)}
    np.testing.assert_array_equal(batches[3], sampler.batch(np.random.default_rng(3), 4))


def test_sampler_without_large_images_says_so():
    with pytest.raises(ValueError, match="at least 32 px"):
        ChipSampler([], crop_px=32)
