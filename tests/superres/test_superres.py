"""A unit's pixels: the same however the ground is cut, consistent with the input, at the right place."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES, BLOCK_60M, BY_NAME
from pipeline.errors import PipelineError
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.grid.native_rasters import NativeRasters, factor_of
from pipeline.superres.chain import groups_of, read_window
from pipeline.superres.masks import CAUSES, QUALITY_GENERATED, QUALITY_MEASURED, QUALITY_NODATA
from pipeline.superres.options import Options
from pipeline.superres.superres import blend, super_resolve
from pipeline.superres.systems.guided_fusion import NATIVE
from tests.superres.fakes import Noisy, fake_system, plain_system

SMALL = Lattice(144, 96, 24, 12)
BASE = Window(-79_992, 12_000, 144, 192)


def world(window, seed=3):
    """Deterministic land-like DN of any window: a function of absolute position only."""
    dn = {}
    for gsd, names in NATIVE.items():
        part = window.coarsen(round(gsd / 2.5))
        rows = (np.arange(part.row, part.row_end) + 0.5) * gsd
        cols = (np.arange(part.col, part.col_end) + 0.5) * gsd
        y, x = np.meshgrid(rows, cols, indexing="ij")
        dn[gsd] = np.stack(
            [
                (1800 + 300 * np.sin(x / (90 + 7 * i)) * np.cos(y / (130 + seed)) + 100 * np.sin(x * y / 1e4)).astype(
                    np.uint16
                )
                for i in range(len(names))
            ]
        )
    return dn


def native_over(window, system, **holes):
    read = read_window(groups_of(system.stages, BAND_NAMES), window.pad(Options().reach_px(BAND_NAMES)))
    native = NativeRasters(read, world(read), NATIVE)
    for gsd, change in holes.items():
        change(native.dn[int(gsd[1:])])
    return native


def run(window, system, options=None, order=BAND_NAMES, native=None):
    return super_resolve(
        native or native_over(window, system), window, system, order, options or Options(seed=5, members=1)
    )


@pytest.mark.parametrize("couple", [0.0, 0.5])
@pytest.mark.parametrize("consistency", ["sensor", "box"])
def test_parts_equal_the_whole_for_networks_of_global_reach(couple, consistency):
    system = fake_system(couple, SMALL)
    options = Options(seed=5, members=2, consistency=consistency)
    whole = run(BASE, system, options)
    for part in (Window(BASE.row, BASE.col, 72, 96), Window(BASE.row + 48, BASE.col + 96, 96, 96)):
        piece = run(part, system, options)
        cut = part.slices(BASE)
        assert np.array_equal(piece.dn, whole.dn[(slice(None), *cut)])
        assert np.array_equal(piece.spread, whole.spread[(slice(None), *cut)])
        assert np.array_equal(piece.quality, whole.quality[cut])


def test_block_means_equal_the_input_for_every_band():
    system = fake_system(0.3, SMALL)
    native = native_over(BASE, system)
    result = run(BASE, system, Options(seed=5, members=1, consistency="box"), native=native)
    for i, name in enumerate(BAND_NAMES):
        factor = factor_of(name)
        target = native.band(name, BASE)
        means = result.dn[i].reshape(target.shape[0], factor, target.shape[1], factor).mean((1, 3))
        assert np.abs(means - target).max() == 0, name


@pytest.mark.slow
def test_detail_is_generated_and_depends_on_seed_zone_and_member():
    system = fake_system(lattice=SMALL)
    fields = [
        run(BASE, system, options).dn[3].astype(int)
        for options in (
            Options(seed=1, members=1),
            Options(seed=2, members=1),
            Options(seed=1, stream=9, members=1),
            Options(seed=1, members=2),
        )
    ]
    plain = run(BASE, plain_system()).dn[3].astype(int)
    for i, one in enumerate(fields):
        assert np.abs(one - plain).mean() > 3
        assert all(np.abs(one - other).mean() > 2 for other in fields[i + 1 :])


@pytest.mark.slow
def test_mean_of_members_is_smoother_and_spread_is_positive():
    system = fake_system(lattice=SMALL)
    one, many = run(BASE, system, Options(seed=1, members=1)), run(BASE, system, Options(seed=1, members=5))
    assert one.spread is None
    assert many.spread[3].mean() > 5
    assert np.diff(many.dn[3].astype(int)).std() < np.diff(one.dn[3].astype(int)).std()


def test_clouds_get_interpolation_and_no_spread():
    system = fake_system(lattice=SMALL)
    native = native_over(BASE, system)
    cloudy = NativeRasters(native.window, native.dn, native.bands, np.full(native.window.coarsen(8).shape, 9, np.uint8))
    result = run(BASE, system, Options(seed=1, members=2), native=cloudy)
    plain = run(BASE, plain_system(), native=native_over(BASE, plain_system()))
    assert np.abs(result.dn.astype(int) - plain.dn).max() <= 1  # other windows, rounded otherwise
    assert result.spread.max() == 0
    assert (result.quality == QUALITY_MEASURED).all()


@pytest.mark.slow
def test_causes_depend_on_the_chunk_alone():
    """Not on what is finished with it. Windows that cut a white roof see a cloud; the next cause may be far away."""
    area, system, options = Window(-79_992, 12_000, 216, 240), fake_system(lattice=SMALL), Options(seed=1, members=1)
    native = native_over(area, system)
    rows, cols = area.coarsen(4).slices(native.window.coarsen(4))
    native.dn[10][:, rows.start : rows.start + 25, cols.start + 12 : cols.start + 37] = 8000
    native.dn[10][:, rows.stop - 2 : rows.stop, cols] = 0
    chunks = [Window(area.row + y, area.col + x, 72, 120) for y in (0, 72, 144) for x in (0, 120)]
    blended = blend(native, area, system, BAND_NAMES, options)
    whole, found = blended.finish(area, chunks).causes, set()
    for chunk in chunks:
        part = blend(native, chunk, system, BAND_NAMES, options).finish(chunk)
        if part.causes is not None:
            lacking = (part.quality > 0) & (part.quality < 3)
            assert np.array_equal(part.causes[lacking], whole[chunk.slices(area)][lacking])
            found |= {CAUSES[i] for i in np.unique(part.causes[lacking])}
    assert found == {"like_cloud", "nodata"}


def test_nodata_stays_on_its_native_pixels():
    system = fake_system(lattice=SMALL)
    native = native_over(BASE, system)
    at = BASE.slices(native.window)
    native.dn[10][NATIVE[10].index("B02"), at[0].start // 4 + 3, at[1].start // 4 + 5] = 0
    native.dn[20][NATIVE[20].index("B11"), at[0].start // 8 + 7, at[1].start // 8 + 2] = 0
    result = run(BASE, system, native=native)
    b02, b11 = result.dn[BAND_NAMES.index("B02")], result.dn[BAND_NAMES.index("B11")]
    assert (b02[12:16, 20:24] == 0).all()
    assert np.count_nonzero(b02 == 0) == 16
    assert (b11[56:64, 16:24] == 0).all()
    assert np.count_nonzero(b11 == 0) == 64
    assert np.count_nonzero(result.quality == QUALITY_NODATA) == 16
    assert np.count_nonzero(result.quality == QUALITY_GENERATED) > 0


def test_empty_ground_is_skipped():
    system = fake_system(lattice=SMALL)
    native = native_over(BASE, system)
    for raster in native.dn.values():
        raster[:] = 0
    result = run(BASE, system, native=native)
    assert result.windows == 0
    assert result.dn.max() == 0


def test_missing_bands_are_simply_absent():
    system = fake_system(lattice=SMALL)
    names = ("B02", "B03", "B04", "B05", "B8A")
    native = native_over(BASE, system)
    kept = {
        gsd: tuple(n for n in bands if n in names) for gsd, bands in native.bands.items() if set(bands) & set(names)
    }
    dn = {gsd: native.dn[gsd][[native.bands[gsd].index(n) for n in chosen]] for gsd, chosen in kept.items()}
    result = run(BASE, system, order=names, native=NativeRasters(native.window, dn, kept))
    assert result.dn.shape[0] == 5
    assert result.dn.min() > 0


@pytest.mark.parametrize("axis", ["x", "y"])
def test_coordinates_land_where_they_should_at_all_gsds(axis):
    """An image whose values are its coordinates, to 0.01 px of 2.5 m, for 10, 20 and 60 m bands alike."""
    system = plain_system()
    read = read_window(groups_of(system.stages, BAND_NAMES), BASE)
    metres_per_dn = 0.02  # so that a DN is 0.008 px
    rows, cols = BASE.slices(read)
    start = cols.start if axis == "x" else rows.start
    dn = {}
    for gsd, names in NATIVE.items():
        part = read.coarsen(round(gsd / 2.5))
        centre = (np.arange(part.nx) + 0.5) * gsd if axis == "x" else ((np.arange(part.ny) + 0.5) * gsd)[:, None]
        image = np.broadcast_to((10_000 + (centre - 2.5 * start) / metres_per_dn).clip(1, 65535), part.shape)
        dn[gsd] = np.stack([np.rint(image).astype(np.uint16)] * len(names))
    result = super_resolve(NativeRasters(read, dn, NATIVE), BASE, system, BAND_NAMES, Options(consistency="none"))
    length = BASE.nx if axis == "x" else BASE.ny
    expected = (np.arange(length) + 0.5) * 2.5
    inner = slice(2 * BLOCK_60M, -2 * BLOCK_60M)
    for i, name in enumerate(BAND_NAMES):
        line = result.dn[i].mean(0 if axis == "x" else 1)
        found = (line - 10_000) * metres_per_dn
        assert np.abs(found - expected)[inner].mean() / 2.5 < 0.01, (name, BY_NAME[name].gsd_m)


class Forgetful(Noisy):
    """Runs out of a GPU's memory at the calls whose numbers are given."""

    def __init__(self, *at):
        super().__init__()
        self.at, self.calls = at, 0

    def resolve(self, given):
        self.calls += 1
        if self.calls in self.at:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
            raise torch.OutOfMemoryError(msg)
        return super().resolve(given)


def forgetful(monkeypatch, *at):
    """(system, list that grows with every time torch gives its reserve back)."""
    given_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(1))
    whole = fake_system(lattice=SMALL)
    return dataclasses.replace(whole, predictor=Forgetful(*at)), given_back


def test_out_of_memory_once_costs_one_more_try(monkeypatch):
    """Not even where it happens at the second member of a window, after the first was counted in."""
    options = Options(seed=5, members=2)
    undisturbed = run(BASE, fake_system(lattice=SMALL), options)
    system, given_back = forgetful(monkeypatch, 4, 9)
    found = run(BASE, system, options)
    assert np.array_equal(found.dn, undisturbed.dn)
    assert np.array_equal(found.spread, undisturbed.spread)
    assert len(given_back) == 2
    assert system.predictor.calls > undisturbed.windows * 2


def test_a_window_that_does_not_fit_is_one_clear_line(monkeypatch):
    system, given_back = forgetful(monkeypatch, *range(100))
    with pytest.raises(
        PipelineError, match=r"window of 144 x 144 px of fake does not fit .*CUDA out of memory"
    ) as error:
        run(BASE, system)
    assert error.value.expected == "free memory for one window"
    assert "--sr" in error.value.cure
    assert (len(given_back), system.predictor.calls) == (1, 2)
    assert "\n" not in str(error.value)
