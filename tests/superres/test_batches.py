"""Batches of a fixed size: a window comes out the same wherever it is in one, whatever else is, filled up or not."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters
from pipeline.superres import batches
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.spec import Memory, StageInput
from pipeline.superres.superres import blend, super_resolve
from pipeline.superres.sweep import Sweep
from pipeline.superres.systems.guided_fusion import NATIVE
from tests.superres.every_system import CASES, SLOW, STATE, Ones, finished_rasters, rasters, system_of
from tests.superres.fakes import CPU, Noisy, fake_system
from tests.superres.test_superres import BASE, SMALL, native_over, world

SIZE = 3
AREA = Window(-79_992, 12_000, 48, 48)


class Recording:
    """A predictor that remembers the batches of every stage."""

    def __init__(self, predictor):
        self.predictor, self.seen = predictor, {}

    def predict(self, stage, given):
        found = self.predictor.predict(stage, given)
        self.seen.setdefault(stage.name, []).append((stage, given, found))
        return found


def rearranged(given, order):
    """The batch with other windows in its places."""
    noise = given.noise
    return replace(
        given,
        images={name: image[order] for name, image in given.images.items()},
        valid=given.valid[order],
        noise=None if noise is None else lambda step, channels, coarser=1: noise(step, channels, coarser)[order],
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES if name != "bicubic"],
)
def test_every_system_computes_windows_apart(case, weights_of_every_system):
    """Other companions and another place change no bit, and neither does what fills up the last batch."""
    members = CASES[case][-1]
    system = system_of(case, weights_of_every_system, CPU)
    recording = Recording(system.predictor)
    settings = Options(members=min(members, 1), consistency="tent", batch=SIZE)
    for of in passes_of(system.stages, BAND_NAMES):
        area = AREA.snap_out(of.source_px)
        read = of.read_window(area.pad(of.reach_px(settings)))
        native = finished_rasters(read, of.source_px, of.natives) if of.source_gsd_m else rasters(read)
        watched = replace(system, predictor=recording)
        blend(native, area, watched, BAND_NAMES, settings, lambda _: STATE, number=of.number, maps=Ones())
    assert {*recording.seen} == {stage.name for stage in system.stages}
    for seen in recording.seen.values():
        stage, given, found = seen[0]
        assert len(found) == SIZE
        if all(torch.equal(image[:1], image[1:2]) for image in given.images.values()):  # filled up: make two differ
            given = replace(given, images={k: image * torch.tensor([1, 1.1, 0.9])[:, None, None, None]
                                           for k, image in given.images.items()})  # fmt: skip
            with torch.inference_mode():
                found = system.predict(stage, given)
        for order in ([1, 2, 0], [2, 1, 0], [0, 0, 0]):
            with torch.inference_mode():
                again = system.predict(stage, rearranged(given, order))
            assert torch.equal(again, found[order]), (stage.name, order)
        assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_in_strips_equal_the_whole(threads):
    """Where the ground is cut decides which windows share a batch."""
    system, options = fake_system(0.5, SMALL), Options(seed=5, members=2, batch=SIZE)
    native = native_over(BASE, system)
    native.dn[10][:, 20:40, :30] = 0  # whole windows without data, which take no place in a batch
    whole = super_resolve(native, BASE, system, BAND_NAMES, options)
    windows = 0
    with Sweep(threads) as sweep:
        for row in range(BASE.row, BASE.row_end, 72):
            part = Window(row, BASE.col, 72, BASE.nx)
            sweep.then = [Window(below, BASE.col, 72, BASE.nx) for below in range(row + 72, BASE.row_end, 72)]
            blended = blend(native, part, system, BAND_NAMES, options, sweep=sweep)
            windows += blended.windows
            found, cut = blended.finish(part), part.slices(BASE)
            assert np.array_equal(found.dn, whole.dn[(slice(None), *cut)])
            assert np.array_equal(found.spread, whole.spread[(slice(None), *cut)])
    assert windows == whole.windows


def test_batches_are_filled_up_and_counted_by_their_windows():
    system = fake_system(0.5, SMALL)
    recording = Recording(system.predictor)
    found = super_resolve(
        native_over(BASE, system), BASE, replace(system, predictor=recording), BAND_NAMES,
        Options(seed=5, members=1, batch=4),
    )  # fmt: skip
    for stage in system.stages:
        assert {len(out) for _, _, out in recording.seen[stage.name]} == {4}
        assert len(recording.seen[stage.name]) == -(-found.windows // 4)


def asking(value, state=None):
    """Steps of a window that asks twice and returns what it was told."""

    def steps():
        stage = SimpleNamespace(name="s")
        image = torch.full((1, 1, 2, 2), float(value))
        first = yield stage, StageInput({"i": image}, frozenset(), torch.ones((1, 1, 2, 2)), None, state)
        second = yield stage, StageInput({"i": first}, frozenset(), torch.ones((1, 1, 2, 2)), None, state)
        return second.flatten()[0].item()

    return steps


class Doubling:
    """A system that doubles, and its batches."""

    def __init__(self):
        self.batches = []

    def predict(self, stage, given):
        self.batches.append((given.images["i"].flatten(1)[:, 0].tolist(), given.state))
        return 2 * given.images["i"]


def test_windows_of_other_states_are_computed_in_batches_of_their_own():
    system = Doubling()
    windows = [asking(1, {"v": [1.0]}), asking(2, {"v": [2.0]}), asking(3, {"v": [1.0]})]
    assert batches.run(windows, system, 4) == [4.0, 8.0, 12.0]
    assert system.batches == [
        ([1, 3, 3, 3], {"v": [1.0]}), ([2, 2, 2, 2], {"v": [2.0]}),
        ([2, 6, 6, 6], {"v": [1.0]}), ([4, 4, 4, 4], {"v": [2.0]}),
    ]  # fmt: skip


def test_one_window_is_handed_over_as_it_is():
    system = Doubling()
    assert batches.run([asking(1)], system, 1) == [4.0]
    assert batches.run([], system, 1) == []
    with pytest.raises(ValueError, match="2 windows in a batch of 1"):
        batches.run([asking(1), asking(2)], system, 1)


@pytest.mark.parametrize(
    ("device", "gpu_gib", "floats_per_px", "size"),
    [
        ("cpu", 0, 100, 1), ("cuda", 141, 100, 8), ("cuda", 16, 2000, 1), ("cuda", 80, 2000, 4), ("cuda", 8, 9000, 1),
        ("cuda", 24, 200, 4),  # 8 if what the other threads hold did not count
    ],
)  # fmt: skip
def test_sizes_by_the_memory_of_the_device(monkeypatch, device, gpu_gib, floats_per_px, size):
    gpu = SimpleNamespace(total_memory=gpu_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _name: gpu)
    assert batches.size_for(Memory(0.0, floats_per_px), 480, device) == size


class Weighing(Noisy):
    """Notes the float32 values of all tensors that are alive at each call, per pixel of a window."""

    def __init__(self):
        super().__init__()
        self.floats_per_px = []

    def predict(self, stage, given):
        storages = (one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor)
        alive = {one.data_ptr(): one.nbytes() for one in storages}
        self.floats_per_px.append(sum(alive.values()) / 4 / stage.lattice.window_px**2)
        return super().predict(stage, given)


@pytest.mark.slow
def test_what_a_window_holds_while_another_is_at_the_device():
    """In the last of several draws, beside a gap, where the window is also interpolated."""
    system, one = replace(fake_system(), predictor=Weighing()), Window(-79_872 + 192, 12_288 + 192, 24, 24)
    (of,) = passes_of(system.stages, BAND_NAMES)
    native = NativeRasters(of.read_window(one), world(of.read_window(one)), NATIVE)
    native.dn[10][:, 60:70, 60:70] = 0
    gc.collect()
    found = super_resolve(native, one, system, BAND_NAMES, Options(seed=5, members=4, consistency="tent"))
    assert found.windows == 1
    assert 0.8 * batches._HELD_FLOATS_PER_PX < max(system.predictor.floats_per_px) <= batches._HELD_FLOATS_PER_PX


def test_noise_of_a_batch_is_that_of_its_windows():
    def source(value):
        return lambda step, channels, coarser=1: torch.full((1, channels, 4 // coarser, 4 // coarser), value + step)

    given = [StageInput({}, frozenset(), torch.ones((1, 1, 2, 2)), source(value)) for value in (1.0, 5.0)]
    drawn = batches.batch_of(given, 3).noise(step=2, channels=2, coarser=2)
    assert drawn.shape == (3, 2, 2, 2)
    assert drawn[:, 0, 0, 0].tolist() == [3.0, 7.0, 7.0]
