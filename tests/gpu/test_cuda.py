"""On a GPU: what CI, which has none, skips. `python -m tests.gpu` checks more, and measures."""

import numpy as np
import pytest
import torch

from pipeline.process import arithmetic, prepare_process
from pipeline.superres.precision import PRECISIONS, computing
from tests.gpu import checks
from tests.gpu.bench import BROKEN, Bench

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    prepare_process()
    return Bench(torch.device("cuda"), small=True, folder=tmp_path_factory.mktemp("bench"), limit_s=600.0)


@pytest.mark.parametrize("check", ["steps", "equality", "batches", "waiting"])
def test_what_has_to_hold_does(bench, check):
    broken = [row for row in getattr(checks, check)(bench) if row.verdict == BROKEN]
    assert not broken


def test_tf32_is_used_when_asked_for_and_not_otherwise():
    """Products of numbers that need 12 bits: exact in float32, rounded in TF32."""
    prepare_process()
    one = torch.full((256, 256), 1 + 2.0**-12, device="cuda")
    eye = torch.eye(256, device="cuda")
    with computing("float32", "cuda"):
        assert torch.equal(one @ eye, one)
    with computing("tf32", "cuda"):
        assert not torch.equal(one @ eye, one)
    assert torch.equal(one @ eye, one)


def test_the_arithmetic_names_the_gpu():
    name = torch.cuda.get_device_name(0)
    assert [arithmetic(precision).startswith(f"{name}, ") for precision in PRECISIONS] == [True] * 4


def test_noise_is_that_of_the_cpu():
    from pipeline.grid.grid import Window
    from pipeline.grid.noise import normal_field

    words = {"seed": 2**64 - 1, "channels": 3, "step": 7, "member": 3, "stream": 9}
    here = normal_field(Window(-79_992, 12_000, 480, 480), **words)
    there = normal_field(Window(-79_992, 12_000, 480, 480), **words, device=torch.device("cuda")).cpu().numpy()
    np.testing.assert_allclose(there, here, rtol=2e-7, atol=1e-9)
    assert (there != here).mean() < 1e-5
