"""The networks of peers have the sizes that they claim, and repeated steps count as often as they are repeated."""

import time

import pytest
import torch

from pipeline.bands import BAND_NAMES
from tests.benchmarks.peers import Peer, core_seconds_per_km2, lite, rcan


def test_rcan_is_as_large_as_published():
    """15.4 million parameters at x2 with three bands (Zhang et al. 2018), a few more with four."""
    assert sum(p.numel() for p in rcan(3, 64, 10, 20, 16).parameters()) == pytest.approx(15.4e6, rel=0.01)


def test_rcan_doubles_the_resolution():
    small = rcan(4, 16, 2, 2, 4)
    assert small(torch.rand(1, 4, 12, 12)).shape == (1, 4, 24, 24)


@pytest.mark.slow
def test_a_window_of_lite_is_computed():
    (image,) = lite().once(120).mean.values()
    assert image.shape == (len(BAND_NAMES), 480, 480)
    assert image.std() > 0


def test_steps_are_counted_as_often_as_they_are_repeated():
    def busy(px, seconds):
        until = time.process_time() + seconds * (px == 100)  # the first run, over a part, is not counted
        while time.process_time() < until:
            pass

    peer = Peer("a", "b", lambda px: busy(px, 0.05), lambda px: busy(px, 0.02), repeats=10)
    assert core_seconds_per_km2(peer, 100) == pytest.approx(0.05 + 10 * 0.02, abs=0.05)  # 100 px are 1 km
