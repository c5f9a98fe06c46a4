"""The training loop: budget, stages, moving average, exact resume from checkpoints, one log line per interval.

Under `torchrun`, the processes take the batches in turn and average their gradients.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import Interrupted, UsageError
from training import placement
from training.loop import distributed, log, savepoint
from training.loop.average import Average
from training.loop.batches import FOR_LOSS, FOR_STAGE, Draw, Feed
from training.loop.execution import Execution, modules_of
from training.loop.intervals import Intervals
from training.loop.journal import Journal
from training.loop.lineage import Lineage
from training.loop.optimisers import OWN, Optimisers
from training.loop.progress import Budget, Diverged, Progress, Tally
from training.loop.reduction import average_statistics
from training.loop.skipped import SKIPPED, Skipped
from training.loop.task import HasCompanion, HasLoss, Objective, ShowsSamples, TakesTurns
from training.loop.writer import Writer
from training.schedule import rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.models.bundle import Bundle
    from training.loop.task import Measured, Task
    from training.presets import Preset, Stage

__all__ = ["Average", "Budget", "Diverged", "Draw", "Progress", "Run"]


class Run:
    """One training run of a task through a preset's stages, in its own folder.

    `data` is the digest of the training data. `learned_from` has the digests of all resumes, the current one last.
    `skip` is the number of unreadable files that do not end the run.
    """

    def __init__(
        self,
        task: Task,
        preset: Preset,
        budget: Budget,
        folder: Path,
        seed: int,
        execution: Execution | None = None,
        data: str = "",
        skip: int = SKIPPED,
    ) -> None:
        self.task, self.preset, self.budget, self.folder = task, preset, budget, folder
        self.seed, self.execution = seed, execution or Execution()
        self.skipped = Skipped(skip)
        self.device = placement.device_of(task.network)
        self.journal, self.writer = Journal(folder), Writer()
        self.learned_from = [data]
        self.started_from = ""  # digest of the initial weights
        self.lineage = Lineage()
        self.stop: Callable[[], bool] = bool  # called after every step
        self.stopping = False
        self.before: Budget | None = None  # of the resumed run, if it differs
        self.processes_before = distributed.world()
        self.data_stage = ""  # of several that train on data of their own, for the lineage
        self.rate = 1.0  # factor of the preset's learning rates, for the checkpoint
        if isinstance(task, HasCompanion):
            task.companion.to(self.device)
        self.execution.prepare(task)
        self.at = Progress()
        self.tally = Tally()
        self.unsettled_s = 0.0  # of a device, after the last step
        self.optimisers, self.average = self._new_stage()

    @property
    def stage(self) -> Stage:
        """Current stage."""
        return self.preset.stages[self.at.stage]

    def train(
        self,
        say: Callable[[str], None] = print,
        every_s: float = 60.0,
        until_images: int | None = None,
        stop: Callable[[], bool] = bool,  # bool() is False
    ) -> None:
        """Train until the budget is spent or `until_images` is reached. Leave the averaged weights in the network.

        Process 0 prints a line, logs a row and writes a checkpoint every `every_s` seconds (`Intervals`) and at the
        end. Raises Diverged if the loss is not finite. If `stop` returns True in any process, writes the checkpoint
        after that step and raises Interrupted.
        """
        self.stop = stop
        with self.writer, self.execution.compiling():
            self._train(say, every_s, until_images)
        self.task.network.load_state_dict(self.average.state)
        if self._spent() >= 1.0:
            self.task.finish()
        self.lineage.end(self.task.network.state_dict(), self.at)

    def _train(self, say: Callable[[str], None], every_s: float, until_images: int | None) -> None:
        first, step = self.at.batches + distributed.rank(), distributed.world()
        intervals = Intervals(every_s, self.at.elapsed_s)
        if self.started_from and self.at.step == 0:
            intervals.reported(self.at.elapsed_s, self._report(say))  # what the given weights score
            self.writer.end()  # no thread may run when workers are forked
        self.task.network.train()
        layout = self.execution.channels_last
        with Feed(self.task.batch, self.seed, first, step, self.execution.workers, self.device, layout) as feed:
            while self._goes_on(until_images):
                self._enter()
                self._step(feed)
                self.skipped.add(feed.unreadable, say)
                self.writer.check()
                if intervals.report_due(self.at.elapsed_s):
                    intervals.reported(self.at.elapsed_s, self._report(say))
                elif intervals.save_due(self.at.elapsed_s):
                    intervals.saved(self.at.elapsed_s)
                    self.save()
        if self.stopping and self._spent() < 1.0:
            self._break_off()
        if self.tally.steps:
            self._report(say)
        else:
            self.save()

    def begin_from(self, bundle: Bundle) -> None:
        """Record that the task's network starts with this bundle's weights."""
        self.started_from = bundle.digest
        self.lineage.begin_from(bundle)

    def _checked(self, folder: Path) -> dict[str, Any]:
        content = savepoint.read(folder, self.preset)
        savepoint.check(folder, content, self.preset)
        return content

    def _goes_on(self, until_images: int | None) -> bool:
        return self._spent() < 1.0 and not self.stopping and (until_images is None or self.at.images < until_images)

    def _break_off(self) -> None:
        """Write the checkpoint without a log line. Raises Interrupted."""
        self.save()
        self.writer.end()
        done = f"stopped after step {self.at.step}, {self.at.images} images"
        instead = " instead of --init" if self.started_from else ""
        raise Interrupted(done, cure=f"the same command with --resume {self.folder}{instead} goes on there")

    def save(self) -> None:
        """Begin to write the checkpoint in process 0, replacing the last one atomically. Raises Diverged."""
        self.tally.check(self.at.step, self.folder)
        if distributed.rank() != 0:
            return
        self.journal.open()
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
            "rate": self.rate,
            "processes": distributed.world(),
            "data": self.learned_from,
            "started_from": self.started_from,
            "trained": self.lineage.described(),
        }
        self.writer.begin(self.folder, content)

    def resume(self, folder: Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Resume exactly from the checkpoint in `folder`, with its seed.

        `checkpoint` is its content, if already read. If the budget differs, the current and later stages divide what
        is left of it. If the run was finished and the budget is larger, all stages run again, from the averaged
        weights, with new optimisers, and with warm-up and schedule over their shares of the added budget.

        Raises UsageError if there is no checkpoint, it cannot be read, or it has another preset or other settings.
        """
        content = checkpoint or self._checked(folder)
        try:
            self.at, self.seed = Progress(**content["at"]), content["seed"]
            self._settle_older(content)
            self.task.network.load_state_dict(content["network"])
            if isinstance(self.task, HasCompanion):
                self.task.companion.load_state_dict(content["companion"])
            self._begin_stage()
            self.average.load(content["average"], content["average_count"])
            self.optimisers.load_state_dict(content["optimisers"])
            self.lineage = Lineage.stored(content.get("trained", []))  # absent in format 2
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint in {folder} does not fit the network of preset {self.preset.name}",
                "one that this version wrote",
                "start anew without --resume",
            ) from error
        self.journal.resumed_from, self.journal.resumed_at = folder, self.at.step
        self._take_budget(savepoint.budget_of(content))
        self.processes_before = content.get("processes", self.processes_before)
        before = content.get("data", self.learned_from)  # absent in older versions
        self.started_from = content.get("started_from", self.started_from)
        self.learned_from = before if before[-1:] == self.learned_from else [*before, *self.learned_from]

    def _settle_older(self, content: dict[str, Any]) -> None:
        """Set the start of the stage for checkpoints before format 4: by its share of the whole budget."""
        if "budget" not in content:
            share = sum(stage.share for stage in self.preset.stages[: self.at.stage])
            self.at.stage_images = self.at.stage_s = share * self.budget.total

    def _take_budget(self, before: Budget | None) -> None:
        """Compare the budget of the resumed run with the current one, and extend a finished run."""
        if before is None or before == self.budget:
            return
        self.before = before
        ended = before.progress(self.at.elapsed_s, self.at.images) >= 1.0
        if ended and self._spent() < 1.0 and self.at.stage + 1 == len(self.preset.stages):
            self._extend()

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the stages that the run has not reached."""
        return tuple(stage.name for stage in self.preset.stages[self.at.stage + 1 :])

    def _spent(self) -> float:
        return self.budget.progress(self.at.elapsed_s, self.at.images)

    def _bounds(self) -> tuple[float, float]:
        """Return the images or seconds at which the current stage begins and ends."""
        return self.budget.stage_bounds(self.at, [stage.share for stage in self.preset.stages])

    def _enter(self) -> None:
        """Move to the next stage, starting from averaged weights, when the share of the current one is spent."""
        spent = self.budget.spent(self.at)
        while spent >= (end := self._bounds()[1]) - 1e-9 * end and self.at.stage + 1 < len(self.preset.stages):
            self.task.network.load_state_dict(self.average.state)
            self.at.enter(self.at.stage + 1)
        if self.at.stage_step == 0:
            weights = self.task.network.state_dict()
            if self.at.step:
                self.lineage.end(weights, self.at)
            names = self.preset.name, self.stage.name, self.data_stage
            self.lineage.begin(names, self.learned_from[-1], weights, self.at)
            number = self.at.extended * len(self.preset.stages) + self.at.stage
            self.task.begin(self.stage, Draw.seeded(self.seed, FOR_STAGE, number))
            self._begin_stage()

    def _extend(self) -> None:
        """Restart the first stage from averaged weights, with the rest of the budget."""
        self.task.network.load_state_dict(self.average.state)
        self.at.extended += 1
        self.at.enter(0)
        self._begin_stage()

    @property
    def extending(self) -> bool:
        """Whether a finished run is about to start its stages again."""
        return self.at.extended > 0 and self.at.stage == self.at.stage_step == 0

    def _begin_stage(self) -> None:
        """Create optimisers for the stage's parameters, freeze all others, and create a new average."""
        self.optimisers.close()
        self.optimisers, self.average = self._new_stage()

    def _new_stage(self) -> tuple[Optimisers, Average]:
        optimisers = Optimisers(self.task, self.preset, self.stage, self.execution.fused)
        return optimisers, Average(self.task.network, self.preset.ema)

    def _rate(self) -> float:
        """Return the current factor of the initial learning rates."""
        begin, end = self._bounds()
        share = (self.budget.spent(self.at) - begin) / max(end - begin, 1e-9)
        return rate(self.preset.schedule, share, self.at.stage_step, self.preset.warmup_steps)

    def _step(self, feed: Feed) -> None:
        """Run one step of all processes, with one batch each."""
        started, waited = time.monotonic(), feed.waited_s
        self.optimisers.scale_rates(self._rate())
        batch = feed.next()
        draw = Draw.seeded(self.seed, FOR_LOSS, self.at.batches + distributed.rank())
        turns, losses = self._turns(batch, draw), dict[str, Tensor]()
        while True:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.execution.bf16):
                turn = next(turns, None)
            if turn is None:
                break
            name, loss = turn
            objective = loss if isinstance(loss, Objective) else Objective(loss, {})
            losses |= {name if losses else "loss": objective.total, **objective.parts}
            self.optimisers.step(name, objective.total)
            average_statistics(modules_of(self.task))
        self.average.update()
        self.tally.add(losses)
        self._count(len(next(iter(batch.values()))), time.monotonic() - started, feed.waited_s - waited)

    def _turns(self, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor | Objective]]:
        """Yield the losses of one step with their optimisers. The first is reported as the loss."""
        if isinstance(self.task, TakesTurns):
            yield from self.task.turns(self.stage, batch, draw)
        elif isinstance(self.task, HasLoss):
            yield OWN, self.task.loss(self.stage, batch, draw)
        else:
            msg = f"{type(self.task).__name__} has neither a loss nor turns"
            raise TypeError(msg)

    def _count(self, images: int, seconds: float, waited_s: float) -> None:
        """Count one step. Sum images, time and stop requests over processes, so that all end and report together."""
        self.tally.waited_s += waited_s
        total, spent_s, asked = distributed.totals([images, seconds + self.unsettled_s, float(self.stop())])
        self.unsettled_s = 0.0
        self.stopping = asked > 0
        self.tally.images, self.tally.seconds = self.tally.images + round(total), self.tally.seconds + seconds
        at = self.at
        at.step, at.stage_step, at.batches = at.step + 1, at.stage_step + 1, at.batches + distributed.world()
        at.images, at.elapsed_s = at.images + round(total), at.elapsed_s + spent_s / distributed.world()

    def _report(self, say: Callable[[str], None]) -> float:
        """Validate, print and log the last interval, then write the checkpoint, all in process 0.

        Return the seconds that it took, in every process, which all wait for it.
        """
        self._settle()
        self.tally.check(self.at.step, self.folder)
        tally, self.tally, started = self.tally, Tally(), time.monotonic()
        if distributed.rank() == 0:
            network = self.task.network
            with self.average.applied(network), self.execution.compiling(False):
                network.eval()
                measured = self.task.validate(self.stage)
                samples = self.task.samples(self.stage) if isinstance(self.task, ShowsSamples) else ()
            network.train()
            self.journal.add(self._row(tally, measured), tally.steps, samples, say)
            self.save()
        return distributed.totals([time.monotonic() - started if distributed.rank() == 0 else 0.0])[0]

    def _settle(self) -> None:
        """Count the time of what the device has still to compute: with this interval, and with the next step."""
        started = time.monotonic()
        placement.settle(self.device)
        self.unsettled_s += (late_s := time.monotonic() - started)
        self.tally.seconds += late_s

    def _row(self, tally: Tally, measured: Measured) -> log.Row:
        means = tally.means()
        seconds = max(tally.seconds, 1e-9)
        return log.Row(
            minutes=self.at.elapsed_s / 60,
            share=self._spent(),
            left_s=self.budget.left_s(self.at),
            stage=self.stage.name,
            step=self.at.step,
            images=self.at.images,
            images_per_s=tally.images / seconds,
            waiting=tally.waited_s / seconds,
            learning_rate=self.optimisers.rate,
            loss=means.pop("loss", math.nan),
            parts=means,
            measured=measured,
        )
