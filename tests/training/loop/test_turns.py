"""A task with optimisers of its own: a generator and a discriminator that step in turn, resumed bit by bit."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from training.loop import distributed
from training.loop.run import Budget, Run
from training.loop.savepoint import CHECKPOINT
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage

ROOT = Path(__file__).resolve().parents[3]
PRESET = Preset(
    "adversarial",
    "adversarial",
    {},
    (Stage("pixels", 0.25, (), 0.02), Stage("adversarial", 0.75, (), 0.02)),
    minutes=1,
    batch=32,
    ema=0.9,
    warmup_steps=2,
    schedule="constant",
)
CENTRE, WIDTH = 3.0, 0.5  # of the distribution to learn


class Adversarial:
    """Noise becomes samples of a normal distribution, whose mean the first stage learns and whose width it cannot."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.companion = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def batch(self, draw):
        real = CENTRE + WIDTH * torch.randn(PRESET.batch, 1, generator=draw.torch)
        return {"real": real, "noise": torch.randn(PRESET.batch, 1, generator=draw.torch)}

    def begin(self, stage, draw):
        pass

    def finish(self):
        pass

    def optimisers(self, stage):
        generator = torch.optim.Adam(self.network.parameters(), lr=stage.learning_rate, betas=(0.5, 0.9))
        if stage.name == "pixels":
            return {"generator": generator}
        return {"generator": generator, "discriminator": torch.optim.SGD(self.companion.parameters(), lr=0.05)}

    def judged(self, samples):
        """A batch is judged by each sample and its distance from the batch's mean."""
        return self.companion(torch.cat([samples, (samples - samples.mean()).abs()], 1))

    def turns(self, stage, batch, draw):
        fake = self.network(batch["noise"])
        pixels = (fake - batch["real"]).square().mean()
        if stage.name == "pixels":
            yield "generator", pixels
            return
        fooled = -self.judged(fake).mean()
        yield "generator", Objective(fooled + 0.01 * pixels, {"fooled": fooled})
        shown = torch.cat([self.judged(batch["real"]), self.judged(fake.detach())])
        truth = torch.cat([torch.ones_like(fake), torch.zeros_like(fake)])
        yield "discriminator", nn.functional.binary_cross_entropy_with_logits(shown, truth)

    def validate(self, stage):
        made = self.network(torch.randn(2000, 1, generator=torch.Generator().manual_seed(1)))
        return Measured(f"{float(made.detach().mean()):.3f} {float(made.detach().std()):.3f}")


def run_of(folder, images):
    return Run(Adversarial(), PRESET, Budget(images=images), folder, seed=3)


def state_of(folder):
    """Tensors of a checkpoint, without the seconds."""
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    del content["at"]["elapsed_s"], content["at"]["stage_s"]
    return content


def assert_alike(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_generator_and_discriminator_alternate_and_both_learn(tmp_path):
    lines = []
    first = run_of(tmp_path, 640)
    before = {name: value.clone() for name, value in first.task.companion.state_dict().items()}
    first.train(say=lines.append, every_s=1e9, until_images=160)
    assert first.stage.name == "pixels"
    assert_alike(dict(first.task.companion.state_dict()), before)
    first.train(say=lines.append, every_s=1e9)
    assert set(state_of(tmp_path)["optimisers"]) == {"generator", "discriminator"}
    assert not torch.equal(first.task.companion.state_dict()["0.weight"], before["0.weight"])
    assert "fooled=" in lines[-1]
    assert "discriminator=" in lines[-1]


def test_an_adversarial_run_improves_beyond_the_pixel_loss(tmp_path):
    run = run_of(tmp_path, 32 * 1200)
    lines = []
    run.train(say=lines.append, every_s=1e9, until_images=32 * 300)
    _, width_of_pixels = map(float, run.task.validate(run.stage).text.split())
    run.train(say=lines.append, every_s=1e9)
    centre, width = map(float, run.task.validate(run.stage).text.split())
    assert width_of_pixels < 0.25 * WIDTH  # the mean of all samples is what pixels ask for
    assert abs(centre - CENTRE) < 0.5
    assert 0.5 * WIDTH < width < 2 * WIDTH


@pytest.mark.parametrize("images", [96, 352])  # in either stage
def test_a_resumed_adversarial_run_is_that_which_was_not_stopped(tmp_path, images):
    run_of(tmp_path / "whole", 640).train(every_s=1e9)
    run_of(tmp_path / "part", 640).train(every_s=1e9, until_images=images)
    again = run_of(tmp_path / "part", 640)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    assert_alike(state_of(tmp_path / "part"), state_of(tmp_path / "whole"))


@pytest.mark.slow
def test_a_killed_adversarial_run_goes_on_to_the_same_weights(tmp_path):
    """`kill -9` while a run writes a checkpoint after every step."""
    run_of(tmp_path / "whole", 32 * 400).train(every_s=1e9)
    program = (
        "import sys, pathlib; from tests.training.loop.test_turns import run_of; "
        "run_of(pathlib.Path(sys.argv[1]), 32 * 400).train(every_s=0.0)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "part")], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    patience = time.monotonic() + 120
    while not (tmp_path / "part" / CHECKPOINT).exists() and time.monotonic() < patience:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    again = run_of(tmp_path / "part", 32 * 400)
    again.resume(tmp_path / "part")
    assert 0 < again.at.step < 400
    again.train(every_s=1e9)
    assert_alike(state_of(tmp_path / "part"), state_of(tmp_path / "whole"))


def train_as(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.begin(torch.device("cpu"))
    run = run_of(folder / "run", 640)
    run.train(every_s=1e9)
    torch.save([run.task.network.state_dict(), run.task.companion.state_dict()], folder / f"{rank}.pt")
    distributed.end()


def test_two_processes_keep_one_generator_and_one_discriminator(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(train_as, (port, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_alike([dict(part) for part in first], [dict(part) for part in second])
    assert state_of(tmp_path / "run")["at"]["step"] == 10


def test_an_unknown_optimiser_is_named_with_the_known(tmp_path):
    class Wrong(Adversarial):
        def turns(self, stage, batch, draw):
            yield "critic", self.network(batch["noise"]).mean()

    with pytest.raises(KeyError, match="'critic'; expected one of generator"):
        Run(Wrong(), PRESET, Budget(images=64), tmp_path, seed=3).train(every_s=1e9)
