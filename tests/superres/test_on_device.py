"""What surrounds the networks, on tensors as on a GPU: the same bits as with arrays of NumPy."""

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.errors import PipelineError
from pipeline.grid import arrays
from pipeline.grid.arrays import divided, fetched_uint16, on_device
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.grid.native_rasters import NativeRasters
from pipeline.grid.sensor import correction, observed, sensor
from pipeline.superres.consistency import project_to_dn, round_to_dn
from pipeline.superres.contract import agreeing
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.spec import Input, Predictor, Stage
from pipeline.superres.superres import super_resolve
from pipeline.superres.system import System
from tests.superres.every_system import rasters
from tests.superres.fakes import CPU, cut_from, fake_system, plain_system

RNG = np.random.default_rng(0)
AREA = Window(-79_992, 12_000, 96, 144)
LATTICE = Lattice(144, 96, 24, 12)


def tensor(values):
    return torch.from_numpy(values)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors around the networks, on the CPU."""
    return lambda: monkeypatch.setattr(arrays, "takes_numpy", lambda _device: False)


@pytest.mark.parametrize("factor", [4, 8, 24])
class TestSteps:
    @pytest.mark.parametrize("scatter", [30, 4000])
    @pytest.mark.parametrize("to_dn", [project_to_dn, round_to_dn])
    def test_quantisation(self, factor, scatter, to_dn):
        """With nodata, and both ends of the range."""
        native = RNG.integers(0, 9000, (2, 240 // factor, 288 // factor)).astype(np.uint16)
        native[:, :2, :3], native[:, 3, 3], native[:, 4, :4] = 0, 65535, 1
        image = native.repeat(factor, 1).repeat(factor, 2) + RNG.normal(0, scatter, (2, 240, 288))
        image = image.astype(np.float32)
        one_by_one = np.stack([to_dn(a, b, factor) for a, b in zip(image, native, strict=True)])
        assert one_by_one.dtype == np.uint16
        assert np.array_equal(one_by_one == 0, (native == 0).repeat(factor, 1).repeat(factor, 2))
        found = to_dn(tensor(image), on_device(native, CPU), factor)
        assert found.dtype == torch.int32
        assert np.array_equal(fetched_uint16(found), one_by_one)

    def test_sensor(self, factor):
        of = sensor(0.25, factor)
        image = RNG.uniform(0, 9000, (480 + 2 * 14 * factor, 480 + 2 * 14 * factor)).astype(np.float32)
        seen = observed(image, of)
        assert np.array_equal(observed(tensor(image), of).numpy(), seen)
        lacking = RNG.normal(0, 20, seen.shape).astype(np.float32)
        assert np.array_equal(correction(tensor(lacking), of).numpy(), correction(lacking, of))


@pytest.mark.parametrize("void", [(), (Window(-30, 40, 100, 200),)])
@pytest.mark.parametrize("low", [0, 1500])
def test_agreement_of_several_bands_at_once(low, void):
    window, bands = Window(0, 0, 240, 480), [(0.2, 4), (0.25, 4), (0.3, 8), (0.25, 8), (0.3, 24)]
    area = window.pad(288)
    dn = [RNG.integers(low, 4000, area.coarsen(k).shape).astype(np.uint16) for _, k in bands]
    image = [
        one.repeat(k, 0).repeat(k, 1) + RNG.normal(0, 200, area.shape) for one, (_, k) in zip(dn, bands, strict=True)
    ]
    image = np.stack(image).astype(np.float32)
    placed = [on_device(one, CPU) for one in dn]

    def over(held):
        return lambda i, part: held[i][part.coarsen(bands[i][1]).slices(area.coarsen(bands[i][1]))]

    sensors = [*(sensor(mtf, k) for mtf, k in bands[:-1]), None]
    expected = agreeing(cut_from(image, area), window, sensors, over(dn), void)
    found = agreeing(cut_from(tensor(image), area), window, sensors, over(placed), void)
    assert expected.dtype == np.float32
    assert np.abs(expected[:-1] - image[(slice(-1), *window.slices(area))]).max() > 1
    assert np.array_equal(found.numpy(), expected)


def compared(as_on_a_gpu, native, area, system, options):
    """(with NumPy, with tensors)."""
    expected = super_resolve(native, area, system, BAND_NAMES, options)
    as_on_a_gpu()
    assert isinstance(arrays.blank((2, 2), CPU), torch.Tensor)
    found = super_resolve(native, area, system, BAND_NAMES, options)
    return expected, found


@pytest.mark.parametrize(("consistency", "members"), [("sensor", 1), ("sensor", 3), ("box", 1), ("tent", 2)])
def test_a_whole_area(as_on_a_gpu, consistency, members):
    """Clouds, nodata, draws, and bands of three resolutions."""
    options, system = Options(members=members, consistency=consistency), fake_system(lattice=LATTICE)
    of = passes_of(system.stages, BAND_NAMES)[0]
    native = rasters(of.read_window(AREA.pad(of.reach_px(options))))
    expected, found = compared(as_on_a_gpu, native, AREA, system, options)
    for one, other in ((expected.dn, found.dn), (expected.quality, found.quality), (expected.causes, found.causes)):
        assert isinstance(other, np.ndarray)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert len(np.unique(found.quality)) > 2
    if members > 1:
        assert found.spread.max() > 0
        assert np.array_equal(expected.spread, found.spread)


def test_ground_without_any_measurement(as_on_a_gpu):
    """Windows that hold nothing are void, and what they leave open is filled for the stages that read it."""
    options, system = Options(members=2), fake_system(lattice=LATTICE)
    of = passes_of(system.stages, BAND_NAMES)[0]
    native = rasters(of.read_window(AREA.pad(of.reach_px(options))), clouds=False)
    half = {gsd: dn.copy() for gsd, dn in native.dn.items()}
    for dn in half.values():
        dn[..., dn.shape[-1] // 2 :] = 0
    native = NativeRasters(native.window, half, native.bands, native.scl)
    expected, found = compared(as_on_a_gpu, native, AREA, system, options)
    assert 0 < (expected.dn == 0).mean() < 1
    assert np.array_equal(expected.dn, found.dn)


def test_interpolation(as_on_a_gpu):
    options, system = Options(), plain_system()
    of = passes_of(system.stages, BAND_NAMES)[0]
    native = rasters(of.read_window(AREA.pad(of.reach_px(options))))
    expected, found = compared(as_on_a_gpu, native, AREA, system, options)
    assert np.array_equal(expected.dn, found.dn)


class Broken(Predictor):
    def to(self, device):
        return self

    def predict(self, stage, given):
        image = torch.zeros((1, 1, 144, 144))
        image[..., 70, 70] = torch.nan
        return image


def test_values_that_are_not_finite_are_refused(as_on_a_gpu):
    stage = Stage("sr", (Input("red", ("B04",), 10),), ("B04",), 2.5, LATTICE)
    system = System("broken", (stage,), Broken(), {}, CPU)
    of, options = passes_of(system.stages, BAND_NAMES)[0], Options(consistency="none")
    native = rasters(of.read_window(AREA.pad(of.reach_px(options))), clouds=False)
    as_on_a_gpu()
    with pytest.raises(PipelineError, match="NaN or infinity in B04"):
        super_resolve(native, AREA, system, BAND_NAMES, options)


def test_division_by_a_number_is_rounded_correctly():
    """A GPU would multiply by the reciprocal."""
    values = RNG.uniform(-1, 1, 10_000).astype(np.float32)
    for number in (25, 1e-4, 3):
        exact = (values.astype(np.float64) / np.float32(number)).astype(np.float32)
        assert np.array_equal(divided(values, number), exact)
        assert np.array_equal(divided(tensor(values), number).numpy(), exact)
        assert divided(torch.empty(3, device="meta"), number).device.type == "meta"


def test_all_dn_survive_the_way_to_a_device_and_back():
    dn = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    moved = on_device(dn, CPU)
    assert moved.dtype == torch.int32
    assert int(moved.max()) == 65535
    assert np.array_equal(fetched_uint16(moved), dn)
    assert np.array_equal(fetched_uint16(on_device(dn[::2, 3:], CPU)), dn[::2, 3:])
