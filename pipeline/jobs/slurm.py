"""Submission of a frozen plan to SLURM: array jobs that compute its parts, and a job that publishes the store.

The scripts are deploy/slurm/array.sbatch and finalise.sbatch, configured by environment variables.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, UsageError
from pipeline.jobs.resources import Resources, clock, deploy_folder
from pipeline.store.layout import storage_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.jobs.job_plan import JobPlan
    from pipeline.store.place import Where

_PROGRAMS = ("sbatch", "squeue", "scancel")
_FINALISE_MIB = 4096
_TIMEOUT_S = 120.0
# What SLURM says without a controller, or without a configuration that names one.
_NO_CONTROLLER = re.compile(r"contact slurm controller|establish a configuration source|resolve_ctls", re.IGNORECASE)
# Options that submit sets itself. In --sbatch they would break the link between array, logs and publication.
_OURS = ("--array", "--cpus-per-task", "--dependency", "--export", "--help", "--job-name", "--mem", "--output",
         "--parsable", "--test-only", "--time", "--usage", "--version", "--wait", "--wrap")  # fmt: skip


def job_name(digest: str) -> str:
    """Return the name of all jobs of a plan, the same for each submission."""
    return f"sen2fine-{digest[:12]}"


@dataclass(frozen=True)
class Array:
    """The unfinished parts of a plan as array tasks, one array per pass, `parallel` tasks at a time (0: no limit)."""

    plan: JobPlan
    resources: Resources
    parallel: int = 0
    extra: tuple[str, ...] = ()  # further options of sbatch, for both jobs
    options: str = ""  # further flags of pipeline.run, for every part

    @property
    def logs(self) -> Path:
        """Folder of the jobs' logs."""
        return self.plan.logs

    @property
    def passes(self) -> list[int]:
        """Passes (from 1) with parts to do."""
        return [number for number, todo in enumerate(self.plan.todo, start=1) if todo]

    def environment(self, of_pass: int = 0) -> dict[str, str]:
        """Return the environment variables of the scripts. `of_pass` is the pass of an array (from 1)."""
        which = [f"--pass {of_pass}"] if of_pass and len(self.plan.todo) > 1 else []
        return {
            "SEN2FINE_STORE": str(self.plan.store),
            "SEN2FINE_PARTS": str(self.plan.parts),
            "SEN2FINE_PYTHON": sys.executable,
            "SEN2FINE_WORKERS": str(self.resources.workers),
            "SEN2FINE_OPTIONS": " ".join(filter(None, [*which, self.options])),
            "SEN2FINE_PROCESSES": os.environ.get("SEN2FINE_PROCESSES", str(self.resources.workers * self.at_once)),
        }

    @property
    def at_once(self) -> int:
        """Number of tasks that may run at the same time and share the connections per host."""
        return min(self.parallel or self.plan.parts, self.plan.parts)

    def commands(self, ids: Sequence[str] = ()) -> list[list[str]]:
        """Return all sbatch command lines. `ids` are the known job ids of the arrays."""
        alone = len(self.passes) == 1
        known = list(ids) or ["ARRAY_JOB_ID" if alone else f"ARRAY_JOB_ID_{number}" for number in self.passes]
        before = ["", *known][: len(self.passes)]
        arrays = [self.array_command(number, after) for number, after in zip(self.passes, before, strict=True)]
        return [*arrays, self.finalise_command(known[-1] if known else "")]

    def array_command(self, of_pass: int, after: str = "") -> list[str]:
        """Return the sbatch command line for the array of a pass (from 1). `after` is the previous array's job id."""
        resources, limit = self.resources, f"%{self.parallel}" if self.parallel else ""
        return [
            *("sbatch", "--parsable", *self.extra, "--export=ALL", f"--job-name={job_name(self.plan.digest)}"),
            *([f"--dependency=afterany:{after}"] if after else []),
            f"--array={spans(self.plan.todo[of_pass - 1])}{limit}",
            *(f"--cpus-per-task={resources.cpus}", f"--mem={resources.memory_mib}M"),
            *([f"--time={clock(resources.limit_s)}"] if resources.limit_s else []),
            *([f"--gres=gpu:{resources.gpus}"] if resources.gpus and not _of_gpus(self.extra) else []),
            *(f"--output={self.logs}/part-%a.log", str(deploy_folder("slurm") / "array.sbatch")),
        ]

    def finalise_command(self, after: str) -> list[str]:
        """Return the sbatch command line for the publication. `after` is the last array's job id, or ""."""
        extra = [word for word in self.extra if not _of_gpus([word])]
        return [
            *("sbatch", "--parsable", *extra, "--export=ALL", f"--job-name={job_name(self.plan.digest)}"),
            *([f"--dependency=afterany:{after}"] if after else []),
            *("--cpus-per-task=1", f"--mem={_FINALISE_MIB}M", f"--output={self.logs}/finalise.log"),
            str(deploy_folder("slurm") / "finalise.sbatch"),
        ]


def sbatch_options(text: str) -> tuple[str, ...]:
    """Return the words of --sbatch. Raises UsageError unless each is a long option that submit does not set itself."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--sbatch {text!r} ({error})", "options in quotes") from error
    for word in words:
        if not word.startswith("--") or word == "--":
            raise UsageError(f"--sbatch holds {word!r}", "long options with =, such as --partition=gpu")
        if (name := word.split("=")[0]) in _OURS:
            raise UsageError(f"--sbatch holds {name}", "options that submit does not set itself")
    return words


def _of_gpus(words: Sequence[str]) -> bool:
    """Return whether options of sbatch request GPUs."""
    return any(word.startswith(("--gres=", "--gpus")) for word in words)


def spans(numbers: Sequence[int]) -> str:
    """Format ascending numbers in SLURM's notation.

    >>> spans([1, 2, 3, 7, 9, 10])
    '1-3,7,9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def require_slurm() -> None:
    """Raise UsageError if SLURM's commands are not installed."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        raise UsageError(
            f"--target slurm, but there is no {absent[0]} on the PATH", "a login node of the cluster", "submit there"
        )


def require_idle(digest: str, store: Where) -> None:
    """Raise UsageError while jobs of an earlier submission of the same plan are in the queue."""
    ids = sorted(set(_said(["squeue", "--me", "--noheader", "--format=%F", f"--name={job_name(digest)}"]).split()))
    if ids:
        raise UsageError(
            f"{store} has jobs in the queue: {', '.join(ids)}",
            "one submission at a time",
            f"wait for them, or scancel {' '.join(ids)} and submit again",
        )


def submit(array: Array) -> tuple[list[str], str]:
    """Submit all jobs. Return the array ids, empty if no part is to do, and the id of the publication.

    Raises PipelineError with SLURM's own message if it refuses, after cancelling arrays already submitted.
    """
    try:
        array.logs.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(error, array.logs) from error
    arrays: list[str] = []
    try:
        for number in array.passes:
            after = arrays[-1] if arrays else ""
            arrays.append(_submitted(array.array_command(number, after), array.environment(number)))
        return arrays, _submitted(array.finalise_command(arrays[-1] if arrays else ""), array.environment())
    except PipelineError:
        if arrays:
            _said(["scancel", *arrays])
        raise


def _submitted(command: list[str], environment: dict[str, str]) -> str:
    said = _said(command, environment)
    found = re.match(r"(\d+)(;|\s|$)", said)  # "id" or "id;cluster"
    if not found:
        raise PipelineError(f"sbatch said {said.strip()[:80]!r}", "the id of a job")
    return found[1]


def _said(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a SLURM command, return its output. Raises UsageError with its last error line, PipelineError on timeout."""
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=variables)
    except subprocess.TimeoutExpired as error:
        raise PipelineError(f"{command[0]} has not answered for {_TIMEOUT_S:.0f} s", cure="submit again") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if _NO_CONTROLLER.search(done.stderr):
            raise PipelineError(
                f"SLURM's controller (slurmctld) does not answer: {words[-1]}",
                "a login node of a cluster that is up",
                "scontrol ping tells whether it is; then submit again",
            )
        raise UsageError(
            f"SLURM refuses: {words[-1]}", cure="pass the options that your cluster requires with --sbatch"
        )
    return done.stdout
