"""Consistency with real patches: which are taken, and the limits that the pipeline's product has to keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.superres.system import load
from pipeline.superres.weights import choose
from training.data.sources import shipped_data
from training.data.tiles import BANDS, Tile
from training.quality import product, real
from training.quality.product import Way

SIDE_PX = 120


def tile(name, side_60m=22, level=0.2, hole=False, split="held-out"):
    rng = np.random.default_rng(0)
    rho = {
        gsd: (level + 0.1 * rng.random((len(bands), side_60m * 60 // gsd, side_60m * 60 // gsd))).astype(np.float32)
        for gsd, bands in BANDS.items()
    }
    valid = np.ones((side_60m, side_60m), bool)
    valid[side_60m // 2, side_60m // 2] = not hole
    return replace(Tile.of(name, rho, valid, ("B02", "B03", "B04")), split=split)


@pytest.fixture(scope="module")
def plain():
    return load(choose("bicubic"), "cpu")


def test_patches_are_whole_squares_from_the_middle():
    tiles = [tile("small", 18), tile("holed", hole=True), tile("a"), tile("b", 20), tile("c", 30)]
    found = real.patches(tiles, SIDE_PX, count=2)
    assert [patch.place for patch, _ in found] == ["a", "b"]
    np.testing.assert_array_equal(found[0][1], found[0][0].rho[10][:3, 6:126, 6:126])


def test_a_large_tile_lends_several_patches_that_do_not_overlap():
    of = tile("a", 41)  # 246 px: two by two of 120, 3 px on every side
    found = real.patches([of, tile("b")], SIDE_PX, count=9, per_tile=4)
    assert [patch.place for patch, _ in found] == ["a"] * 4 + ["b"]
    whole = np.block([[found[0][1], found[1][1]], [found[2][1], found[3][1]]])
    np.testing.assert_array_equal(whole, of.rho[10][:3, 3:243, 3:243])
    assert len(real.patches([of], SIDE_PX, count=9, per_tile=3)) == 3


def test_scores_of_a_perfectly_consistent_product():
    lr = torch.full((3, 24, 24), 0.2)
    found = real.scores(lr, torch.full((3, 96, 96), 0.2))
    assert found["reflectance"] == pytest.approx(0, abs=1e-7)
    assert found["ERGAS"] == pytest.approx(0, abs=1e-4)
    assert set(real.DIGITS) <= set(found)


def test_every_held_out_patch_is_judged_under_every_contract(plain, monkeypatch):
    monkeypatch.setattr(real, "PATCH_PX", 60)
    monkeypatch.setattr(real, "PATCHES", 2)
    records = real.judge(plain, plain, [tile("seen", split="train"), tile("a", 12), tile("b", 12)])
    assert {record.place for record in records} == {"a", "b"}
    by_method = {record.method: record.values for record in records if record.place == "a"}
    assert list(by_method) == ["bicubic, none", "bicubic, sensor", "bicubic, box", "bicubic, tent"]
    assert by_method["bicubic, tent"]["reflectance"] < by_method["bicubic, box"]["reflectance"]
    assert by_method["bicubic, box"]["reflectance"] < by_method["bicubic, none"]["reflectance"]
    assert by_method["bicubic, box"][real.BRIGHTEST] == pytest.approx(0.3, abs=0.001)


def test_fewer_patches_of_each_source_are_judged_on_request(plain, monkeypatch):
    monkeypatch.setattr(real, "PATCH_PX", 60)
    monkeypatch.setattr(real, "CONTRACTS", real.CONTRACTS[:1])
    tiles = [replace(tile(name, 20), source=source) for name, source in (("a", "one"), ("b", "one"), ("c", "two"))]

    def places(per_set):
        return [record.place for record in real.judge(plain, plain, tiles, per_set=per_set)[:: 2 * len(real.CONTRACTS)]]

    assert places(None) == ["a"] * 4 + ["b"] * 4 + ["c"]  # `PATCHES` in all
    assert places(1) == ["a", "c"]
    assert places(5) == ["a"] * 4 + ["b"] + ["c"] * 4


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_shipped_system_stays_within_limits_when_clear(shared_data):
    """Box: reflectance 0.0015, spectral 0.75 degrees, spatial 0.005 LR px; tent: 0.0005 and 0.3 degrees."""
    system = load(choose("lite"), "cpu")
    tiles = [tile for tile in shipped_data(shared_data).all_tiles if "20170617T113321_36_85" in tile.place]
    ((_, rgb),) = real.patches(tiles, real.PATCH_PX)
    box, tent = (
        real.scores(torch.from_numpy(rgb), product.of_rgb(rgb, system, Way(consistency=contract)).rho)
        for contract in ("box", "tent")
    )
    assert box["reflectance"] <= 0.0015
    assert box["spectral"] <= 0.75
    assert box["spatial"] <= 0.005
    assert box["block R2"] > 0.99999
    assert tent["reflectance"] <= 0.0005
    assert tent["spectral"] <= 0.3
    assert tent["spatial"] <= 0.005
