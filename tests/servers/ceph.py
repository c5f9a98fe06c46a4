"""A Ceph cluster with its S3 gateway on loopback: one monitor, manager, OSD (in memory) and radosgw, as root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.processes import Daemons, absent, daemons, free_ports, listens, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
KEY_ID, SECRET = "AKIAQCANARYKEYIDQ", "canarySecretOfTheObjectStore42"
BUCKET = "bucket"

_CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 1
osd_objectstore = memstore
memstore_device_bytes = 3221225472
run_dir = {folder}
admin_socket = {folder}/$cluster-$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
crash_dir = {folder}/crash
mon_data = {folder}/mon
mgr_data = {folder}/mgr
osd_data = {folder}/osd
rgw_data = {folder}/rgw
mgr_initial_modules =
[client.rgw.a]
ms_mon_client_mode = crc secure
rgw_frontends = beast endpoint=127.0.0.1:{rgw}
rgw_thread_pool_size = 32
"""


@dataclass
class Ceph:
    """A running gateway."""

    url: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a process reaches it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "default",
            "AWS_ENDPOINT_URL": self.url, "AWS_ENDPOINT": self.url, "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip


def missing() -> str:
    """Why no cluster can run here; "" when it can."""
    lacking = absent(PROGRAMS)
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: ceph-mon ceph-mgr ceph-osd radosgw)"
    return "" if os.geteuid() == 0 else "Ceph's daemons are started as root"


def _ceph(folder: Path, *words: str, program: str = "ceph") -> str:
    done = subprocess.run(
        [program, "-c", str(folder / "ceph.conf"), *words], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def ceph_gateway() -> Iterator[Ceph]:
    """A cluster with an empty bucket, about half a minute after."""
    folder = Path(tempfile.mkdtemp(prefix="ceph", dir="/tmp"))  # paths of sockets are short
    v2, v1, rgw = free_ports(3)
    for name in ("mon", "mgr", "osd", "rgw", "crash"):
        (folder / name).mkdir()
    fsid = str(uuid.uuid4())
    (folder / "ceph.conf").write_text(_CONF.format(fsid=fsid, v2=v2, v1=v1, rgw=rgw, folder=folder))
    try:
        with daemons(folder) as group:
            _start_cluster(group, folder, fsid, f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]", v2)
            _start_gateway(group, folder, rgw)
            yield Ceph(f"http://127.0.0.1:{rgw}", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_cluster(group: Daemons, folder: Path, fsid: str, addresses: str, port: int) -> None:
    conf = ("-c", str(folder / "ceph.conf"))
    _ceph(folder, "--create", "--fsid", fsid, "--addv", "a", addresses, str(folder / "monmap"), program="monmaptool")
    _ceph(folder, "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), program="ceph-mon")
    group.start("ceph-mon", "ceph-mon", *conf, "-i", "a", "-f")
    wait_for(lambda: listens(port), "ceph-mon")
    group.start("ceph-mgr", "ceph-mgr", *conf, "-i", "a", "-f")
    osd = str(uuid.uuid4())
    _ceph(folder, "osd", "new", osd)
    _ceph(folder, "--mkfs", "-i", "0", "--osd-uuid", osd, program="ceph-osd")
    group.start("ceph-osd", "ceph-osd", *conf, "-i", "0", "-f")
    wait_for(lambda: json.loads(_ceph(folder, "osd", "stat", "-f", "json"))["num_up_osds"] == 1, "ceph-osd")


def _start_gateway(group: Daemons, folder: Path, port: int) -> None:
    user = ("--uid=test", "--display-name=test", f"--access-key={KEY_ID}", f"--secret-key={SECRET}")
    _ceph(folder, "user", "create", *user, program="radosgw-admin")
    group.start("radosgw", "radosgw", "-c", str(folder / "ceph.conf"), "-n", "client.rgw.a", "-f")
    wait_for(lambda: listens(port), "radosgw", 120)
    import boto3

    boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
        region_name="default",
    ).create_bucket(Bucket=BUCKET)  # fmt: skip
