"""Places that differ in land cover: what is measured of a window, and that the choice is theirs alone."""

import numpy as np
import pytest
import torch

from pipeline.bands import RGB
from training.quality.land_cover import choose, describe, windows


def ground(red, green, blue, infrared=0.3, noise=0.0):
    """Reflectance (4, 16, 16) of RGB and B08."""
    rng = np.random.default_rng(0)
    levels = torch.tensor([red, green, blue, infrared])[:, None, None]
    return (levels * torch.from_numpy(1 + noise * rng.standard_normal((1, 16, 16)))).float()


def test_vegetation_is_known_by_ndvi_or_by_green():
    forest, town = ground(0.03, 0.06, 0.03, 0.4), ground(0.15, 0.15, 0.15, 0.2)
    with_nir, without = (*RGB, "B08"), RGB
    assert describe(forest, with_nir)[1] == pytest.approx((0.4 - 0.03) / (0.4 + 0.03))
    assert describe(forest[:3], without)[1] == pytest.approx((2 * 0.06 - 0.03 - 0.03) / 0.12)
    for image, bands in ((slice(None), with_nir), (slice(3), without)):
        assert describe(forest[image], bands)[1] > describe(town[image], bands)[1] + 0.1


def test_infrared_does_not_count_as_brightness():
    assert describe(ground(0.1, 0.1, 0.1, 0.9), (*RGB, "B08"))[0] == pytest.approx(0.1)


def test_texture_is_relative_to_brightness():
    dark, bright = (describe(ground(level, level, level, noise=0.2)[:3], RGB) for level in (0.02, 0.2))
    assert dark[2] == pytest.approx(bright[2], rel=1e-4)
    assert describe(ground(0.2, 0.2, 0.2)[:3], RGB)[2] == pytest.approx(0, abs=1e-6)


def test_the_median_comes_first_and_then_the_farthest():
    """One dimension: 0 1 2 3 4, and the others equal."""
    covers = [(float(value), 0.0, 0.0) for value in (3, 0, 4, 2, 1)]
    found = choose(covers, list("abcde"))
    assert [one.index for one in found] == [3, 1, 2]
    assert [one.why for one in found] == [
        "the median of its set", "darker than most of its set", "brighter than most of its set",
    ]  # fmt: skip


def test_an_outlier_counts_no_more_than_any_other_end():
    covers = [(float(value), 0.0, 0.0) for value in (1000, 0, 1, 2, 3)]
    assert {one.index for one in choose(covers, list("abcde"))} == {0, 1, 3}


def test_words_name_every_difference():
    covers = [(0.5, 0.5, 0.5)] * 4 + [(0.1, 0.9, 0.1), (0.9, 0.1, 0.9)]
    assert [one.why for one in choose(covers, range(6))][1:] == [
        "darker, greener, smoother than most of its set", "brighter, less green, rougher than most of its set",
    ]  # fmt: skip


def test_each_place_is_shown_once_before_any_again():
    covers = [(float(value), 0.0, 0.0) for value in range(6)]
    places = ["a", "a", "a", "a", "b", "a"]
    first, second, third = (one.index for one in choose(covers, places))
    assert (first, second) == (2, 4)
    assert third == 0


def test_what_looks_the_same_is_shown_once():
    assert len(choose([(0.1, 0.2, 0.3)] * 5, range(5))) == 1
    assert choose([], []) == []
    (alone,) = choose([(0.1, 0.2, 0.3)], ["a"])
    assert alone.why == "the only place of its set"


def test_windows_tile_the_middle_on_whole_blocks():
    assert windows(64, 64, 96, 4) == [(slice(0, 64), slice(0, 64))]
    assert windows(70, 256, 96, 4) == [
        (slice(0, 68), slice(32, 128)), (slice(0, 68), slice(128, 224)),
    ]  # fmt: skip
    assert windows(3, 96, 96, 4) == []
