"""Gradients are averaged in buckets while the backward pass goes on, to the same bits as all at once."""

import os

import pytest
import torch
from torch import nn

from tests.training.loop.test_distributed import free_port
from training.loop import distributed
from training.loop.reduction import Bucket, Reduction, buckets_of

WIDTH, LAYERS = 16, 6
SIZES = {"one": 10**9, "few": 3000, "many": 1}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unused = nn.Linear(WIDTH, 1)
        self.of_the_second = nn.Parameter(torch.zeros(WIDTH))  # reached in process 1 only
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    def loss(self, rank):
        x = self.layers(torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(rank))).tanh()
        return (x + (self.of_the_second if rank else 0)).square().mean()

    def gradients(self):
        return {name: parameter.grad for name, parameter in self.named_parameters()}


class Watched(Bucket):
    """Notes how many gradients were known when a bucket was sent."""

    def send(self):
        Watched.known.append(sum(gradient is not None for gradient in Watched.network.gradients().values()))
        super().send()


def reduce_as(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.begin(torch.device("cpu"))
    found = {}
    for size, bucket_bytes in SIZES.items():
        network = Watched.network = Network()
        reduction = Reduction(network.parameters(), bucket_bytes)
        for bucket in reduction.buckets:
            bucket.__class__ = Watched
        for _ in range(2):  # hooks stay for the next pass
            Watched.known = []
            network.zero_grad(set_to_none=True)
            with reduction.averaging():
                network.loss(rank).backward()
        means, network = network.gradients(), Network()
        network.loss(rank).backward()
        reduction.close()
        found[size] = {"means": means, "own": network.gradients(), "known": Watched.known}
    torch.save(found, folder / f"{rank}.pt")
    distributed.end()


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reduced")
    torch.multiprocessing.start_processes(reduce_as, (free_port(), folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_the_mean_of_both_processes_bit_by_bit(reduced, size):
    first, second = (found[size]["own"] for found in reduced)
    assert first["of_the_second"] is None
    assert second["unused.weight"] is None
    for found in reduced:
        for name, mean in found[size]["means"].items():
            one, two = (torch.zeros_like(mean) if own[name] is None else own[name] for own in (first, second))
            assert torch.equal(mean, (one + two) / 2), name
        assert float(found[size]["means"]["of_the_second"].abs().sum()) > 0


def test_buckets_are_sent_before_the_backward_pass_ends(reduced):
    reached = 2 * LAYERS
    for found in reduced:
        assert len(found["one"]["known"]) == 1
        first, second, *_, last = found["few"]["known"]
        assert first < second < reached <= last


def test_buckets_run_from_the_last_layer_and_hold_one_kind():
    parameters = [nn.Parameter(torch.zeros(4, dtype=dtype)) for dtype in (torch.float32,) * 3 + (torch.float64,) * 2]
    found = buckets_of(parameters, 32)
    numbers = [[next(i for i, p in enumerate(parameters) if p is own) for own in b.parameters] for b in found]
    assert numbers == [[4], [3], [2, 1], [0]]
    assert [len(bucket.parameters) for bucket in buckets_of(parameters[:3], 1)] == [1, 1, 1]
    assert buckets_of([], 1) == []


def test_a_process_alone_keeps_its_gradients():
    network, other = Network(), Network()
    with Reduction(network.parameters()).averaging():
        network.loss(1).backward()
    other.loss(1).backward()
    assert network.unused.weight.grad is None
    assert torch.equal(network.layers[0].weight.grad, other.layers[0].weight.grad)
