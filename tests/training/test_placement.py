"""Tensors are brought to where a network is, and what it gives back to the CPU."""

import pytest
import torch
from torch import nn

from training import placement


def test_tensors_go_to_the_device_and_the_result_comes_back(far):
    seen = []

    def scaled(values, factor):
        seen.append((values.device, factor))
        return values * factor

    out = placement.run(far, scaled, torch.ones(2, 3), 4)
    assert seen == [(far, 4)]
    assert (out.device, out.shape) == (torch.device("cpu"), (2, 3))


def test_on_the_cpu_nothing_changes():
    values = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(placement.run(torch.device("cpu"), torch.sqrt, values), values.sqrt())


def test_a_network_is_where_its_weights_are(far):
    assert placement.device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert placement.device_of(nn.Linear(1, 1).to(far)) == far


def test_the_fixture_refuses_to_mix_devices(far):
    """Else the tests that use it could not fail."""
    with pytest.raises(RuntimeError, match="meta"):
        nn.Conv2d(1, 1, 3).to(far)(torch.ones(1, 1, 4, 4))
