"""Reproducible batches, made in the training process or by workers. Batch i depends only on (seed, i)."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import PipelineError
from training.data.unreadable import newly_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from torch import Tensor

    Batch = dict[str, Tensor]

Device = torch.device  # `Draw` has a field called torch
Generator = torch.Generator

# Purposes of a `Draw`; with the seed and a number, they form its key.
FOR_BATCH, FOR_LOSS, FOR_STAGE = 0, 1, 2
_LAST_WORDS_S = 0.2  # time to wait for the exit code of a dying worker
PREFETCH = 2  # batches prefetched per worker
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # signals that stop a run


@dataclass
class Draw:
    """Two seeded random generators (NumPy and torch) on the CPU, and one on a GPU if asked for."""

    rng: np.random.Generator
    torch: Generator
    there: dict[Device, Generator] = field(default_factory=dict, repr=False)

    @classmethod
    def seeded(cls, seed: int, *key: int) -> Draw:
        """Return both generators for a seed and a key of purpose and number, none negative."""
        sequence = np.random.SeedSequence(seed, spawn_key=key)
        word = int(sequence.generate_state(1, np.uint64)[0])
        return cls(np.random.default_rng(sequence), torch.Generator().manual_seed(word))

    def on(self, device: Device) -> Generator:
        """Return the torch generator for tensors on `device`: `torch`, or one on the GPU with the same seed.

        Losses draw noise and dropout masks with it where they are used. Drawn by workers, a mask of features would
        travel with each batch and be larger than its images; drawn by the training process, it would delay the next
        step. It depends on the seed and the number of the batch only, like all else that is drawn.
        """
        if device.type != "cuda":
            return self.torch
        if device not in self.there:
            self.there[device] = torch.Generator(device).manual_seed(self.torch.initial_seed())
        return self.there[device]


@dataclass(frozen=True)
class Made:
    """A batch, and the files found unreadable since the previous batch: {label: error}."""

    batch: Batch
    unreadable: dict[str, str]

    def pin_memory(self) -> Made:
        """Return the batch in pinned memory. Called by the DataLoader if batches go to a GPU."""
        return Made({name: tensor.pin_memory() for name, tensor in self.batch.items()}, self.unreadable)


class Numbered(Dataset["Made | PipelineError"]):
    """Dataset of batches by number. A PipelineError is returned as a value, so that it crosses processes intact."""

    def __init__(self, make: Callable[[Draw], Batch], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, number: int) -> Made | PipelineError:
        """Return batch `number`, float32 on the CPU, or the PipelineError that making it raised."""
        try:
            return Made(self.make(Draw.seeded(self.seed, FOR_BATCH, number)), newly_found())
        except PipelineError as error:
            error.__cause__ = error.__context__ = None  # errors of libraries may not pickle
            return error.with_traceback(None)


def _leave_signals(worker: int) -> None:
    """Ignore stop signals in a worker. They reach the whole process group; the training process ends the workers."""
    del worker
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _held_back() -> Iterator[None]:
    """Block stop signals in this thread, and in processes that it forks, until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_method() -> str:
    """Return how workers are started: on Linux by fork, elsewhere as Python does.

    From 3.14 on, Python starts them from a server, to which the task is pickled with its network: once per worker,
    and on a GPU each of them would open a context of its own. A forked worker shares the memory. It must not use the
    GPU, and has no need to: batches are made on the CPU, and the training process moves them.
    """
    return "fork" if sys.platform == "linux" else multiprocessing.get_start_method()


class Feed:
    """Feed of the batches first, first + step, ... on `device`. Counts the seconds that training waited for them.

    `workers` is the number of processes that make batches; with any, `make` must not depend on the training state. Use
    the feed in a `with` block, which ends the workers. The garbage collector could run in a process forked later.
    """

    def __init__(
        self,
        make: Callable[[Draw], Batch],
        seed: int,
        first: int = 0,
        step: int = 1,
        workers: int = 0,
        device: torch.device | None = None,
        channels_last: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.channels_last = channels_last
        self.waited_s = 0.0
        self.unreadable: dict[str, str] = {}  # skipped files: {label: error}
        loader: DataLoader[Made | PipelineError] = DataLoader(
            Numbered(make, seed),
            batch_size=None,
            sampler=itertools.count(first, step),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_leave_signals if workers else None,
            multiprocessing_context=start_method() if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else the loader uses the global generator
        )
        self._batches: Iterator[Made | PipelineError]
        others = set(multiprocessing.active_children())
        with _held_back():  # until the workers ignore the signals
            self._batches = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # the loader's SIGCHLD handler may raise anywhere in the block
        explained = self._explained(error) if isinstance(error, RuntimeError) else error
        self._end()
        if explained is not error and explained is not None:
            raise explained from error

    def _end(self) -> None:
        # An iterator ends its workers when it is collected, but the traceback of a failure still references it.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        self._batches = iter(())
        for worker in self._workers:  # a hanging worker ignores the loader's SIGTERM and would block Python's exit
            worker.kill()
            worker.join()

    def next(self) -> Batch:
        """Return the next batch. Raises the error of `make`, or PipelineError if a worker was killed."""
        started = time.monotonic()
        try:
            made = next(self._batches)
        except (ConnectionError, EOFError, RuntimeError) as error:
            raise self._explained(error) from error
        if isinstance(made, PipelineError):
            raise made
        self.unreadable |= made.unreadable
        moved = {name: self._moved(tensor) for name, tensor in made.batch.items()}
        self.waited_s += time.monotonic() - started
        return moved

    def _moved(self, tensor: Tensor) -> Tensor:
        there = tensor.to(self.device, non_blocking=True)
        last = self.channels_last and there.dim() == 4
        return there.contiguous(memory_format=torch.channels_last) if last else there

    def _explained(self, error: Exception) -> Exception:
        """Return PipelineError if a worker died, else `error`. The loader's own error depends on what it was doing."""
        dead: list[int] = []
        for worker in self._workers:
            with suppress(RuntimeError):  # the loader's SIGCHLD handler may raise here
                worker.join(_LAST_WORDS_S)
            with suppress(RuntimeError):
                dead += [worker.exitcode] if worker.exitcode else []
        if not dead:
            return error
        return PipelineError(
            f"a process that makes batches ended with exit code {dead[0]} ({type(error).__name__})",
            "processes that live as long as the training",
            "look for the out-of-memory killer in the system's log; fewer --workers need less memory",
        )
