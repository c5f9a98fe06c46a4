"""The training loop: stages, averages, and checkpoints that resume as if nothing had happened."""

import pytest
import torch
from torch import nn

from training.loop import Average, Budget, Run
from training.presets import Preset, Stage

PRESET = Preset(
    name="toy",
    task="sr",
    architecture={},
    stages=(Stage("first", 0.5, ("a.",), 0.05), Stage("second", 0.5, ("b.",), 0.05)),
    minutes=1,
    batch=4,
    ema=0.9,
    warmup_steps=2,
)


class Toy:
    """Fits y = 3 x - 2 with two layers, one per stage; data and noise come from the draw."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Module()
        self.network.a, self.network.b = nn.Linear(1, 4), nn.Linear(4, 1)
        self.began = []
        self.finished = False

    def batch(self, draw):
        x = torch.from_numpy(draw.rng.normal(size=(PRESET.batch, 1))).float()
        return {"x": x, "y": 3 * x - 2 + 0.01 * torch.randn(x.shape, generator=draw.torch)}

    def begin(self, stage, draw):
        self.began.append(stage.name)

    def loss(self, stage, batch, draw):
        return (self.network.b(self.network.a(batch["x"])) - batch["y"]).square().mean()

    def finish(self):
        self.finished = True

    def validate(self, stage):
        return stage.name


def run_of(folder, images, task=None):
    return Run(task or Toy(), PRESET, Budget(images=images), folder, seed=3)


def test_stages_train_only_their_parameters_and_begin_once(tmp_path):
    task = Toy()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    run = run_of(tmp_path, 80, task)
    run.train(until_images=36, every_s=1e9)
    assert torch.equal(task.network.b.weight, before["b.weight"])
    assert not torch.equal(task.network.a.weight, before["a.weight"])
    middle = task.network.a.weight.clone()
    assert not task.finished
    run = run_of(tmp_path, 80, Toy())
    run.resume(tmp_path)
    run.train(every_s=1e9)
    assert run.task.began == ["second"]
    assert run.task.finished
    assert run.at.images == 80
    assert not torch.equal(run.task.network.b.weight, before["b.weight"])
    assert torch.allclose(run.task.network.a.weight, middle, atol=0.1)


def test_an_interrupted_run_ends_exactly_where_an_uninterrupted_one_does(tmp_path):
    whole = run_of(tmp_path / "whole", 80)
    whole.train(every_s=1e9)
    part = run_of(tmp_path / "part", 80)
    part.train(until_images=28, every_s=1e9)
    again = run_of(tmp_path / "part", 80)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    assert again.at.step == whole.at.step
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, again.task.network.state_dict()[name]), name


def test_training_reduces_the_loss_and_reports(tmp_path):
    task, lines = Toy(), []
    run = Run(task, PRESET, Budget(images=1600), tmp_path, seed=3)
    run.train(say=lines.append, every_s=0.0)
    x = torch.linspace(-1, 1, 9)[:, None]
    assert (task.network.b(task.network.a(x)) - (3 * x - 2)).abs().max() < 0.5
    assert len(lines) == 400
    assert "second" in lines[-1]
    assert "1600 images" in lines[-1]


def test_learning_rate_warms_up_and_falls(tmp_path):
    run = run_of(tmp_path, 80)
    assert run._rate(0.0) == pytest.approx(0.05 / 2)
    run.at.stage_step = 10
    assert run._rate(0.25) == pytest.approx(0.05 * 0.51)
    assert run._rate(0.5) == pytest.approx(0.05 * 0.02)


def test_average_starts_as_a_copy_and_follows():
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 1.0)
    average = Average(network, 0.9)
    nn.init.constant_(network.weight, 11.0)
    average.update(network)
    assert average.state["weight"].item() == pytest.approx(0.1 * 1.0 + 0.9 * 11.0)  # young: decay 1 / 10
    with average.applied(network):
        assert network.weight.item() == pytest.approx(10.0)
    assert network.weight.item() == 11.0


def test_budget_counts_minutes_or_images():
    assert Budget(minutes=2).progress(60, 10**9) == 0.5
    assert Budget(images=200).progress(10**9, 50) == 0.25
    assert Budget(minutes=1).progress(600, 0) == 1.0
