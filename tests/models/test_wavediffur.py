"""A level of WaveDiffUR: hard consistency for any weights, chance from the caller only, bounded reach, bundles."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pipeline.models.bundle import BundleError, load_bundle, save_bundle
from pipeline.models.wavediffur import (
    BANDS,
    LATTICE,
    LevelOptions,
    WaveDiffUR,
    levels_of,
    wavediffur_bundle,
)
from pipeline.models.wavelet import from_details, haar, low_pass, twice
from pipeline.models.wavelet_network import (
    PAPER,
    SMALL,
    WaveletNetwork,
    reach_of_draws_px,
    reach_px,
)

TINY = {
    "csp_width": 8,
    "csp_heads": 2,
    "csp_blocks": 1,
    "detail_width": 8,
    "detail_heads": 2,
    "detail_blocks": 1,
    "score_widths": [4, 8],
    "score_blocks": 1,
    "score_heads": 2,
    "window": 4,
}
BAND_COUNT = len(BANDS)


class Noise:
    """Noise of an image of H x W px by draw, channels and grid; says which draws were asked for."""

    def __init__(self, height, width, seed=0, images=1):
        self.shape, self.seed, self.images, self.asked = (height, width), seed, images, []

    def __call__(self, draw, channels, coarser):
        self.asked.append((draw, channels, coarser))
        sides = [2 * side // coarser for side in self.shape]
        fields = []
        for k in range(self.images):
            generator = torch.Generator().manual_seed(1000 * self.seed + 10 * draw + coarser + 100_000 * k)
            fields.append(torch.randn(channels, *sides, generator=generator))
        return torch.stack(fields)


def scrambled(architecture=TINY, seed=0, size=0.2):
    network = WaveletNetwork(**architecture, bands=BAND_COUNT)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network.requires_grad_(False)


def system_of(network=None, **sampler):
    bundle = wavediffur_bundle(TINY, sampler={"steps": 2, **sampler})
    return WaveDiffUR(scrambled() if network is None else network, bundle)


def untrained(**sampler):
    torch.manual_seed(0)
    return system_of(WaveletNetwork(**TINY, bands=BAND_COUNT).requires_grad_(False), **sampler)


def reflectance(height, width, images=1, seed=0):
    return 0.4 * torch.rand(images, BAND_COUNT, height, width, generator=torch.Generator().manual_seed(seed))


def means(image, times):
    return functional.avg_pool2d(image, times)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (7, 9)])
def test_an_untrained_level_is_bicubic_made_consistent(height, width):
    image = 0.3 + reflectance(height, width, images=2)  # no detail takes it below zero
    up = twice(image)
    expected = up + (image - means(up, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(untrained().level(image), expected)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_every_level_of_a_cascade_keeps_the_means_of_its_input(draws, trained):
    system, image = system_of() if trained else untrained(), reflectance(4, 2)
    fine, scale = image, 1
    for level in range(7):
        noise = Noise(*fine.shape[-2:], seed=level) if draws else None
        finer = system.level(fine, noise)
        assert finer.isfinite().all()
        torch.testing.assert_close(means(finer, 2), fine, rtol=1e-5, atol=1e-5)
        fine, scale = finer, 2 * scale
        torch.testing.assert_close(means(fine, scale), image, rtol=0, atol=1e-5)
    assert scale == 128


@pytest.mark.parametrize("draws", [False, True])
def test_details_take_no_pixel_below_zero(draws):
    image = reflectance(12, 16)
    image[..., 8:] *= 0.002  # dark ground beside bright ground
    noise = Noise(12, 16) if draws else None
    network = scrambled()
    estimate = network.estimate(image)
    if not draws:
        assert from_details(estimate.target, estimate.details).min() < -0.01
    found = system_of(network).level(image, noise)
    torch.testing.assert_close(means(found, 2), image, rtol=0, atol=1e-5)
    assert found.min() > -1e-6
    literal = system_of(network, tau="literal").level(image, noise)
    assert literal.min() < -0.01


def test_scrambled_weights_change_the_image_all_the_same():
    image = reflectance(8, 8)
    assert (system_of().level(image) - untrained().level(image)).abs().max() > 0.01


def test_a_draw_follows_its_noise_only():
    system, image = system_of(), reflectance(8, 12)
    before = torch.get_rng_state()
    one, again, other = (system.level(image, Noise(8, 12, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3
    assert (one - system.level(image)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({}, {(0, 16, 2), (3, 4, 2)}),
        ({"low_pass_px": 0}, {(0, 16, 2)}),
        ({"low_pass_px": 0, "eta": 1.0}, {(0, 16, 2), (4, 16, 2)}),
        ({"low_pass_px": 2, "r": 0.1}, {(0, 16, 2), (3, 4, 2), (1, 12, 4), (2, 12, 2)}),
    ],
)
def test_every_draw_of_noise_has_a_number_of_its_own(sampler, expected):
    noise = Noise(8, 8)
    system_of(**sampler).level(reflectance(8, 8), noise)
    assert set(noise.asked) == expected
    assert len(noise.asked) == len(expected)


@pytest.mark.parametrize("draws", [False, True])
def test_a_wider_low_pass_keeps_wider_means_only(draws):
    system, image = system_of(low_pass_px=2), reflectance(8, 12)
    found = system.level(image, Noise(8, 12) if draws else None)
    torch.testing.assert_close(means(found, 4), means(image, 2))
    assert (means(found, 2) - image).abs().max() > 1e-3
    free = system.level(image, None, options=LevelOptions(steps=2, low_pass_px=0))
    assert (means(free, 4) - means(image, 2)).abs().max() > 1e-3


def test_the_literal_condition_is_that_of_the_papers_words():
    image = reflectance(8, 8)
    coarse = haar(image)
    expected = from_details(twice(coarse.A), twice(coarse.details()))
    torch.testing.assert_close(untrained(tau="literal").level(image), expected)
    found = system_of(tau="literal").level(image, Noise(8, 8))
    torch.testing.assert_close(haar(found).A, twice(coarse.A))


def test_noise_of_the_details_leaves_the_means():
    image = reflectance(8, 8)
    plain, noisy = (system_of(r=r, sigma=r).level(image, Noise(8, 8)) for r in (0.0, 0.3))
    assert (plain - noisy).abs().max() > 1e-3
    torch.testing.assert_close(means(noisy, 2), image, rtol=0, atol=1e-5)


def test_self_reference_is_no_reference():
    system, image = system_of(), reflectance(8, 8)
    alone = system.level(image)
    assert torch.equal(system.level(image, reference=twice(image)), alone)
    assert torch.equal(system.level(image, reference=torch.full((1, BAND_COUNT, 16, 16), torch.nan)), alone)


def test_a_reference_counts_where_it_is_known():
    system, image = system_of(), reflectance(64, 64)
    reference = reflectance(128, 128, seed=1)
    reference[..., 64:] = torch.nan
    moved = (system.level(image, reference=reference) - system.level(image)).abs().amax((0, 1, 2))
    assert (moved[:32] > 1e-4).all()
    assert (moved[64 + 2 * reach_px(TINY) :] == 0).all()


def test_odd_sides_and_references():
    system, image = system_of(), reflectance(7, 9)
    assert system.level(image, reference=reflectance(14, 18, seed=1)).shape == (1, BAND_COUNT, 14, 18)
    with pytest.raises(ValueError, match="even sides"):
        system.level(image, Noise(7, 9))
    with pytest.raises(ValueError, match="reference of shape"):
        system.level(image, reference=reflectance(7, 9))


def test_windows_of_a_batch_do_not_see_each_other():
    image, noise = reflectance(8, 8, images=2), Noise(8, 8, images=2)
    system = system_of()
    together = system.level(image, noise)
    alone = [system.level(image[k : k + 1], lambda *which, k=k: noise(*which)[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_the_estimates_see_a_bounded_neighbourhood():
    """A changed pixel moves nothing beyond the reach that the layers add up to, not even by rounding."""
    system, image = system_of(low_pass_px=0), reflectance(96, 96)
    changed = image.clone()
    changed[..., 48, 48] += 0.5
    moved = (system.level(image) != system.level(changed)).any(1)[0].nonzero() // 2 - 48
    assert reach_px(TINY) / 2 < moved.abs().max() <= reach_px(TINY)
    assert reach_px({**TINY, "window": None}) is None


def test_draws_see_a_bounded_neighbourhood():
    side = 2 * reach_of_draws_px(TINY, 1) + 20
    system, image, noise = system_of(steps=1), reflectance(side, side), Noise(side, side)
    changed, middle = image.clone(), side // 2
    changed[..., middle, middle] += 0.5
    moved = (system.level(image, noise) != system.level(changed, noise)).any(1)[0].nonzero() // 2 - middle
    assert reach_px(TINY) < moved.abs().max() <= reach_of_draws_px(TINY, 1)


def test_images_that_begin_at_nested_squares_agree():
    """A cut-out whose corner lies on a multiple of the squares gives what the whole does, away from its border."""
    system, image = system_of(), reflectance(96, 96)
    begin, reach = 16, reach_px(TINY)
    whole, part = system.level(image), system.level(image[..., begin:, begin:])
    torch.testing.assert_close(
        whole[..., 2 * (begin + reach) :, 2 * (begin + reach) :], part[..., 2 * reach :, 2 * reach :]
    )


def test_gradients_reach_every_parameter():
    network = scrambled().requires_grad_(True)
    image, truth = reflectance(8, 8), reflectance(16, 16, seed=1)
    estimate = network.estimate(image, reflectance(16, 16, seed=2))
    state = estimate.standardised(truth)
    timestep = torch.tensor([500])
    eps = network.score(state, timestep, estimate.condition)
    (estimate.image().square().mean() + eps.square().mean()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_states_are_residuals_in_units_of_their_spread():
    network, image, truth = scrambled(), reflectance(8, 8), reflectance(16, 16, seed=1)
    estimate = network.estimate(image)
    low, details = estimate.bands(estimate.standardised(truth))
    torch.testing.assert_close(from_details(low, details), truth, atol=1e-5, rtol=1e-5)
    assert not estimate.standardised(estimate.image()).abs().max() > 1e-3


def test_an_untrained_score_is_that_of_unit_noise():
    network = WaveletNetwork(**TINY, bands=BAND_COUNT)
    state = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    ab = network.score.alpha_bar[[10, 900]].float()[:, None, None, None]
    found = network.score(state, torch.tensor([10, 900]))
    torch.testing.assert_close(found, (1 - ab).sqrt() * state)


def test_the_score_without_a_condition_is_that_of_an_empty_one():
    score, state, t = scrambled().score, torch.ones(1, 16, 6, 10), torch.tensor([300])
    empty, given = torch.zeros(1, 20, 6, 10), torch.ones(1, 20, 6, 10)
    assert torch.equal(score(state, t), score(state, t, empty))
    assert not torch.equal(score(state, t), score(state, t, given))
    assert not torch.equal(score(state, t), score(state, torch.tensor([301])))


def test_bundle_round_trip_keeps_the_function(tmp_path):
    system, image = system_of(eta=0.5), reflectance(8, 8)
    save_bundle(tmp_path / "a.safetensors", system.bundle, system.network.state_dict())
    loaded = WaveDiffUR.from_bundle(load_bundle(tmp_path / "a.safetensors"))
    assert loaded.options == LevelOptions(steps=2, eta=0.5)
    assert torch.equal(loaded.level(image, Noise(8, 8)), system.level(image, Noise(8, 8)))
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_weights_of_another_size_are_refused(tmp_path):
    system = system_of()
    other = replace(system.bundle, architecture={**TINY, "detail_blocks": 2})
    save_bundle(tmp_path / "a.safetensors", other, system.network.state_dict())
    with pytest.raises(BundleError, match="missing"):
        WaveDiffUR.from_bundle(load_bundle(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("wrong", [{"name": "ddim"}, {"steps": 0}])
def test_a_sampler_of_another_system_is_refused(wrong):
    with pytest.raises(BundleError, match="settings steps, eta, low_pass_px"):
        system_of(**wrong)


def test_sizes():
    """The paper's count of table 5: T_theta 14.98 M, M 4.30 M, score 9.84 M. The small one fits into 10 MB."""
    with torch.device("meta"):
        paper, small = (WaveletNetwork(**{**sizes}, bands=3) for sizes in (PAPER, SMALL))
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in paper.named_children()}
    for name, expected in (("csp", 14.98e6), ("cshr", 4.30e6), ("score", 9.84e6)):
        assert count[name] == pytest.approx(expected, rel=0.05)
    assert 4 * sum(p.numel() for p in small.parameters()) < 10e6


def test_squares_of_attention_nest_in_the_lattice():
    """At the score network's lowest stride and on M's coarse grid, squares begin where windows do."""
    stride = 2 ** (len(SMALL["score_widths"]) - 1)
    square = 2 * max(2, stride) * SMALL["window"]
    assert LATTICE.window_px == LATTICE.stride_px + LATTICE.ramp_px + 2 * LATTICE.margin_px
    for side in (LATTICE.window_px, LATTICE.stride_px, LATTICE.margin_px + LATTICE.ramp_px // 2):
        assert side % square == 0


def test_levels_of_a_scale():
    assert [levels_of(scale) for scale in (2, 4, 16, 128)] == [1, 2, 4, 7]
    for scale in (1, 3, 0, 256):
        with pytest.raises(ValueError, match="expected 2, 4"):
            levels_of(scale)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 51}, {"eta": 1.1}, {"low_pass_px": 3}, {"tau": "exactly"}, {"r": -1.0}, {"sigma": -0.1}],
)
def test_senseless_options_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        LevelOptions(**wrong)


def test_low_pass_of_the_output_under_a_wide_projection():
    image = reflectance(6, 10)
    found = system_of(low_pass_px=4).level(image)
    torch.testing.assert_close(low_pass(means(found, 2), 4), low_pass(image, 4))


def test_a_mean_reverting_level_draws_too():
    network = scrambled({**TINY, "process": "ir-sde"})
    system = WaveDiffUR(network, wavediffur_bundle({**TINY, "process": "ir-sde"}, sampler={"steps": 4}))
    image = reflectance(8, 12)
    one, other = (system.level(image, Noise(8, 12, seed)) for seed in (0, 1))
    assert len(system.alpha_bar) == 100
    assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(means(one, 2), image, rtol=1e-5, atol=1e-5)
    assert (one - system_of().level(image, Noise(8, 12))).abs().max() > 1e-3
