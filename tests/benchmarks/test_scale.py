"""Tests of the cost estimates, on small areas."""

import pytest

from tests.benchmarks.scale import cost


def test_costs_grow_with_the_area(tmp_path):
    small, large = ((tmp_path / name) for name in ("small", "large"))
    small.mkdir()
    large.mkdir()
    one, per_window = cost(small, 900, 0.5)
    four, _ = cost(large, 3600, 0.5)
    assert per_window == 0.5
    assert one.area_km2 == pytest.approx(900, rel=0.1)
    for name in ("chunks", "stored_tib"):
        assert getattr(four, name) / getattr(one, name) == pytest.approx(4, rel=0.05), name
    for name in ("units", "reads", "core_hours"):  # larger units share more of their halos
        assert 1 < getattr(four, name) / getattr(one, name) < 4.4, name
    assert 1 <= one.chunks * 480**2 * 6.25e-6 / one.area_km2 < 1.15  # edge chunks are partial
