"""SPAN networks, low-pass constraints, and Fusion X2 and X4 with networks of ours."""

import pytest
import torch
from torch.nn import functional

from pipeline.models import low_pass
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.lite_fusion import GUIDES
from pipeline.models.span import Conv3XC, Span
from pipeline.models.span_fusion import (
    ARCHITECTURE,
    CONSTRAINTS,
    LATTICES,
    NORMALISATION,
    SCALES,
    X2,
    X4,
    SpanFusion,
    chained,
    estimate,
    fusion_bundle,
    network,
)

SMALL = {**ARCHITECTURE, "features": 8, "blocks": 2}


def images(seed=0, side=12, scale=2):
    """Six bands and a guide that share their structure."""
    generator = torch.Generator().manual_seed(seed)
    ground = 0.1 + 0.4 * torch.rand(1, 10, side * scale, side * scale, generator=generator)
    ground = functional.avg_pool2d(ground, 3, 1, 1) + 0.3 * ground[:, :1]
    return functional.avg_pool2d(ground[:, :6], scale), ground[:, 6:]


def learned(span, seed=1, size=0.05):
    """Give every parameter a value, the zero ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in span.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return span.requires_grad_(False)


def fusion(kind, seed=1):
    bundle = fusion_bundle(kind, SMALL)
    return SpanFusion(learned(network(SMALL, NORMALISATION), seed), bundle)


def test_the_folded_kernel_is_the_row_of_convolutions_with_padded_input():
    torch.manual_seed(0)
    conv, x = Conv3XC(5, 7), torch.rand(2, 5, 9, 11)
    with torch.no_grad():
        row = conv.conv(functional.pad(x, (1, 1, 1, 1))) + conv.sk(x)
        torch.testing.assert_close(conv(x), row, atol=1e-6, rtol=1e-5)


def test_our_graph_starts_as_its_base_and_learns_in_every_block():
    torch.manual_seed(0)
    span = network(SMALL, NORMALISATION)
    six, guide = images()
    fine = estimate(span, six, guide, NORMALISATION)
    assert span(torch.rand(1, 20, 8, 8)).abs().max() == 0
    torch.nn.init.normal_(span.exit.weight, std=0.1)
    (estimate(span, six, guide, NORMALISATION) - fine.detach() - 0.1).square().mean().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in span.parameters())


@pytest.mark.parametrize("scale", [2, 4])
def test_a_band_that_follows_the_guide_is_found_exactly(scale):
    torch.manual_seed(0)
    guide = images(0, 24, scale)[1]
    truth = 0.05 + guide[:, [3, 3, 3, 3, 0, 2]] * 0.8
    exact = {**NORMALISATION, "ridge": 1e-9, "detail_limit": 9.0}
    fine = estimate(network(SMALL, exact), functional.avg_pool2d(truth, scale), guide, exact)
    inside = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    torch.testing.assert_close(fine[inside], truth[inside], atol=1e-4, rtol=0)


def test_a_thin_line_on_even_ground_keeps_most_of_its_contrast():
    """It stands out from the coarse bands by little, which limits detail; half the limit would keep half of it."""
    guide = torch.full((1, 4, 96, 96), 0.2)
    guide[..., 48] = 0.4
    truth = 0.05 + guide[:, [3] * 6] * 0.8
    fine = estimate(network(SMALL, NORMALISATION), functional.avg_pool2d(truth, 4), guide, NORMALISATION)
    shown = fine[..., 48, 48] - fine[..., 48, 70]
    assert (shown / (0.8 * 0.2)).min() > 0.7


def test_an_unknown_graph_is_refused():
    with pytest.raises(ValueError, match="expected one of published, chained"):
        Span(graph="star")


@pytest.mark.parametrize("graph", ["published", "chained"])
def test_reach_of_the_network_is_that_of_its_convolutions(graph):
    torch.manual_seed(0)
    span = learned(Span(4, 3, features=6, blocks=2, graph=graph))
    x = torch.rand(1, 4, 40, 40)
    changed = x.clone()
    changed[..., 20, 20] += 1
    moved = (span(changed) - span(x)).abs().amax((0, 1)).nonzero()
    far = int((moved - 20).abs().max())
    convolutions = 1 + 3 * (2 if graph == "chained" else 1) + 1 + 1  # entry, blocks, conv_2, exit
    assert 3 < far <= convolutions


@pytest.mark.parametrize("scale", [2, 4])
def test_block_means_become_those_of_the_coarse_image(scale):
    coarse, fine = images(0, 16, scale)[0], images(3, 16, scale)[0]
    fine = functional.interpolate(fine, scale_factor=scale)
    kept = low_pass.by_block_means(fine, coarse, scale)
    before, after = (functional.avg_pool2d(image, scale) - coarse for image in (fine, kept))
    assert after.square().mean() < 0.03**2 * before.square().mean()


@pytest.mark.parametrize("scale", [2, 4])
def test_smoothed_means_correct_what_is_wide_and_leave_what_alternates(scale):
    coarse = torch.full((1, 2, 12, 12), 0.2)
    fine = torch.full((1, 2, 12 * scale, 12 * scale), 0.3)
    torch.testing.assert_close(low_pass.by_smoothed_means(fine, coarse, scale), fine - 0.1)
    sign = functional.interpolate(torch.tensor([1.0, -1.0]).repeat(6).expand(1, 2, 12, 12), scale_factor=scale)
    inside = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    torch.testing.assert_close(
        low_pass.by_smoothed_means(0.2 + 0.1 * sign, coarse, scale)[inside], (0.2 + 0.1 * sign)[inside]
    )


def test_a_mask_wraps_around_the_window_and_block_means_do_not():
    coarse = torch.full((1, 1, 16, 16), 0.2)
    fine = torch.full((1, 1, 32, 32), 0.2)
    fine[..., 16, 31] = 0.6
    wrapped = CONSTRAINTS["ideal"](fine, coarse, 2, "bilinear")
    assert (wrapped[..., :4] - 0.2).abs().max() > 1e-3
    for ours in ("smoothed means", "block means"):
        kept = CONSTRAINTS[ours](fine, coarse, 2, "bilinear")
        assert torch.equal(kept[..., :4], fine[..., :4])
        assert (kept - fine).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [X2, X4])
def test_a_bundle_predicts_reflectance_as_its_network(kind, tmp_path):
    torch.manual_seed(0)
    made, scale = fusion(kind), SCALES[kind]
    save_bundle(tmp_path / "a.safetensors", made.bundle, made.network.state_dict())
    read = SpanFusion.from_bundle(load_bundle(tmp_path / "a.safetensors")).to(torch.device("cpu"))
    six, guide = images(0, 12, scale)
    fine = read.predict(six, guide)
    torch.testing.assert_close(fine, made.predict(six, guide))
    assert fine.shape == (1, 6, 12 * scale, 12 * scale)
    rest = functional.avg_pool2d(functional.avg_pool2d(fine, scale) - six, 4)
    assert rest.abs().max() < 0.005
    assert not torch.equal(fine, read.predict(six, guide.flip(1)))
    with pytest.raises(ValueError, match=f"expected x{scale}"):
        read.predict(six, guide[..., 1:])


def test_the_bundle_decides_the_order_of_the_guide():
    six, guide = images()
    bundle = fusion_bundle(X2, {**SMALL, "graph": "published"}, published=True)
    assert bundle.in_bands[6:] == ("B02", "B03", "B04", "B08")
    span = learned(network(bundle.architecture, bundle.normalisation))
    ordered = guide[:, [GUIDES.index(band) for band in bundle.in_bands[6:]]]
    torch.testing.assert_close(
        SpanFusion(span, bundle).predict(six, guide), estimate(span, six, ordered, bundle.normalisation)
    )


def test_both_in_turn_give_bands_eight_times_finer():
    torch.manual_seed(0)
    x2, x4 = fusion(X2), fusion(X4)
    six, guide = images(0, 8, 2)
    fine = torch.rand(1, 4, 64, 64)
    found = chained(x2, x4, six, guide, fine)
    assert torch.equal(found, x4.predict(x2.predict(six, guide), fine))
    assert found.shape == (1, 6, 64, 64)


@pytest.mark.parametrize("kind", [X2, X4])
def test_lattices_cover_the_same_ground_in_whole_coarse_pixels(kind):
    spec, metres = LATTICES[kind], {X2: 10, X4: 2.5}[kind]
    assert spec.window_px == spec.stride_px + spec.ramp_px + 2 * spec.margin_px
    assert spec.window_px * metres == 1200
    coarse_px = {X2: 2, X4: 8}[kind]  # of 20 m
    assert (spec.margin_px + spec.ramp_px / 2) % coarse_px == spec.stride_px % coarse_px == 0


def test_flat_ground_stays_flat():
    """No pattern of the coarse grid, as sub-pixel convolutions leave."""
    torch.manual_seed(0)
    six, guide = torch.full((1, 6, 40, 40), 0.2), torch.full((1, 4, 160, 160), 0.3)
    inside = fusion(X4).predict(six, guide)[..., 48:-48, 48:-48]
    assert inside.amax((2, 3)).sub(inside.amin((2, 3))).max() < 1e-5
