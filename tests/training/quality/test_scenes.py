"""Native scenes seen by a sensor: which scenes, how they are scored, and what their tables say; mesh and cost."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.superres.system import load
from pipeline.superres.weights import choose
from training.data.tiles import BANDS, Tile
from training.quality import cost, phases, scenes, whole
from training.quality.tables import Record
from training.quality.whole import cost_text, phases_text, scenes_text


@pytest.fixture(scope="module")
def plain():
    return load(choose("bicubic"), "cpu")


def tile(name, side_60m=17, present=BAND_NAMES, split="train", source="a"):
    """Ground that varies smoothly, seen by every band."""
    rho = {}
    for gsd, bands in BANDS.items():
        at = (np.arange(side_60m * 60 // gsd) + 0.5) * gsd
        waves = 0.3 + 0.1 * np.sin(at / 97)[:, None] * np.cos(at / 61)[None, :]
        rho[gsd] = np.stack([waves + 0.01 * i for i in range(len(bands))]).astype(np.float32)
    of = Tile.of(name, rho, np.ones((side_60m, side_60m), bool), present)
    return replace(of, split=split, source=source)


def test_scenes_have_all_bands_and_say_whether_weights_saw_them():
    lacking = tuple(name for name in BAND_NAMES if name != "B09")
    held = tile("d", split="held-out", source="b")
    tiles = [tile("a"), tile("b", present=lacking), tile("c", 15), tile("e"), held, replace(held, watched=True)]
    found = scenes.native_scenes(tiles, per_set=1)
    assert [(scene.place, scene.trained) for scene in found] == [("a", True), ("d", False)]
    assert found[0].rho[10].shape == (4, 96, 96)  # 17 of 60 m cut to a multiple of four
    assert found[0].coarser(1.8)[60].shape == (2, 4, 4)
    assert len(scenes.native_scenes(tiles)) == 4


def test_a_perfect_product_has_no_error_and_a_wrong_band_shows():
    (scene,) = scenes.native_scenes([tile("a", 16)])
    perfect = torch.zeros(12, 96, 96)
    for gsd, names in BANDS.items():
        for name, image in zip(names, scene.rho[gsd], strict=True):
            factor = gsd // 10
            perfect[BAND_NAMES.index(name)] = image.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    assert {name: scenes.ergas(perfect, scene, bands) for name, bands in scenes.GROUPS.items()} == {
        name: pytest.approx(0, abs=1e-5) for name in scenes.GROUPS
    }
    perfect[BAND_NAMES.index("B08")] += 0.03
    wrong = {name: scenes.ergas(perfect, scene, bands) for name, bands in scenes.GROUPS.items()}
    mean = float(scene.rho[10][3, 8:-8, 8:-8].mean())
    assert wrong["NIR"] == pytest.approx(25 * 0.03 / mean, rel=1e-3)
    assert max(value for name, value in wrong.items() if name != "NIR") < 1e-4


def test_every_scene_is_judged_by_blur_and_product(plain, monkeypatch):
    monkeypatch.setattr(scenes, "SIGMAS_PX", (1.5, 2.2))
    found = scenes.native_scenes([tile("a", 16), tile("b", 16, split="held-out")])
    records = scenes.judge(plain, plain, found)
    assert {record.table for record in records} == {scenes.table(1.5), scenes.table(2.2)}
    by_method = {r.method: r.values for r in records if r.place == "a" and r.table == scenes.table(2.2)}
    assert list(by_method) == [
        "stored bicubic: mean, none",
        "stored bicubic: mean, sensor",
        "stored bicubic: mean, box",
    ]
    for group in scenes.GROUPS:  # the sensor's contract brings back what the blur took
        assert by_method["stored bicubic: mean, sensor"][group] < by_method["stored bicubic: mean, none"][group]
    text = scenes_text(records, found, plain)
    assert "The 1 that the fusion was not trained on" in text
    assert "worse than bicubic: none." in text


def test_a_scene_that_is_worse_than_bicubic_is_named(plain):
    scene = scenes.native_scenes([tile("a", 16)])
    values = dict.fromkeys(scenes.GROUPS, 2.0)
    records = []
    for sigma in scenes.SIGMAS_PX:
        key = scenes.table(sigma), "a", "the place", 0
        records.append(Record(*key, "stored bicubic: mean, none", values))
        records.append(Record(*key, "stored bicubic: mean, sensor", {**values, "NIR": 2.2 if sigma == 1.8 else 1.0}))
    text = scenes_text(records, scene, plain)
    assert text.endswith("worse than bicubic: the place (0) NIR at 1.8 px (1.100).")
    assert "| 1.8 px | stored bicubic: mean, sensor | 2.000 / 1.000 / 1.000 | 2.200 / 1.100 / 1.100 |" in text


def test_flat_block_patterns_are_found_below_noise_and_slopes():
    rng = np.random.default_rng(0)
    wanted = np.zeros((4, 4))
    wanted[1, 2], wanted[3, 0] = 1.5, -1.5
    image = rng.normal(0, 5, (400, 400)) + np.tile(wanted, (100, 100))
    flat = np.ones((100, 100), bool)
    image[:200] += np.tile(50 * np.ones((1, 4)) * [1, 0, 0, 0], (200, 100))  # another pattern, where it is not flat
    flat[:50] = False
    np.testing.assert_allclose(phases.pattern(image.astype(np.float32), flat), wanted, atol=0.25)


def test_a_ramp_has_no_pattern_and_a_sawtooth_keeps_its():
    flat = np.ones((20, 20), bool)
    flat[5:9, 3:17] = False
    rows, columns = np.mgrid[:80, :80].astype(np.float32)
    ramp = 3 * rows - 2 * columns
    np.testing.assert_allclose(phases.pattern(ramp, flat), 0, atol=1e-4)
    sawtooth = np.tile(np.arange(4) - 1.5, (4, 1))
    np.testing.assert_allclose(phases.pattern(ramp + np.tile(sawtooth, (20, 20)), flat), sawtooth, atol=1e-4)


def test_chance_leaves_as_much_of_a_pattern_as_is_said():
    rng = np.random.default_rng(1)
    image, flat = rng.normal(0, 5, (400, 400)).astype(np.float32), np.ones((100, 100), bool)
    left = np.sqrt((phases.pattern(image, flat) ** 2).mean())
    assert phases.by_chance(image, flat) == pytest.approx(0.05, rel=0.05)
    assert left == pytest.approx(0.05, rel=0.5)


def test_flat_ground_is_where_colours_vary_least():
    rng = np.random.default_rng(0)
    rgb = (0.2 + 0.05 * rng.random((3, 60, 60))).astype(np.float32)
    rgb[:, 20:40, 20:40] = 0.2 + 0.001 * rng.random((3, 20, 20))
    flat = phases.flat_pixels(rgb)
    assert flat.mean() == pytest.approx(0.1, abs=0.01)
    assert flat[24:36, 24:36].all()
    inside = np.zeros_like(flat)
    inside[20:40, 20:40] = True
    assert inside[flat].mean() > 0.7


def test_interpolation_has_no_mesh_and_the_table_has_every_band(plain):
    records = phases.measure(plain, plain, scenes.native_scenes([tile("a", 16)]))
    assert max(records[0].values[name] for name in BAND_NAMES) < 0.5  # of slopes, in few blocks
    text = phases_text(records)
    assert "| method | B01 | B02 |" in text
    assert "| a | 0.0 % | 0.0 % | 100.0 % |" in text


def test_cost_is_measured_of_everything_only(plain, monkeypatch):
    monkeypatch.setattr(whole, "cost_text", lambda system: "seconds")
    data = SimpleNamespace(all_tiles=[])
    titles = {
        per_set: [s.title for s in whole.whole_sections("x", plain, plain, data, per_set, 0, lambda said: None)]
        for per_set in (None, 1)
    }
    assert titles == {None: ["x: native scenes", "x: cost"], 1: ["x: native scenes"]}


def test_cost_is_that_of_a_unit(plain, monkeypatch):
    monkeypatch.setattr(cost, "SIDE_60M_PX", 4)
    assert cost.area_km2() == pytest.approx(0.0576)
    assert cost.core_seconds_per_km2(plain, cost.WAYS[0]) > 0
    assert "| sample, box |" in cost_text(plain)
