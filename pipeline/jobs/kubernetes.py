"""Kubernetes manifests of a run, from the files in deploy/kubernetes/base.

Planning runs as a separate job in the cluster, close to the storage.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import PipelineError, UsageError
from pipeline.jobs.resources import Resources, deploy_folder
from pipeline.store.receipts import write_atomic
from pipeline.temporary import require_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

Document = dict[str, Any]

MOUNT = "/data"
CLAIM = "sen2fine"
_AREA = "/etc/sen2fine"
_FILES = ("config.yaml", "network.yaml", "plan.yaml", "array.yaml", "finalise.yaml")
_MAX_AREA_BYTES = 900_000  # a ConfigMap holds 1 MiB
_HTTPS = 443
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)secret|token|password|credential|_key|key_id|sas")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_TIMEOUT_S = 600.0
_BEFORE_GPUS = ("config.yaml", "network.yaml", "plan.yaml")
_PLAN_S, _PLAN_POLL_S = 3600.0, 5.0


@dataclass(frozen=True)
class Manifests:
    """The manifests of one run.

    `store` is the path of the store in the pods, or its address in an object store. `claim` holds what pods see as
    `MOUNT`; without one that folder is empty and goes with the pod. `environment` is that of all pods. `flags` are the
    flags of pipeline.run that decide the plan, without AOI, TOML file and store. `area` is a GeoJSON geometry, None if
    `flags` contain --bbox.
    """

    store: str
    flags: tuple[str, ...]
    area: Document | None
    area_name: str
    toml: str
    resources: Resources
    parts: int
    parallel: int = 0
    image: str = "sen2fine:latest"
    claim: str = CLAIM
    namespace: str = ""
    secret: str = ""
    options: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag, name in (("--claim", self.claim), ("--namespace", self.namespace), ("--secret", self.secret)):
            if name and (len(name) > 63 or not _LABEL.fullmatch(name)):
                raise UsageError(f"{flag} {name}", "lower-case letters, digits and hyphens, at most 63")
        if not re.fullmatch(r"[\w./:@-]+", self.image):
            raise UsageError(f"--image {self.image!r}", "an image such as registry.example/sen2fine:1.0")
        if self.area is not None and len(json.dumps(self.area)) > _MAX_AREA_BYTES:
            raise UsageError("the AOI is larger than a ConfigMap can hold", "less than 900 kB", "simplify the polygon")

    @property
    def name(self) -> str:
        """Name of the run within the cluster, from its store."""
        stem = self.store.rsplit("/", 1)[-1].removesuffix(".zarr")
        return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "run"

    @property
    def area_file(self) -> str:
        """File name of the AOI in its ConfigMap, whose keys must be ASCII. The run takes its AOI name from it."""
        return re.sub(r"[^-._A-Za-z0-9]", "_", self.area_name) + ".geojson"

    @property
    def selector(self) -> str:
        """Selector for kubectl of everything that belongs to this run."""
        return f"app.kubernetes.io/name=sen2fine,app.kubernetes.io/instance={self.name}"

    @property
    def plan_job(self) -> str:
        """Name of the job that makes the plan."""
        return self._renamed("sen2fine-plan")

    def files(self) -> dict[str, list[Document]]:
        """Return {file name: documents}."""
        import yaml

        base = deploy_folder("kubernetes") / "base"
        found = {name: list(yaml.safe_load_all((base / name).read_text())) for name in _FILES}
        for documents in found.values():
            for document in documents:
                self._identify(document)
        self._configure(*found["config.yaml"])
        self._plan(found["plan.yaml"][0])
        self._array(found["array.yaml"][0])
        self._network(found["network.yaml"][0])
        return found

    def _identify(self, document: Document) -> None:
        """Set the run's name and labels in a document, and the run's image, claim and secret in its pods."""
        labels = {"app.kubernetes.io/name": "sen2fine", "app.kubernetes.io/instance": self.name}
        metadata = document["metadata"]
        metadata["name"] = self._renamed(metadata["name"])
        metadata["labels"] = dict(labels)
        if self.namespace:
            metadata["namespace"] = self.namespace
        if document["kind"] == "NetworkPolicy":
            document["spec"]["podSelector"]["matchLabels"] = dict(labels)
        if document["kind"] != "Job":
            return
        template = document["spec"]["template"]
        template["metadata"] = {"labels": labels}
        for container in _containers(document):
            container["image"] = self.image
            for source in container["envFrom"]:
                self._refer(source)
        for volume in template["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume and self.claim:
                volume["persistentVolumeClaim"]["claimName"] = self.claim
            elif "persistentVolumeClaim" in volume:
                del volume["persistentVolumeClaim"]
                volume["emptyDir"] = {}
            if "configMap" in volume:
                volume["configMap"]["name"] = self._renamed(volume["configMap"]["name"])

    def _refer(self, source: Document) -> None:
        if "configMapRef" in source:
            source["configMapRef"]["name"] = self._renamed(source["configMapRef"]["name"])
        elif self.secret:
            source["secretRef"] = {"name": self.secret}  # not optional, since the user named it

    def _renamed(self, name: str) -> str:
        return f"sen2fine-{self.name}{name.removeprefix('sen2fine')}"

    def _configure(self, area: Document, run: Document) -> None:
        area["data"] = {"run.toml": self.toml}
        if self.area is not None:
            area["data"][self.area_file] = json.dumps(self.area)
        run["data"] = {
            "SEN2FINE_STORE": self.store,
            "SEN2FINE_PARTS": str(self.parts),
            "SEN2FINE_OPTIONS": self.options,
            **self.environment,
        }

    def _network(self, policy: Document) -> None:
        """Allow the ports of addresses in the environment, such as that of an object store in the cluster."""
        allowed = policy["spec"]["egress"][-1]
        known = {entry["port"] for entry in allowed["ports"]}
        for value in self.environment.values():
            if (port := _port(value)) and port not in known:
                known.add(port)
                allowed["ports"].append({"port": port, "protocol": "TCP"})

    def _plan(self, job: Document) -> None:
        (container,) = _containers(job)
        area = [f"--aoi={_AREA}/{self.area_file}"] if self.area is not None else []
        begin = container["args"][: container["args"].index("pipeline.run") + 1]
        container["args"] = [
            *(*begin, *area, f"--config={_AREA}/run.toml", "--out=$(SEN2FINE_STORE)"),
            *("--plan-only", f"--parts={self.parts}", f"--workers={self.resources.workers}"),
            *(word.replace("$(", "$$(") for word in self.flags),  # keep Kubernetes from expanding it
        ]

    def _array(self, job: Document) -> None:
        spec, resources = job["spec"], self.resources
        spec["completions"] = self.parts
        spec["parallelism"] = min(self.parallel or self.parts, self.parts)
        spec["maxFailedIndexes"] = max(1, self.parts // 8)
        pod = spec["template"]["spec"]
        if resources.limit_s:
            pod["activeDeadlineSeconds"] = resources.limit_s
        container = pod["containers"][0]
        for variable in container["env"]:
            if variable["name"] == "SEN2FINE_WORKERS":
                variable["value"] = str(resources.workers)
        memory = f"{resources.memory_mib}Mi"
        container["resources"] = {
            "requests": {"cpu": str(resources.cpus), "memory": memory},
            "limits": {"memory": memory},
        }
        if resources.gpus:
            container["resources"]["limits"]["nvidia.com/gpu"] = resources.gpus
            pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def _containers(job: Document) -> Iterator[Document]:
    pod = job["spec"]["template"]["spec"]
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def environment_of(words: Sequence[str]) -> dict[str, str]:
    """Return {name: value} of words NAME=VALUE. Raises UsageError for other words, and for what looks like a secret."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not _VARIABLE.fullmatch(name):
            raise UsageError(f"--env {name}", "NAME=VALUE, such as AWS_REGION=eu-central-1")
        if _SECRET.search(name) or "@" in urlsplit(value).netloc:
            raise UsageError(
                f"--env {name}, which looks like a secret", "a setting", "put it into the secret of --secret"
            )
        if name.startswith("SEN2FINE_") and name.removeprefix("SEN2FINE_") in ("STORE", "PARTS", "OPTIONS", "WORKERS"):
            raise UsageError(f"--env {name}", "one that submit does not set itself")
        found[name] = value
    return found


def _port(value: str) -> int | None:
    """Return the port of an http address, None for other values."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https"):
        return None
    return port or (_HTTPS if parts.scheme == "https" else 80)


def as_yaml(documents: Sequence[Document]) -> str:
    """Return the documents as one YAML text."""
    import yaml

    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=120)
    return text


def write(manifests: Manifests, folder: Path) -> list[Path]:
    """Write the manifests into `folder`, created if needed, and keep other files. Raises StorageError, UsageError."""
    texts = {name: as_yaml(documents) for name, documents in manifests.files().items()}
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--manifest {folder} is a file", "a folder")
    for name in texts:
        require_ours(folder / name, "--manifest")
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def apply_commands(manifests: Manifests, files: Sequence[Path]) -> list[list[str]]:
    """Return the kubectl commands: delete the jobs of an earlier submission, since jobs are immutable, then apply.

    Parts with GPUs are applied when the plan is made, so that they do not hold GPUs while they wait for it.
    """
    kubectl = _kubectl(manifests)
    delete = [*kubectl, "delete", "job", "--ignore-not-found", f"--selector={manifests.selector}"]
    if not manifests.resources.gpus:
        return [delete, _apply(manifests, files)]
    first, then = ([path for path in files if (path.name in _BEFORE_GPUS) == before] for before in (True, False))
    wait = [*kubectl, "wait", "--for=condition=complete", f"--timeout={_PLAN_S:.0f}s", f"job/{manifests.plan_job}"]
    return [delete, _apply(manifests, first), wait, _apply(manifests, then)]


def _kubectl(manifests: Manifests) -> list[str]:
    return ["kubectl", *([f"--namespace={manifests.namespace}"] if manifests.namespace else [])]


def _apply(manifests: Manifests, files: Sequence[Path]) -> list[str]:
    return [*_kubectl(manifests), "apply", *(f"--filename={path}" for path in files)]


def require_kubectl() -> None:
    """Raise UsageError if kubectl is not installed."""
    if shutil.which("kubectl") is None:
        raise UsageError("--apply, but there is no kubectl on the PATH", cure="install it, or apply the files yourself")


def apply(manifests: Manifests, files: Sequence[Path], say: Callable[[str], None] = lambda _: None) -> None:
    """Apply the manifests. Raises PipelineError with kubectl's message if it refuses, or if the plan's job fails."""
    for command in apply_commands(manifests, files):
        if "wait" in command:
            _wait_for_plan(manifests, say)
        else:
            _said(command)


def _wait_for_plan(manifests: Manifests, say: Callable[[str], None]) -> None:
    """Return when the job that makes the plan is complete. Unlike kubectl's own wait, this sees that it has failed."""
    job, end = manifests.plan_job, time.monotonic() + _PLAN_S
    say("waiting for the plan, before parts ask for GPUs")
    ask = [*_kubectl(manifests), "get", "job", job, "--output=jsonpath={.status.conditions[?(@.status=='True')].type}"]
    cure = f"kubectl logs job/{job} says why; then submit again with --apply"
    while True:
        ended = _said(ask).split()
        if "Complete" in ended:
            return
        if "Failed" in ended:
            raise PipelineError(f"the job {job} has failed", "a plan", cure)
        if time.monotonic() > end:
            raise PipelineError(f"the job {job} has not ended in {_PLAN_S / 60:.0f} minutes", "a plan", cure)
        time.sleep(_PLAN_POLL_S)


def _said(command: list[str]) -> str:
    """Run kubectl and return its output. Raises PipelineError with its own message if it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PipelineError(f"kubectl has not answered for {_TIMEOUT_S:.0f} s", cure="submit again") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PipelineError(f"kubectl refuses: {words[-1]}", cure="fix it, then submit again with --apply")
    return done.stdout
