"""The contract on a real broker, and another system's programs beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from testbed.cache import CACHE, building, download, must_be_available
from testbed.server import ServerUnavailable

from isocenter.common.bus.admin import connect
from isocenter.common.bus.provision import wanted
from isocenter.common.settings import KafkaSettings

if TYPE_CHECKING:
    from testbed.kafka import KafkaServer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
SPECS = "asyncapi-specs-6.11.1"
SPECS_URL = "https://registry.npmjs.org/@asyncapi/specs/-/specs-6.11.1.tgz"
SPECS_SHA256 = "01af8744dc33c0c7eb2e908f6a955319ee58b70ecadc9387d1aeb16c0cd28928"


@dataclass(frozen=True)
class Outsider:
    """Runs the programs of `deploy/examples` as another system would: a process, and an address."""

    bootstrap: str
    folder: Path

    def announce(
        self, uid: str, *arguments: str, ref: str = "s3://bucket/prefix", kind: str = "s3"
    ) -> dict[str, Any]:
        """Where `announce.py` says that the record is."""
        done = self.run(
            *(sys.executable, str(EXAMPLES / "announce.py"), "--bootstrap", self.bootstrap),
            *("--source", "/hospital-east/ris", "--sender", "RIS_EAST"),
            *("--uid", uid, "--kind", kind, "--ref", ref, *arguments),
        )
        placed: dict[str, Any] = json.loads(done)
        return placed

    def subscribe(self, group: str, *arguments: str) -> list[dict[str, Any]]:
        """What `subscribe.py` did until nothing came for a while."""
        done = self.run(
            *(
                sys.executable,
                str(EXAMPLES / "subscribe.py"),
                "--bootstrap",
                self.bootstrap,
                "--group",
                group,
            ),
            *("--until-idle", "4", "--state", str(self.folder / f"{group}.sqlite"), *arguments),
        )
        return [json.loads(line) for line in done.splitlines()]

    def run(self, *command: str) -> str:
        """What it printed. Nothing of Isocenter's is on its path."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "BOOTSTRAP": self.bootstrap, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # other systems may have put anything on a topic
            timeout=90,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout


@pytest.fixture
async def settings(kafka_server: KafkaServer) -> KafkaSettings:
    """Of the test broker, with the topics of the contract on it."""
    made = KafkaSettings(
        bootstrap=kafka_server.bootstrap,
        replication_factor=1,
        min_insync_replicas=1,
        session_timeout_ms=6_000,
    )
    async with connect(made) as cluster:
        await cluster.settle(wanted(made))
    return made


@pytest.fixture
def outsider(settings: KafkaSettings, tmp_path: Path) -> Outsider:
    return Outsider(str(settings.bootstrap), tmp_path)


def or_skip(get: Callable[[], Any]) -> Any:
    """What needs the network or root: a loud skip where it cannot be had, a failure where it should be."""
    try:
        return get()
    except ServerUnavailable as error:
        reason = f"NOT RUN: {error}"
        if must_be_available():
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def asyncapi_schema() -> dict[str, Any]:
    """The AsyncAPI project's own JSON Schema of AsyncAPI 3.1 with all bindings, from its npm package."""

    def get() -> dict[str, Any]:
        with building(SPECS) as scratch:
            if scratch is not None:
                archive = scratch / "package.tgz"
                download(SPECS_URL, SPECS_SHA256, archive)
                with tarfile.open(archive) as opened:
                    opened.extractall(scratch, filter="data")
        found: dict[str, Any] = json.loads((CACHE / SPECS / "package" / "schemas" / "3.1.0.json").read_text())
        return found

    found: dict[str, Any] = or_skip(get)
    return found


@pytest.fixture(scope="session")
def contract() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "asyncapi.yaml").read_text())
    return document
