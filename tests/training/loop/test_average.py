"""The moving average of weights."""

import pytest
import torch
from torch import nn

from training.loop.average import Average


def test_average_starts_as_a_copy_and_follows():
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 1.0)
    average = Average(network, 0.9)
    nn.init.constant_(network.weight, 11.0)
    average.update()
    assert average.state["weight"].item() == pytest.approx(0.1 * 1.0 + 0.9 * 11.0)  # young: decay 1 / 10
    with average.applied(network):
        assert network.weight.item() == pytest.approx(10.0)
    assert network.weight.item() == 11.0


def test_old_averages_forget_at_their_decay():
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 0.0)
    average = Average(network, 0.999)
    average.count = 100_000
    nn.init.constant_(network.weight, 1.0)
    average.update()
    assert average.state["weight"].item() == pytest.approx(1e-3)


def test_statistics_of_batchnorm_are_copied_and_weights_averaged():
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.999)
    network(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) + 5)
    nn.init.constant_(network.weight, 11.0)
    average.update()
    assert torch.equal(average.state["running_mean"], network.running_mean)
    assert average.state["num_batches_tracked"].item() == 1
    assert average.state["weight"][0].item() == pytest.approx(10.0)


def test_a_stored_average_must_fit():
    average = Average(nn.Linear(2, 2), 0.9)
    average.load({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, 7)
    assert (float(average.state["weight"].sum()), average.count) == (4.0, 7)
    with pytest.raises(KeyError):
        average.load({"weight": torch.ones(2, 2)}, 7)
    with pytest.raises(RuntimeError):
        average.load({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, 7)


def test_the_average_follows_a_network_that_was_loaded_anew():
    network = nn.Linear(1, 1)
    average = Average(network, 0.0)
    network.load_state_dict({"weight": torch.full((1, 1), 7.0), "bias": torch.zeros(1)})
    average.update()
    assert average.state["weight"].item() == 7.0
