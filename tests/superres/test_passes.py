"""Passes over the ground: which there are, what they read, and that finer images keep the means of coarser ones."""

import dataclasses

import numpy as np
import pytest

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.grid.finished_rasters import FinishedRasters
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres import masks
from pipeline.superres.chain import Output
from pipeline.superres.declared import Condition
from pipeline.superres.options import Options
from pipeline.superres.passes import check_chain, pass_numbers, passes_of
from pipeline.superres.spec import FINISHED, Input, Stage
from pipeline.superres.superres import super_resolve
from pipeline.superres.system import System
from tests.superres.fakes import CPU
from tests.superres.test_superres import world
from tests.toys import cascade, map_guided, rgbn

RGBN = cascade.BANDS
THIRD = Stage("x2 again", (Input("coarse", RGBN, 1.25, FINISHED),), RGBN, 0.625, Lattice(104, 80, 8, 8))
PART = Window(-4800, 960, 144, 192)  # px of 1.25 m


def finished(window, factor=2, bands=RGBN, holes=()):
    """A group of 2.5 m whose values follow from its absolute pixels."""
    here = window.coarsen(factor)
    y, x = np.mgrid[here.row : here.row_end, here.col : here.col_end]
    dn = np.stack([2000 + 300 * np.sin(0.31 * y + i) + 300 * np.cos(0.17 * x * (i + 1)) for i in range(len(bands))])
    quality = np.full(here.shape, masks.QUALITY_GENERATED, np.uint8)
    for hole in holes:
        if not (common := hole.intersect(here)).empty:
            dn[(..., *common.slices(here))], quality[common.slices(here)] = 0, masks.QUALITY_NODATA
    return FinishedRasters(window, factor, bands, np.rint(dn).astype(np.uint16), quality)


def system(module, *stages):
    return System(module.SYSTEM.name, stages, module.Networks({}, {}), {}, CPU, module.SYSTEM.defaults)


CASCADE = system(cascade, cascade.FIRST, cascade.SECOND)
OPTIONS = Options(seed=3, members=2)


def second_pass(window, **more):
    one = passes_of(CASCADE.stages, RGBN)[1]
    rasters = finished(one.read_window(window.pad(one.reach_px(OPTIONS))), **more)
    return super_resolve(rasters, window, CASCADE, RGBN, OPTIONS, number=1), rasters


def test_a_cascade_works_in_passes():
    first, second = passes_of(CASCADE.stages, RGBN)
    assert (first.gsd_m, first.source_gsd_m, first.outputs) == (2.5, 0.0, (Output(2.5, RGBN),))
    assert (second.gsd_m, second.source_gsd_m, second.outputs) == (1.25, 2.5, (Output(1.25, RGBN),))
    (only,) = passes_of((map_guided.STAGE,), ("B02", "B04", "B11"))
    assert only.outputs == (Output(2.5, ("B02", "B04", "B11")), Output(1.25, ("B02", "B04")))
    assert [group.outputs for group in only.groups] == [
        (Output(1.25, ("B02", "B04")), Output(2.5, ("B02", "B04"))),
        (Output(2.5, ("B11",)),),
    ]
    assert pass_numbers((*CASCADE.stages, THIRD)) == {"x4": 0, "x2": 1, "x2 again": 2}
    third = passes_of((*CASCADE.stages, THIRD), RGBN)[2]
    assert (third.gsd_m, third.source_gsd_m, third.source_px) == (0.625, 1.25, 2)


def test_a_pass_that_gives_none_of_the_bands_is_left_out():
    assert len(passes_of(CASCADE.stages, ("B11", "B01"))) == 1


def test_bands_that_a_later_pass_reads_have_to_be_stored():
    with pytest.raises(UsageError, match=r"x2 reads B02, B08 at 2\.5 m, which are not stored") as caught:
        passes_of(CASCADE.stages, ("B03", "B04"))
    assert "--bands" in caught.value.cure


WRONG = {
    "reads measured bands": (Input("coarse", RGBN, 2.5, FINISHED), Input("rgbn", RGBN, 10)),
    "which no pass before gives": (Input("coarse", RGBN, 1.25, FINISHED),),
    "reads groups of": (Input("coarse", RGBN, 2.5, FINISHED), Input("finer", RGBN, 1.25, FINISHED)),
    "reads stage x4": (Input("coarse", RGBN, 2.5, FINISHED), Input("inside", RGBN, 2.5, "x4")),
}


@pytest.mark.parametrize("why", WRONG)
def test_stages_that_cannot_follow_are_refused_with_the_reason(why):
    stage = dataclasses.replace(cascade.SECOND, reads=WRONG[why], lattice=Lattice(144, 96, 16, 16))
    with pytest.raises(ValueError, match=why):
        check_chain((cascade.FIRST, stage))


def test_a_gsd_is_given_by_one_pass_and_lies_below_what_it_reads():
    again = dataclasses.replace(THIRD, gsd_m=1.25)
    with pytest.raises(ValueError, match=r"gives 1\.25 m"):
        check_chain((*CASCADE.stages, again))
    twice = dataclasses.replace(
        THIRD, name="other", reads=cascade.SECOND.reads, gsd_m=1.25, lattice=cascade.SECOND.lattice
    )
    check_chain((*CASCADE.stages, twice))  # in the same pass: the last one decides
    with pytest.raises(ValueError, match="as an earlier pass does"):
        check_chain((map_guided.STAGE, cascade.FIRST, cascade.SECOND), (map_guided.MAP,))


def test_maps_are_declared_before_they_are_read():
    with pytest.raises(ValueError, match="reads the condition map, which the system does not declare"):
        check_chain((map_guided.STAGE,))
    raster = Condition("map", "heights", kind="raster", bands=("height",))
    with pytest.raises(ValueError, match="reads building, road of the condition map"):
        check_chain((map_guided.STAGE,), (raster,))


def test_parts_of_a_later_pass_equal_the_whole():
    whole, _ = second_pass(PART)
    for part in (Window(PART.row, PART.col, 96, 96), Window(PART.row + 48, PART.col + 96, 96, 96)):
        piece, _ = second_pass(part)
        cut = part.slices(PART)
        assert np.array_equal(piece.dn, whole.dn[(..., *cut)])
        assert np.array_equal(piece.quality, whole.quality[cut])
        assert np.array_equal(piece.spread, whole.spread[(..., *cut)])


def test_block_means_of_a_later_pass_are_its_input():
    result, rasters = second_pass(PART)
    read = np.stack([rasters.band(name, PART) for name in RGBN])
    sums = result.dn.reshape(4, 72, 2, 96, 2).sum((2, 4), dtype=np.int64)
    assert np.array_equal(sums, 4 * read.astype(np.int64))
    assert result.spread[result.dn > 0].mean() > 5
    assert (result.quality == masks.QUALITY_GENERATED).all()


def test_nothing_is_generated_where_the_group_above_has_nothing():
    hole = Window(PART.row // 2 + 20, PART.col // 2 + 30, 9, 11)
    result, _ = second_pass(PART, holes=[hole])
    inside = hole.refine(2).slices(PART)
    assert (result.dn[(..., *inside)] == 0).all()
    assert (result.quality[inside] == masks.QUALITY_NODATA).all()
    around = np.ones(PART.shape, bool)
    around[inside] = False
    assert (result.dn[:, around] > 0).all()
    next_to = hole.pad(1).refine(2).slices(PART)
    assert (result.quality[next_to][around[next_to]] == masks.QUALITY_PARTIAL).all()
    assert (result.quality[hole.pad(6).refine(2).slices(PART)][0] == masks.QUALITY_GENERATED).all()


@pytest.mark.parametrize("consistency", ["sensor", "box", "none"])
def test_output_below_the_grid_has_the_stored_means(consistency):
    """Base and detail of one pass, which agree with what was measured as any other output does."""
    toy = system(map_guided, map_guided.STAGE)
    options = Options(seed=3, members=2, consistency=consistency)
    window = Window(-48000, 12000, 96, 120)
    (one,) = passes_of(toy.stages, (*RGB, "B11"))
    native = measured(one.read_window(window.pad(one.reach_px(options))))
    result = super_resolve(native, window, toy, (*RGB, "B11"), options)
    fine, base = result.layers[1.25], result.layers[2.5]
    assert fine.bands == RGB
    sums = fine.dn.reshape(3, 96, 2, 120, 2).sum((2, 4), dtype=np.int64)
    assert np.array_equal(sums, 4 * base.dn[:3].astype(np.int64))
    assert base.spread[:3].mean() > 5
    assert (base.spread[3] == 65535).all()
    assert fine.spread.mean() > base.spread[:3].mean()
    part = Window(window.row + 24, window.col + 48, 48, 72)
    piece = super_resolve(native, part, toy, (*RGB, "B11"), options)
    for gsd_m, factor in ((2.5, 1), (1.25, 2)):
        cut = part.refine(factor).slices(window.refine(factor))
        assert np.array_equal(piece.layers[gsd_m].dn, result.layers[gsd_m].dn[(..., *cut)])
        assert np.array_equal(piece.layers[gsd_m].quality, result.layers[gsd_m].quality[cut])


def measured(window):
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.superres.systems.guided_fusion import NATIVE

    return NativeRasters(window, world(window), dict(NATIVE))


def test_noise_is_keyed_at_the_gsd_of_the_stage():
    seen = []

    class Seeing(cascade.Networks):
        def predict(self, stage, given):
            seen.append(given.noise(0, 1)[0, 0].numpy())
            return super().predict(stage, given)

    from pipeline.grid.noise import normal_field

    options = Options(seed=5, members=1)
    toy = dataclasses.replace(CASCADE, predictor=Seeing({}, {}))
    one = passes_of(toy.stages, RGBN)[1]
    window = Window(0, 0, 48, 48)
    super_resolve(finished(one.read_window(window.pad(one.reach_px(options)))), window, toy, RGBN, options, number=1)
    cells = one.cells([window.pad(one.reach_px(options))])[0]
    for cell, noise in zip(cells, seen, strict=True):
        there = cascade.SECOND.lattice.window(*cell)
        assert np.array_equal(noise, normal_field(there, seed=5, channels=1)[0])


def test_the_first_toy_has_one_pass():
    assert len(passes_of((rgbn.STAGE,), RGBN)) == 1
