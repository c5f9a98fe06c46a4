"""Kubernetes manifests, as shipped and as submit writes them, are strictly valid; their shell lines work."""

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipeline import errors, submit
from pipeline.aoi.aoi import read_aoi
from pipeline.arguments import config_of, parser
from pipeline.config import RunConfig

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
BASE = sorted(path for path in (FOLDER / "base").glob("*.yaml") if path.name != "kustomization.yaml")
NEVER_AGAIN = [errors.EXIT_USAGE, errors.EXIT_NO_DATA, errors.EXIT_QUARANTINE, errors.EXIT_UPSTREAM,
               errors.EXIT_STORAGE, errors.EXIT_INTEGRITY]  # fmt: skip


def documents(*paths):
    return [document for path in paths for document in yaml.safe_load_all(Path(path).read_text())]


def validate(document):
    """Validate strictly. Of a DaskCluster, validate its pods and its service."""
    if document["kind"] != "DaskCluster":
        kubernetes_validate.validate(document, "1.33", strict=True)
        return
    inner = [("Pod", document["spec"][role]["spec"]) for role in ("scheduler", "worker")]
    for kind, spec in [*inner, ("Service", document["spec"]["scheduler"]["service"])]:
        wrapped = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(wrapped, "1.33", strict=True)


def pod_of(document):
    return document["spec"]["template"]["spec"]


def pods(found):
    """Yield the pod specs of all documents."""
    for document in found:
        if document["kind"] == "Job":
            yield pod_of(document)
        if document["kind"] == "DaskCluster":
            yield from (document["spec"][role]["spec"] for role in ("scheduler", "worker"))


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def named(found, end):
    (one,) = (document for document in found if document["metadata"]["name"].endswith(end))
    return one


@pytest.fixture
def written(aoi, tmp_path, monkeypatch, capsys):
    """Return a function that runs submit with some flags and returns the manifests."""
    monkeypatch.chdir(tmp_path)

    def write(*words):
        code = submit.main(["--target", "kubernetes", "--manifest", "out", "--aoi", str(aoi), *words])
        said = capsys.readouterr()
        assert code == 0, said.err
        return documents(*sorted(Path("out").glob("*.yaml")))

    return write


@pytest.mark.parametrize("path", [*BASE, *sorted((FOLDER / "dask").glob("[!k]*.yaml"))], ids=lambda path: path.name)
def test_files_at_rest_are_valid(path):
    for document in documents(path):
        validate(document)


@pytest.mark.parametrize("name", ["base", "overlays/cpu", "overlays/gpu", "dask"])
def test_kustomize_builds_what_is_valid(name):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(["kubectl", "kustomize", str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    for document in found:
        validate(document)
    for pod in pods(found):
        assert {c["image"] for c in containers(pod)} <= {"sen2fine:latest", "sen2fine:cpu", "sen2fine:cuda"}
    if name == "overlays/gpu":
        array = pod_of(named(found, "-array"))
        assert array["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert not any("nvidia.com/gpu" in str(pod_of(named(found, end))) for end in ("-plan", "-finalise"))
    if name == "dask":
        assert not [d for d in found if d["metadata"]["name"] in ("sen2fine-array", "sen2fine-finalise")]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--gpus", "2", "--time", "04:00:00", "--parallel", "3", "--secret", "keys"],
        ["--namespace", "eo", "--claim", "fast", "--image", "my.example/sen2fine:1"],
    ],
)
def test_what_submit_writes_is_valid(written, words):
    found = written("--array", "12", *words)
    assert len(found) == 6
    for document in found:
        validate(document)


@pytest.mark.parametrize("place", ["spec", "pod", "container", "rule"])
def test_a_misspelt_field_is_rejected(written, place):
    """The validator rejects unknown fields at every depth."""
    array = copy.deepcopy(named(written(), "-array"))
    pod = pod_of(array)
    holder = {"spec": array["spec"], "pod": pod, "container": pod["containers"][0],
              "rule": array["spec"]["podFailurePolicy"]["rules"][0]}[place]  # fmt: skip
    holder["imagePulPolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(array)


def test_pods_are_unprivileged_and_know_no_secret():
    for pod in pods(documents(*BASE, *sorted((FOLDER / "dask").glob("[!k]*.yaml")))):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
            assert not [e for e in container.get("env", ()) if re.search("KEY_ID|SECRET|TOKEN|PASSWORD", e["name"])]


def test_parts_of_the_files_at_rest_agree():
    found = documents(*BASE)
    run, array = named(found, "-run"), named(found, "-array")
    assert run["data"]["SEN2FINE_PARTS"] == str(array["spec"]["completions"])
    area = named(found, "-area")["data"]
    assert RunConfig.from_mapping(tomllib.loads(area["run.toml"])).catalog == "earth-search"


def test_exit_codes_are_those_of_the_pipeline():
    found = documents(*BASE, FOLDER / "dask" / "run.yaml")
    for job in (document for document in found if document["kind"] == "Job"):
        disruption, final = job["spec"]["podFailurePolicy"]["rules"]
        assert disruption["action"] == "Ignore"
        assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert final["action"] == ("FailIndex" if job["spec"].get("completionMode") == "Indexed" else "FailJob")
        assert final["onExitCodes"] == {"operator": "In", "values": NEVER_AGAIN}
        assert pod_of(job)["restartPolicy"] == "Never"  # podFailurePolicy requires it


def test_submit_fills_in_what_was_asked_for(written, aoi):
    found = written(
        "--array", "12", "--parallel", "5", "--cpus", "3", "--memory", "20G", "--time", "02:00:00", "--secret", "keys",
        "--claim", "fast", "--namespace", "eo", "--out", "lyon.zarr", "--start", "2024-06-01", "--clip",
        "--verify", "full",
    )  # fmt: skip
    assert {document["metadata"]["namespace"] for document in found} == {"eo"}
    assert all(document["metadata"]["name"].startswith("sen2fine-lyon") for document in found)
    array = named(found, "-array")
    assert (array["spec"]["completions"], array["spec"]["parallelism"]) == (12, 5)
    pod = pod_of(array)
    assert pod["activeDeadlineSeconds"] == 7200
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "3", "memory": "20480Mi"}
    assert {"name": "SEN2FINE_WORKERS", "value": "3"} in pod["containers"][0]["env"]
    assert {"secretRef": {"name": "keys"}} in pod["containers"][0]["envFrom"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "fast"
    run = named(found, "-run")["data"]
    assert (run["SEN2FINE_STORE"], run["SEN2FINE_PARTS"]) == ("/data/lyon.zarr", "12")
    assert run["SEN2FINE_OPTIONS"] == "--verify full --max-outage 30"
    labels = array["spec"]["template"]["metadata"]["labels"]
    assert named(found, "sen2fine-lyon")["spec"]["podSelector"]["matchLabels"] == labels


def of_run(args):
    """Return the flags of pipeline.run from a pod's args."""
    return args[args.index("pipeline.run") + 1 :]


def test_the_plan_in_the_cluster_is_the_one_asked_for_here(written, aoi, tmp_path):
    """The plan pod's args and files give the same area and the same settings."""
    (tmp_path / "run.toml").write_text('composite = "median"\nmax_cloud = 35\n')
    words = ["--config", "run.toml", "--start", "2024-06-01", "--bands", "B02,B03", "--seed", "7"]
    found = written(*words)
    args = pod_of(named(found, "-plan"))["containers"][0]["args"]
    files = named(found, "-area")["data"]
    for name, text in files.items():
        (tmp_path / f"there_{name}").write_text(text)
    there = [word.replace("/etc/sen2fine/", f"{tmp_path}/there_") for word in of_run(args)]
    understood = parser().parse_args(there)
    assert understood.plan_only
    assert understood.out == "$(SEN2FINE_STORE)"
    assert (understood.parts, understood.workers) == (16, 1)
    assert config_of(understood) == config_of(parser().parse_args(words))
    assert read_aoi(understood.aoi).digest == read_aoi(str(aoi)).digest


@pytest.mark.parametrize("box", [["-7.2", "52.1", "-7.1", "52.2"], ["-7.2,52.1,-7.1,52.2"]])
def test_a_box_needs_no_file(tmp_path, monkeypatch, capsys, box):
    monkeypatch.chdir(tmp_path)
    words = ["--target", "kubernetes", "--manifest", "out", "--bbox", *box, "--dry-run"]
    assert submit.main(words) == 0
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    assert list(tmp_path.iterdir()) == []
    args = pod_of(named(found, "-plan"))["containers"][0]["args"]
    assert parser().parse_args(of_run(args)).bbox == "-7.2,52.1,-7.1,52.2"
    assert named(found, "-run")["data"]["SEN2FINE_STORE"] == "/data/bbox_-7.2_52.1_-7.1_52.2.zarr"
    for document in found:
        validate(document)


def test_a_local_file_is_not_taken_for_one_of_the_cluster(archive, aoi, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--target", "kubernetes", "--manifest", "out", "--aoi", str(aoi), "--catalog", str(archive)]
    assert submit.main(words) == 2
    assert "a file here; expected one that pods see, below /data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_apply_ends_old_jobs_first_and_tells_refusals(aoi, tmp_path, monkeypatch, capsys):
    (tmp_path / "kubectl").write_text(
        '#!/bin/sh\necho "$@" >>"$CALLS"\n[ "$1" = "$FAILING" ] && echo "no rights" >&2 && exit 1\n:\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FAILING", "")
    words = ["--target", "kubernetes", "--manifest", str(tmp_path / "out"), "--aoi", str(aoi), "--apply", "--json"]
    assert submit.main(words) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "submitted"
    ended, applied = (tmp_path / "calls").read_text().splitlines()
    assert ended == (
        "delete job --ignore-not-found --selector=app.kubernetes.io/name=sen2fine,app.kubernetes.io/instance=country"
    )
    assert applied.startswith("apply --filename=")
    assert applied.count("--filename=") == 5
    monkeypatch.setenv("FAILING", "apply")
    assert submit.main(words) == 1
    said = capsys.readouterr().err
    assert "kubectl refuses: no rights" in said
    assert len(said.strip().splitlines()) == 1


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl that writes down its calls and answers `get` with the next line of a file. Returns the two files."""
    (tmp_path / "kubectl").write_text(
        '#!/bin/sh\necho "$@" >>"$CALLS"\ncase "$*" in *get*) head -n 1 "$STATES"; sed -i 1d "$STATES" ;; esac\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("calls", "states"):
        (tmp_path / name).write_text("")
        monkeypatch.setenv(name.upper(), str(tmp_path / name))
    monkeypatch.setattr("pipeline.jobs.kubernetes._PLAN_POLL_S", 0.0)
    return tmp_path / "calls", tmp_path / "states"


def test_parts_with_gpus_are_applied_when_the_plan_is_made(aoi, tmp_path, kubectl, capsys):
    calls, states = kubectl
    states.write_text("\n\nSuccessCriteriaMet Complete\n")
    words = ["--target", "kubernetes", "--manifest", str(tmp_path / "out"), "--aoi", str(aoi), "--gpus", "1"]
    assert submit.main([*words, "--apply"]) == 0
    said = calls.read_text().splitlines()
    assert [line.split()[0] for line in said] == ["delete", "apply", "get", "get", "get", "apply"]
    first, last = (re.findall(r"(\w+)\.yaml", line) for line in (said[1], said[-1]))
    assert first == ["config", "network", "plan"]
    assert last == ["array", "finalise"]
    assert "job sen2fine-country-plan " in said[2]
    capsys.readouterr()
    assert submit.main(words) == 0  # by hand: the same, with kubectl's own wait
    assert "kubectl wait --for=condition=complete --timeout=3600s job/sen2fine-country-plan" in capsys.readouterr().out


def test_no_gpu_is_asked_for_when_the_plan_fails(aoi, tmp_path, kubectl, capsys):
    calls, states = kubectl
    states.write_text("FailureTarget Failed\n")
    words = ["--target", "kubernetes", "--manifest", str(tmp_path / "out"), "--aoi", str(aoi), "--gpus", "1", "--apply"]
    assert submit.main(words) == 1
    assert "the job sen2fine-country-plan has failed; expected a plan" in capsys.readouterr().err
    assert "array.yaml" not in calls.read_text()


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("AWS_REGION", "NAME=VALUE"),
        ("1X=2", "NAME=VALUE"),
        ("AWS_SECRET_ACCESS_KEY=x", "--secret"),
        ("PROXY=http://me:pass@host:80", "--secret"),
        ("SEN2FINE_STORE=/x", "does not set itself"),
    ],
)
def test_environment_that_is_refused(aoi, tmp_path, monkeypatch, capsys, word, found):
    monkeypatch.chdir(tmp_path)
    assert submit.main(["--target", "kubernetes", "--manifest", "out", "--aoi", str(aoi), "--env", word]) == 2
    said = capsys.readouterr().err
    assert found in said
    assert "pass@" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pod_shell(tmp_path, monkeypatch):
    """Return a function that runs a container's shell line locally, with stub `python` and `sleep`."""
    for name, text in (
        ("python", 'echo "$@" >>"$SEEN"\ncode=$(head -n 1 "$CODES")\nsed -i 1d "$CODES"\nexit "$code"\n'),
        ("sleep", 'echo "sleep $1" >>"$SEEN"\n[ -z "$THEN" ] || sh -c "$THEN"\n'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.zarr" / "_run").mkdir(parents=True)
    for name, value in (("SEEN", tmp_path / "seen"), ("CODES", tmp_path / "codes"), ("THEN", ""),
                        ("SEN2FINE_STORE", tmp_path / "run.zarr"), ("SEN2FINE_PARTS", "16"), ("SEN2FINE_WORKERS", "1"),
                        ("SEN2FINE_OPTIONS", "--verify full --max-outage 60"), ("JOB_COMPLETION_INDEX", "0"),
                        ("PATH", f"{tmp_path}:{os.environ['PATH']}")):  # fmt: skip
        monkeypatch.setenv(name, str(value))

    def run(container, codes=""):
        (tmp_path / "codes").write_text(codes)
        done = subprocess.run(container["args"], capture_output=True, text=True, check=False, timeout=30)
        seen = tmp_path / "seen"
        lines = seen.read_text().splitlines() if seen.exists() else []
        seen.unlink(missing_ok=True)
        return done.returncode, lines, done.stderr

    return run


def test_index_0_is_part_1_and_takes_over_its_own_lease_alone(pod_shell, tmp_path, monkeypatch):
    part = pod_of(named(documents(*BASE), "-array"))["containers"][0]
    leases = [tmp_path / "run.zarr" / "_run" / f"lease-{number}-of-16.json" for number in (1, 2, 16)]
    for lease in leases:
        lease.write_text("{}")
    code, seen, _ = pod_shell(part, "75\n")
    assert code == 75
    flags = "--shard-of 1/16 --wait-for-plan 3600 --workers 1 --quiet --verify full --max-outage 60"
    assert seen == [f"-m pipeline.run --plan {tmp_path}/run.zarr {flags}"]
    assert [lease.exists() for lease in leases] == [False, True, True]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "15")
    assert "--shard-of 16/16" in pod_shell(part, "0\n")[1][0]
    monkeypatch.setenv("SEN2FINE_STORE", "s3://bucket/run.zarr")
    assert "--plan s3://bucket/run.zarr --shard-of" in pod_shell(part, "0\n")[1][0]


@pytest.mark.parametrize("filled", [False, True])
def test_the_plan_makes_the_folder_of_its_store_on_the_claim(pod_shell, written, tmp_path, monkeypatch, filled):
    """Users cannot create the folder on the claim themselves, and a wrong path cannot reach another disk."""
    store = tmp_path / "claim" / "team a" / "run.zarr"
    monkeypatch.setenv("SEN2FINE_STORE", str(store))
    found = written("--out", "team/run.zarr") if filled else documents(*BASE)
    (plan,) = pod_of(named(found, "-plan"))["containers"]
    code, seen, _ = pod_shell(plan, "0\n")
    assert code == 0
    assert seen[0].startswith("-m pipeline.run --aoi=/etc/sen2fine/")
    assert store.parent.is_dir()
    assert not store.exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEN2FINE_STORE", "s3://bucket/team/run.zarr")
    assert pod_shell(plan, "0\n")[0] == 0
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(("last", "code"), [("0", 0), ("4", 4), ("7", 7), ("1", 1)])
def test_the_publication_asks_again_while_units_are_missing(pod_shell, last, code):
    """Exit code 75: no plan yet, another run holds the store, or units are missing."""
    (finalise,) = pod_of(named(documents(*BASE), "-finalise"))["containers"]
    found, seen, _ = pod_shell(finalise, f"75\n75\n{last}\n")
    assert found == code
    assert [line.split()[0] for line in seen] == ["-m", "sleep", "-m", "sleep", "-m"]
    assert all("--wait-for-plan 3600 --finalise" in line for line in seen[::2])


def test_shell_lines_pass_shellcheck(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    found = documents(*BASE, FOLDER / "dask" / "run.yaml")
    lines = [c["args"][2] for pod in pods(found) for c in containers(pod) if c["args"][0] == "/bin/sh"]
    assert len(lines) == 4
    for number, text in enumerate(lines):
        path = tmp_path / f"{number}.sh"
        path.write_text(f"#!/bin/sh\n{text}")
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
