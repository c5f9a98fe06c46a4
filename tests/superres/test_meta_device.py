"""Windows of every system on a device without memory: nothing they need stays on the CPU, and nothing waits for it.

The meta device knows shapes alone. An operation that mixes it with the CPU, computes on the CPU, or asks for a value
fails here; on a GPU it would stop the queue of kernels, or fail there only.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.bands import BAND_NAMES
from pipeline.grid.grid import Window
from pipeline.superres import layers
from pipeline.superres.layers import Layer
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.registry import known
from pipeline.superres.superres import blend
from tests.superres.every_system import CASES, STATE, Ones, finished_rasters, rasters, system_of

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


def resampled(image, size=None, scale_factor=None, **_):
    """What `interpolate` gives: one operation on a GPU, but hundreds of small ones on the meta device."""
    size = size if size is not None else [int(side * scale_factor) for side in image.shape[2:]]
    return image.new_empty((*image.shape[:2], *((size,) * 2 if isinstance(size, int) else size)))


QUICK = {"bicubic", "lite, mean"}  # the others take more than three seconds
# Finer layers have exact block means, whose blocks at the ends of the range are settled on the host.
WITHOUT_FINER = {"bicubic", "lite", "difffusr", "ldsr"}
SENSOR = {"bicubic", "lite"}  # what it sees is corrected in the same way for all systems, over many more windows


def test_every_system_is_among_the_cases():
    assert {name for name, *_ in CASES.values()} == {*known()}


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_windows_run_on_the_device_alone(case, weights_of_every_system, monkeypatch):
    """Blending, and what is made of it up to what is stored: a layer is fetched once, at the end."""
    name, _, _, members = CASES[case]
    system = system_of(case, weights_of_every_system, META)
    fetched = []
    monkeypatch.setattr(functional, "interpolate", resampled)

    def fetch(made):
        assert all(one.device == META for one in made if isinstance(one, torch.Tensor))
        fetched.append(made)
        blank = np.zeros(made.quality.shape, np.uint8)
        return Layer(made.bands, np.zeros(made.dn.shape, np.uint16), blank, None)

    monkeypatch.setattr(layers, "landed", fetch)
    settings = Options(members=members, consistency="sensor" if name in SENSOR else "tent")
    for of in passes_of(system.stages, BAND_NAMES):
        area = AREA.snap_out(of.source_px)
        read = of.read_window(area.pad(of.reach_px(settings)))
        native = finished_rasters(read, of.source_px, of.natives) if of.source_gsd_m else rasters(read)
        with OnDevice() as watched:
            found = blend(native, area, system, BAND_NAMES, settings, lambda _: STATE, number=of.number, maps=Ones())
            if name in WITHOUT_FINER:
                found.finish(area)
        assert found.windows
        assert watched.count > 10
        held = [tile for canvas in found.canvases.by_gsd.values() for tile in canvas.image.held]
        assert {tile.device for tile in held} == {META}
        assert len(fetched) == len(found.canvases.by_gsd) * (name in WITHOUT_FINER)
        if fetched:
            assert (fetched[0].spread is not None) == (members > 1)
        fetched.clear()


def test_resampled_has_the_shape_of_interpolate_and_its_device():
    image = torch.zeros((2, 3, 6, 9))
    for given in ({"size": (12, 18)}, {"size": 24}, {"scale_factor": 4}, {"scale_factor": 1 / 3}):
        expected = functional.interpolate(image, **given).shape
        assert resampled(image, mode="bicubic", align_corners=False, **given).shape == expected
    assert resampled(image.to(META), size=12).device == META
    with OnDevice(), pytest.raises(AssertionError, match="new_empty of tensors on cpu"):
        resampled(image, scale_factor=4)


@pytest.mark.parametrize(
    ("careless", "error", "said"),
    [
        (lambda image: image + torch.zeros(1), AssertionError, "zeros of tensors on cpu"),
        (lambda image: image + torch.ones(2).sum().to(image.device), AssertionError, "ones of tensors on cpu"),
        (lambda image: image * float(image.mean()), RuntimeError, "cannot be called on meta tensors"),
        (lambda image: image[image > 0.5], NotImplementedError, "nonzero"),
    ],
)
def test_carelessness_is_found(careless, error, said):
    with OnDevice(), pytest.raises(error, match=said):
        careless(torch.zeros((2, 2), device=META))
