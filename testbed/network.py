"""A cut network: packets to a port of this machine vanish, in both directions, as behind a dead switch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.cache import apt_install
from testbed.server import ServerUnavailable


def prepare() -> None:
    """Raises ServerUnavailable where packets cannot be dropped: no root, no iptables, no right to use it."""
    if os.geteuid() != 0:
        raise ServerUnavailable("cutting the network needs root")
    if shutil.which("iptables") is None:
        apt_install("iptables")
    done = subprocess.run(["iptables", "-S", "INPUT"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerUnavailable(f"iptables is refused here: {done.stderr.strip()[-200:]}")


@contextmanager
def cut(*ports: int) -> Iterator[None]:
    """No packet reaches these ports or comes from them. Nobody is told: no reset, no unreachable."""
    rules = [
        ["INPUT", "--protocol", "tcp", side, str(port), "--jump", "DROP"]
        for port in ports
        for side in ("--destination-port", "--source-port")
    ]
    try:
        for rule in rules:
            _iptables("--insert", *rule)
        yield
    finally:
        for rule in rules:
            _iptables("--delete", *rule, check=False)


def _iptables(*arguments: str, check: bool = True) -> None:
    subprocess.run(["iptables", "--wait", *arguments], check=check, capture_output=True)
