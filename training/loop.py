"""The training loop: budget, stages, moving average, checkpoints that resume exactly, one line per interval.

In: a `Task` (network, loss, validation) and a `Preset`. Out: the averaged network. Knows neither images nor sensors.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from training.presets import Preset, Stage

CHECKPOINT = "checkpoint.pt"
FINAL_RATE = 0.02  # the cosine of the learning rate ends at this share of its start


@dataclass
class Draw:
    """The two seeded sources of chance of a run."""

    rng: np.random.Generator
    torch: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> Draw:
        """Both from one seed."""
        return cls(np.random.default_rng(seed), torch.Generator().manual_seed(seed))

    def state(self) -> dict[str, Any]:
        """What is needed to go on exactly here."""
        return {"numpy": self.rng.bit_generator.state, "torch": self.torch.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.rng.bit_generator.state = state["numpy"]
        self.torch.set_state(state["torch"])


class Task(Protocol):
    """What is trained. `network` owns every parameter; all chance comes from `Draw`."""

    @property
    def network(self) -> nn.Module:
        """What is trained, in place."""
        ...

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Fresh data on the CPU in float32; the first axis of every tensor counts images."""
        ...

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """What `stage` minimises, on one batch."""
        ...

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Called once when a stage begins, with averaged weights in place."""
        ...

    def finish(self) -> None:
        """Called once after the last step, with averaged weights in place."""
        ...

    def validate(self, stage: Stage) -> str:
        """One line of numbers on held-out places, with the network as it is now."""
        ...


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of training time over all resumes, or images. Images make a run reproducible."""

    minutes: float | None = None
    images: int | None = None

    def progress(self, elapsed_s: float, images: int) -> float:
        """Spent share, 0 to 1."""
        spent = images / self.images if self.images else elapsed_s / 60 / (self.minutes or math.inf)
        return min(spent, 1.0)


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    images: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last line


class Average:
    """Exponential moving average of a network's state (a copy, not a fresh initialisation)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step; young averages forget faster: decay = min(d, (1 + n) / (10 + n))."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network carries the average inside the block and its own weights after it."""
        own = {k: v.detach().clone() for k, v in network.state_dict().items()}
        network.load_state_dict(self.state)
        yield
        network.load_state_dict(own)


class Run:
    """One training run of a task by a preset's stages, in a folder of its own."""

    def __init__(self, task: Task, preset: Preset, budget: Budget, folder: Path, seed: int, bf16: bool = False) -> None:
        self.task, self.preset, self.budget, self.folder = task, preset, budget, folder
        self.bf16 = bf16
        self.draw = Draw.seeded(seed)
        self.at = Progress()
        self._begin_stage()

    @property
    def stage(self) -> Stage:
        """The stage the run is in."""
        return self.preset.stages[self.at.stage]

    def train(self, say: Callable[[str], None] = print, every_s: float = 60.0, until_images: int | None = None) -> None:
        """Go on until the budget is spent (or `until_images`); ends with averaged weights in the task's network."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.at.elapsed_s
        while (spent := self._spent()) < 1.0 and (until_images is None or self.at.images < until_images):
            self._enter(spent)
            started = time.monotonic()
            self._step(spent)
            self.at.elapsed_s += time.monotonic() - started
            if self.at.elapsed_s - last >= every_s:
                last = self.at.elapsed_s
                say(self._line())
                self.save()
        self.save()
        self.task.network.load_state_dict(self.average.state)
        if self._spent() >= 1.0:
            self.task.finish()

    def save(self) -> None:
        """Write the checkpoint, replacing the last one atomically."""
        content = {
            "network": self.task.network.state_dict(),
            "average": self.average.state,
            "average_count": self.average.count,
            "optimiser": self.optimiser.state_dict(),
            "draw": self.draw.state(),
            "at": vars(self.at),
        }
        partial = self.folder / (CHECKPOINT + ".partial")
        torch.save(content, partial)
        partial.replace(self.folder / CHECKPOINT)

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, as if it had never stopped."""
        content = torch.load(folder / CHECKPOINT, weights_only=True)
        self.at = Progress(**content["at"])
        self.task.network.load_state_dict(content["network"])
        self._begin_stage()
        self.average.state, self.average.count = content["average"], content["average_count"]
        self.optimiser.load_state_dict(content["optimiser"])
        self.draw.restore(content["draw"])

    def _spent(self) -> float:
        return self.budget.progress(self.at.elapsed_s, self.at.images)

    def _bounds(self) -> tuple[float, float]:
        """Shares of the budget at which the current stage begins and ends."""
        before = sum(stage.share for stage in self.preset.stages[: self.at.stage])
        return before, before + self.stage.share

    def _enter(self, spent: float) -> None:
        """Move to the next stage, starting it from averaged weights, when this one's share is spent."""
        moved = False
        while spent >= self._bounds()[1] - 1e-9 and self.at.stage + 1 < len(self.preset.stages):
            self.task.network.load_state_dict(self.average.state)
            self.at.stage, self.at.stage_step, moved = self.at.stage + 1, 0, True
        if moved or self.at.step == 0:
            self.task.begin(self.stage, self.draw)
            self._begin_stage()

    def _begin_stage(self) -> None:
        """Fresh optimiser and average over the stage's parameters; all others are frozen."""
        chosen = []
        for name, parameter in self.task.network.named_parameters():
            trained = not self.stage.trains or name.startswith(self.stage.trains)
            parameter.requires_grad_(trained)
            chosen += [parameter] if trained else []
        self.optimiser = torch.optim.Adam(chosen, lr=self.stage.learning_rate, betas=(0.9, 0.99))
        self.average = Average(self.task.network, self.preset.ema)

    def _rate(self, spent: float) -> float:
        """Learning rate: linear warm-up, then a cosine over the stage."""
        begin, end = self._bounds()
        cosine = 0.5 * (1 + math.cos(math.pi * min(max((spent - begin) / (end - begin), 0.0), 1.0)))
        warm = min(1.0, (self.at.stage_step + 1) / self.preset.warmup_steps)
        return self.stage.learning_rate * warm * (FINAL_RATE + (1 - FINAL_RATE) * cosine)

    def _step(self, spent: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(spent)
        device = next(self.task.network.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.task.batch(self.draw).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.task.loss(self.stage, batch, self.draw)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.average.update(self.task.network)
        self.at.step, self.at.stage_step = self.at.step + 1, self.at.stage_step + 1
        self.at.images += len(next(iter(batch.values())))
        self.at.losses.append(float(loss.detach()))

    def _line(self) -> str:
        at, losses = self.at, self.at.losses
        with self.average.applied(self.task.network):
            measured = self.task.validate(self.stage)
        loss = sum(losses) / max(len(losses), 1)
        self.at.losses = []
        rate = at.images / max(at.elapsed_s, 1e-9)
        return (
            f"{at.elapsed_s / 60:6.1f} min  {self.stage.name:<8} step {at.step:6d}  {at.images:8d} images "
            f"{rate:6.1f}/s  loss {loss:.5f}  {measured}"
        )
