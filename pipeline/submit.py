"""`python -m pipeline.submit`: run as a job array on SLURM or Kubernetes.

Submitting again continues the run. Finished units are not computed again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import arguments as run_arguments
from pipeline import bbox, run_file
from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.help_text import Help, example, exit_codes
from pipeline.jobs.resources import MEMORY_SHARE, Resources, limit_s, memory_mib
from pipeline.parsers import CommandParser
from pipeline.planning.parts import MAX_PARTS
from pipeline.redaction import redact_logs
from pipeline.report import show_report
from pipeline.store.place import LocalPlace, place_of
from pipeline.terminal import counted, refuse, show, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.jobs.job_plan import JobPlan
    from pipeline.jobs.kubernetes import Manifests
    from pipeline.jobs.slurm import Array

_PARTS = 16  # pipeline.jobs.job_plan.DEFAULT_PARTS, which imports more than a parser should
_WORKER_MIB, _UNIT_MIB = 2048.0, 768.0  # without a plan: a worker, and each further unit that it computes at a GPU
_REFUSED = {
    "--plan-only": "submit plans and runs",
    "--shard-of": "--array N",
    "--parts": "--array N",
    "--finalise": "submit publishes by itself",
    "--cluster": "tasks find their processors and GPUs themselves",
    "--workers": "--cpus, one worker for each",
}


class _OneLine(CommandParser):
    """Parser whose errors are one line, like the pipeline's."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, cure=self.cure(message))


def _own_flags(p: argparse.ArgumentParser) -> None:
    """Add the flags that pipeline.run does not have."""
    jobs = p.add_argument_group("jobs", example("--target slurm --array 64 --cpus 4 --time-limit 04:00:00"))
    jobs.add_argument("--target", choices=("slurm", "kubernetes"), required=True, help="scheduler that runs the jobs")
    jobs.add_argument(
        "--array",
        type=int,
        metavar="N",
        help=f"parts, at most one per unit (default: those that the store was planned for, or {_PARTS})",
    )
    jobs.add_argument(
        "--parallel", type=int, default=0, metavar="K", help="maximum number of parts at a time (default: all)"
    )
    jobs.add_argument("--gpus", type=int, default=0, help="GPUs per part (default: %(default)s)")
    jobs.add_argument("--cpus", type=int, default=1, help="processors per part, one worker each (default: %(default)s)")
    jobs.add_argument(
        "--memory", metavar="SIZE", help="main memory per part, such as 8G (default: what the plan needs)"
    )
    jobs.add_argument(
        "--time-limit",
        metavar="[D-]HH:MM:SS",
        help="wall time per part; unfinished parts continue on resubmission (default: no limit)",
    )
    jobs.add_argument("--time", dest="time_limit", help=argparse.SUPPRESS)  # its name in earlier versions
    slurm = p.add_argument_group("SLURM", example('--sbatch "--partition=cpu --account=eo"'))
    slurm.add_argument(
        "--sbatch", metavar="OPTIONS", default="", help='further ones, such as "--partition=gpu --qos=low"'
    )
    kubernetes = p.add_argument_group("Kubernetes", example("--target kubernetes --manifest manifests --apply"))
    kubernetes.add_argument("--manifest", metavar="DIR", help="write the manifests into this folder")
    kubernetes.add_argument("--apply", action="store_true", help="also apply them with kubectl")
    kubernetes.add_argument("--image", help="image of deploy/docker (default: sen2fine:cpu, with --gpus sen2fine:cuda)")
    kubernetes.add_argument(
        "--claim", default="", help="persistent volume claim, /data in pods (default: sen2fine; none for a bucket)"
    )
    kubernetes.add_argument("--namespace", default="", help="namespace (default: kubectl's)")
    kubernetes.add_argument("--secret", default="", help="secret with keys as environment variables")
    kubernetes.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the pods, no secret (default: none)",
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser with all flags, including those of pipeline.run."""
    p = _OneLine(
        "python -m pipeline.submit",
        description="A run as a job array; takes all flags of pipeline.run as well. --workers and --cluster of a file "
        "given with --config are for runs on one machine and have no effect here.",
        epilog=exit_codes(0, 1, 2, 3, 5, 6, 75, 130),
        formatter_class=Help,
        parents=[run_arguments.parser()],
        conflict_handler="resolve",
    )
    _own_flags(p)
    return p


def plan_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Return the flags that only planning takes. AOI, TOML file and store are handled separately."""
    p = _OneLine(add_help=False)
    _own_flags(p)
    for flag in (
        "--aoi",
        "--config",
        "--out",
        "--plan",
        "--verify",
        "--max-outage",
        "--log-format",
        "--price-per-hour",
    ):
        p.add_argument(flag)
    for flag in ("--dry-run", "--json", "--quiet"):
        p.add_argument(flag, action="store_true")
    return tuple(p.parse_known_args(words)[1])


def _joined(argv: Sequence[str]) -> list[str]:
    """Join --sbatch and its value into one word, since argparse takes a value that begins with -- for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sbatch":
            words[-1] = f"--sbatch={word}"
        else:
            words.append(word)
    return words


def resources_of(arguments: argparse.Namespace) -> Resources:
    """Return the resources of one part. Raises UsageError for impossible values."""
    for name, least in (("array", 1), ("parallel", 0), ("gpus", 0), ("cpus", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise UsageError(f"--{name} {value}", f"at least {least}")
    if (arguments.array or 0) > MAX_PARTS:
        raise UsageError(f"--array {arguments.array}", f"at most {MAX_PARTS}")
    memory = memory_mib(arguments.memory) if arguments.memory else 0
    return Resources(
        arguments.cpus, arguments.gpus, memory, limit_s(arguments.time_limit) if arguments.time_limit else 0
    )


def _with_memory(resources: Resources, worker_mib: float, process_mib: float) -> Resources:
    """Return the resources with memory for processes of `process_mib`.

    Raises UsageError if --memory is too small for a part. Where it is enough for `worker_mib`, of one unit at a time,
    the part computes fewer at once.
    """
    needed = resources.needed_mib(process_mib)
    if not resources.memory_mib:
        return Resources(resources.cpus, resources.gpus, needed, resources.limit_s)
    if MEMORY_SHARE * resources.memory_mib < resources.processes * worker_mib:
        raise UsageError(
            f"--memory of {resources.memory_mib} MiB for {counted(resources.processes, 'worker')} "
            f"of about {worker_mib:.0f} MiB",
            f"{needed} MiB",
            "more --memory, fewer --cpus, or a smaller --unit-chunks",
        )
    return resources


def _part_options(arguments: argparse.Namespace) -> str:
    """Return the flags passed on to every part."""
    return f"--verify {arguments.verify} --max-outage {arguments.max_outage:g}"


def job_plan(arguments: argparse.Namespace, flags: tuple[str, ...], resources: Resources) -> JobPlan:
    """Freeze the plan into its store, or use the existing one. With --dry-run nothing is written."""
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.jobs.job_plan import freeze_job, load_job, preview_job
    from pipeline.running.stored_plan import RunRequest, writable

    if arguments.plan:
        named = {"--aoi": arguments.aoi, "--config": arguments.config, "--out": arguments.out}
        if words := [flag for flag, value in named.items() if value is not None] + list(flags):
            raise UsageError(f"--plan given with {words[0]}", "the frozen plan as it is", "leave one out")
        return load_job(arguments.plan, arguments.array or 0)
    restrict_drivers()  # before GDAL is first used
    config, area = run_arguments.config_of(arguments), run_arguments.aoi_of(arguments)
    for warning in area.warnings:
        tell(f"warning: {warning}")
    store = writable(place_of(arguments.out or f"{area.name}.zarr"))
    request = RunRequest(config, area, store, arguments.overwrite, arguments.max_output_gb)
    settle = preview_job if arguments.dry_run else freeze_job
    parts = arguments.array or 0
    return settle(request, parts, workers=(parts or _PARTS) * resources.workers)


def to_slurm(arguments: argparse.Namespace, flags: tuple[str, ...]) -> int:
    """Plan locally, then submit the arrays and the publication. Raises PipelineError."""
    from pipeline.jobs import slurm
    from pipeline.planning.plan import load_plan
    from pipeline.running.part_records import plan_parts
    from pipeline.store.keys import PLAN_KEY

    kubernetes = ("manifest", "apply", "image", "claim", "namespace", "secret", "env")
    wrong = [f"--{name}" for name in kubernetes if getattr(arguments, name)]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} given with --target slurm", "--target kubernetes")
    if arguments.overwrite and not arguments.out:
        raise UsageError("--overwrite without --out", "--out STORE, the store to begin anew")
    extra, resources = slurm.sbatch_options(arguments.sbatch), resources_of(arguments)
    if not arguments.dry_run:
        slurm.require_slurm()
        if arguments.overwrite and place_of(arguments.out).read(PLAN_KEY) is not None:
            slurm.require_idle(load_plan(arguments.out).digest, arguments.out)
    plan = job_plan(arguments, flags, resources)
    given = _with_memory(resources, plan.worker_mib, plan.process_mib(resources.gpus))
    array = slurm.Array(plan, given, arguments.parallel, extra, _part_options(arguments))
    arrays: list[str] = []
    last = ""
    if not arguments.dry_run and not plan.finished:
        slurm.require_idle(plan.digest, plan.store)
        plan_parts(plan.store, plan.digest, plan.parts)
        arrays, last = slurm.submit(array)
    show_report(SlurmReport(array, tuple(arrays), last, dry_run=arguments.dry_run), as_json=arguments.json)
    return EXIT_OK


@dataclass(frozen=True)
class SlurmReport:
    """Job ids of a run: one array per pass, and the publication. They are empty if nothing was submitted."""

    array: Array
    array_jobs: tuple[str, ...] = ()
    finalise_job: str = ""
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return jobs, parts and command lines."""
        plan = self.array.plan
        return {
            "status": "submitted" if self.finalise_job else "complete" if plan.finished else "dry-run",
            "store": str(plan.store),
            "plan_digest": plan.digest,
            "units": plan.units,
            "parts": plan.parts,
            "parts_to_do": list(plan.parts_to_do),
            "array_job": self.array_jobs[0] if self.array_jobs else "",
            "array_jobs": list(self.array_jobs),
            "finalise_job": self.finalise_job,
            "environment": self.array.environment(),
            "commands": self.array.commands(self.array_jobs),
            "logs": str(self.array.logs),
        }

    def text(self) -> str:
        """Return what was or, with --dry-run, would be submitted, the location of the logs, and how to cancel."""
        plan, jobs = self.array.plan, [job for job in (*self.array_jobs, self.finalise_job) if job]
        cut = f"{plan.store}: {counted(plan.units, 'unit')} in {counted(plan.parts, 'part')}"
        if self.dry_run:
            environment = [f"  export {name}={shlex.quote(value)}" for name, value in self.array.environment().items()]
            commands = [f"  {shlex.join(command)}" for command in self.array.commands()]
            title = f"{cut}, {len(plan.parts_to_do)} to do; nothing was written or submitted"
            return "\n".join([title, *environment, *commands])
        if not jobs:
            return f"{plan.store} is complete; nothing to submit"
        done = f", {plan.parts - len(plan.parts_to_do)} done already" if len(plan.parts_to_do) < plan.parts else ""
        each = "" if len(plan.todo) == 1 else ", one for each pass"
        return "\n".join([
            f"{cut}{done}",
            *([f"  array     {' '.join(self.array_jobs)}{each}"] if self.array_jobs else []),
            f"  publish   {self.finalise_job}{', when the array has ended' if self.array_jobs else ''}",
            f"  logs      {self.array.logs}",
            "  watch     squeue --me",
            f"  cancel    scancel {' '.join(jobs)}; submitting again goes on",
        ])  # fmt: skip


def to_kubernetes(arguments: argparse.Namespace, flags: tuple[str, ...]) -> int:
    """Write the manifests, and apply them if asked. Raises PipelineError."""
    from pipeline.jobs import kubernetes

    if arguments.sbatch:
        raise UsageError("--sbatch given with --target kubernetes", "--target slurm")
    if arguments.plan or arguments.overwrite:
        flag = "--plan" if arguments.plan else "--overwrite"
        raise UsageError(f"{flag} with --target kubernetes", "the flags of the run; a store on the claim is continued")
    if not arguments.manifest and not arguments.dry_run:
        raise UsageError("--target kubernetes without --manifest", "--manifest DIR, where the manifests are written")
    if arguments.apply and not arguments.dry_run:
        kubernetes.require_kubectl()
    filled = _manifests(arguments, flags)
    folder = Path(arguments.manifest or "manifests")
    if arguments.dry_run:
        show("---\n".join(kubernetes.as_yaml(documents) for documents in filled.files().values()))
        return EXIT_OK
    files = kubernetes.write(filled, folder)
    if arguments.apply:
        kubernetes.apply(filled, files, tell)
    if arguments.json:
        status = "submitted" if arguments.apply else "written"
        show(json.dumps({"status": status, "store": filled.store, "name": filled.name, "parts": filled.parts,
                         "manifests": [str(path) for path in files]}))  # fmt: skip
        return EXIT_OK
    commands = [shlex.join(command) for command in kubernetes.apply_commands(filled, files)]
    begin = ["submitted"] if arguments.apply else ["submit with", *(f"  {command}" for command in commands)]
    watch = f"watch with kubectl get pods --selector={filled.selector}"
    show("\n".join([f"{counted(len(files), 'manifest')} in {folder}", *begin, watch]))
    return EXIT_OK


def _manifests(arguments: argparse.Namespace, flags: tuple[str, ...]) -> Manifests:
    """Return the manifests of the run, checked as far as possible without the cluster."""
    from pipeline.jobs.kubernetes import CLAIM, MOUNT, Manifests, environment_of
    from pipeline.superres.registry import spec_of
    from pipeline.superres.system import units_at_once

    config, area = run_arguments.config_of(arguments), run_arguments.aoi_of(arguments)
    files = [("catalog", config.catalog), *(("weights", text.rpartition("=")[2]) for text in config.weights)]
    for name, value in files:
        if value and not value.startswith(f"{MOUNT}/") and Path(value).exists():
            raise UsageError(f"--{name} {value} is a file here", f"one that pods see, below {MOUNT}", "copy it there")
    out = str(arguments.out or f"{area.name}.zarr")
    remote = not isinstance(place_of(out), LocalPlace)
    if out.startswith(("http://", "https://")):
        raise UsageError(f"--out {out} can only be read", f"a path below {MOUNT}, s3://..., gs://... or az://...")
    store = out if remote or out.startswith("/") else f"{MOUNT}/{out}"
    if not remote and (not store.startswith(f"{MOUNT}/") or ".." in store.split("/")):
        raise UsageError(f"--out {out}", f"a path below {MOUNT}, where pods see the claim, or s3://...")
    for warning in area.warnings:
        tell(f"warning: {warning}")
    resources = resources_of(arguments)
    at_once = units_at_once(spec_of(config.sr), "cuda") if resources.gpus else 1
    return Manifests(
        store=store,
        flags=flags,
        area=None if arguments.aoi is None else area.geometry,
        area_name=area.name,
        toml=Path(arguments.config).read_text() if arguments.config else "",
        resources=_with_memory(resources, _WORKER_MIB, _WORKER_MIB + (at_once - 1) * _UNIT_MIB),
        parts=arguments.array or _PARTS,
        parallel=arguments.parallel,
        image=arguments.image or f"sen2fine:{'cuda' if arguments.gpus else 'cpu'}",
        claim=arguments.claim or ("" if remote else CLAIM),
        namespace=arguments.namespace,
        secret=arguments.secret,
        environment=environment_of(arguments.env),
        options=_part_options(arguments),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    words = _joined(bbox.joined(sys.argv[1:] if argv is None else argv))
    redact_logs()
    try:
        arguments = run_file.parse(parser(), words)
        for word in words:
            if (flag := word.split("=")[0]) in _REFUSED:
                raise UsageError(f"{flag} given to submit", _REFUSED[flag])
        act = to_slurm if arguments.target == "slurm" else to_kubernetes
        return act(arguments, plan_flags(words))
    except PipelineError as error:
        return refuse(error, as_json="--json" in words)
    except KeyboardInterrupt:
        print("stopped; run the same command again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
