"""A Ceph object gateway of one's own: monitor, OSD and radosgw from Debian's packages, about two seconds.

    python -m testbed.radosgw install

Object Lock is enforced, as in production. Not a model of Ceph's durability: one OSD, one replica, no manager.
With `memstore` the OSD keeps objects in memory: killing the gateway loses nothing, killing everything loses
all (a `start` after it begins empty); `bluestore` keeps them in a file and survives both.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from testbed.cache import apt_install
from testbed.server import Server, ServerUnavailable, answers, free_port

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
USER = "isocenter"

_FOLDERS = ("mon", "osd", "rgw")

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth supported = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {run}
admin socket = {run}/$name.asok
log file = {run}/$name.log
pid file = {run}/$name.pid
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
# A gateway that was killed is waited for no longer than this when a bucket is made.
osd client watch timeout = 3
{class_dir}
[mon]
mon data = {mon}
paxos propose interval = 0.05
mon osd initial require min compat client = luminous
[osd]
osd data = {osd}
osd objectstore = {objectstore}
memstore device bytes = {device_bytes}
bluestore block size = {device_bytes}
osd memory target = 939524096
[client.rgw]
rgw data = {rgw}
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
# The gateway's own default is the secure mode, which without keys hangs for ever.
ms mon client mode = crc
auth client required = none
rgw gc processor period = 600
# How many seconds a day of a lifecycle rule has; -1: as many as everywhere.
rgw lc debug interval = {day_seconds}
# Quotas are looked up, not remembered.
rgw bucket quota ttl = 0
rgw user quota bucket sync interval = 1
"""


class RadosGateway(Server):
    """Ceph with one OSD, and its S3 gateway. Buckets are in the path."""

    name = "Ceph radosgw"

    def __init__(
        self,
        folder: Path,
        *,
        objectstore: Literal["memstore", "bluestore"] = "memstore",
        device_bytes: int = 8 << 30,
        day_seconds: int | None = None,
    ) -> None:
        """`day_seconds`: how long a day is for lifecycle rules, unfinished uploads included."""
        super().__init__(folder)
        self.objectstore = objectstore
        self.device_bytes = device_bytes
        self.day_seconds = day_seconds
        self.port, self._mon2, self._mon1 = free_port(), free_port(), free_port()
        self.access_key = f"test{secrets.token_hex(6)}"
        self.secret_key = secrets.token_hex(20)
        self._data = folder / "ceph"
        self._conf = folder / "ceph.conf"
        self._gateway: subprocess.Popen[bytes] | None = None
        self._fsid = str(uuid.uuid4())
        self._runtime: Path | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        done = subprocess.run(["radosgw", "--version"], capture_output=True, text=True, check=False)
        number = done.stdout.split()[2:3] or ["?"]
        return f"{self.name} {number[0]} (native, {self.objectstore})"

    def start(self) -> None:
        apt_install(*PACKAGES)
        if self.alive:
            self.start_gateway()
            return
        self.kill()
        self._write_conf()
        first = not (self._data / "made").exists()
        if first:
            shutil.rmtree(self._data, ignore_errors=True)
            self._make()
        self.spawn("mon", ["ceph-mon", "-c", self._conf, "-i", "a", "-f"])
        if first:
            self._make_osd()
        else:
            # The monitor still believes in the OSD that was killed.
            self.wait_until(lambda: self._ceph_says("mon", "stat", expect="quorum"))
            self.ceph("osd", "down", "0")
        self.spawn("osd", ["ceph-osd", "-c", self._conf, "-i", "0", "-f"])
        self.wait_until(lambda: self._ceph_says("osd", "stat", expect=" 1 up"))
        self.start_gateway()
        if first:
            self.admin(
                "user", "create", f"--uid={USER}", f"--display-name={USER}",
                f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
            )  # fmt: skip
        if self.objectstore == "bluestore":
            (self._data / "made").touch()

    def start_gateway(self) -> None:
        """After `kill_gateway`: the same port, the same objects."""
        if self._gateway is not None:
            return
        self._gateway = self.spawn("gateway", ["radosgw", "-c", self._conf, "-n", "client.rgw", "-f"])
        self.wait_until(lambda: answers(self.port))

    def kill_gateway(self) -> None:
        """SIGKILL to the gateway alone: connections break, what it acknowledged is in the OSD."""
        if self._gateway is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._gateway.pid, signal.SIGKILL)
        self._gateway.wait(10)
        self._processes.remove(self._gateway)
        self._gateway = None

    def stop(self) -> None:
        """Gateway, OSD, monitor: each after what needs it. A memory OSD writes nothing down: see `kill`."""
        for process in reversed(self._processes):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20 if self.objectstore == "bluestore" else 1)
        self.kill()

    def kill(self) -> None:
        super().kill()
        self._gateway = None
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None

    def admin(self, *arguments: str) -> str:
        """What `radosgw-admin` prints: users, quotas, buckets as their operator sees them."""
        return self._run("radosgw-admin", "-c", self._conf, "-n", "client.rgw", *arguments)

    def ceph(self, *arguments: str) -> str:
        return self._run("ceph", "-c", self._conf, "--connect-timeout", "20", *arguments)

    def _make(self) -> None:
        for name in _FOLDERS:
            (self._data / name).mkdir(parents=True)
        monmap = self._data / "monmap"
        address = f"[v2:127.0.0.1:{self._mon2},v1:127.0.0.1:{self._mon1}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, str(monmap))
        self._run("ceph-mon", "-c", self._conf, "-i", "a", "--mkfs", "--monmap", str(monmap))

    def _write_conf(self) -> None:
        # A Unix socket's path has at most 107 bytes, and a test's folder is deep.
        self._runtime = Path(tempfile.mkdtemp(prefix="rgw-"))
        classes = Path("/usr/lib") / str(sysconfig.get_config_var("MULTIARCH")) / "rados-classes"
        self._conf.write_text(
            _CONF.format(
                fsid=self._fsid,
                mon2=self._mon2,
                mon1=self._mon1,
                run=self._runtime,
                # Debian 13's default is relative, and its gateway ends with -95.
                class_dir=f"osd class dir = {classes}" if classes.is_dir() else "",
                objectstore=self.objectstore,
                device_bytes=self.device_bytes,
                day_seconds=self.day_seconds or -1,
                port=self.port,
                **{name: self._data / name for name in _FOLDERS},
            )
        )

    def _make_osd(self) -> None:
        self.wait_until(lambda: self._ceph_says("mon", "stat", expect="quorum"))
        identity = str(uuid.uuid4())
        self.ceph("osd", "new", identity)
        self._run("ceph-osd", "-c", self._conf, "-i", "0", "--mkfs", "--osd-uuid", identity)

    def _ceph_says(self, *arguments: str, expect: str) -> bool:
        done = subprocess.run(
            ["ceph", "-c", str(self._conf), "--connect-timeout", "3", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0 and expect in done.stdout

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-800:]}")
        return done.stdout


def s3_server(folder: Path, *, objectstore: Literal["memstore", "bluestore"] = "memstore") -> RadosGateway:
    """Not started. There is no image of it to be had in which Object Lock could be tested: always native.

    Raises:
        ServerUnavailable: no Debian, or not root.
    """
    if shutil.which("radosgw") is None and (shutil.which("apt-get") is None or os.geteuid() != 0):
        raise ServerUnavailable("S3: needs Debian or Ubuntu, and root to install " + " ".join(PACKAGES))
    return RadosGateway(folder, objectstore=objectstore)


def _try(action: Callable[[], None]) -> int:
    try:
        action()
    except ServerUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m testbed.radosgw", description=__doc__)
    parser.add_argument("action", choices=["install"])
    parser.parse_args()
    sys.exit(_try(lambda: apt_install(*PACKAGES)))
