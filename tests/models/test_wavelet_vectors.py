"""Every reference vector of the wavelet cascade, in float64 to 1e-12 and in float32 to 1e-5."""

import pytest
import torch

from pipeline.models import cross_scale
from pipeline.models.diffusion import timesteps
from pipeline.models.wavelet import (
    HaarBands,
    from_details,
    haar,
    inverse_haar,
    low_pass,
    noised,
    projected,
    twice,
)
from pipeline.models.wavelet_diffusion import (
    detail_sample,
    gaussian_epsilon,
    linear_alpha_bar,
    reverse_diffusion,
    towards,
)
from tests.models.wavelet_vectors import DTYPES, read, ruled

pytestmark = pytest.mark.shared_data


@pytest.fixture(params=DTYPES, ids=str)
def vectors(request, shared_data):
    return read(shared_data, request.param)


def test_haar(vectors):
    image = vectors("dwt_x")
    bands = haar(image)
    for name in "AHVD":
        vectors.reproduced(f"dwt_{name}", getattr(bands, name), batch=False)
    vectors.reproduced("dwt_x", inverse_haar(bands), batch=False)
    vectors.reproduced("dwt2_A", haar(bands.A).A, batch=False)
    unit = torch.eye(4, dtype=vectors.dtype).reshape(4, 1, 2, 2)
    vectors.reproduced("dwt_impulse", torch.stack(list(haar(unit)), -1).reshape(4, 4), batch=False)


def test_haar_of_odd_sides(vectors):
    image = vectors("dwt_odd_x")
    bands = haar(image)
    vectors.reproduced("dwt_odd_A", bands.A, batch=False)
    vectors.reproduced("dwt_odd_V", bands.V, batch=False)
    vectors.reproduced("dwt_odd_x", inverse_haar(bands, (7, 9)), batch=False)


@pytest.mark.parametrize("block_px", [1, 2, 4])
@pytest.mark.parametrize("alpha_bar", [0.25, 1.0])
def test_projection(vectors, block_px, alpha_bar):
    target = noised(vectors("proj_tau"), alpha_bar, vectors("proj_z"))
    found = projected(vectors("proj_A_prime"), target, block_px)
    vectors.reproduced(f"proj_N{block_px}_abar{alpha_bar:g}", found, batch=False)


def test_schedule_and_exact_score(vectors):
    alpha_bar = linear_alpha_bar()
    vectors.reproduced("lf_alphas_cumprod", torch.from_numpy(alpha_bar).to(vectors.dtype), batch=False)
    assert timesteps(10, spacing="published") == vectors("lf_timesteps").int().tolist()
    epsilon = gaussian_epsilon(vectors("lf_m"), vectors("lf_v"), alpha_bar)
    vectors.reproduced("lf_eps_at_x_T", epsilon(vectors("lf_x_T"), 900), batch=False)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("block_px", [0, 2, 4])
def test_low_frequencies_by_reverse_diffusion(vectors, eta, block_px):
    alpha_bar, grid, tau = linear_alpha_bar(), timesteps(10, spacing="published"), vectors("lf_tau")
    project = towards(tau, block_px, vectors("lf_proj_noise").__getitem__)
    states = []

    def keeping(x, k, level):
        states.append(project(x, k, level))
        return states[-1]

    found = reverse_diffusion(
        gaussian_epsilon(vectors("lf_m"), vectors("lf_v"), alpha_bar),
        vectors("lf_x_T"),
        grid,
        alpha_bar,
        eta,
        vectors("lf_step_noise").__getitem__,
        keeping,
    )
    vectors.reproduced(f"lf_eta{eta}_N{block_px}_final", found, batch=False)
    if block_px:
        torch.testing.assert_close(low_pass(found, block_px), low_pass(tau, block_px))
    if (eta, block_px) == (1, 4):
        vectors.reproduced("lf_eta1_N4_all", torch.stack(states), batch=False)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_cascade_without_a_network(vectors, mode):
    image = vectors.one("cas_I")
    vectors.reproduced(f"cas_up2_{mode}", twice(image, mode))
    bands = haar(twice(image, mode))
    for name in "HVD":
        vectors.reproduced(f"cas_{mode}_{name}", getattr(bands, name))
    for scale, every in ((2, 1), (4, 1), (8, 2), (16, 4)):
        image = from_details(2 * image, haar(twice(image, mode)).details())
        vectors.reproduced(f"cas_{mode}_x{scale}", image[..., ::every, ::every])
    ramp = torch.linspace(-1, 1, image.numel(), dtype=torch.float64)
    y = image.double().flatten()
    stats = torch.stack([y.mean(), y.std(correction=0), y.min(), y.max(), (y * ramp).sum()])
    key = f"cas_{mode}_x16_stats"
    vectors.reproduced(key, stats.to(vectors.dtype), batch=False)
    if vectors.dtype == torch.float64:
        assert (stats - torch.from_numpy(vectors.file[key])).abs().max() <= 1e-12


def test_high_frequency_noise(vectors):
    details, (r, sigma) = vectors("hf_vhd"), vectors.file["hf_r_sigma"].tolist()
    vectors.reproduced("hf_mean", twice(details, "bilinear"), batch=False)
    found = detail_sample(lambda x: twice(x, "bilinear"), details, r, vectors("hf_z1"), sigma, vectors("hf_z2"))
    vectors.reproduced("hf_sample", found, batch=False)


def test_literal_reading(vectors):
    coarse = haar(vectors.one("cas_I"))
    tau = twice(coarse.A)
    vectors.reproduced("lit_tau", tau)
    vectors.reproduced("lit_I_S", from_details(tau, twice(coarse.details())))


def test_encoder_restoration_and_level(vectors):
    image, reference = vectors.one("csp_x_lr"), vectors.one("csp_x_ref")
    encoder = ruled(cross_scale.CspEncoder(4, 24, heads=12), "csp").to(vectors.dtype)
    restoration = ruled(cross_scale.DetailRestoration(4, 24, heads=8), "cshr").to(vectors.dtype)
    with torch.inference_mode():
        vectors.reproduced("csp_tau", encoder(image, reference))
        bands, ref = haar(image), haar(vectors.one("cshr_ref_image"))
        details = restoration((bands.V, bands.H, bands.D), (ref.V, ref.H, ref.D))
    v, h, d = details.chunk(3, 1)
    for name, found in (("V", v), ("H", h), ("D", d)):
        vectors.reproduced(f"cshr_{name}", found)
    vectors.reproduced("level_I_S", inverse_haar(HaarBands(2 * image, h, v, d)))
