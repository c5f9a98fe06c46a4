"""Every reference vector of latent diffusion, made by the authors' code with weights by rule."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.models import latent_sampler
from pipeline.models.bundle import load_bundle
from pipeline.models.latent import Moments, interpolated
from pipeline.models.latent_sampler import ddim, forward, sigmas, timesteps
from pipeline.models.ldsr import LDSR
from pipeline.models.ldsr_published import GAINS, published_bundle
from pipeline.models.ldsr_release import (
    Normalisation,
    _padded,
    finished,
    match_histograms,
    super_resolve,
    uncertainty,
)
from pipeline.superres import batches
from pipeline.superres.chain import groups_of
from pipeline.superres.declared import settled
from pipeline.superres.registry import spec_of
from pipeline.superres.system import System
from pipeline.superres.systems.ldsr import LatentDiffusion
from pipeline.superres.weights import SHIPPED
from pipeline.superres.windows import Draw, WindowInput, generated
from tests.models.ldsr_vectors import converted, published_shapes, read

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def vectors(shared_data):
    return read(shared_data)


@pytest.fixture(scope="module")
def network(shared_data, tmp_path_factory):
    """Full size, 169 M weights."""
    return converted(published_shapes(shared_data), tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def schedule(vectors):
    return (1 - vectors.file["betas"].astype(np.float64)).cumprod()


# --- without networks ------------------------------------------------------------------------------------------------


def test_schedules(vectors):
    betas = latent_sampler.betas()
    vectors.reproduced("betas", betas, 1e-6)
    vectors.reproduced("alphas_cumprod", latent_sampler.alpha_bar(betas), 1e-6)
    before = latent_sampler.betas(*latent_sampler.BETAS_BEFORE_1_0)
    vectors.reproduced("alphas_cumprod_pre_v1", latent_sampler.alpha_bar(before), 1e-6)


@pytest.mark.parametrize("steps", [10, 25, 50, 100])
def test_grids(vectors, steps):
    assert timesteps(steps) == vectors(f"ddim{steps}_timesteps").tolist()


def test_a_grid_that_the_release_does_not_hold_to_is_refused(vectors):
    assert len(vectors("ddim30_timesteps")) == 31, "the release takes one step more than it is asked for"
    with pytest.raises(ValueError, match="30 sampling steps do not divide 1000"):
        timesteps(30)


@pytest.mark.parametrize("steps", [10, 100])
def test_levels_and_drawn_noise_of_the_steps(vectors, schedule, steps):
    alphas = schedule[timesteps(steps)]
    previous = np.concatenate([schedule[:1], alphas[:-1]])
    vectors.reproduced(f"ddim{steps}_alphas", alphas, 1e-6)
    vectors.reproduced(f"ddim{steps}_alphas_prev", previous, 1e-6)
    vectors.reproduced(f"ddim{steps}_sigmas_eta095", sigmas(alphas, previous, 0.95), 1e-6)


def test_forward_process(vectors, schedule):
    alphas = torch.from_numpy(schedule)[vectors("unet_t")].float()[:, None, None, None]
    vectors.reproduced("q_sample", forward(vectors("unet_x"), alphas, vectors("q_noise")), 1e-6)


def test_interpolation(vectors):
    vectors.reproduced("cond_upsampled", interpolated(vectors("lr")), 1e-6)


def test_histogram_matching(vectors):
    found = match_histograms(vectors("hist_source"), vectors("hist_reference"))
    assert found.dtype == torch.float32
    vectors.reproduced("hist_matched", found, 1e-6)


def test_finish_of_a_call(vectors):
    decoded, coarse = vectors("run_eta095_decoded"), vectors("lr")
    vectors.reproduced("run_eta095_sr", finished(decoded, coarse), 1e-6)
    vectors.reproduced("run_eta095_sr_nomatch", finished(decoded, coarse, matching=False), 1e-6)


def test_normalisation_before_1_0(vectors):
    normalisation, image = Normalisation(GAINS[4]), vectors("norm_pre_v1_in")
    vectors.reproduced("norm_pre_v1_out", normalisation.to_network(image), 1e-6)
    vectors.reproduced("norm_pre_v1_input_after_call", normalisation.condition(image), 1e-6)
    vectors.reproduced("denorm_pre_v1_out", normalisation.to_reflectance(vectors("denorm_pre_v1_in")), 1e-6)
    sound = Normalisation(GAINS[4], as_released=False).condition(image)
    vectors.reproduced("norm_pre_v1_out", sound, 1e-6)


def test_uncertainty(vectors):
    vectors.reproduced("unc_map", uncertainty(vectors("unc_members")), 1e-6)


# --- with networks ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.inference_mode()
def test_networks_and_chains(network, vectors, schedule):
    _autoencoder(network, vectors)
    noise = network.unet(vectors("unet_x"), vectors("unet_cond"), vectors("unet_t"))
    vectors.reproduced("unet_eps", noise, 5e-6)
    vectors.reproduced("alphas_cumprod", network.alpha_bar(), 1e-6)
    _condition_and_chains(network, vectors)


def _autoencoder(network, vectors):
    moments = network.autoencoder.encode(vectors("ae_x"))
    vectors.reproduced("ae_moments", torch.cat([moments.mean, moments.log_variance], 1), 2e-5)
    vectors.reproduced("ae_mean", moments.mean, 2e-5)
    vectors.reproduced("ae_std", moments.spread, 2e-5)
    vectors.reproduced("ae_kl", moments.divergence(), 2e-5)
    latent = network.encode(vectors("ae_x"), vectors("ae_noise"))
    vectors.reproduced("ae_z", latent, 2e-5)
    vectors.reproduced("ae_decoded", network.decode(latent), 2e-5)
    vectors.reproduced("ae_decoded_mode", network.autoencoder(vectors("ae_x")), 2e-5)


def _condition_and_chains(network, vectors):
    fine = interpolated(vectors("lr"))
    vectors.reproduced("cond_mode", network.encode(fine), 2e-5)
    condition = network.encode(fine, vectors("cond_noise"))
    vectors.reproduced("cond", condition, 2e-5)
    grid = timesteps(5)
    assert grid[::-1] == vectors("run_timesteps").tolist()

    def run(eta, temperature=1.0):
        seen = []
        epsilon, drawn = network.noise(condition), vectors("step_noise").__getitem__
        x = ddim(
            epsilon,
            vectors("x_T"),
            network.alpha_bar(),
            grid,
            eta,
            drawn,
            temperature,
            seen=lambda *states: seen.append(states),
        )
        return x, *(torch.stack(states) for states in zip(*seen, strict=True))

    for eta, key in ((0.0, "run_eta0"), (0.95, "run_eta095")):
        last, x, x0 = run(eta)
        vectors.reproduced(f"{key}_x", x, 1e-5)
        vectors.reproduced(f"{key}_pred_x0", x0, 1e-5)
    decoded = network.decode(last)
    vectors.reproduced("run_eta095_decoded", decoded, 1e-5)
    vectors.reproduced("run_eta095_sr_nomatch", finished(decoded, vectors("lr"), matching=False), 1e-5)
    vectors.reproduced("run_eta095_sr", finished(decoded, vectors("lr")), 2e-3)
    vectors.reproduced("run_eta095_temp05_x_final", run(0.95, 0.5)[0], 1e-5)


def full_noise(vectors):
    """Noise of the full call: of the condition, the start and each step."""

    def noise(k):
        seed = int(vectors("fw_noise_seeds")[k])
        return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 4, 128, 128)).astype(np.float32))

    return noise


@pytest.mark.slow
def test_released_call(network, vectors):
    found = super_resolve(network, vectors("fw_lr"), full_noise(vectors), steps=2, eta=0.95)
    vectors.reproduced("fw_sr", found, 5e-3, mean=1e-6)


@pytest.mark.slow
def test_a_window_of_a_run_is_the_released_call_where_the_contract_is_off(network, vectors):
    """Through the stages of the system, with its options for what the release does."""
    bundle, noise = published_bundle(), full_noise(vectors)
    spec = spec_of("ldsr")
    given = {"bands20": "pipeline", "match": "histogram", "steps": 2}
    options = settled(spec.options, given, "ldsr")
    bundles = {"sr": bundle, "fusion": load_bundle(SHIPPED / "lite-fusion.safetensors")}
    stages = spec.stages(bundles, options)
    predictor = object.__new__(LatentDiffusion)
    predictor.resolvers, predictor.fusions = {"sr": LDSR(network, bundle)}, {}
    system = System("ldsr", stages, predictor, bundles, torch.device("cpu"), options)

    coarse = vectors("fw_lr")
    padded, (left, top) = _padded(coarse)
    group = groups_of(stages, bundle.out_bands)[0]
    context = group.context_px // 4  # around a window, for interpolation, which has no part in this
    natives = {band: functional.pad(padded[:, [i]], [context] * 4) for i, band in enumerate(bundle.out_bands)}
    window = WindowInput(natives, np.ones((128, 128), bool), None, group, system.device)
    in_order = {0: 1, 1: 0}  # the release draws the condition first
    draw = Draw(lambda stage: lambda step, channels, coarser: noise(in_order.get(step, step)), None, consistency="none")
    (made,) = batches.run([lambda: generated(window, system, group, draw, {}, {})], system, 1)
    found = torch.cat([made["sr", band] for band in bundle.out_bands], 1)
    h, w = (4 * side for side in coarse.shape[-2:])
    cut = found[..., 4 * top : 4 * top + h, 4 * left : 4 * left + w]
    measured = (coarse != 0).repeat_interleave(4, 2).repeat_interleave(4, 3)  # the release marks nodata by 0
    vectors.reproduced("fw_sr", cut * measured, 5e-3, mean=1e-6)


@pytest.mark.slow
@torch.inference_mode()
def test_six_bands(shared_data, vectors, tmp_path):
    network = converted(published_shapes(shared_data, 6), tmp_path)
    moments: Moments = network.autoencoder.encode(vectors("six_ae_x"))
    vectors.reproduced("six_ae_moments", torch.cat([moments.mean, moments.log_variance], 1), 2e-5)
    vectors.reproduced("six_ae_decoded_mode", network.autoencoder(vectors("six_ae_x")), 2e-5)
    noise = network.unet(vectors("six_unet_x"), vectors("six_unet_cond"), vectors("six_unet_t"))
    vectors.reproduced("six_unet_eps", noise, 5e-6)
