"""Windows of every system on a device without memory: nothing they need stays on the CPU, and nothing waits for it.

The meta device knows shapes alone. An operation that mixes it with the CPU, computes on the CPU, or asks for a value
fails here; on a GPU it would stop the queue of kernels, or fail there only.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.bands import BAND_NAMES, bands_at
from pipeline.grid.finished_rasters import FinishedRasters
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters
from pipeline.models import difffusr, difffusr_fusion
from pipeline.models.bundle import LatticeSpec, load_bundle, load_tensors, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.superres import layers
from pipeline.superres.layers import Layer
from pipeline.superres.masks import QUALITY_GENERATED
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.registry import known, spec_of
from pipeline.superres.superres import blend
from pipeline.superres.system import built
from pipeline.superres.weights import bundles_of, choose
from tests.models.ldsr_small import write_all
from tests.models.sgdm_small import write_guidance, write_prior, write_style
from tests.models.small import write_lite
from tests.models.test_difffusr import FOUR_STEPS, SMALL, SMALL_FUSION, ruled, shapes_of
from tests.models.test_wavediffur import TINY

META = torch.device("meta")
AREA = Window(-79_992, 12_000, 48, 48)
ATEN = torch.ops.aten
_VIEWS = {ATEN.detach, ATEN.unsqueeze, ATEN.slice, ATEN.select, ATEN.alias, ATEN.lift_fresh, ATEN.view, ATEN.expand}
_UPLOADS = {ATEN._to_copy, ATEN.to, ATEN.copy_}


class OnDevice(TorchDispatchMode):
    """Raises where an operation touches a tensor on the CPU, but for views of arrays on their way to the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.count += 1
        where = {one.device.type for one in tree_leaves((args, kwargs, found)) if isinstance(one, torch.Tensor)}
        name = func.overloadpacket
        if "cpu" in where and not (name in _UPLOADS or (name in _VIEWS and where == {"cpu"})):
            raise AssertionError(f"{name} of tensors on {' and '.join(sorted(where))}")
        return found


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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small weights by role and name; everything runs in one or few windows."""
    folder = tmp_path_factory.mktemp("weights")
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
    "lite, draws": ("lite", ("sr", "fusion"), {}, 3),
    "difffusr": ("difffusr", ("sr", "fusion"), {}, 2),
    "ldsr": ("ldsr", ("sr", "fusion", "x2", "x4"), {}, 0),
    "ldsr, draws": ("ldsr", ("sr", "fusion", "x2", "x4"), {}, 2),
    "ldsr, ldm6": ("ldsr", ("sr", "fusion", "sr6", "x2"), {"bands20": "ldm6"}, 2),
    "ldsr, pipeline": ("ldsr", ("sr", "fusion"), {"bands20": "pipeline"}, 1),
    "wavediffur x2": ("wavediffur", ("sr", "fusion"), {"scale": 2}, 2),
    "wavediffur x16": ("wavediffur", ("sr", "fusion"), {"scale": 16}, 1),
    "sgdm": ("sgdm", ("sr", "prior", "fusion"), {}, 2),
}

# Finer layers have exact block means, whose blocks at the ends of the range are settled on the host.
WITHOUT_FINER = {"bicubic", "lite", "difffusr", "ldsr"}
SLOW = {"ldsr, draws", "ldsr, ldm6", "wavediffur x2", "wavediffur x16", "sgdm"}


def test_every_system_is_among_the_cases():
    assert {name for name, *_ in CASES.values()} == {*known()}


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_windows_run_on_the_device_alone(case, files, monkeypatch):
    """Blending, and what is made of it up to what is stored: a layer is fetched once, at the end."""
    name, roles, options, members = CASES[case]
    given = [f"{role}={files[name][role]}" for role in roles]
    choice = choose(name, given, {key: str(value) for key, value in options.items()})
    system = built(spec_of(name), bundles_of(choice), META, dict(choice.options))
    fetched = []

    def fetch(made):
        assert all(one.device == META for one in made if isinstance(one, torch.Tensor))
        fetched.append(made)
        blank = np.zeros(made.quality.shape, np.uint8)
        return Layer(made.bands, np.zeros(made.dn.shape, np.uint16), blank, None)

    monkeypatch.setattr(layers, "landed", fetch)
    settings = Options(members=members, consistency="sensor" if name in WITHOUT_FINER else "tent")
    state = {"degradation": [0.1] * 16, **dict.fromkeys(("style_mean", "style_deviation"), [0.1] * 8)}
    for of in passes_of(system.stages, BAND_NAMES):
        area = AREA.snap_out(of.source_px)
        read = of.read_window(area.pad(of.reach_px(settings)))
        native = finished_rasters(read, of.source_px, of.natives) if of.source_gsd_m else rasters(read)
        with OnDevice() as watched:
            found = blend(native, area, system, BAND_NAMES, settings, lambda _: state, number=of.number, maps=Ones())
            if name in WITHOUT_FINER:
                found.finish(area)
        assert found.windows
        assert watched.count > 10
        assert all(canvas.image.device == META for canvas in found.canvases.by_gsd.values())
        assert len(fetched) == len(found.canvases.by_gsd) * (name in WITHOUT_FINER)
        if fetched:
            assert (fetched[0].spread is not None) == (members > 1)
        fetched.clear()


@pytest.mark.parametrize(
    "careless",
    [
        lambda image: image + torch.zeros(1),
        lambda image: image + torch.ones(2).sum().to(image.device),
        lambda image: image * float(image.mean()),
        lambda image: image[image > 0.5],
    ],
)
def test_carelessness_is_found(careless):
    with OnDevice(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        careless(torch.zeros((2, 2), device=META))
