"""What a system declares is used and enforced: bands, windows, draws, masks, order of stages."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.bands import BAND_NAMES, RGB
from pipeline.errors import PipelineError, UsageError
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.grid.native_rasters import NativeRasters
from pipeline.superres.chain import bands_read, bands_required, groups_of, needed, read_window
from pipeline.superres.masks import QUALITY_GENERATED, QUALITY_MEASURED
from pipeline.superres.options import Options
from pipeline.superres.spec import Input, Predictor, Stage, stochastic
from pipeline.superres.superres import super_resolve
from pipeline.superres.system import System
from pipeline.superres.systems.guided_fusion import NATIVE, fused, fusion_stage
from tests.superres.fakes import CPU, FUSION_BUNDLE, GuidedFuser, fake_stages, smooth
from tests.superres.test_superres import BASE, SMALL, world
from tests.toys import all_bands, rgbn

RGBN = ("B02", "B03", "B04", "B08")
ODD = Lattice(128, 88, 16, 12)  # no multiple of 24 px


class Counting(Predictor):
    """Calls another predictor and counts by stage."""

    def __init__(self, predictor):
        self.predictor, self.calls = predictor, []

    def to(self, device):
        return self

    def predict(self, stage, given):
        self.calls.append((stage.name, given))
        return self.predictor.predict(stage, given)


class TwoLattices(Predictor):
    """RGBN by a network with odd windows, then a fusion in windows of its own."""

    def __init__(self):
        self.first, self.fuser = rgbn.Networks({}, {}), GuidedFuser()

    def to(self, device):
        return self

    def predict(self, stage, given):
        return fused(self.fuser, stage, given) if stage.name == "fusion" else self.first.predict(stage, given)


def toy(module):
    return System(module.SYSTEM.name, (module.STAGE,), module.Networks({}, {}), {}, CPU)


def two_lattices(stochastic=True):
    first = dataclasses.replace(rgbn.STAGE, stochastic=stochastic)
    return System("two", (first, fusion_stage(FUSION_BUNDLE, first, SMALL)), TwoLattices(), {}, CPU)


def native_for(system, order, window=BASE, options=None):
    read = read_window(groups_of(system.stages, order), window.pad((options or Options()).reach_px(order)))
    return NativeRasters(read, world(read), dict(NATIVE))


def run(system, order=BAND_NAMES, options=None, window=BASE, native=None, **more):
    options = options or Options(seed=3, members=2)
    native = native or native_for(system, order, window, options)
    return super_resolve(native, window, system, order, options, **more)


@pytest.mark.parametrize("system", [toy(rgbn), toy(all_bands), two_lattices()], ids=lambda system: system.name)
@pytest.mark.parametrize("consistency", ["sensor", "box"])
def test_parts_equal_the_whole(system, consistency):
    options = Options(seed=3, members=2, consistency=consistency)
    whole = run(system, options=options)
    for part in (Window(BASE.row, BASE.col, 72, 96), Window(BASE.row + 48, BASE.col + 96, 96, 96)):
        piece, cut = run(system, options=options, window=part), part.slices(BASE)
        assert np.array_equal(piece.dn, whole.dn[(slice(None), *cut)])
        assert np.array_equal(piece.quality, whole.quality[cut])
        assert (piece.spread is None) == (whole.spread is None)
        if whole.spread is not None:
            assert np.array_equal(piece.spread, whole.spread[(slice(None), *cut)])


def test_bands_of_no_stage_are_interpolated_without_spread():
    system = toy(rgbn)
    result = run(system, (*RGBN, "B11", "B01"))
    assert result.dn.min() > 0
    assert (result.spread[:4] < 65535).all()
    assert result.spread[:4].mean() > 5
    assert (result.spread[4:] == 65535).all()
    assert (result.quality == QUALITY_GENERATED).all()
    plain = run(System("plain", (), None, {}, CPU), ("B11", "B01"))
    assert np.array_equal(result.dn[4:], plain.dn)


def test_a_band_that_is_read_need_not_be_stored():
    system = toy(rgbn)
    assert bands_required(system.stages, RGB) == {"B08"}
    assert bands_read(system.stages, RGB) == set(RGBN)
    alone, all_four = run(system, RGB), run(system, RGBN)
    for i, band in enumerate(RGB):
        assert np.array_equal(alone.dn[i], all_four.dn[RGBN.index(band)])


def test_no_detail_is_generated_where_a_required_band_is_nodata():
    system = toy(rgbn)
    native = native_for(system, RGBN)
    native.dn[10][NATIVE[10].index("B08")] = 0
    result = run(system, RGB, native=native)
    assert (result.quality == QUALITY_MEASURED).all()
    assert result.spread.max() == 0
    plain = run(System("plain", (), None, {}, CPU), RGB)
    assert np.abs(result.dn.astype(int) - plain.dn).max() <= 1


def test_optional_bands_may_be_missing_and_are_said():
    seen = []

    class Seeing(all_bands.Networks):
        def predict(self, stage, given):
            seen.append(given.present)
            assert float(given.images["60 m"].abs().max()) == 0
            return super().predict(stage, given)

    system = dataclasses.replace(toy(all_bands), predictor=Seeing({}, {}))
    order = tuple(band for band in BAND_NAMES if band not in ("B01", "B09"))
    native = native_for(system, order)
    native = NativeRasters(native.window, {g: native.dn[g] for g in (10, 20)}, {g: NATIVE[g] for g in (10, 20)})
    assert run(system, order, native=native).dn.min() > 0
    assert set(seen) == {frozenset(order)}


def test_a_system_that_draws_nothing_is_asked_once():
    spec = all_bands.SYSTEM
    assert not stochastic(spec.stages({}, {}))
    counting = Counting(all_bands.Networks({}, {}))
    system = dataclasses.replace(toy(all_bands), predictor=counting)
    result = run(system, options=Options(members=0))
    assert len(counting.calls) == result.windows
    assert result.spread is None
    assert all(given.noise is None for _, given in counting.calls)


def test_a_deterministic_stage_is_computed_once():
    class First(Predictor):
        def to(self, device):
            return self

        def predict(self, stage, given):
            if stage.name == "base":
                return smooth(given.images["rgb"])
            return given.images["base"] + 0.01 * given.noise(0, 3)

    base = Stage("base", (Input("rgb", RGB, 10),), RGB, 2.5, SMALL)
    detail = Stage("detail", (Input("base", RGB, 2.5, source="base"),), RGB, 2.5, SMALL, stochastic=True)
    counting = Counting(First())
    result = run(System("late", (base, detail), counting, {}, CPU), RGB, Options(members=4))
    names = [name for name, _ in counting.calls]
    assert names.count("base") == result.windows
    assert names.count("detail") == 4 * result.windows
    assert result.spread.mean() > 5


def test_stages_of_their_own_windows_see_every_member_blended():
    """The fusion's guide is the blended image of the same draw, so its spread follows from that of the guide."""
    system = two_lattices()
    counting = Counting(system.predictor)
    result = run(dataclasses.replace(system, predictor=counting), options=Options(seed=3, members=2))
    guides = [given.images["guide"] for name, given in counting.calls if name == "fusion"]
    assert not torch.equal(guides[0], guides[1])
    assert result.spread[BAND_NAMES.index("B11")].mean() > 1
    assert (result.spread < 65535).all()


def test_a_guide_without_draws_is_handed_on_once():
    class Smooth(TwoLattices):
        def predict(self, stage, given):
            if stage.name == "fusion":
                return fused(self.fuser, stage, given)
            assert given.noise is None
            return smooth(given.images["rgbn"])

    counting = Counting(Smooth())
    system = dataclasses.replace(two_lattices(stochastic=False), predictor=counting)
    result = run(system, options=Options(members=0))
    assert len(counting.calls) == result.windows
    assert result.spread is None


def test_two_stochastic_stages_do_not_share_their_noise():
    drawn = {}

    class Two(Predictor):
        def to(self, device):
            return self

        def predict(self, stage, given):
            drawn.setdefault(stage.name, given.noise(0, 3))
            return smooth(given.images["rgb"]) if stage.name == "one" else given.images["one"]

    one = Stage("one", (Input("rgb", RGB, 10),), RGB, 2.5, SMALL, stochastic=True)
    two = Stage("two", (Input("one", RGB, 2.5, source="one"),), RGB, 2.5, SMALL, stochastic=True)
    run(System("two", (one, two), Two(), {}, CPU), RGB, Options(members=1))
    assert abs(float((drawn["one"] * drawn["two"]).mean())) < 0.02


def test_noise_of_a_coarser_grid_lies_where_it_lies():
    fields = {}

    class Seeing(rgbn.Networks):
        def predict(self, stage, given):
            fields[len(fields)] = given.noise(0, 1, coarser=4)
            return super().predict(stage, given)

    system = dataclasses.replace(toy(rgbn), predictor=Seeing({}, {}))
    run(system, RGBN, Options(members=1), window=Window(0, 0, 24, 96))
    left, right = list(fields.values())[:2]
    assert left.shape == (1, 1, 32, 32)
    assert torch.equal(left[..., 22:], right[..., :10])  # windows lie 88 px apart: 22 of the coarser grid
    with pytest.raises(ValueError, match="multiples of 3"):
        run(dataclasses.replace(system, predictor=Thirds({}, {})), RGBN, Options(members=1))


class Thirds(rgbn.Networks):
    """Asks for noise on a grid that the windows do not hold whole pixels of."""

    def predict(self, stage, given):
        return given.noise(0, 4, coarser=3)


@pytest.mark.parametrize("wrong", ["bands", "scale"])
def test_a_network_that_gives_other_than_it_declares_is_named(wrong):
    class Wrong(rgbn.Networks):
        def predict(self, stage, given):
            out = super().predict(stage, given)
            return out[:, :3] if wrong == "bands" else functional.avg_pool2d(out, 2)

    system = dataclasses.replace(toy(rgbn), predictor=Wrong({}, {}))
    with pytest.raises(PipelineError, match=r"stage latent of toy-rgbn gave an image of shape \(1, ") as error:
        run(system, RGBN)
    assert "(1, 4, 128, 128)" in error.value.expected


def test_a_mean_without_draws_is_only_asked_of_regressions():
    with pytest.raises(PipelineError, match="gives no mean without draws"):
        run(toy(rgbn), RGBN, Options(members=0))


def test_only_stages_that_decide_a_band_run():
    stages = fake_stages(SMALL)
    assert [stage.name for stage in needed(stages, RGB)] == ["sr"]
    assert [stage.name for stage in needed(stages, ("B11",))] == ["sr", "fusion"]
    assert needed(stages[:1], ("B11",)) == ()
    both = groups_of(stages, BAND_NAMES)
    assert [[stage.name for stage in group.stages] for group in both] == [["sr", "fusion"]]
    apart = groups_of(two_lattices().stages, BAND_NAMES)
    assert [group.lattice for group in apart] == [rgbn.LATTICE, SMALL]
    assert apart[0].handed == (("latent", "B02"), ("latent", "B03"), ("latent", "B04"))


def test_stages_at_other_gsds_meet():
    """20 m bands to 10 m by one stage, then all to 2.5 m: the second sees the first over the same ground."""

    class Steps(Predictor):
        def to(self, device):
            return self

        def predict(self, stage, given):
            if stage.name == "ten":
                return functional.interpolate(given.images["swir"], scale_factor=2, mode="nearest")
            return functional.interpolate(given.images["ten"], scale_factor=4, mode="nearest")

    ten = Stage("ten", (Input("swir", ("B11", "B12"), 20),), ("B11", "B12"), 10, Lattice(32, 24, 4, 2))
    fine = Stage("fine", (Input("ten", ("B11", "B12"), 10, source="ten"),), ("B11", "B12"), 2.5, ODD_20M)
    system = System("steps", (ten, fine), Steps(), {}, CPU)
    order = ("B11", "B12")
    native = native_for(system, order)
    result = run(system, order, Options(consistency="none"), native=native)
    expected = native.over(BASE, 20)[[NATIVE[20].index(band) for band in order]].repeat(8, 1).repeat(8, 2)
    assert np.abs(result.dn.astype(int) - expected).max() <= 1


ODD_20M = Lattice(128, 96, 16, 8)


def test_a_state_that_is_declared_has_to_be_made():
    stage = dataclasses.replace(rgbn.STAGE, scene_state=True)
    with pytest.raises(UsageError, match="takes the state of a scene, and Networks makes none"):
        rgbn.Networks({}, {}).scene_state(stage, torch.zeros(1, 4, 64, 64))
