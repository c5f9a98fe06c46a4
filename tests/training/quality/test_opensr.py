"""OpenSR-test's seven numbers: against those of its package, and on images whose scores are known."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.quality import opensr
from training.quality.opensr import NAMES, Triplet, find_shift, match_histogram

GOLDEN = "reference_vectors/opensr_test_golden.json"
THEIR_NAMES = ("reflectance", "spectral", "spatial", "synthesis", "ha_metric", "om_metric", "im_metric")
# Their numbers are rounded to 1e-6. Where the estimate is shifted by part of a pixel ("nearest"), OpenCV's coordinates
# in float32 move images by 1e-6, which the shares feel as 2e-5.
ROUNDING = 6e-7
SHARES = 3e-5
DISTANCES = {
    "default_pixel_nd": opensr.fractional_difference,
    "patch1_nd": opensr.fractional_difference,  # with patches of one pixel the package falls back to pixels
    "pixel_l1": opensr.absolute_difference,
}


def smooth(seed, n, cells):
    """A field of `cells` random values a side, interpolated to n pixels."""
    g = np.random.default_rng(seed).uniform(0, 1, (cells, cells))
    c = (np.arange(n) + 0.5) / n * cells - 0.5
    i = np.clip(np.floor(c).astype(int), 0, cells - 2)
    f = np.clip(c - i, 0, 1)
    fx, fy = f[None, :], f[:, None]
    top = g[i][:, i] * (1 - fx) * (1 - fy) + g[i][:, i + 1] * fx * (1 - fy)
    return top + g[i + 1][:, i] * (1 - fx) * fy + g[i + 1][:, i + 1] * fx * fy


@pytest.fixture(scope="module")
def cases():
    """Input, truth, and the four estimates by name."""
    fine = [0.25 * smooth(10 + k, 256, 24) + 0.06 * smooth(20 + k, 256, 96) for k in range(3)]
    hr = np.stack([0.03 + band + 0.03 * (smooth(5, 256, 64) > 0.5) for band in fine])
    lr = hr.reshape(3, 64, 4, 64, 4).mean((2, 4))
    replicated = np.repeat(np.repeat(lr, 4, 1), 4, 2)
    estimates = {
        "nearest": replicated,
        "half_detail": replicated + 0.5 * (hr - replicated),
        "noisy": replicated + 0.02 * (np.stack([smooth(30 + k, 256, 128) for k in range(3)]) - 0.5),
        "shifted": np.roll(hr, 2, axis=2),
    }
    return tensor(lr), tensor(hr), {name: tensor(sr) for name, sr in estimates.items()}


def tensor(x):
    return torch.from_numpy(x.astype(np.float32))


@pytest.mark.shared_data
@pytest.mark.parametrize("setting", DISTANCES)
def test_numbers_are_those_of_the_package(cases, shared_data, setting):
    golden = json.loads((shared_data / GOLDEN).read_text())
    lr, hr, estimates = cases
    for case, sr in estimates.items():
        ours = opensr.opensr(lr, sr, hr, DISTANCES[setting])
        theirs = golden[f"{case}/{setting}"]
        for name, their_name in zip(NAMES, THEIR_NAMES, strict=True):
            loose = case == "nearest" and name in opensr.CORRECTNESS
            tolerance = SHARES if loose else ROUNDING
            assert ours[name] == pytest.approx(theirs[their_name], abs=tolerance), (case, name)


def test_truth_is_improvement_and_interpolation_omission(cases):
    lr, hr, _ = cases
    triplet = Triplet.of(lr, hr, hr)
    up = opensr.to_fine(triplet.lr, 4)
    truth = opensr.correctness(up, triplet.hr, triplet.hr, opensr.absolute_difference)
    nothing = opensr.correctness(up, up, triplet.hr, opensr.absolute_difference)
    assert max(truth, key=truth.get) == "improvement"
    assert max(nothing, key=nothing.get) == "omission"
    # scores of the truth: i = 0, o = 1, so 1, 1 and 0 before the softmin of temperature 0.25
    assert truth["improvement"] == pytest.approx(1 / (1 + 2 * math.exp(-4)), abs=1e-5)
    assert nothing["omission"] == pytest.approx(1 / (1 + 2 * math.exp(-4)), abs=1e-5)


def test_made_up_detail_is_hallucination(cases):
    lr, hr, _ = cases
    triplet = Triplet.of(lr, hr, hr)
    up = opensr.to_fine(triplet.lr, 4)
    noise = torch.randn(up.shape, generator=torch.Generator().manual_seed(0))
    shares = opensr.correctness(up, up + 0.3 * noise, triplet.hr, opensr.absolute_difference)
    assert max(shares, key=shares.get) == "hallucination"
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)


def test_an_image_of_its_input_is_consistent(cases):
    lr, _, _ = cases
    flat = torch.full((3, 256, 256), 0.2)
    found = Triplet.of(torch.full_like(lr, 0.2), flat, flat).consistency()
    assert found["reflectance"] == pytest.approx(0.0, abs=1e-7)
    assert found["spectral"] == pytest.approx(0.0, abs=0.05)  # float32 cosines near 1
    off = Triplet.of(torch.full_like(lr, 0.19), flat, flat).consistency()
    assert off["reflectance"] == pytest.approx(0.01, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(-80, 80), st.integers(-80, 80))
def test_shifts_are_found_to_a_twentieth_of_a_pixel(rows, columns):
    """A periodic image, shifted exactly by its transform, in steps of 0.05 px."""
    wanted = (rows / 20, columns / 20)
    image = smooth(0, 48, 24)
    image = (image + image[::-1] + image[:, ::-1] + image[::-1, ::-1]).astype(np.float32)  # meets itself at its edges
    fy, fx = np.fft.fftfreq(48)[:, None], np.fft.fftfreq(48)[None]
    turn = np.exp(2j * np.pi * (fy * wanted[0] + fx * wanted[1]))
    moved = np.fft.ifft2(np.fft.fft2(image) * turn).real.astype(np.float32)
    assert find_shift(image, moved) == pytest.approx(wanted, abs=0.05)


def test_shifts_beyond_five_pixels_are_no_measurement(cases):
    _, hr, _ = cases
    assert opensr.shift_between(torch.roll(hr, 3, 1), hr) == pytest.approx((-3, 0), abs=0.03)
    assert opensr.shift_between(torch.roll(hr, 7, 1), hr) is None
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    found = Triplet.of(lr, torch.roll(hr, 24, 2), hr).consistency()
    assert math.isnan(found["spatial"])
    values, why = opensr.explained({**found})
    assert values["spatial"] is None
    assert "above 5 LR px" in why["spatial"]
    assert opensr.explained({"spatial": 0.02}) == ({"spatial": 0.02}, {})


def test_harmonising_undoes_a_curve_and_a_shift(cases):
    _, hr, _ = cases
    distorted = torch.roll(0.1 + hr**2, 2, 2)
    before, after = (distorted - hr).abs().mean(), (opensr.harmonised(distorted, hr) - hr).abs().mean()
    assert after < 0.02 * before


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_matched_images_have_the_references_values_in_own_order(seed, rows, columns):
    rng = np.random.default_rng(seed)
    image, reference = (rng.random((rows, columns)).astype(np.float32) for _ in range(2))
    matched = match_histogram(image, reference)
    np.testing.assert_allclose(np.sort(matched, axis=None), np.sort(reference, axis=None), rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(matched, axis=None), np.argsort(image, axis=None))


def test_images_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="expected a whole scale"):
        Triplet.of(torch.zeros(3, 10, 10), torch.zeros(3, 45, 45), torch.zeros(3, 45, 45))
    with pytest.raises(ValueError, match="more than 32 px"):
        Triplet.of(torch.zeros(3, 8, 8), torch.zeros(3, 32, 32), torch.zeros(3, 32, 32))
