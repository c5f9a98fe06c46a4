"""Batches by number: batch i follows from (seed, i) alone, whichever process makes it, in whichever order.

In: a function that makes a batch of a `Draw`. Out: the batches in order, made in line or by worker processes, and how
long training waited for them. Imports torch and the errors.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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

# What chance is for; together with the seed and a number they key a `Draw`.
FOR_BATCH, FOR_LOSS, FOR_STAGE = 0, 1, 2
_LAST_WORDS_S = 0.2  # in which a worker that is dying becomes known as dead
PREFETCH = 2  # batches that each worker keeps ready
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # ask a run to stop


@dataclass
class Draw:
    """Two seeded sources of chance, on the CPU."""

    rng: np.random.Generator
    torch: torch.Generator

    @classmethod
    def seeded(cls, seed: int, *key: int) -> Draw:
        """Both from a seed and the key of what they are for, none negative."""
        sequence = np.random.SeedSequence(seed, spawn_key=key)
        word = int(sequence.generate_state(1, np.uint64)[0])
        return cls(np.random.default_rng(sequence), torch.Generator().manual_seed(word))


@dataclass(frozen=True)
class Made:
    """A batch, and the files that were found unreadable since the one before: {label: error}."""

    batch: Batch
    unreadable: dict[str, str]

    def pin_memory(self) -> Made:
        """As the loader asks for where batches go to a GPU."""
        return Made({name: tensor.pin_memory() for name, tensor in self.batch.items()}, self.unreadable)


class Numbered(Dataset["Made | PipelineError"]):
    """Batches by number. A failure that has words for the user is handed over as a value: it crosses processes."""

    def __init__(self, make: Callable[[Draw], Batch], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, number: int) -> Made | PipelineError:
        """Batch `number`, float32 on the CPU."""
        try:
            return Made(self.make(Draw.seeded(self.seed, FOR_BATCH, number)), newly_found())
        except PipelineError as error:
            error.__cause__ = error.__context__ = None  # a library's own error may not survive pickling
            return error.with_traceback(None)


def _leave_signals(worker: int) -> None:
    """What asks a run to stop reaches a whole group of processes: the one that trains answers, and ends the workers."""
    del worker
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals that ask this thread, or a process that it forks, to stop wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Feed:
    """Hands out the batches first, first + step, ... on `device`, and counts the seconds that training waited.

    With `workers` the batches come from as many processes; `make` must then not depend on what training changes. Use it
    in a `with` block, which ends them: left to the garbage collector they may end in a process forked later.
    """

    def __init__(
        self,
        make: Callable[[Draw], Batch],
        seed: int,
        first: int = 0,
        step: int = 1,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.waited_s = 0.0
        self.unreadable: dict[str, str] = {}  # files that were skipped: {label: error}
        loader: DataLoader[Made | PipelineError] = DataLoader(
            Numbered(make, seed),
            batch_size=None,
            sampler=itertools.count(first, step),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_leave_signals if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else the loader would use the global one
        )
        self._batches: Iterator[Made | PipelineError]
        others = set(multiprocessing.active_children())
        with _held_back():  # until a worker ignores them
            self._batches = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # the loader's handler of SIGCHLD raises wherever we are, perhaps far from a batch
        explained = self._explained(error) if isinstance(error, RuntimeError) else error
        self._end()
        if explained is not error and explained is not None:
            raise explained from error

    def _end(self) -> None:
        # An iterator ends its workers when nothing holds it; after a failure its traceback does.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        self._batches = iter(())
        for worker in self._workers:  # one that hangs ignores the loader's SIGTERM, and would keep Python from ending
            worker.kill()
            worker.join()

    def next(self) -> Batch:
        """The next batch. Raises what its making raised; PipelineError where a worker was killed."""
        started = time.monotonic()
        try:
            made = next(self._batches)
        except (ConnectionError, EOFError, RuntimeError) as error:
            raise self._explained(error) from error
        if isinstance(made, PipelineError):
            raise made
        self.unreadable |= made.unreadable
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in made.batch.items()}
        self.waited_s += time.monotonic() - started
        return moved

    def _explained(self, error: Exception) -> Exception:
        """The loader fails in many words when a worker dies, depending on what it was doing at that moment."""
        dead: list[int] = []
        for worker in self._workers:
            with suppress(RuntimeError):  # the loader raises from its handler of SIGCHLD, wherever we are by then
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
