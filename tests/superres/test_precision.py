"""The number format of networks: what it reaches, what it leaves alone, and where it is refused."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.errors import UsageError
from pipeline.grid.grid import Window
from pipeline.process import arithmetic
from pipeline.superres import precision, system
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.precision import PRECISIONS, computing, possible
from pipeline.superres.spec import StageInput
from pipeline.superres.superres import super_resolve
from pipeline.superres.weights import choose
from tests.models.small import write_lite
from tests.superres.every_system import rasters

AREA = Window(-80_016, 12_000, 48, 48)
HALVES = ("float16", "bfloat16")


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    sr, fusion = write_lite(tmp_path_factory.mktemp("small"))
    return choose("lite", (str(sr), f"fusion={fusion}"))


@pytest.fixture
def flags():
    """The settings of TF32 as they were, afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield lambda: (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def computed(choice, name, members=0):
    loaded = system.load(choice, "cpu", name)
    options = Options(members=members)
    of = passes_of(loaded.stages, BAND_NAMES)[0]
    native = rasters(of.read_window(AREA.pad(of.reach_px(options))))
    return super_resolve(native, AREA, loaded, BAND_NAMES, options)


class TestComputing:
    @pytest.mark.parametrize("name", HALVES)
    def test_convolutions_give_that_format_inside_and_no_longer_after(self, name):
        image, kernel = torch.rand((1, 3, 8, 8)), torch.rand((2, 3, 3, 3))
        with computing(name, "cpu"):
            inside = torch.nn.functional.conv2d(image, kernel)
        assert inside.dtype == getattr(torch, name)
        assert torch.nn.functional.conv2d(image, kernel).dtype == torch.float32

    def test_tf32_needs_a_gpu_and_the_message_is_one_line(self, choice):
        assert [possible(name, "cpu") for name in PRECISIONS] == [True, False, True, True]
        for refused in (lambda: computing("tf32", "cpu").__enter__(), lambda: system.load(choice, "cpu", "tf32")):
            with pytest.raises(UsageError, match=r"tf32 on a CPU.*leave --precision tf32 out") as caught:
                refused()
            assert "\n" not in str(caught.value)

    def test_tf32_is_on_while_somebody_asks_for_it(self, flags):
        with computing("tf32", "cuda"):
            assert flags() == (True, True)
            with computing("tf32", "cuda"):
                assert flags() == (True, True)
            assert flags() == (True, True)
        assert flags() == (False, False)
        with computing("float32", "cuda"):
            assert flags() == (False, False)

    def test_threads_with_different_precisions_wait_for_one_another(self, flags):
        entered, leave, seen = threading.Event(), threading.Event(), []

        def other():
            with computing("float32", "cuda"):
                seen.append(flags())
                entered.set()

        with computing("tf32", "cuda"):
            thread = threading.Thread(target=other)
            thread.start()
            assert not entered.wait(0.2)
            assert flags() == (True, True)
            leave.set()
        thread.join(20)
        assert seen == [(False, False)]

    def test_an_error_inside_frees_the_setting(self, flags):
        with pytest.raises(RuntimeError, match="broken"), computing("tf32", "cuda"):
            raise RuntimeError("broken")
        assert flags() == (False, False)
        with computing("float32", "cuda"):
            assert precision._SWITCH._users == 1


class TestSystem:
    def test_networks_are_loaded_once_for_all_precisions(self, choice):
        plain, half = system.load(choice, "cpu"), system.load(choice, "cpu", "bfloat16")
        assert plain is system.load(choice, "cpu", "float32")
        assert half.predictor is plain.predictor
        assert (plain.precision, half.precision) == ("float32", "bfloat16")

    @pytest.mark.parametrize("name", HALVES)
    def test_predictions_round_within_their_format_and_are_given_as_float32(self, choice, name):
        plain = system.load(choice, "cpu")
        stage = plain.stages[0]
        side = round(stage.lattice.window_px * stage.gsd_m / 10)
        given = StageInput({"coarse": torch.rand((1, 3, side, side)) * 0.3}, frozenset(), torch.ones((1, 1, 1, 1)))
        exact = plain.predict(stage, given)
        rounded = replace(plain, precision=name).predict(stage, given)
        assert rounded.dtype == exact.dtype == torch.float32
        apart = (rounded - exact).abs()
        assert 0 < apart.max() < 64 * torch.finfo(getattr(torch, name)).eps * exact.abs().max()

    def test_what_is_around_the_networks_does_not_change(self, choice, monkeypatch):
        """Given the same predictions, all that follows is the same bit for bit."""
        real, kept = system.System.predict, {}

        def first_one(self, stage, given):
            key = (stage.name, *(image.numpy().tobytes() for image in given.images.values()))
            if key not in kept:
                kept[key] = real(self, stage, given)
            return kept[key]

        monkeypatch.setattr(system.System, "predict", first_one)
        one, other = computed(choice, "float32", 2), computed(choice, "bfloat16", 2)
        np.testing.assert_array_equal(one.dn, other.dn)
        np.testing.assert_array_equal(one.spread, other.spread)

    @pytest.mark.parametrize("members", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_output_differs_a_little_and_repeats(self, choice, members):
        exact, half = computed(choice, "float32", members).dn, computed(choice, "bfloat16", members).dn
        apart = np.abs(exact.astype(int) - half)
        assert 0 < apart.max() < 200
        np.testing.assert_array_equal(half, computed(choice, "bfloat16", members).dn)


class TestArithmetic:
    def test_names_the_format_of_networks(self):
        plain = arithmetic()
        assert plain.endswith(", float32")
        assert [arithmetic(name) for name in HALVES] == [plain.replace("float32", name) for name in HALVES]

    def test_of_a_gpu(self, monkeypatch, flags):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "NVIDIA H100")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        found = [arithmetic(name).removeprefix("NVIDIA H100, ") for name in PRECISIONS]
        assert found == ["float32", "float32 as TF32", "float16", "bfloat16"]
