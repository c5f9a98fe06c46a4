"""A one-node SLURM cluster on the loopback interface: munged, slurmctld and slurmd with private state, run as root.

Memory is not enforced (no cgroup) and there is no accounting. The node always claims four processors.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_FOLDERS = ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin")
_READY_S = 30.0

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
RequeueExit=75
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Return why no cluster can be started here, or an empty string."""
    if os.geteuid() != 0:
        return "the local SLURM cluster needs root"
    absent = [name for name in PROGRAMS if not _program(name)]
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else ""


@contextmanager
def local_slurm() -> Iterator[Path]:
    """Start the cluster and point SLURM_CONF at it. Yield its folder, which holds the daemons' logs.

    On exit, cancel all jobs, stop the daemons and restore SLURM_CONF.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # pytest's folder is too long: socket paths have at most 107 bytes
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    ports = _free_ports(2)
    conf.write_text(_CONF.format(host=_host(), folder=folder, ctld=ports[0], slurmd=ports[1]))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _start_munge(folder, daemons)
        daemons.append(_start(folder, "slurmctld", "-D", "-i", "-f", str(conf)))
        daemons.append(_start(folder, "slurmd", "-D", "-f", str(conf)))
        _wait_until_idle(folder, daemons)
        yield folder
    finally:
        _cancel_all()
        for daemon in reversed(daemons):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def queued() -> list[str]:
    """Return ids and states of all jobs and array tasks that have not ended, as "12_3 RUNNING"."""
    said = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, check=True
    )
    return said.stdout.split("\n")[:-1]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=":".join(_FOLDERS))


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _start(folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out").open("wb") as out:
        return subprocess.Popen([_program(name) or name, *words], stdout=out, stderr=out, cwd=folder)


def _start_munge(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o400)
    socket_path = folder / "munge.socket"
    words = [
        "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}",
        f"--log-file={folder}/munge.log", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    daemons.append(_start(folder, "munged", *words))
    until = time.monotonic() + _READY_S
    while not socket_path.exists():
        assert daemons[-1].poll() is None, (folder / "munged.out").read_text()
        assert time.monotonic() < until, "munged made no socket"
        time.sleep(0.02)


def _wait_until_idle(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + _READY_S
    state = ""
    while state != "idle":
        for daemon in daemons:
            assert daemon.poll() is None, "\n".join(path.read_text() for path in sorted(folder.glob("slurm*.log")))
        assert time.monotonic() < until, f"the node stayed {state!r}"
        time.sleep(0.1)
        said = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, check=False)
        state = said.stdout.strip()


def _cancel_all() -> None:
    """Cancel all jobs, so that no task outlives the daemons."""
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", "--user", str(os.geteuid())], capture_output=True, timeout=20, check=False)
        until = time.monotonic() + 15
        while queued() and time.monotonic() < until:
            time.sleep(0.2)
