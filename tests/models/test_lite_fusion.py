"""The lite fusion: band order, absent bands, exact recovery of linear bands, finite reach."""

import pytest
import torch

from pipeline.models.bundle import Bundle, load_bundle, save_bundle
from pipeline.models.lite_fusion import (
    BANDS_20M,
    LATTICE,
    NORMALISATION,
    OUT_BANDS,
    SYSTEM,
    FusionNetwork,
    LiteFusion,
    regression_detail,
)
from pipeline.models.phase_pattern import REACH_PX

ARCHITECTURE = {"sharpen_width": 8, "sharpen_blocks": 1, "detail_width": 8, "detail_blocks": 1}
SIDE = 24


def bundle() -> Bundle:
    return Bundle(SYSTEM, ARCHITECTURE, ("B04",), OUT_BANDS, 4, LATTICE, NORMALISATION)


def fusion(scrambled: bool = False) -> LiteFusion:
    network = FusionNetwork(**ARCHITECTURE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if scrambled:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("exit.bias"):
                parameter.zero_()
    return LiteFusion(network, bundle())


def flat(values, gsd):
    """Bands that are constant, each at its own value, (1, bands, side, side)."""
    side = SIDE * 10 // gsd
    return torch.tensor(values)[None, :, None, None].expand(1, -1, side, side).clone()


def constant_inputs():
    ms = {
        10: flat([0.04, 0.03, 0.02, 0.08], 10),
        20: flat([0.05, 0.06, 0.07, 0.085, 0.11, 0.12], 20),
        60: flat([0.01, 0.09], 60),
    }
    return torch.full((1, 3, 4 * SIDE, 4 * SIDE), 0.03), ms


def test_every_band_comes_out_in_its_place():
    rgb, ms = constant_inputs()
    out = fusion().predict(rgb, ms, OUT_BANDS)
    expected = {"B08": 0.08, "B05": 0.05, "B06": 0.06, "B07": 0.07, "B8A": 0.085, "B11": 0.11, "B12": 0.12}
    expected |= {"B01": 0.01, "B09": 0.09}
    assert out.shape == (1, 9, 4 * SIDE, 4 * SIDE)
    for index, name in enumerate(OUT_BANDS):
        torch.testing.assert_close(out[0, index], torch.full_like(out[0, 0], expected[name]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("absent", [("B01", "B09"), ("B06", "B07", "B01", "B09")])
def test_absent_bands_stay_zero_whatever_fills_them(absent):
    rgb, ms = constant_inputs()
    present = tuple(name for name in OUT_BANDS if name not in absent)
    system = fusion(scrambled=True)
    filled = {10: ms[10], 20: ms[20].clone(), 60: torch.zeros_like(ms[60])}
    for index, name in enumerate(BANDS_20M):
        if name in absent:
            filled[20][:, index] = 0
    whole = system.predict(rgb, filled, present)
    without = {gsd: x for gsd, x in filled.items() if gsd != 60}
    assert torch.equal(whole, system.predict(rgb, without, present))
    for index, name in enumerate(OUT_BANDS):
        assert bool((whole[0, index] == 0).all()) == (name in absent)


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_a_band_that_is_a_sum_of_guides_is_recovered(scale):
    generator = torch.Generator().manual_seed(3)
    guides = 0.3 * torch.rand(1, 3, 8 * scale, 8 * scale, generator=generator)
    truth = 0.6 * guides[:, :1] + 0.3 * guides[:, 2:] + 0.02
    coarse = torch.nn.functional.avg_pool2d(truth, scale)
    up = torch.nn.functional.interpolate(coarse, scale_factor=scale, mode="bicubic", align_corners=False)
    sharp = up + regression_detail(coarse, guides, scale, window_px=7, ridge=1e-9)
    torch.testing.assert_close(sharp, truth, atol=1e-4, rtol=0)
    assert (up - truth).abs().max() > 0.05


def test_flat_ground_gets_no_detail_from_a_busy_guide():
    """Without anything to learn from, the ridge keeps slopes near zero."""
    guides = torch.full((1, 3, 16, 16), 0.2)
    guides[:, :, 8, 8] = 0.4
    detail = regression_detail(torch.full((1, 2, 8, 8), 0.1), guides, 2, window_px=3, ridge=1e-6)
    assert detail.abs().max() < 1e-6


def test_reach_is_finite():
    generator = torch.Generator().manual_seed(1)
    ms = {10: torch.rand(1, 4, 72, 72, generator=generator), 20: torch.rand(1, 6, 36, 36, generator=generator)}
    rgb = torch.rand(1, 3, 288, 288, generator=generator)
    system = fusion(scrambled=True)
    present = ("B08", *BANDS_20M)
    before = system.predict(rgb, ms, present)
    changed = {10: ms[10].clone(), 20: ms[20]}
    changed[10][:, :, 2, 2] += 0.5
    moved = (system.predict(rgb, changed, present) != before).any(1)[0].nonzero()
    assert 0 < moved.max() < 4 * (40 + REACH_PX)


def test_bundle_round_trip(tmp_path):
    rgb, ms = constant_inputs()
    system = fusion(scrambled=True)
    save_bundle(tmp_path / "f.safetensors", system.bundle, system.network.state_dict())
    loaded = LiteFusion.from_bundle(load_bundle(tmp_path / "f.safetensors"))
    assert torch.equal(loaded.predict(rgb, ms, OUT_BANDS), system.predict(rgb, ms, OUT_BANDS))


def test_detail_stays_within_what_the_band_shows_nearby():
    """A guide that varies far more at the fine scale than at the coarse one must not carry the band along."""
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(1, 1, 8, 8, generator=generator)
    guides = torch.nn.functional.interpolate(low, scale_factor=4, mode="nearest")
    guides = guides + 50 * (torch.rand(guides.shape, generator=generator) - 0.5)
    bands = 0.01 * torch.nn.functional.avg_pool2d(guides, 4) + 0.1
    free = regression_detail(bands, guides, 4, window_px=7, ridge=1e-8)
    held = regression_detail(bands, guides, 4, window_px=7, ridge=1e-8, limit=3.0)
    spread = bands.std()
    assert free.abs().max() > 3.5 * spread
    assert held.abs().max() < 5 * spread
    assert held.abs().max() < free.abs().max()
    inside = free.abs() < 1.0 * spread
    torch.testing.assert_close(held[inside], free[inside])
