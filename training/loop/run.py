"""The training loop: budget, stages, moving average, checkpoints that resume exactly, one line per interval.

Knows neither images nor sensors. Under `torchrun` several processes take the batches in turn and share one gradient.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import Interrupted, PipelineError, UsageError
from training import placement
from training.loop import distributed, log, savepoint
from training.loop.average import Average
from training.loop.batches import FOR_LOSS, FOR_STAGE, Draw, Feed
from training.loop.lineage import Lineage
from training.loop.optimisers import OWN, Optimisers
from training.loop.progress import Budget, Progress, Tally
from training.loop.skipped import SKIPPED, Skipped
from training.loop.task import HasCompanion, HasLoss, Objective, ShowsSamples, TakesTurns
from training.schedule import rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from pipeline.models.bundle import Bundle
    from training.loop.task import Task
    from training.presets import Preset, Stage

__all__ = ["Average", "Budget", "Diverged", "Draw", "Progress", "Run"]

STATISTICS = ("running_mean", "running_var")  # of BatchNorm, which every process sees only its own batches of


class Diverged(PipelineError):
    """The loss is no longer a number. Exit code 1."""


class Run:
    """One training run of a task by a preset's stages, in a folder of its own.

    `data` is the digest of what it learns from; `learned_from` has those of all resumes, the present one last.
    `skip`: files that cannot be read are left out up to this many.
    """

    def __init__(
        self,
        task: Task,
        preset: Preset,
        budget: Budget,
        folder: Path,
        seed: int,
        bf16: bool = False,
        workers: int = 0,
        data: str = "",
        skip: int = SKIPPED,
    ) -> None:
        self.task, self.preset, self.budget, self.folder = task, preset, budget, folder
        self.seed, self.bf16, self.workers = seed, bf16, workers
        self.skipped = Skipped(skip)
        self.device = placement.device_of(task.network)
        self.resumed_from: Path | None = None
        self.resumed_at = 0  # step
        self.learned_from = [data]
        self.started_from = ""  # digest of the weights it began with
        self.lineage = Lineage()
        self.stop: Callable[[], bool] = bool  # asked after every step
        self.stopping = False
        self.before: Budget | None = None  # of the run that goes on, where it was another
        self.processes_before = distributed.world()
        self.logged = False  # whether the log was begun
        if isinstance(task, HasCompanion):
            task.companion.to(self.device)
        self.at = Progress()
        self.tally = Tally()
        self._begin_stage()

    @property
    def stage(self) -> Stage:
        """The stage the run is in."""
        return self.preset.stages[self.at.stage]

    def train(
        self,
        say: Callable[[str], None] = print,
        every_s: float = 60.0,
        until_images: int | None = None,
        stop: Callable[[], bool] = bool,  # which gives False
    ) -> None:
        """Go on until the budget is spent (or `until_images`); ends with averaged weights in the task's network.

        Process 0 says a line, logs a row and writes a checkpoint every `every_s` seconds and at the end. Raises
        Diverged; and Interrupted, the checkpoint written, after the step in which `stop` is True in any process.
        """
        self.stop = stop
        first, step = self.at.batches + distributed.rank(), distributed.world()
        self.task.network.train()
        last = self.at.elapsed_s
        with Feed(self.task.batch, self.seed, first, step, self.workers, self.device) as feed:
            while self._goes_on(until_images):
                self._enter()
                self._step(feed)
                self.skipped.add(feed.unreadable, say)
                if self.at.elapsed_s - last >= every_s:
                    last = self.at.elapsed_s
                    self._report(say)
        if self.stopping and self._spent() < 1.0:
            self._break_off()
        if self.tally.steps:
            self._report(say)
        elif distributed.rank() == 0:
            self._open_log()
            self.save()
        self.task.network.load_state_dict(self.average.state)
        if self._spent() >= 1.0:
            self.task.finish()
        self.lineage.end(self.task.network.state_dict(), self.at)

    def begin_from(self, bundle: Bundle) -> None:
        """Record that the task's network has begun with this bundle's weights."""
        self.started_from = bundle.digest
        self.lineage.begin_from(bundle)

    def _goes_on(self, until_images: int | None) -> bool:
        return self._spent() < 1.0 and not self.stopping and (until_images is None or self.at.images < until_images)

    def _break_off(self) -> None:
        """Write the checkpoint, without a line. Raises Interrupted."""
        self._refuse_nonsense()
        if distributed.rank() == 0:
            self._open_log()
        self.save()
        done = f"stopped after step {self.at.step}, {self.at.images} images"
        instead = " instead of --init" if self.started_from else ""
        raise Interrupted(done, cure=f"the same command with --resume {self.folder}{instead} goes on there")

    def _open_log(self) -> None:
        """Start the log when there is something to write: a run that fails before that leaves nothing behind."""
        if not self.logged:
            log.begin(self.folder, self.resumed_from, self.resumed_at)
            self.logged = True

    def save(self) -> None:
        """Write the checkpoint, replacing the last one atomically; by process 0 alone."""
        if distributed.rank() != 0:
            return
        companion = self.task.companion.state_dict() if isinstance(self.task, HasCompanion) else {}
        content = {
            "preset": self.preset.name,
            "config": json.dumps(savepoint.recipe_of(self.preset)),
            "seed": self.seed,
            "network": self.task.network.state_dict(),
            "companion": companion,
            "average": self.average.state,
            "average_count": self.average.count,
            "optimisers": self.optimisers.state_dict(),
            "at": asdict(self.at),
            "budget": asdict(self.budget),
            "processes": distributed.world(),
            "data": self.learned_from,
            "started_from": self.started_from,
            "trained": self.lineage.described(),
        }
        savepoint.write(self.folder, content)

    def resume(self, folder: Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Go on from the checkpoint in `folder`, with its seed, as if it had never stopped.

        `checkpoint` is its content, where it has been read. Where the budget is another one, the present stage and
        those after it divide what is left of it. Where the run was at its end and there is more now, all stages begin
        anew, one after the other: from the averaged weights, with new optimisers, and with warm-up and schedule over
        their shares of what was added.

        Raises UsageError where there is none, it cannot be read, or it is of another preset or other settings.
        """
        content = checkpoint or savepoint.read(folder, self.preset)
        try:
            self.at, self.seed = Progress(**content["at"]), content["seed"]
            self._settle_older(content)
            self.task.network.load_state_dict(content["network"])
            if isinstance(self.task, HasCompanion):
                self.task.companion.load_state_dict(content["companion"])
            self._begin_stage()
            self.average.load(content["average"], content["average_count"])
            self.optimisers.load_state_dict(content["optimisers"])
            self.lineage = Lineage.stored(content.get("trained", []))  # format 2 has none
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint in {folder} does not fit the network of preset {self.preset.name}",
                "one that this version wrote",
                "start anew without --resume",
            ) from error
        self.resumed_from, self.resumed_at = folder, self.at.step
        self._take_budget(savepoint.budget_of(content))
        self.processes_before = content.get("processes", self.processes_before)
        before = content.get("data", self.learned_from)  # versions before this one did not tell
        self.started_from = content.get("started_from", self.started_from)
        self.learned_from = before if before[-1:] == self.learned_from else [*before, *self.learned_from]

    def _settle_older(self, content: dict[str, Any]) -> None:
        """Before format 4 a stage began where the shares of the whole budget put it, whatever the budget was before."""
        if "budget" not in content:
            share = sum(stage.share for stage in self.preset.stages[: self.at.stage])
            self.at.stage_images = self.at.stage_s = share * self.budget.total

    def _take_budget(self, before: Budget | None) -> None:
        """What the budget of the run that goes on means beside the present one."""
        if before is None or before == self.budget:
            return
        self.before = before
        ended = before.progress(self.at.elapsed_s, self.at.images) >= 1.0
        if ended and self._spent() < 1.0 and self.at.stage + 1 == len(self.preset.stages):
            self._extend()

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the stages that have not begun since the weights of those before them changed."""
        return tuple(stage.name for stage in self.preset.stages[self.at.stage + 1 :])

    def _spent(self) -> float:
        return self.budget.progress(self.at.elapsed_s, self.at.images)

    def _bounds(self) -> tuple[float, float]:
        """Images, or seconds, at which the current stage begins and ends."""
        return self.budget.stage_bounds(self.at, [stage.share for stage in self.preset.stages])

    def _enter(self) -> None:
        """Move to the next stage, starting it from averaged weights, when this one's share is spent."""
        spent = self.budget.spent(self.at)
        while spent >= (end := self._bounds()[1]) - 1e-9 * end and self.at.stage + 1 < len(self.preset.stages):
            self.task.network.load_state_dict(self.average.state)
            self.at.enter(self.at.stage + 1)
        if self.at.stage_step == 0:
            weights = self.task.network.state_dict()
            if self.at.step:
                self.lineage.end(weights, self.at)
            self.lineage.begin(self.preset.name, self.stage.name, self.learned_from[-1], weights, self.at)
            number = self.at.extended * len(self.preset.stages) + self.at.stage
            self.task.begin(self.stage, Draw.seeded(self.seed, FOR_STAGE, number))
            self._begin_stage()

    def _extend(self) -> None:
        """Begin the first stage anew, from averaged weights, with what the budget has left."""
        self.task.network.load_state_dict(self.average.state)
        self.at.extended += 1
        self.at.enter(0)
        self._begin_stage()

    @property
    def extending(self) -> bool:
        """Whether the stages are about to begin anew."""
        return self.at.extended > 0 and self.at.stage == self.at.stage_step == 0

    def _begin_stage(self) -> None:
        """Fresh optimisers of the stage's parameters, all others frozen; a fresh average."""
        self.optimisers = Optimisers(self.task, self.preset, self.stage)
        self.average = Average(self.task.network, self.preset.ema)

    def _rate(self) -> float:
        """Learning rates now, as multiples of those that the stage began with."""
        begin, end = self._bounds()
        share = (self.budget.spent(self.at) - begin) / max(end - begin, 1e-9)
        return rate(self.preset.schedule, share, self.at.stage_step, self.preset.warmup_steps)

    def _step(self, feed: Feed) -> None:
        """One batch per process, one step of all."""
        started, waited = time.monotonic(), feed.waited_s
        self.optimisers.scale_rates(self._rate())
        batch = feed.next()
        draw = Draw.seeded(self.seed, FOR_LOSS, self.at.batches + distributed.rank())
        turns, losses = self._turns(batch, draw), dict[str, Tensor]()
        while True:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                turn = next(turns, None)
            if turn is None:
                break
            name, loss = turn
            objective = loss if isinstance(loss, Objective) else Objective(loss, {})
            losses |= {name if losses else "loss": objective.total, **objective.parts}
            self.optimisers.step(name, objective.total, self._share)
        self.average.update()
        self.tally.add(losses)
        self._count(len(next(iter(batch.values()))), time.monotonic() - started, feed.waited_s - waited)

    def _turns(self, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor | Objective]]:
        """The losses of one step by optimiser, the first of them the one that is reported as the loss."""
        if isinstance(self.task, TakesTurns):
            yield from self.task.turns(self.stage, batch, draw)
        elif isinstance(self.task, HasLoss):
            yield OWN, self.task.loss(self.stage, batch, draw)
        else:
            msg = f"{type(self.task).__name__} has neither a loss nor turns"
            raise TypeError(msg)

    @torch.no_grad()
    def _share(self, trained: list[nn.Parameter]) -> None:
        """Gradients and statistics of BatchNorm become the mean over all processes."""
        if distributed.world() == 1:
            return
        for parameter in trained:  # a loss may leave some out, and every process must bring the same list
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        distributed.average_([parameter.grad for parameter in trained if parameter.grad is not None])
        modules = [self.task.network, *([self.task.companion] if isinstance(self.task, HasCompanion) else [])]
        buffers = [buffer for module in modules for name, buffer in module.named_buffers() if name.endswith(STATISTICS)]
        distributed.average_(buffers)

    def _count(self, images: int, seconds: float, waited_s: float) -> None:
        """Book one step; all processes agree on images, time and stops, so that they end and report together."""
        self.tally.waited_s += waited_s
        total, spent_s, asked = distributed.totals([images, seconds, float(self.stop())])
        self.stopping = asked > 0
        self.tally.images, self.tally.seconds = self.tally.images + round(total), self.tally.seconds + seconds
        at = self.at
        at.step, at.stage_step, at.batches = at.step + 1, at.stage_step + 1, at.batches + distributed.world()
        at.images, at.elapsed_s = at.images + round(total), at.elapsed_s + spent_s / distributed.world()

    def _report(self, say: Callable[[str], None]) -> None:
        """Validate, say and log what happened since the last line, then write the checkpoint; by process 0 alone."""
        self._refuse_nonsense()
        tally, self.tally = self.tally, Tally()
        if distributed.rank() != 0:
            return
        self._open_log()
        network = self.task.network
        with self.average.applied(network):
            network.eval()
            measured = self.task.validate(self.stage)
            if isinstance(self.task, ShowsSamples) and (rows := self.task.samples(self.stage)):
                log.write_samples(self.folder, self.at.step, rows)
        network.train()
        row = self._row(tally, measured)
        say(row.line())
        log.add(self.folder, row)
        self.save()

    def _row(self, tally: Tally, measured: str) -> log.Row:
        means = tally.means()
        seconds = max(tally.seconds, 1e-9)
        return log.Row(
            minutes=self.at.elapsed_s / 60,
            stage=self.stage.name,
            step=self.at.step,
            images=self.at.images,
            images_per_s=tally.images / seconds,
            waiting=tally.waited_s / seconds,
            learning_rate=self.optimisers.rate,
            loss=means.pop("loss", math.nan),
            parts=" ".join(f"{name}={value:.4g}" for name, value in means.items()),
            validation=measured,
        )

    def _refuse_nonsense(self) -> None:
        """Stop before a checkpoint of broken weights replaces a good one."""
        broken = {name: value for name, value in self.tally.means().items() if not math.isfinite(value)}
        for name, value in broken.items():
            raise Diverged(
                f"the {name} is {value} within the last {self.tally.steps} steps to step {self.at.step}",
                "a finite number",
                f"resume from {self.folder} with a lower learning rate or without --bf16",
            )
