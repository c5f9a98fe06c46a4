"""DiffFuSR's networks: against the authors' numbers where the vectors are at hand, else on scaled-down networks."""

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.grid.lattice import Lattice
from pipeline.models import difffusr, difffusr_fusion, unet
from pipeline.models.bundle import BundleError, load_bundle, save_bundle
from pipeline.models.difffusr import DiffFuSR, difffusr_bundle, to_network, to_reflectance
from pipeline.models.difffusr_fusion import INPUTS, OUT_BANDS, DiffFuSRFusion, difffusr_fusion_bundle
from pipeline.models.rrdb import SpatialEncoder
from tests.models.small import DIFFFUSR as SMALL

SMALL_FUSION = {"channels": 8, "growth": 4, "blocks": 1}
FOUR_STEPS = {"name": "ddim", "steps": 4, "spacing": "trailing"}
TOLERANCE = 1e-4  # of a reference array's standard deviation


def ruled(shapes):
    """Weights by the rule of the reference vectors, for {tensor name: shape}."""
    weights = {}
    for name, shape in shapes.items():
        z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        if name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif name.endswith("running_mean"):
            z = 0.1 * z
        elif len(shape) >= 2:
            z = z / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.05 * z
        weights[name] = torch.from_numpy(np.asarray(z, np.float32))
    return weights


def shapes_of(network):
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def loaded(system, bundle, shapes, folder):
    """The system as a user gets it: weights written to a bundle, read back, the file removed."""
    path = folder / "weights.safetensors"
    save_bundle(path, bundle, ruled(shapes))
    resolver = system.from_bundle(load_bundle(path))
    path.unlink()
    return resolver


@pytest.fixture
def small(tmp_path):
    bundle = difffusr_bundle(SMALL, sampler=FOUR_STEPS)
    return loaded(DiffFuSR, bundle, shapes_of(difffusr.Networks(**bundle.architecture)), tmp_path)


@pytest.fixture
def small_fusion(tmp_path):
    bundle = difffusr_fusion_bundle(SMALL_FUSION)
    return loaded(DiffFuSRFusion, bundle, shapes_of(difffusr_fusion.FusionNetworks(**bundle.architecture)), tmp_path)


def uniform(*shape, seed=3):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Noise:
    """A noise source that returns the same field every time and records what it was asked for."""

    def __init__(self, field):
        self.field, self.asked = field, []

    def __call__(self, step, channels):
        self.asked.append((step, channels))
        return self.field


def normal(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(resolver, lr, noise, state="own"):
    if state == "own":
        state = resolver.scene_state(lr)
    return resolver.sample(lr, noise(step=0, channels=3), state)


# --- the authors' numbers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(shared_data):
    """(tensor shapes, arrays) of the reference."""
    folder = shared_data / "reference_vectors"
    return (
        json.loads((folder / "difffusr_state_dict_shapes.json").read_text()),
        np.load(folder / "difffusr_reference_vectors.npz"),
    )


@pytest.fixture(scope="module")
def published(released, tmp_path_factory):
    return loaded(DiffFuSR, difffusr_bundle(), released[0]["sr"], tmp_path_factory.mktemp("sr"))


@pytest.fixture(scope="module")
def published_fusion(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    return loaded(DiffFuSRFusion, difffusr_fusion_bundle(), released[0]["fusion"], folder)


def assert_reproduced(found, name, arrays):
    expected = arrays[name]
    assert found.shape == expected.shape
    error = np.abs(found.numpy() - expected).max() / expected.std()
    assert error < TOLERANCE, f"{name}: {error:.1e} standard deviations off"


@pytest.mark.slow
@pytest.mark.shared_data
def test_tensor_names_and_shapes_are_the_released_ones(released):
    with torch.device("meta"):
        assert shapes_of(difffusr.Networks(**difffusr.ARCHITECTURE)) == released[0]["sr"]
        assert shapes_of(difffusr_fusion.FusionNetworks(**difffusr_fusion.ARCHITECTURE)) == released[0]["fusion"]


@pytest.mark.shared_data
@torch.inference_mode()
def test_networks_reproduce_the_reference(released, published):
    arrays, networks = released[1], published.networks
    lr, x_T, level = (torch.from_numpy(arrays[name]) for name in ("lr", "x_T", "noise_level"))
    features, vector = networks.encoder(lr), networks.degradation(lr)
    assert_reproduced(features, "encoder_features_u", arrays)
    assert_reproduced(networks.encoder.coarse(features), "encoder_coarse_hr", arrays)
    assert_reproduced(vector, "degradation_v", arrays)
    assert_reproduced(networks.E["encoder_q"].projection(vector), "degradation_projection", arrays)
    assert_reproduced(networks.ema(x_T, level, features, vector), "unet_x0", arrays)


@pytest.mark.slow
@pytest.mark.shared_data
def test_predict_reproduces_the_reference(released, published):
    arrays = released[1]
    lr = to_reflectance(torch.from_numpy(arrays["lr"]))
    noise = Noise(torch.from_numpy(arrays["x_T"]))
    sr = run(published, lr, noise, {"degradation": arrays["degradation_v"][0].tolist()})
    assert_reproduced(2 * sr - 1, "ddim20_x0", arrays)
    assert noise.asked == [(0, 3)]
    state = published.scene_state(lr)["degradation"]
    np.testing.assert_allclose(state, arrays["degradation_v"][0], atol=TOLERANCE * arrays["degradation_v"].std())


@pytest.mark.shared_data
@pytest.mark.parametrize("gsd", [10, 20, 60])
@torch.inference_mode()
def test_fusion_reproduces_the_reference(released, published_fusion, gsd):
    arrays = released[1]
    network = published_fusion.networks.get_submodule(difffusr_fusion.name_of(gsd))
    fused = network(torch.from_numpy(arrays["fusion_rgb"]), torch.from_numpy(arrays[f"fusion_ms_{gsd}"]))
    assert_reproduced(fused, f"fusion_out_{gsd}", arrays)


# --- super-resolution on a small network ----------------------------------------------------------------------------


def test_the_published_lattice_is_valid_for_the_network():
    bundle = difffusr_bundle(licence="as released", provenance={"from": "checkpoint"})
    Lattice(**vars(bundle.lattice))
    assert bundle.lattice.window_px % 32 == 0
    assert (bundle.system, bundle.scale, bundle.in_bands) == ("difffusr-sr", 4, ("B04", "B03", "B02"))
    assert (bundle.licence, bundle.provenance) == ("as released", {"from": "checkpoint"})


def test_predict_is_a_function_of_its_arguments(small):
    lr, noise = uniform(2, 3, 8, 16), Noise(normal(2, 3, 32, 64))
    first = run(small, lr, noise)
    assert first.shape == (2, 3, 32, 64)
    assert torch.equal(first, run(small, lr, noise))
    assert noise.asked == [(0, 3), (0, 3)]
    assert not torch.allclose(first, run(small, lr, Noise(normal(2, 3, 32, 64, seed=6))), atol=1e-3)
    assert not torch.allclose(first, run(small, lr.flip(1), noise, small.scene_state(lr)), atol=1e-3)


def test_windows_of_a_batch_do_not_mix(small):
    lr, field = uniform(3, 3, 8, 8), normal(3, 3, 32, 32)
    state = small.scene_state(lr)
    together = run(small, lr, Noise(field), state)
    alone = torch.cat([run(small, lr[i : i + 1], Noise(field[i : i + 1]), state) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("state", [None, {}, {"style": [1.0]}])
def test_the_scene_state_is_required(small, state):
    with pytest.raises(ValueError, match="scene_state"):
        run(small, uniform(1, 3, 8, 8), Noise(normal(1, 3, 32, 32)), state)


def test_the_scene_state_conditions_the_result(small):
    lr, noise = uniform(1, 3, 8, 8), Noise(normal(1, 3, 32, 32))
    own = small.scene_state(lr)
    other = {"degradation": [5.0 - v for v in own["degradation"]]}
    assert not torch.allclose(run(small, lr, noise, own), run(small, lr, noise, other), atol=1e-4)


def test_the_scene_state_is_the_mean_over_windows(small):
    windows = uniform(37, 3, 16, 16)
    state = small.scene_state(windows)
    assert json.loads(json.dumps(state)) == state
    with torch.inference_mode():
        vectors = torch.stack([small.networks.degradation(to_network(w[None]))[0] for w in windows])
    np.testing.assert_allclose(state["degradation"], vectors.mean(0), atol=1e-6)
    assert len(state["degradation"]) == 4 * SMALL["degradation_base"]


@pytest.mark.parametrize("windows", [torch.zeros(0, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan)])
def test_a_scene_state_of_nothing_is_refused(small, windows):
    with pytest.raises(ValueError, match="free of NaN"):
        small.scene_state(windows)


def test_reflectance_outside_0_to_1_saturates(small):
    lr, noise = uniform(1, 3, 8, 8) * 1.6 - 0.3, Noise(normal(1, 3, 32, 32))
    state = small.scene_state(uniform(1, 3, 8, 8))
    assert lr.min() < 0
    assert lr.max() > 1
    assert torch.equal(run(small, lr, noise, state), run(small, lr.clamp(0, 1), noise, state))


def test_published_spacing_returns_the_last_level_undenoised(tmp_path):
    shapes = shapes_of(difffusr.Networks(**difffusr_bundle(SMALL).architecture))
    published = {"name": "ddim", "steps": 20, "spacing": "published"}
    settings = (published, {**published, "denoise_last": False}, {**published, "denoise_last": True})
    lr, noise = uniform(1, 3, 16, 16), Noise(normal(1, 3, 64, 64))
    default, noisy, clean = (
        run(loaded(DiffFuSR, difffusr_bundle(SMALL, sampler=s), shapes, tmp_path), lr, noise) for s in settings
    )
    assert torch.equal(default, noisy)
    assert not torch.equal(noisy, clean)


def test_every_sampler_of_the_bundle_runs(tmp_path):
    shapes = shapes_of(difffusr.Networks(**difffusr_bundle(SMALL).architecture))
    lr, noise = uniform(1, 3, 8, 8), Noise(normal(1, 3, 32, 32))
    results = []
    for name in ("ddim", "dpm++2m"):
        bundle = difffusr_bundle(SMALL, sampler={**FOUR_STEPS, "name": name})
        results.append(run(loaded(DiffFuSR, bundle, shapes, tmp_path), lr, noise))
        assert results[-1].min() >= 0  # x0 is clamped to the network range
        assert results[-1].max() <= 1
    assert not torch.equal(*results)


@pytest.mark.parametrize("change", [{"normalisation": {"kind": "sqrt"}}, {"sampler": {"name": "euler", "steps": 4}}])
def test_a_bundle_of_another_kind_is_refused(change, tmp_path):
    bundle = replace(difffusr_bundle(SMALL), **change)
    with pytest.raises(BundleError, match="expected 'unit' and one of ddim"):
        loaded(DiffFuSR, bundle, shapes_of(difffusr.Networks(**bundle.architecture)), tmp_path)


def test_tensors_of_another_network_are_refused(tmp_path):
    other = difffusr.Networks(**{**difffusr.ARCHITECTURE, **SMALL, "mults": [1, 1]})
    with pytest.raises(BundleError, match="do not fit difffusr-sr"):
        loaded(DiffFuSR, difffusr_bundle(SMALL), shapes_of(other), tmp_path)


@pytest.mark.parametrize("size", [(48, 64), (64, 40)])
def test_windows_must_be_multiples_of_32_px(size):
    with torch.device("meta"):
        network = unet.UNet()
        inputs = torch.zeros(1, 3, *size), torch.zeros(1, 1), torch.zeros(1, 64, 12, 16), torch.zeros(1, 256)
        with pytest.raises(ValueError, match="multiples of 32 px"):
            network(*inputs)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_degradation_convolution_uses_each_samples_own_kernel():
    layer = unet.DaConv(4, 8)
    x, vector = normal(3, 4, 6, 5), normal(3, 8)
    expected = []
    for image, v in zip(x, vector, strict=True):
        kernel = layer.kernel(v).reshape(4, 1, 3, 3)
        depthwise = functional.conv2d(image[None], kernel, padding=1, groups=4)
        expected.append(functional.leaky_relu(depthwise, 0.1) + layer.conv(image[None]))
    torch.testing.assert_close(layer(x, vector), torch.cat(expected))


def test_attention_is_softmax_over_all_pixels():
    layer = unet.SelfAttention(8, 4)
    x = normal(2, 8, 3, 5)
    query, key, value = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(8), dim=-1)
    expected = torch.einsum("bqk,bck->bcq", weights, value).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + layer.out(expected))


def test_level_encoding_is_sines_then_cosines():
    encoded = unet.LevelEncoding(64)(torch.tensor([[0.7]]))[0]
    for i in (0, 1, 31):
        angle = 0.7 * 10 ** (-4 * i / 32)
        assert encoded[i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert encoded[32 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_second_norm_is_used_only_when_asked():
    plain, normed = (unet.NormDaConv(8, 4, groups=2, normalised=flag) for flag in (False, True))
    normed.load_state_dict(plain.state_dict())
    x, vector = normal(1, 8, 6, 6), normal(1, 4)
    torch.testing.assert_close(plain(x, vector), plain.da_conv(x, vector))
    torch.testing.assert_close(normed(x, vector), plain.da_conv(functional.silu(plain.block[0](x)), vector))


def test_the_spatial_encoder_has_a_finite_reach():
    encoder = SpatialEncoder(features := 3, 8, 4, blocks=1)
    lr = uniform(1, features, 24, 64)
    touched = lr.clone()
    touched[..., 0] += 1.0
    reach = 17  # conv_first 1, three dense blocks of five, conv_body 1
    changed = (encoder(lr) != encoder(touched)).any(1).any(1)[0]
    assert changed[:2].all()
    assert not changed[reach + 1 :].any()
    assert encoder.coarse(encoder(lr)).shape == (1, 3, 96, 256)


# --- fusion on a small network --------------------------------------------------------------------------------------

ALL = tuple(band for bands in INPUTS.values() for band in bands)


def natives(seed=7):
    sizes = {10: (12, 24), 20: (6, 12), 60: (2, 4)}
    return {gsd: uniform(2, len(INPUTS[gsd]), *sizes[gsd], seed=seed + gsd) for gsd in INPUTS}


def test_fusion_gives_the_nine_other_bands(small_fusion):
    rgb, ms = uniform(2, 3, 48, 96), natives()
    fused = small_fusion.predict(rgb, ms, ALL)
    assert OUT_BANDS == ("B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
    assert fused.shape == (2, 9, 48, 96)
    assert torch.equal(fused, small_fusion.predict(rgb, ms, ALL))
    alone = torch.cat(
        [small_fusion.predict(rgb[i : i + 1], {g: m[i : i + 1] for g, m in ms.items()}, ALL) for i in (0, 1)]
    )
    torch.testing.assert_close(fused, alone, rtol=0, atol=1e-5)


def test_fusion_in_z_scores_from_the_native_grids(small_fusion):
    rgb, ms = uniform(2, 3, 48, 96), natives()
    statistics = small_fusion.bundle.normalisation

    def scores(rho, bands, inverse=False):
        mean, sd = (torch.tensor([statistics[k][b] for b in bands])[:, None, None] for k in ("mean", "sd"))
        return rho * sd + mean if inverse else (rho - mean) / sd

    grown = [
        functional.interpolate(scores(ms[gsd], INPUTS[gsd]), size=(48, 96), mode="bilinear") for gsd in (10, 20, 60)
    ]
    guide, fused = scores(rgb, ("B04", "B03", "B02")), small_fusion.predict(rgb, ms, ALL)
    with torch.inference_mode():
        nets = small_fusion.networks
        near_infrared = scores(nets.rrdb_block_10_fusion(guide, grown[0]), INPUTS[10], inverse=True)[:, 3:]
        coarse = scores(nets.rrdb_block_60_fusion(guide, torch.cat(grown, 1)), INPUTS[60], inverse=True)
    torch.testing.assert_close(fused[:, :1], near_infrared)
    torch.testing.assert_close(fused[:, 7:], coarse)


def test_absent_bands_do_not_matter(small_fusion):
    rgb, ms = uniform(2, 3, 48, 96), natives()
    present = tuple(band for band in ALL if band not in ("B06", "B01", "B09"))
    fused = small_fusion.predict(rgb, ms, present)
    other = {gsd: raster.clone() for gsd, raster in ms.items()}
    other[20][:, 1] = 0.0
    other[60][:] = 3.0
    assert torch.equal(fused, small_fusion.predict(rgb, other, present))
    assert not fused[:, 7:].any()
    assert not torch.allclose(fused[:, 1], small_fusion.predict(rgb, ms, ALL)[:, 1], atol=1e-4)


def test_fusion_statistics_must_be_complete(tmp_path):
    bundle = difffusr_fusion_bundle(SMALL_FUSION)
    lacking = {k: v for k, v in bundle.normalisation["mean"].items() if k != "B09"}
    bundle = replace(bundle, normalisation={**bundle.normalisation, "mean": lacking})
    with pytest.raises(BundleError, match="B09"):
        loaded(DiffFuSRFusion, bundle, shapes_of(difffusr_fusion.FusionNetworks(**bundle.architecture)), tmp_path)
