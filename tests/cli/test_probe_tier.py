"""`isocenter probe-tier` and `isocenter bucket apply`: a store that keeps its locks, and one that cheats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testbed.server import Server, answers, free_port

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway


class Moto(Server):
    """Knows Object Lock, and lets a COMPLIANCE lock be shortened, downgraded and its versioning suspended."""

    name = "moto"
    version = "moto"
    access_key = "any"
    secret_key = "any"  # noqa: S105 - it asks nobody

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.spawn("moto", [sys.executable, "-m", "moto.server", "-p", str(self.port)])
        self.wait_until(lambda: answers(self.port))


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


def start(server: RadosGateway | Moto, *arguments: str, **more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "ISOCENTER_S3_ENDPOINT": server.endpoint,
        "ISOCENTER_S3_ACCESS_KEY": server.access_key,
        "ISOCENTER_S3_SECRET_KEY": server.secret_key,
        **more,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "isocenter.cli", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def isocenter(server: RadosGateway | Moto, *arguments: str, **more: str) -> Outcome:
    return Outcome.of(start(server, *arguments, **more))


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @classmethod
    def of(cls, process: subprocess.Popen[str]) -> Outcome:
        stdout, stderr = process.communicate(timeout=120)
        return cls(process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Probes:
    """Three at once: each of them mostly waits for its own locks."""

    ceph: Outcome
    ceph_with_short_days: Outcome
    moto: Outcome


@pytest.fixture(scope="module")
def probes(s3_server: RadosGateway, moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Probes:
    from testbed.radosgw import RadosGateway  # noqa: PLC0415 - collected without it

    with RadosGateway(tmp_path_factory.mktemp("days"), day_seconds=1) as hasty:
        runs = (
            start(s3_server, "probe-tier", "--json", "--lock-seconds", "8"),
            start(hasty, "probe-tier", "--json", "--lock-seconds", "8"),
            start(moto, "probe-tier", "--lock-seconds", "8"),
        )
        return Probes(*(Outcome.of(run) for run in runs))


def failed(report: dict[str, Any]) -> set[str]:
    return {each["case"] for each in report["cases"] if not each["passed"]}


def test_a_store_that_keeps_its_locks_passes(probes: Probes) -> None:
    """Ceph keeps them all. That it does not look before it writes is known: it decides how we write there."""
    report = json.loads(probes.ceph.stdout)
    assert (0, True, None) == (probes.ceph.code, report["passed"], report["left_bucket"]), probes.ceph.stderr
    assert 12 == len(report["cases"])
    assert {"conditional-put"} == failed(report)
    assert ["conditional-put"] == [each["case"] for each in report["cases"] if not each["required"]]


def test_a_store_that_cheats_is_found_out(probes: Probes) -> None:
    assert 1 == probes.moto.code, probes.moto.stderr
    broken = [line.split()[1] for line in probes.moto.stdout.splitlines() if line.startswith("NO ")]
    assert ["shorten", "downgrade", "suspend-versioning"] == broken
    assert "must not hold a WORM tier" in probes.moto.stdout


def test_an_expiry_rule_does_not_remove_what_is_locked(probes: Probes) -> None:
    """On a server whose days last a second, so that its rules are applied while the probe looks."""
    report = json.loads(probes.ceph_with_short_days.stdout)
    (lifecycle,) = (each for each in report["cases"] if each["case"] == "lifecycle")
    assert lifecycle["passed"]
    assert "rule accepted, applied; the locked version is still there" == lifecycle["seen"]


def test_wrong_credentials_are_named(s3_server: RadosGateway) -> None:
    done = isocenter(s3_server, "probe-tier", ISOCENTER_S3_SECRET_KEY="mistaken")  # noqa: S106 - it is none

    assert 5 == done.code
    assert "does not know these credentials" in done.stderr
    assert "mistaken" not in done.stdout + done.stderr


def test_a_bucket_is_made_once_and_not_passed_off_as_another(s3_server: RadosGateway) -> None:
    plain = isocenter(s3_server, "bucket", "apply", "--no-object-lock", ISOCENTER_S3_BUCKET="no-locks")
    assert (0, "bucket no-locks: created, plain\n") == (plain.code, plain.stdout)

    locked = isocenter(s3_server, "bucket", "apply", ISOCENTER_S3_BUCKET="no-locks")
    assert 5 == locked.code
    assert "without Object Lock" in locked.stderr
