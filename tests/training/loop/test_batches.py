"""Batches by number: the same whoever makes them."""

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError, ReadError
from training.loop.batches import FOR_BATCH, FOR_LOSS, Draw, Feed, start_method

FORKSERVER = multiprocessing.get_context("forkserver")


def make(draw):
    return {"x": torch.from_numpy(draw.rng.normal(size=3)), "y": torch.rand(2, generator=draw.torch)}


def failing(draw):
    raise ReadError("image a.tif ends early", "a whole file", "fetch it again")


def test_draws_follow_from_seed_and_key():
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (FOR_BATCH, 7), (FOR_LOSS, 7)]
    draws = [Draw.seeded(*key) for key in [(0,), *((0, *key) for key in keys), (1, 0)]]
    assert len({float(draw.rng.normal()) for draw in draws}) == len(draws)
    assert len({draw.torch.initial_seed() for draw in draws}) == len(draws)
    assert Draw.seeded(5, 1, 2).rng.normal() == Draw.seeded(5, 1, 2).rng.normal()


def test_on_a_cpu_losses_draw_from_the_same_stream():
    draw, other = Draw.seeded(5, FOR_LOSS, 2), Draw.seeded(5, FOR_LOSS, 2)
    assert draw.on(torch.device("cpu")) is draw.torch
    assert torch.equal(torch.rand(3, generator=draw.on(torch.device("cpu"))), torch.rand(3, generator=other.torch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_losses_draw_there_from_seed_and_number():
    device = torch.device("cuda", 0)

    def drawn(number):
        draw = Draw.seeded(5, FOR_LOSS, number)
        return torch.cat([torch.rand(3, generator=draw.on(device), device=device) for _ in range(2)]).tolist()

    assert drawn(2) == drawn(2) != drawn(3)
    assert len(set(drawn(2))) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_feed_hands_out_batches_by_number_in_order(workers):
    before = torch.get_rng_state()
    with Feed(make, seed=4, first=3, step=2, workers=workers) as feed:
        for number in (3, 5, 7, 9, 11):
            batch, expected = feed.next(), make(Draw.seeded(4, FOR_BATCH, number))
            np.testing.assert_array_equal(batch["x"], expected["x"])
            np.testing.assert_array_equal(batch["y"], expected["y"])
    assert feed.waited_s > 0
    assert torch.multiprocessing.active_children() == []
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python chooses how workers start")
def test_workers_share_the_task_and_are_not_sent_it(monkeypatch):
    """Python 3.14 would pickle it to them, network included."""

    class Large:
        def __reduce__(self):
            raise AssertionError("pickled")

        def batch(self, draw):
            return {"x": torch.full((1,), float(os.getpid()))}

    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", FORKSERVER)
    assert start_method() == "fork"
    with Feed(Large().batch, seed=0, workers=1) as feed:
        assert int(feed.next()["x"]) != os.getpid()


def test_images_may_be_laid_out_for_tensor_cores():
    def images(draw):
        return {"hr": torch.rand(2, 3, 4, 5, generator=draw.torch), "level": torch.rand(2, 3, generator=draw.torch)}

    with Feed(images, seed=0) as plain, Feed(images, seed=0, channels_last=True) as feed:
        batch, expected = feed.next(), plain.next()
    assert batch["hr"].is_contiguous(memory_format=torch.channels_last)
    assert not batch["hr"].is_contiguous()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_go_on_when_their_whole_group_is_asked_to_stop(number):
    """Slurm, torchrun and terminals ask all processes of a group; the one that trains answers."""
    with Feed(make, seed=4, workers=2) as feed:
        for worker in torch.multiprocessing.active_children():  # which have hardly begun
            os.kill(worker.pid, number)
        for expected in range(6):
            np.testing.assert_array_equal(feed.next()["x"], make(Draw.seeded(4, FOR_BATCH, expected))["x"])


# the loader's handler of SIGCHLD raises wherever Python is, in a weak reference's callback or a thread too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_workers_end_when_one_is_killed_and_keep_its_traceback():
    """They ignore the SIGTERM by which Python ends its children at exit, and would be waited for without end."""

    def feed_until_one_is_missed():
        with Feed(make, seed=4, workers=2) as feed:
            feed.next()
            os.kill(torch.multiprocessing.active_children()[0].pid, signal.SIGKILL)
            for _ in range(6):
                feed.next()

    with pytest.raises(PipelineError, match="ended with exit code -9") as error:
        feed_until_one_is_missed()
    assert "--workers" in error.value.cure
    assert torch.multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_failures_keep_their_words_across_processes(workers):
    said = "image a.tif ends early; expected a whole file; cure: fetch it again"
    with Feed(failing, seed=0, workers=workers) as feed, pytest.raises(ReadError, match=said):
        feed.next()
