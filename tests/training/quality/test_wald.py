"""Wald's protocol: which tasks a scene allows, which bands they judge, what classical methods are known to reach."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.lite_fusion import OUT_BANDS, FusionNetwork, LiteFusion
from training.data.sentinel2 import read_dsen2_scene
from training.quality import baselines, wald
from training.tasks import lite_wald

WEIGHTS = Path(__file__).resolve().parents[3] / "pipeline" / "models" / "weights" / "lite-fusion.safetensors"


def network():
    """Untrained: both trunks give nothing, so that the local regression is all there is."""
    small = FusionNetwork(sharpen_width=8, sharpen_blocks=1, detail_width=8, detail_blocks=1)
    return small.eval().requires_grad_(False)


def scene(side_60m, seed=0):
    """Random reflectance with detail at every scale, the same pattern in all bands."""
    generator = torch.Generator().manual_seed(seed)
    side = side_60m * 6
    pattern = sum(
        torch.nn.functional.interpolate(torch.rand(1, 1, n, n, generator=generator), size=(side, side), mode="bilinear")
        for n in (4, side // 6, side)
    )[0]
    rho = {10: torch.cat([0.05 + 0.05 * (1 + i) * pattern for i in range(4)])}
    rho[20] = torch.nn.functional.avg_pool2d(torch.cat([0.1 + 0.03 * i * pattern for i in range(1, 7)])[None], 2)[0]
    rho[60] = torch.nn.functional.avg_pool2d(torch.cat([0.1 + 0.1 * pattern, 0.2 + 0.1 * pattern])[None], 6)[0]
    return {gsd: values.numpy() for gsd, values in rho.items()}


def test_a_large_scene_allows_every_task():
    rows = lite_wald.measure(network(), scene(64))
    names = ["20 m x2", "20 m x2, block means only", "20 m x8, RGB guide", "60 m x6", "NIR x4"]
    assert [row.task for row in rows] == names
    assert [len(row.bands) for row in rows] == [6, 6, 6, 2, 1]
    for row in rows:
        assert {*baselines.SHARPENERS, "local regression", "lite"} <= set(row.scores)
        unknown = {name for values in row.scores.values() for name, value in values.items() if math.isnan(value)}
        assert unknown == ({"SAM"} if len(row.bands) == 1 else set())


def test_small_scenes_leave_out_the_tasks_they_are_too_small_for():
    assert [row.task for row in lite_wald.measure(network(), scene(20))] == [
        "20 m x2",
        "20 m x2, block means only",
        "NIR x4",
    ]
    assert [row.task for row in lite_wald.measure(network(), scene(20), sixty=False)] == ["20 m x2", "NIR x4"]
    assert lite_wald.measure(network(), scene(1)) == []


def test_absent_bands_are_not_judged():
    present = tuple(name for name in OUT_BANDS if name not in ("B01", "B09", "B06"))
    rho = scene(64)
    rho[20][1], rho[60][:] = 0, 0
    rows = {row.task: row for row in lite_wald.measure(network(), rho, present=present)}
    assert rows["20 m x2"].bands == ("B05", "B07", "B8A", "B11", "B12")
    assert rows["20 m x8, RGB guide"].bands == rows["20 m x2"].bands
    assert "60 m x6" not in rows
    assert all(math.isfinite(value) for value in rows["20 m x2"].ergas.values())


def test_an_untrained_network_is_its_regression():
    for row in lite_wald.measure(network(), scene(32)):
        if "x8" not in row.task:
            assert row.ergas["lite"] == pytest.approx(row.ergas["local regression"], rel=1e-3)


def test_projection_restores_what_a_wrong_level_spoils():
    """Gram-Schmidt as published shifts levels; block means bring them back."""
    row = lite_wald.measure(network(), scene(64), sixty=False)[0]
    assert row.projected["GS as published"] < 0.5 * row.ergas["GS as published"]


def test_other_fusions_do_20_m_x8_by_their_own_predict():
    class Fuser:
        out_bands = ("B12", *OUT_BANDS[:-1])  # an order of its own

        def predict(self, rgb_sr, ms, present):
            assert rgb_sr.shape == (1, 3, 192, 192)
            assert {gsd: tuple(values.shape[1:]) for gsd, values in ms.items()} == {
                10: (4, 48, 48),
                20: (6, 24, 24),
                60: (2, 8, 8),
            }
            assert present[:3] == ("B04", "B03", "B02")
            at20 = baselines.bicubic(ms[20], 8)
            return torch.cat([at20[:, 5:], rgb_sr[:, :1], at20], 1)

    (row,) = wald.measure_by_predict(Fuser(), scene(64), "theirs")
    assert row.task == "20 m x8, RGB guide"
    assert "local regression" not in row.scores
    assert row.ergas["theirs"] == pytest.approx(row.ergas["bicubic"], rel=1e-6)
    assert wald.measure_by_predict(Fuser(), scene(20), "theirs") == []


def test_the_largest_measured_rectangle_nests_in_all_resolutions():
    rho = scene(20)
    valid = np.ones((20, 20), bool)
    valid[5, 3] = valid[:, 15] = False
    part = wald.largest_measured(rho, valid)
    assert part is not None
    np.testing.assert_array_equal(part[60], rho[60][:, :, 4:15])  # 20 x 11, right of the hole; below it 14 x 15
    np.testing.assert_array_equal(part[10], rho[10][:, :, 24:90])
    np.testing.assert_array_equal(wald.largest_measured(rho, np.ones((20, 20), bool))[20], rho[20])
    assert wald.largest_measured(rho, np.zeros((20, 20), bool)) is None


@pytest.mark.shared_data
def test_classical_methods_reach_published_scores(shared_data):
    """ERGAS that an independent run of the same methods on the same scene gave, within two per cent."""
    fusion = LiteFusion.from_bundle(load_bundle(WEIGHTS))
    rho = {gsd: torch.from_numpy(v) for gsd, v in read_dsen2_scene(shared_data / "s2_l1c" / wald.TEST_SCENE).items()}
    whole = wald.Scene(rho)
    with torch.inference_mode():
        task = next(lite_wald.eight(fusion.network, whole))
        row = wald.row_of(task)
    assert row.ergas["bicubic"] == pytest.approx(2.33, rel=0.02)
    assert row.ergas["GS as published"] == pytest.approx(8.38, rel=0.02)
    assert row.ergas["GSA"] == pytest.approx(1.471, rel=0.02)
    assert row.ergas["ATPRK-like"] == pytest.approx(1.460, rel=0.02)
    assert row.ergas["lite"] < 0.8 * min(row.ergas[name] for name in baselines.SHARPENERS)
