"""Momentum contrast: the loss in closed form, the queue as a ring, the slow key encoder."""

import math

import pytest
import torch

from pipeline.models.degradation import DegradationEncoder
from training.tasks.contrast import MomentumContrast, info_nce

WIDTH = 8


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return DegradationEncoder(bands=3, base=WIDTH // 4)


def contrast_of(encoder, size=6, **options):
    contrast = MomentumContrast(encoder, WIDTH, size, **options)
    contrast.begin(encoder, torch.Generator().manual_seed(1))
    return contrast


def test_info_nce_of_known_vectors():
    e = torch.eye(4)
    even = info_nce(e[:1], e[1:2], e[2:4], temperature=0.07)  # all at right angles: any of three is as likely
    assert float(even) == pytest.approx(math.log(3), abs=1e-6)
    alike = info_nce(e[:1], e[:1], torch.stack([e[1], -e[0]]), temperature=0.5)
    assert float(alike) == pytest.approx(-math.log(math.e**2 / (math.e**2 + 1 + math.e**-2)), abs=1e-6)
    fooled = info_nce(e[:1], -e[:1], e[:1], temperature=0.07)  # the stranger looks like the query, the pair does not
    assert float(fooled) == pytest.approx(2 / 0.07, rel=1e-5)
    both = info_nce(e[[0, 0]], e[[1, 1]], e[2:4], temperature=0.07)
    assert float(both) == pytest.approx(math.log(3), abs=1e-6)


def test_info_nce_stays_in_float32_under_autocast():
    q = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(q, q, q)
    assert torch.equal(inside, info_nce(q, q, q))


def test_the_queue_is_a_ring_that_forgets_the_oldest(encoder):
    contrast = contrast_of(encoder)
    before = contrast.queue.clone()

    def rows(*numbers):
        return torch.stack([torch.full((WIDTH,), float(number)) for number in numbers])

    contrast.enqueue(rows(1, 2, 3, 4))
    assert contrast.queue[:4, 0].tolist() == [1, 2, 3, 4]
    assert torch.equal(contrast.queue[4:], before[4:])
    contrast.enqueue(rows(5, 6, 7, 8))
    assert contrast.queue[:, 0].tolist() == [7, 8, 3, 4, 5, 6]
    assert int(contrast.cursor) == 2
    contrast.enqueue(rows(*range(10, 18)))  # more than it holds: the last six stay
    assert sorted(contrast.queue[:, 0].tolist()) == [12, 13, 14, 15, 16, 17]


def test_the_queue_begins_with_seeded_unit_vectors(encoder):
    one, two = contrast_of(encoder), contrast_of(encoder)
    torch.testing.assert_close(one.queue.norm(dim=1), torch.ones(6))
    assert torch.equal(one.queue, two.queue)


def test_the_key_encoder_starts_as_a_copy_and_follows_slowly(encoder):
    contrast = contrast_of(encoder, momentum=0.9)
    weight = encoder.mlp[0].weight
    assert torch.equal(contrast.encoder_k.mlp[0].weight, weight)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    contrast.follow(encoder)
    torch.testing.assert_close(contrast.encoder_k.mlp[0].weight, start + 0.1)
    contrast.follow(encoder)
    torch.testing.assert_close(contrast.encoder_k.mlp[0].weight, start + 0.19)


def test_gradients_reach_the_query_encoder_only(encoder):
    contrast = contrast_of(encoder)
    windows = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    queue = contrast.queue.clone()
    vector = encoder(windows)
    loss = contrast.loss(encoder, vector, windows)
    query = torch.nn.functional.normalize(encoder.projection(vector), dim=1)
    key = contrast.queue[:2]
    torch.testing.assert_close(loss, info_nce(query, key, queue))
    torch.testing.assert_close((query * key).sum(1), torch.ones(2), atol=1e-5, rtol=0)  # same windows, same weights
    loss.backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(parameter.grad is None for parameter in contrast.encoder_k.parameters())


def test_key_encoder_and_queue_are_what_a_checkpoint_keeps(encoder):
    names = set(contrast_of(encoder).state_dict())
    assert {"queue", "cursor", "encoder_k.mlp.0.weight", "encoder_k.E.1.running_mean"} <= names
