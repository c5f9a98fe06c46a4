"""Checkpoints of earlier formats go on as they began."""

import json
from dataclasses import replace

import torch

from tests.training.loop.test_run import PRESET, Toy, run_of
from training.loop.run import Budget, Run
from training.loop.savepoint import CHECKPOINT


def test_a_checkpoint_of_format_2_goes_on_bit_by_bit(tmp_path):
    """It had one optimiser, and tasks had other names."""
    whole = run_of(tmp_path / "whole", 80)
    whole.train(every_s=1e9)
    run_of(tmp_path / "part", 80).train(until_images=28, every_s=1e9)
    content = torch.load(tmp_path / "part" / CHECKPOINT, weights_only=True)
    content["optimiser"] = content.pop("optimisers")["network"]
    content["format_version"] = 2
    content.pop("trained", None)
    assert json.loads(content["config"])["task"] == PRESET.task
    torch.save(content, tmp_path / "part" / CHECKPOINT)
    again = Run(Toy(), replace(PRESET, task="renamed"), Budget(images=80), tmp_path / "part", seed=99)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, again.task.network.state_dict()[name]), name
