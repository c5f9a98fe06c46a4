"""Averages of gradients and statistics over the processes of a run.

Losses call parts of a network, not its `forward`, so `DistributedDataParallel` does not fit. As there, gradients are
gathered in buckets, and a bucket is summed over the processes as soon as its last gradient is known, while the
backward pass computes the next.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from training.loop import distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # as in DistributedDataParallel: large enough for bandwidth, small enough to overlap
STATISTICS = ("running_mean", "running_var")  # of BatchNorm; each process has them for its own batches only


@dataclass(eq=False)
class Bucket:
    """Parameters of one dtype and device whose gradients are summed together."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    waiting: set[nn.Parameter] = field(default_factory=set)  # without a gradient in this pass yet
    flat: Tensor | None = None
    arrived: Callable[[], None] | None = None  # waits for the sum in `flat`

    def send(self) -> None:
        """Begin to sum the gradients over the processes; those that this loss does not reach are zero."""
        for parameter in self.waiting:
            parameter.grad = torch.zeros_like(parameter)
        self.flat = torch.cat([gradient.flatten() for gradient in self.gradients])
        self.arrived = distributed.summing(self.flat)

    def receive(self) -> None:
        """Replace the gradients by their means over the processes."""
        assert self.flat is not None  # `send` came first
        assert self.arrived is not None
        self.arrived()
        self.flat /= distributed.world()
        parts = self.flat.split_with_sizes([parameter.numel() for parameter in self.parameters])
        gradients = self.gradients
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])
        self.flat = self.arrived = None

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of all parameters."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class Reduction:
    """Averages the gradients of some parameters over all processes. Call `close` when no longer needed.

    All processes send their buckets in the same order, whatever the order in which gradients become known: sums of
    different buckets would mix otherwise. Results do not depend on timing. A parameter that the loss does not reach
    holds its bucket and later ones back until the pass ends.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.buckets = buckets_of(list(parameters), bucket_bytes)
        self._of = {parameter: bucket for bucket in self.buckets for parameter in bucket.parameters}
        self._sent = 0
        self._active = False
        alone = distributed.world() == 1
        self._hooks = [] if alone else [p.register_post_accumulate_grad_hook(self._ready) for p in self._of]

    def close(self) -> None:
        """Leave the parameters."""
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def averaging(self) -> Iterator[None]:
        """Average the gradients of the backward pass inside the block. Raises Abandoned if a process is lost."""
        if distributed.world() == 1:
            yield
            return
        for bucket in self.buckets:
            bucket.waiting = set(bucket.parameters)
        self._sent, self._active = 0, True
        try:
            yield
        finally:
            self._active = False
        for bucket in self.buckets[self._sent :]:
            bucket.send()
        for bucket in self.buckets:
            bucket.receive()

    def _ready(self, parameter: nn.Parameter) -> None:
        """Take note of a gradient, and send the buckets that are complete, in order."""
        if not self._active:  # the backward pass of another optimiser
            return
        self._of[parameter].waiting.remove(parameter)
        while self._sent < len(self.buckets) and not self.buckets[self._sent].waiting:
            self.buckets[self._sent].send()
            self._sent += 1


def buckets_of(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """Return buckets of at most `bucket_bytes`, or of one parameter, from the last layer to the first.

    That is about the order in which gradients become known.
    """
    buckets = []
    for _, alike in groupby(reversed(parameters), key=lambda p: (p.dtype, p.device)):
        held = bucket_bytes + 1
        for parameter in alike:
            held += parameter.nbytes
            if held > bucket_bytes:
                buckets.append(Bucket())
                held = parameter.nbytes
            buckets[-1].parameters.append(parameter)
    return buckets


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module]) -> None:
    """Average the statistics of BatchNorm layers over all processes."""
    if distributed.world() == 1:
        return
    named = (pair for module in modules for pair in module.named_buffers())
    distributed.average_([buffer for name, buffer in named if name.endswith(STATISTICS)])
