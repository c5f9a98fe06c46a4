"""Every system with weights small enough for a test, and rasters to run it on."""

from dataclasses import replace

import numpy as np

from pipeline.bands import bands_at
from pipeline.grid.finished_rasters import FinishedRasters
from pipeline.grid.native_rasters import NativeRasters
from pipeline.models import difffusr, difffusr_fusion
from pipeline.models.bundle import LatticeSpec, load_bundle, load_tensors, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.superres.masks import QUALITY_GENERATED
from pipeline.superres.registry import spec_of
from pipeline.superres.system import built
from pipeline.superres.weights import bundles_of, choose
from tests.models.ldsr_small import write_all
from tests.models.sgdm_small import write_guidance, write_prior, write_style
from tests.models.small import write_lite
from tests.models.test_difffusr import FOUR_STEPS, SMALL, SMALL_FUSION, ruled, shapes_of
from tests.models.test_wavediffur import TINY

STATE = {"degradation": [0.1] * 16, **dict.fromkeys(("style_mean", "style_deviation"), [0.1] * 8)}  # of any scene


def rasters(window, clouds=True):
    """Random DN, half of the ground below a cloud, and one corner without data."""
    rng = np.random.default_rng(0)
    dn = {gsd: rng.integers(1500, 4000, (len(bands_at(gsd)), *window.coarsen(round(gsd / 2.5)).shape), np.uint16)
          for gsd in (10, 20, 60)}  # fmt: skip
    dn[10][:, :3, :3] = 0
    scl = np.full(window.coarsen(8).shape, 4, np.uint8)
    scl[:, : scl.shape[1] // 2] = 9 if clouds else 4
    return NativeRasters(window, dn, {gsd: bands_at(gsd) for gsd in dn}, scl)


def finished_rasters(window, factor, bands):
    shape = window.coarsen(factor).shape
    dn = np.random.default_rng(0).integers(1500, 4000, (len(bands), *shape), np.uint16)
    return FinishedRasters(window, factor, bands, dn, np.full(shape, QUALITY_GENERATED, np.uint8))


class Ones:
    """A map that is there everywhere."""

    def over(self, condition, channels, window, gsd_m):
        return np.ones((len(channels), *window.shape), np.float32)


def relaid(path, lattice):
    bundle = load_bundle(path)
    save_bundle(path, replace(bundle, lattice=lattice), load_tensors(bundle))
    return path


def write_every(folder):
    """Small weights by role and system; everything runs in one or few windows."""
    sr, fusion = write_lite(folder)
    degraded = replace(
        difffusr.difffusr_bundle(SMALL, sampler=FOUR_STEPS, licence="test"), lattice=LatticeSpec(96, 48, 24, 12)
    )
    save_bundle(folder / "d.safetensors", degraded, ruled(shapes_of(difffusr.Networks(**degraded.architecture))))
    own = difffusr_fusion.difffusr_fusion_bundle(SMALL_FUSION)
    networks = difffusr_fusion.FusionNetworks(**own.architecture)
    save_bundle(folder / "f.safetensors", own, ruled(shapes_of(networks)))
    wavelets = replace(wavediffur_bundle(TINY), lattice=LatticeSpec(192, 128, 32, 16))
    save_bundle(folder / "w.safetensors", wavelets, WaveletNetwork(**TINY, bands=len(wavelets.in_bands)).state_dict())
    latent = write_all(folder)
    guided = {
        "sr": relaid(write_guidance(folder, steps=2), LatticeSpec(192, 160, 16, 8)),
        "prior": write_prior(folder),
        "style": write_style(folder),
    }
    return {
        "lite": {"sr": sr, "fusion": fusion},
        "difffusr": {"sr": folder / "d.safetensors", "fusion": folder / "f.safetensors"},
        "wavediffur": {"sr": folder / "w.safetensors", "fusion": fusion},
        "ldsr": {**latent, "fusion": fusion},
        "sgdm": {**guided, "fusion": fusion},
    }


CASES = {
    "bicubic": ("bicubic", (), {}, 0),
    "lite, mean": ("lite", ("sr", "fusion"), {}, 0),
    "lite, draws": ("lite", ("sr", "fusion"), {}, 2),
    "difffusr": ("difffusr", ("sr", "fusion"), {}, 2),
    "ldsr": ("ldsr", ("sr", "fusion", "x2", "x4"), {}, 0),
    "ldsr, draws": ("ldsr", ("sr", "fusion", "x2", "x4"), {}, 2),
    "ldsr, ldm6": ("ldsr", ("sr", "fusion", "sr6", "x2"), {"bands20": "ldm6"}, 2),
    "ldsr, pipeline": ("ldsr", ("sr", "fusion"), {"bands20": "pipeline"}, 1),
    "wavediffur x2": ("wavediffur", ("sr", "fusion"), {"scale": 2}, 2),
    "wavediffur x16": ("wavediffur", ("sr", "fusion"), {"scale": 16}, 1),
    "sgdm": ("sgdm", ("sr", "prior", "fusion"), {}, 2),
}
SLOW = {"difffusr", "ldsr, draws", "ldsr, ldm6", "wavediffur x2", "wavediffur x16", "sgdm"}


def system_of(case, files, device):
    """The system of a case on a device, with small weights."""
    name, roles, options, _ = CASES[case]
    given = [f"{role}={files[name][role]}" for role in roles]
    choice = choose(name, given, {key: str(value) for key, value in options.items()})
    return built(spec_of(name), bundles_of(choice), device, dict(choice.options))
