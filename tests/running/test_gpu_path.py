"""The path of a GPU as far as it can be tested without one: arithmetic, workers, dead contexts, loading."""

import os
import subprocess
import sys
import threading
import tomllib
import types
from dataclasses import replace

import dask
import pytest
import torch
from packaging.requirements import Requirement

from pipeline import process as processes
from pipeline.aoi.aoi import read_aoi
from pipeline.errors import EXIT_RESUMABLE, Interrupted
from pipeline.planning.planner import make_plan
from pipeline.planning.units import Unit
from pipeline.running import driver, local_cluster, pools
from pipeline.running.unit import process
from pipeline.running.unit_queue import Summary
from pipeline.store.receipts import Ledger
from pipeline.superres import system
from pipeline.superres.weights import choose
from tests.conftest import REPOSITORY
from tests.running.conftest import config_for, run

UNIT = Unit(32632, 0, 0, 0)


def accelerator_error(text="CUDA error: an illegal memory access was encountered"):
    return getattr(torch, "AcceleratorError", RuntimeError)(text)


@pytest.fixture
def tf32(monkeypatch):
    """torch's default for convolutions, and its race between algorithms; as before afterwards."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


def test_units_are_computed_in_ieee_float32(tf32):
    threads = torch.get_num_threads()
    try:
        processes.prepare_process()
    finally:
        torch.set_num_threads(threads)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.benchmark


class TestArithmetic:
    def test_of_a_gpu_names_it_and_tf32(self, monkeypatch, tf32):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "NVIDIA H100")
        assert processes.arithmetic() == "NVIDIA H100, float32 as TF32"
        processes.use_ieee_float32()
        assert processes.arithmetic() == "NVIDIA H100, float32"

    def test_of_a_cpu_names_its_instructions(self):
        assert processes.arithmetic().endswith(f" {torch.backends.cpu.get_cpu_capability()}, float32")

    def test_is_in_every_receipt_and_in_the_store_where_units_differ(self, archive, aoi, tmp_path, monkeypatch):
        store = tmp_path / "a.zarr"
        plan, summary = run(config_for(archive, unit_chunks=2, bands=("B04",)), aoi, store)
        receipts = Ledger(store, plan.digest).read_all()
        assert {receipt.arithmetic for receipt in receipts} == {processes.arithmetic()} == {*summary.arithmetics}
        assert "computed_on" not in driver.facts_of(plan, driver.place_of(store), summary)
        one = next(receipt for receipt in receipts if receipt.chunks)
        summary.add(replace(one, arithmetic="NVIDIA H100, float32"))
        facts = driver.facts_of(plan, driver.place_of(store), summary)
        assert facts["computed_on"] == sorted(["NVIDIA H100, float32", processes.arithmetic()])

    def test_of_older_receipts_is_unknown_and_no_difference(self):
        summary = Summary()
        summary.add(replace(RECEIPT, arithmetic="")), summary.add(RECEIPT)
        assert summary.arithmetics == ("cpu",)


RECEIPT = driver.Receipt(
    UNIT.id, "d", "done", "", {"a/c/0": [1, 2]}, {"B02": 1}, 1, None, (), arithmetic="cpu", detail={}
)


class TestCudaCluster:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Arguments that the cluster of dask-cuda was given."""
        given = {}

        class Cluster:
            def __init__(self, **settings):
                given.update(settings)

        monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=Cluster))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        return given

    def test_workers_keep_our_set_up_and_are_not_paused_for_memory(self, asked):
        with dask.config.set({"distributed.worker.preload": pools._PRELOAD}):
            local_cluster._cuda(3)
        assert asked["preload"] == ["pipeline.running.worker_setup"]
        assert (asked["memory_limit"], asked["device_memory_limit"], asked["threads_per_worker"]) == (0, 0, 3)

    def test_what_is_preloaded_can_be(self):
        from distributed.preloading import Preload

        loaded = Preload(None, pools._PRELOAD[0], [], None).module
        assert callable(loaded.dask_setup)


def test_the_extra_takes_a_torch_of_cuda_13():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (torches,) = [one for one in map(Requirement, extras["cuda"]) if one.name == "torch"]
    assert "2.10.0" not in torches.specifier
    assert "2.11.0" in torches.specifier


class TestDeadContext:
    @pytest.mark.parametrize(
        ("error", "lost"),
        [
            (accelerator_error(), True),
            (RuntimeError("CUDA error: unspecified launch failure"), True),
            (RuntimeError("shapes do not fit"), False),
            (torch.OutOfMemoryError("CUDA out of memory"), False),
            (ValueError("no scene"), False),
        ],
    )
    def test_is_told_from_other_errors(self, error, lost):
        assert processes.device_lost(error) is lost
        wrapped = ValueError("while computing")
        wrapped.__cause__ = error
        assert processes.device_lost(wrapped) is lost

    def test_ends_an_inline_run_with_75(self, archive, aoi, tmp_path, monkeypatch):
        tried = []

        def fail(unit, *_given):
            tried.append(unit)
            raise accelerator_error()

        monkeypatch.setattr(pools, "process", fail)
        plan = make_plan(config_for(archive, bands=("B04",)), read_aoi(str(aoi)))
        driver.prepare(plan, tmp_path / "a.zarr")
        with pytest.raises(Interrupted, match="GPU of this process has failed") as caught:
            driver.run_plan(plan, tmp_path / "a.zarr", cluster="inline", workers=1)
        assert caught.value.exit_code == EXIT_RESUMABLE
        assert len(tried) == 1
        monkeypatch.setattr(pools, "process", process)
        assert driver.run_plan(plan, tmp_path / "a.zarr", cluster="inline", workers=1).left == 0

    def test_ends_a_worker_at_once(self):
        code = (
            "import torch; from pipeline.running import pools\n"
            "def fail(*_): raise getattr(torch, 'AcceleratorError', RuntimeError)('CUDA error: lost token=SECRET')\n"
            "pools.process = fail\n"
            "pools._run_on_worker(1, None, 's', 'd', 1)\n"
            "print('still here')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=os.environ, check=False
        )
        assert (done.returncode, done.stdout) == (EXIT_RESUMABLE, "")
        assert "the GPU of this process has failed" in done.stderr
        assert "SECRET" not in done.stderr

    def test_other_errors_leave_the_worker_alive(self, monkeypatch):
        monkeypatch.setattr(pools, "process", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
        with pytest.raises(RuntimeError, match="shapes"):
            pools._run_on_worker(1, UNIT, "s", "d", 1)


def test_threads_that_ask_at_once_load_one_system(monkeypatch):
    system._loaded.cache_clear()
    built, gate, found = [], threading.Barrier(4, timeout=20), []
    real = system.built

    def slow(*given):
        built.append(given[0].name)
        return real(*given)

    def ask():
        gate.wait()
        found.append(system.load(choose("bicubic"), "cpu"))

    monkeypatch.setattr(system, "built", slow)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert built == ["bicubic"]
    assert len(found) == 4
    assert all(one is found[0] for one in found)
