"""How a run computes: processes that make batches, number format, memory layout, fused and compiled kernels.

None of it changes what a checkpoint holds, so a run may resume with other settings and on another device.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.models.layout import channels_last
from pipeline.terminal import counted
from training.loop.batches import start_method
from training.loop.task import HasCompanion, NamesCompiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from training.loop.task import Task

MOST_WORKERS = 8  # chosen by default for each GPU
WORDS_SHOWN = 160  # maximum characters of a library's message


@dataclass(frozen=True)
class Execution:
    """Settings of how a run computes. The defaults are those of a CPU, whose results they keep bit by bit."""

    workers: int = 0  # processes that make batches; 0: the training process does
    bf16: bool = False  # convolutions in bfloat16
    channels_last: bool = False  # memory layout of networks and batches, for tensor cores
    fused: bool = False  # Adam as one kernel for all parameters
    compiled: bool = False  # networks by torch.compile

    @classmethod
    def on(
        cls,
        device: torch.device,
        workers: int | None = None,
        bf16: bool = False,
        channels_last: bool | None = None,
        compiled: bool = False,
    ) -> Execution:
        """Return the settings for a device; those that are None are chosen for it."""
        gpu = device.type == "cuda"
        return cls(
            workers=default_workers(device) if workers is None else workers,
            bf16=bf16,
            channels_last=gpu if channels_last is None else channels_last,
            fused=gpu,
            compiled=compiled,
        )

    def described(self, device: torch.device) -> str:
        """Return one line for the user."""
        made = f"{counted(self.workers, 'worker')} (--workers, started by {start_method()})"
        said = [f"runs on {device}, batches made by {made if self.workers else 'the training process (--workers 0)'}"]
        names = {"bfloat16": self.bf16, "channels last": self.channels_last, "fused Adam": self.fused}
        return ", ".join([*said, *(name for name, used in {**names, "compiled": self.compiled}.items() if used)])

    def prepare(self, task: Task) -> None:
        """Lay out and compile the networks of a task in place. Names, shapes and values of tensors stay."""
        if self.channels_last:
            for module in modules_of(task):
                channels_last(module)
        if self.compiled:
            for part in parts_of(task.compiled if isinstance(task, NamesCompiled) else task.network.children()):
                part.compile(dynamic=False)
            torch.compiler.set_stance("force_eager")

    def compiling(self, compiled: bool = True) -> AbstractContextManager[object]:
        """Compute with compiled networks inside the block, or without.

        Images that are validated differ in size, and each size would be compiled.
        """
        if not self.compiled:
            return contextlib.nullcontext()
        stance: AbstractContextManager[object] = torch.compiler.set_stance("default" if compiled else "force_eager")
        return stance


def parts_of(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield what can be compiled: modules of several layers, and those inside PyTorch's containers, which cannot."""
    for module in modules:
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from parts_of(module.children())
        elif any(module.children()):  # a single layer gains nothing
            yield module


def modules_of(task: Task) -> list[nn.Module]:
    """Return the network of a task, and its companion if it has one."""
    return [task.network, *([task.companion] if isinstance(task, HasCompanion) else [])]


def default_workers(device: torch.device) -> int:
    """Return the number of processes that make batches: none for a CPU, which they would compete for.

    For a GPU, the processors of this process, shared with the other training processes of its node, less one for
    each of them; at least one and at most `MOST_WORKERS`.
    """
    from pipeline.process import processors

    if device.type != "cuda":
        return 0
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(max(processors() // here - 1, 1), MOST_WORKERS)


def check_compiles(device: torch.device) -> None:
    """Compile a small function. Raises UsageError where PyTorch finds no compiler."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    try:
        torch.compile(probe)(torch.zeros(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:WORDS_SHOWN]
        raise UsageError(
            f"--compile: PyTorch cannot compile for {device} here ({words})",
            "a C++ compiler, and Triton for a GPU",
            "install them, or leave --compile out",
        ) from error
