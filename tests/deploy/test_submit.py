"""`python -m pipeline.submit`: generated jobs, rejected arguments, and that a rejection writes nothing."""

import json
import os
import shlex
from dataclasses import replace

import pytest

from pipeline import submit
from pipeline.aoi.aoi import read_aoi
from pipeline.errors import UsageError
from pipeline.jobs import resources, slurm
from pipeline.jobs.job_plan import JobPlan, load_job
from pipeline.jobs.resources import MEMORY_SHARE, Resources
from pipeline.planning.estimate import estimate
from pipeline.planning.parts import Part
from pipeline.planning.plan import load_plan
from pipeline.planning.planner import make_plan
from pipeline.running import choices
from pipeline.running.driver import prepare
from pipeline.store import layout
from pipeline.store.place import place_of
from tests.running.conftest import config_for, run

# Stub of sbatch, squeue, scancel and kubectl: records each call. sbatch returns job ids from 101 on, squeue $QUEUED.
STANDIN = """#!/bin/bash
name=$(basename "$0")
printf '%s\\n' "$name $*" >>"$CALLS"
[ "$name" = "$AWAY" ] && { echo "$name: error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }
[ "$name" = "$FAILING" ] && { echo "something" >&2; echo "$name: error: Invalid account" >&2; exit 1; }
[ "$name" = sbatch ] && env | grep ^SEN2FINE_ >"$CALLS.env"
[ "$name" = sbatch ] && echo $((100 + $(grep -c ^sbatch "$CALLS")))";cluster"
[ "$name" = squeue ] && printf '%s' "$QUEUED"
exit 0
"""


@pytest.fixture(autouse=True)
def cluster(tmp_path_factory, tmp_path, monkeypatch):
    """Put the stubs on the PATH and change to an empty folder. Return the file of recorded calls."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("sbatch", "squeue", "scancel", "kubectl"):
        (folder / name).write_text(STANDIN)
        (folder / name).chmod(0o755)
    for name, value in (("CALLS", str(folder / "calls")), ("FAILING", ""), ("AWAY", ""), ("QUEUED", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder / "calls"


@pytest.fixture
def wanted(archive, aoi):
    """Return the flags of a run of 20 units."""
    return ["--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--chunk-px", "120", "--unit-chunks", "1",
            "--max-cloud", "100"]  # fmt: skip


@pytest.fixture
def frozen(archive, aoi, tmp_path):
    """Return run.zarr in the working folder: a store with a plan of 20 units and no results."""
    prepare(make_plan(config_for(archive, unit_chunks=1), read_aoi(str(aoi))), tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


@pytest.fixture(scope="module")
def complete(archive, aoi, tmp_path_factory):
    store = tmp_path_factory.mktemp("complete") / "complete.zarr"
    run(config_for(archive, unit_chunks=1, bands=("B02", "B03", "B04")), aoi, store)
    return store


def test_each_pass_has_an_array_that_follows_the_one_before(cluster, tmp_path):
    plan = JobPlan(place_of(tmp_path / "run.zarr"), "ab" * 32, 9, 700.0, 300.0, 3, 3, ((1, 2, 3), (), (2, 3)))
    array = slurm.Array(plan, Resources(cpus=1, memory_mib=2000), options="--verify full")
    first, second, publish = array.commands()
    assert "--array=1-3" in first
    assert not any("dependency" in word for word in first)
    assert {"--array=2-3", "--dependency=afterany:ARRAY_JOB_ID_1"} <= set(second)
    assert "--dependency=afterany:ARRAY_JOB_ID_3" in publish
    assert slurm.submit(array) == (["101", "102"], "103")
    sent = [words for words in calls(cluster) if words[0] == "sbatch"]
    assert "--dependency=afterany:101" in sent[1]
    assert "--dependency=afterany:102" in sent[2]
    assert array.environment(3)["SEN2FINE_OPTIONS"] == "--pass 3 --verify full"
    assert array.environment()["SEN2FINE_OPTIONS"] == "--verify full"
    assert plan.parts_to_do == (1, 2, 3)
    (publish,) = slurm.Array(replace(plan, todo=((), (), ())), Resources()).commands()
    assert not any("dependency" in word for word in publish)


def calls(cluster):
    return [shlex.split(line) for line in cluster.read_text().splitlines()] if cluster.exists() else []


def go(capsys, *words):
    capsys.readouterr()
    code = submit.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.mark.slow
def test_a_plan_is_frozen_and_both_jobs_are_submitted(wanted, cluster, tmp_path, capsys):
    code, out, _ = go(
        capsys, *wanted, "--out", "run.zarr", "--target", "slurm", "--array", "8", "--parallel", "3", "--cpus", "2",
        "--memory", "6G", "--time", "1-02:00:00", "--sbatch", "--partition=cpu", "--max-outage", "5", "--verify=full",
    )  # fmt: skip
    assert code == 0
    plan = load_plan("run.zarr")
    asked, array, finalise = calls(cluster)
    name = f"--job-name=sen2fine-{plan.digest[:12]}"
    assert asked[0] == "squeue"
    assert {"--parsable", "--partition=cpu", "--export=ALL", name, "--array=1-8%3", "--cpus-per-task=2", "--mem=6144M",
            "--time=26:00:00"} <= set(array)  # fmt: skip
    assert array[-1].endswith("array.sbatch")
    assert {"--dependency=afterany:101", "--partition=cpu", name} <= set(finalise)
    assert finalise[-1].endswith("finalise.sbatch")
    environment = dict(line.split("=", 1) for line in cluster.with_name("calls.env").read_text().splitlines())
    assert environment["SEN2FINE_STORE"] == str(tmp_path / "run.zarr")
    assert environment["SEN2FINE_PARTS"] == "8"
    assert environment["SEN2FINE_WORKERS"] == "2"
    assert environment["SEN2FINE_PROCESSES"] == "6"  # three tasks of two workers at a time
    assert environment["SEN2FINE_OPTIONS"].split() == ["--verify", "full", "--max-outage", "5"]
    assert "scancel 101 102" in out
    assert layout.status(tmp_path / "run.zarr") == layout.STATUS_INCOMPLETE


def test_there_are_no_more_parts_than_units(frozen, cluster, capsys):
    code, out, _ = go(capsys, "--plan", frozen, "--target", "slurm", "--array", "64", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["parts"] == said["units"] == 20
    assert "--array=1-20" in calls(cluster)[1]


def test_only_parts_with_units_to_do_are_submitted_again(complete, cluster, capsys):
    plan = load_plan(complete)
    receipts = complete / "_run" / "receipts"
    paths = [receipts / f"{Part(number, 6).units(plan)[0].id}.json" for number in (2, 5)]
    taken = {path: path.read_bytes() for path in paths}
    try:
        for path in paths:
            path.unlink()
        assert load_job(complete, 6).todo == ((2, 5),)
        assert go(capsys, "--plan", complete, "--target", "slurm", "--array", "6")[0] == 0
        assert "--array=2,5" in calls(cluster)[1]
    finally:
        for path, content in taken.items():
            path.write_bytes(content)
    cluster.unlink()
    code, out, _ = go(capsys, "--plan", complete, "--target", "slurm")
    assert (code, calls(cluster)) == (0, [])
    assert "complete; nothing to submit" in out


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_do_and_does_nothing(wanted, cluster, tmp_path, capsys):
    code, out, _ = go(capsys, *wanted, "--target", "slurm", "--array", "4", "--gpus", "2", "--dry-run")
    assert code == 0
    assert "20 units in 4 parts" in out
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  sbatch")]
    assert "--gres=gpu:2" in commands[0]
    assert "--gres=gpu:2" not in commands[1]
    assert "--dependency=afterany:ARRAY_JOB_ID" in commands[1]
    assert list(tmp_path.iterdir()) == []
    assert calls(cluster) == []


def test_jobs_in_the_queue_are_not_doubled(frozen, cluster, monkeypatch, capsys):
    monkeypatch.setenv("QUEUED", "41\n41\n42\n")
    code, _, err = go(capsys, "--plan", frozen, "--target", "slurm")
    assert code == 2
    assert "scancel 41 42" in err
    assert [call[0] for call in calls(cluster)] == ["squeue"]


def test_overwriting_is_refused_while_jobs_run(frozen, wanted, monkeypatch, capsys):
    monkeypatch.setenv("QUEUED", "41\n")
    code, _, err = go(capsys, *wanted, "--seed", "3", "--out", "run.zarr", "--target", "slurm", "--overwrite")
    assert code == 2
    assert "has jobs in the queue: 41" in err
    assert load_plan(frozen).config.seed == 0


@pytest.mark.parametrize("failing", ["sbatch", "squeue"])
def test_a_refusal_by_slurm_is_told_in_its_words(frozen, monkeypatch, capsys, failing):
    monkeypatch.setenv("FAILING", failing)
    code, _, err = go(capsys, "--plan", frozen, "--target", "slurm")
    assert code == 2
    assert "Invalid account" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("away", ["sbatch", "squeue"])
def test_without_a_controller_the_flags_are_not_blamed(frozen, monkeypatch, capsys, away):
    monkeypatch.setenv("AWAY", away)
    code, _, err = go(capsys, "--plan", frozen, "--target", "slurm")
    assert code == 1
    assert "SLURM's controller (slurmctld) does not answer: " in err
    assert "scontrol ping" in err
    assert "--sbatch" not in err
    assert len(err.strip().splitlines()) == 1


def test_an_array_without_its_publication_is_taken_back(frozen, cluster, monkeypatch, capsys):
    real = slurm._submitted

    def second_fails(command, array):
        if command[-1].endswith("finalise.sbatch"):
            raise UsageError("SLURM refuses: no")
        return real(command, array)

    monkeypatch.setattr(slurm, "_submitted", second_fails)
    assert go(capsys, "--plan", frozen, "--target", "slurm")[0] == 2
    assert calls(cluster)[-1] == ["scancel", "101"]


def test_too_little_memory_is_refused_with_the_numbers(frozen, cluster, capsys):
    code, _, err = go(capsys, "--plan", frozen, "--target", "slurm", "--memory", "1500M", "--cpus", "2")
    assert code == 2
    assert "--memory of 1500 MiB for 2 workers" in err
    assert calls(cluster) == []


def test_kinds_of_gpus_are_the_users_choice(frozen, cluster, capsys):
    words = ["--gpus", "1", "--sbatch", "--gres=gpu:a100:1"]
    assert go(capsys, "--plan", frozen, "--target", "slurm", *words)[0] == 0
    _, array, finalise = calls(cluster)
    assert [word for word in array if "gres" in word] == ["--gres=gpu:a100:1"]
    assert not [word for word in finalise if "gres" in word]


BOTH = ("slurm", "kubernetes")
BAD = [
    (BOTH, ["--array", "0"], "--array 0"),
    (BOTH, ["--array", "200000"], "at most 100000"),
    (BOTH, ["--array", "many"], "invalid int value"),
    (BOTH, ["--parallel", "-1"], "--parallel -1"),
    (BOTH, ["--gpus", "-1"], "--gpus -1"),
    (BOTH, ["--cpus", "0"], "--cpus 0"),
    (BOTH, ["--memory", "much"], "--memory much"),
    (BOTH, ["--memory", "0"], "--memory 0"),
    (("kubernetes",), ["--memory", "100M"], "--memory of 100 MiB"),
    (BOTH, ["--time", "04:00"], "HH:MM:SS"),
    (BOTH, ["--time", "00:01:00"], "at least 10 minutes"),
    (BOTH, ["--shard-of", "1/2"], "--shard-of given to submit"),
    (BOTH, ["--finalise"], "--finalise given to submit"),
    (BOTH, ["--plan-only"], "--plan-only given to submit"),
    (BOTH, ["--cluster=local"], "--cluster given to submit"),
    (BOTH, ["--workers", "3"], "--cpus, one worker for each"),
    (BOTH, ["--nonsense", "3"], "unrecognized arguments: --nonsense 3"),
    (BOTH, ["--mem", "8"], "unrecognized arguments: --mem 8"),  # no abbreviation of --members
    (BOTH, ["--composite", "best"], "invalid choice"),
    (BOTH, ["--config", "absent.toml"], "absent.toml"),
    (BOTH, ["--bbox", "1", "2", "3", "4"], "two areas"),
    (("slurm",), ["--sbatch", "gpu"], "long options with ="),
    (("slurm",), ["--sbatch", "--partition gpu"], "long options with ="),
    (("slurm",), ["--sbatch", "--array=1-9"], "submit does not set itself"),
    (("slurm",), ["--sbatch", "'--comment=x"], "No closing quotation"),
    (("slurm",), ["--manifest", "out"], "--target kubernetes"),
    (("slurm",), ["--overwrite"], "--overwrite without --out"),
    (("slurm",), ["--plan", "other.zarr"], "--plan given with --aoi"),
    (("kubernetes",), ["--sbatch", "--partition=gpu"], "--target slurm"),
    (("kubernetes",), ["--plan", "other.zarr"], "--plan with --target kubernetes"),
    (("kubernetes",), ["--overwrite"], "--overwrite with --target kubernetes"),
    (("kubernetes",), ["--claim", "My_Claim"], "--claim My_Claim"),
    (("kubernetes",), ["--namespace", "a b"], "--namespace a b"),
    (("kubernetes",), ["--secret=-x-"], "--secret -x-"),
    (("kubernetes",), ["--image", "a image"], "--image"),
    (("kubernetes",), ["--out", "/scratch/run.zarr"], "a path below /data"),
    (("kubernetes",), ["--out", "../run.zarr"], "a path below /data"),
]


@pytest.mark.parametrize(
    ("target", "words", "part"), [(target, words, part) for targets, words, part in BAD for target in targets]
)
def test_bad_arguments_are_one_clear_line_and_nothing_is_written(
    wanted, cluster, tmp_path, capsys, target, words, part
):
    if target == "kubernetes":
        wanted = [word if word != wanted[3] else "earth-search" for word in wanted] + ["--manifest", "out"]
    code, out, err = go(capsys, *wanted, "--target", target, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert part in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert not [call for call in calls(cluster) if call[0] in ("sbatch", "kubectl")]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--target"),
        (["--target", "pbs"], "invalid choice: 'pbs'"),
        (["--target", "slurm"], "no area given"),
        (["--target", "kubernetes", "--aoi", "x.geojson"], "--target kubernetes without --manifest"),
        (["--target", "kubernetes", "--manifest", "out", "--bbox", "1", "2", "x", "4"], "--bbox 1,2,x,4; "),
        (["--target", "slurm", "--plan", "nothing.zarr"], "holds no plan"),
    ],
)
def test_missing_words_are_asked_for_in_one_line(tmp_path, capsys, words, part):
    code, _, err = go(capsys, *words)
    assert code == 2
    assert part in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_nothing_is_planned(wanted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = go(capsys, *wanted, "--out", "run.zarr", "--target", "slurm")
    assert code == 2
    assert "no sbatch on the PATH" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refusal_of_the_planner_keeps_its_exit_code_and_parts(wanted, tmp_path, capsys):
    """No scene in the period gives exit code 3, as in pipeline.run."""
    code, out, err = go(capsys, *wanted, "--end", "2019-02-01", "--target", "slurm", "--json")
    assert code == 3
    said = json.loads(out)
    assert said["exit_code"] == 3
    assert said["found"]
    assert said["found"] != err.removeprefix("error: ").strip()  # JSON separates the parts of the message
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_are_parted_between_submit_and_the_planning_run():
    words = [
        "--aoi", "a.geojson", "--array", "4", "--start=2024-06-01", "--gpus=1", "--offset", "-1000",
        "--time", "01:00:00", "--json", "--clip", "--bands", "B02,B03", "--target", "slurm", "--exclude", "X",
        "--out", "o",
    ]  # fmt: skip
    assert submit.plan_flags(words) == (
        "--start=2024-06-01", "--offset", "-1000", "--clip", "--bands", "B02,B03", "--exclude", "X",
    )  # fmt: skip


def test_sizes_times_and_spans():
    assert [resources.memory_mib(text) for text in ("8G", "8Gi", "1.5G", "800M", "2000")] == [
        8192,
        8192,
        1536,
        800,
        2000,
    ]
    assert [resources.limit_s(text) for text in ("00:10:00", "100:00:00", "2-01:00:00")] == [600, 360_000, 176_400]
    assert resources.clock(176_400) == "49:00:00"
    assert slurm.spans([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 0), (8, 0), (4, 1), (8, 2)])
@pytest.mark.parametrize("process_mib", [700.0, 2500.0])
def test_memory_asked_for_is_what_a_part_accepts(cpus, gpus, process_mib, monkeypatch):
    from pipeline.running.memory import CUDA_MIB, require_memory

    one = Resources(cpus, gpus)
    needed = one.needed_mib(process_mib)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", needed * 2**20)
    require_memory(gpus or cpus, process_mib + (CUDA_MIB if gpus else 0))
    assert needed % 1024 == 0


class TestUnitsAtOnceAtAGpu:
    """A part with a GPU is given memory for the units that its process computes at once."""

    @pytest.mark.parametrize(
        ("units", "parts", "gpus", "at_once"),
        [(20, 4, 0, 1), (20, 4, 1, 3), (20, 10, 1, 2), (20, 20, 1, 1), (20, 2, 4, 3), (20, 4, 4, 2), (1, 1, 1, 1)],
    )
    def test_as_many_as_a_part_has(self, tmp_path, units, parts, gpus, at_once):
        plan = JobPlan(place_of(tmp_path / "run.zarr"), "ab" * 32, units, 700.0, 300.0, 3, parts, ())
        assert plan.process_mib(gpus) == 700 + (at_once - 1) * 300

    @pytest.mark.parametrize(("parts", "at_once"), [(4, 3), (20, 1)])
    def test_a_submission_asks_for_them(self, frozen, cluster, capsys, monkeypatch, parts, at_once):
        """And a part that gets the memory computes so many at once."""
        code, out, err = go(
            capsys, "--plan", frozen, "--target", "slurm", "--array", parts, "--gpus", 1, "--dry-run", "--json"
        )
        assert code == 0, err
        (memory,) = [word for word in json.loads(out)["commands"][0] if word.startswith("--mem=")]
        cost = estimate(load_plan(frozen), 1, timed=False)
        asked = Resources(cpus=1, gpus=1).needed_mib(cost.worker_mib + (at_once - 1) * cost.unit_mib)
        assert memory == f"--mem={asked}M"
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", asked * 2**20)
        monkeypatch.setattr(choices, "device_name", lambda: "cuda")
        assert choices.affordable("inline", 1, 3, replace(cost, units=3, at_once=3)) >= at_once

    def test_less_memory_means_fewer_at_once(self, frozen, cluster, capsys):
        cost = estimate(load_plan(frozen), 1, timed=False)
        words = ["--plan", frozen, "--target", "slurm", "--array", 4, "--gpus", 1, "--dry-run", "--memory"]
        least = int(cost.worker_mib / MEMORY_SHARE)
        assert go(capsys, *words, f"{least + 1}M")[0] == 0
        code, _, err = go(capsys, *words, f"{least - 2}M")
        assert code == 2
        assert "1 worker of about" in err

    @pytest.mark.parametrize(("gpus", "units"), [(0, 1), (1, 3)])
    def test_pods_ask_for_them_before_there_is_a_plan(self, aoi, gpus, units, capsys):
        words = ["--target", "kubernetes", "--dry-run", "--aoi", aoi, *(["--gpus", gpus] if gpus else [])]
        code, out, err = go(capsys, *words)
        assert code == 0, err
        asked = Resources(cpus=1, gpus=gpus).needed_mib(submit._WORKER_MIB + (units - 1) * submit._UNIT_MIB)
        assert f"memory: {asked}Mi" in out


def test_help_lists_the_flags_of_both(capsys):
    with pytest.raises(SystemExit) as stop:
        submit.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--array", "--gpus", "--sbatch", "--manifest", "--aoi", "--composite"):
        assert flag in said
