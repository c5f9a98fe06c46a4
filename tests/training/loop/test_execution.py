"""How a run computes changes neither what it learns nor what its checkpoint holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import process
from pipeline.errors import UsageError
from training.loop.execution import Execution, check_compiles, default_workers, parts_of
from training.loop.run import Budget, Run
from training.loop.savepoint import CHECKPOINT
from training.loop.task import Measured
from training.presets import Preset, Stage

ROOT = Path(__file__).resolve().parents[3]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PRESET = Preset("toy", "sr", {}, (Stage("all", 1.0, (), 0.01),), minutes=1, batch=4, ema=0.9, warmup_steps=2)
IMAGES = 48


class Block(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.second(nn.functional.silu(self.first(x)))


class Sharpening(nn.Module):
    """Parts that the loss calls one by one."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(Block(3, 8), Block(8, 8))
        self.head = nn.Conv2d(8, 3, 1)


class Task:
    """Learns to undo a blur."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = Sharpening()
        self.companion = nn.Conv2d(3, 3, 3)
        self.losses, self.layouts = [], set()

    def batch(self, draw):
        hr = torch.rand(PRESET.batch, 3, 16, 16, generator=draw.torch)
        return {"lr": nn.functional.avg_pool2d(hr, 3, 1, 1), "hr": hr, "level": hr.mean((1, 2, 3))}

    def begin(self, stage, draw):
        pass

    def loss(self, stage, batch, draw):
        assert batch["level"].shape == (PRESET.batch,)
        self.layouts.add(batch["lr"].is_contiguous())
        loss = (self.network.head(self.network.trunk(batch["lr"])) - batch["hr"]).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def finish(self):
        pass

    def validate(self, stage):
        device = self.network.head.weight.device
        for side in (9, 11, 13):
            self.network.trunk(torch.zeros(1, 3, side, side, device=device))
        return Measured("watched")


def run_of(folder, **how):
    return Run(Task(), PRESET, Budget(images=IMAGES), folder, seed=3, execution=Execution(**how))


def trained(folder, **how):
    run = run_of(folder, **how)
    run.train(every_s=1e9)
    return run


def assert_near(folder, other):
    """Checkpoints hold the same in the same layout, to within rounding."""
    one, two = (torch.load(path / CHECKPOINT, weights_only=True) for path in (folder, other))
    assert one.keys() == two.keys()
    for part in ("network", "companion", "average"):
        assert list(one[part]) == list(two[part])
        for name, value in one[part].items():
            assert value.stride() == two[part][name].stride()
            torch.testing.assert_close(value, two[part][name], atol=2e-3, rtol=1e-2)
    states, others = (content["optimisers"]["network"] for content in (one, two))
    assert states["param_groups"] == others["param_groups"]
    for number, state in states["state"].items():
        layouts = [
            {name: (value.device, value.shape, value.stride()) for name, value in found.items()}
            for found in (state, others["state"][number])
        ]
        assert layouts[0] == layouts[1]


def test_a_gpu_has_workers_layout_and_kernels_of_its_own_by_default(monkeypatch):
    monkeypatch.setattr(process, "processors", lambda: 16)
    assert Execution.on(CPU) == Execution()
    assert Execution.on(GPU) == Execution(workers=8, channels_last=True, fused=True)
    assert Execution.on(GPU, workers=0, channels_last=False) == Execution(fused=True)
    assert Execution.on(GPU).described(GPU) == (
        "runs on cuda:0, batches made by 8 workers (--workers, started by fork), channels last, fused Adam"
    )
    assert Execution().described(CPU) == "runs on cpu, batches made by the training process (--workers 0)"


@pytest.mark.parametrize(("processors", "processes", "workers"), [(16, 4, 3), (8, 1, 7), (2, 1, 1), (4, 8, 1)])
def test_training_processes_of_a_node_share_its_processors(monkeypatch, processors, processes, workers):
    monkeypatch.setattr(process, "processors", lambda: processors)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(GPU) == workers
    assert default_workers(CPU) == 0


@pytest.mark.parametrize("how", [{"channels_last": True}, {"fused": True}, {"channels_last": True, "fused": True}])
def test_layout_and_kernels_change_rounding_only(tmp_path, how):
    plain, other = trained(tmp_path / "plain"), trained(tmp_path / "other", **how)
    assert other.task.losses == pytest.approx(plain.task.losses, rel=1e-3)
    assert_near(tmp_path / "plain", tmp_path / "other")
    assert other.task.layouts == {not how.get("channels_last", False)}


@pytest.mark.parametrize("first", [True, False])
def test_a_run_resumes_with_other_settings(tmp_path, first):
    fast = {"channels_last": True, "fused": True}
    plain = trained(tmp_path / "plain")
    run_of(tmp_path / "part", **(fast if first else {})).train(every_s=1e9, until_images=IMAGES // 2)
    again = run_of(tmp_path / "part", **({} if first else fast))
    again.resume(tmp_path / "part")
    adam = again.optimisers.each["network"]
    assert adam.param_groups[0]["fused"] is (None if first else True)
    for parameter in again.task.network.parameters():
        assert adam.state[parameter]["exp_avg"].stride() == parameter.stride()
    again.train(every_s=1e9)
    assert again.task.losses == pytest.approx(plain.task.losses[-len(again.task.losses) :], rel=1e-3)
    assert_near(tmp_path / "plain", tmp_path / "part")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own warnings stop it where they are errors
def test_compiled_networks_learn_the_same_under_the_same_names(tmp_path):
    from torch._dynamo.utils import counters

    plain = trained(tmp_path / "plain")
    counters.clear()
    other = trained(tmp_path / "other", compiled=True)
    torch.compiler.set_stance("default")
    assert counters["stats"]["unique_graphs"] == 2  # both blocks; not again for every image that is validated
    assert other.task.losses == pytest.approx(plain.task.losses, rel=1e-3)
    assert_near(tmp_path / "plain", tmp_path / "other")


def test_parts_with_several_layers_are_compiled():
    network = Sharpening()
    network.more = nn.ModuleDict({"a": nn.ModuleList([Block(3, 4)]), "b": nn.Linear(2, 2)})
    assert list(parts_of(network.children())) == [*network.trunk, network.more["a"][0]]


@pytest.mark.slow
def test_without_a_compiler_the_cure_is_said(tmp_path):
    program = "import torch; from training.loop.execution import check_compiles; check_compiles(torch.device('cpu'))"
    nothing = {**os.environ, "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=nothing, capture_output=True, text=True)
    assert "--compile: PyTorch cannot compile for cpu here (InvalidCxxCompiler: No working C++ compiler" in done.stderr
    assert "expected a C++ compiler, and Triton for a GPU; cure: install them, or leave --compile out" in done.stderr


def test_what_a_compiler_says_is_quoted(monkeypatch):
    def refuse(function):
        raise RuntimeError("torch.compile is not supported on Python 3.99\nlong trace")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(UsageError, match=r"here \(torch.compile is not supported on Python 3.99\); expected a C"):
        check_compiles(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_gpu_learns_what_one_on_a_cpu_does(tmp_path, workers):
    plain = trained(tmp_path / "plain")
    task = Task()
    task.network.to(GPU)
    run = Run(task, PRESET, Budget(images=IMAGES), tmp_path / "gpu", 3, Execution.on(GPU, workers))
    run.train(every_s=0.0)
    assert task.losses == pytest.approx(plain.task.losses, rel=1e-2)
    assert_near(tmp_path / "plain", tmp_path / "gpu")
