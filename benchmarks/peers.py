"""Programs that nobody here wrote, started and asked by the tests: DCMTK and Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from benchmarks.embedded import free_port

ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_START_SECONDS = 30.0


class PeerFailed(Exception):
    """A peer did not start, or answered what it should not."""


def installed(name: str) -> bool:
    """`name` is `dcmtk`, `orthanc` or `orthanc-dicomweb`, as the Debian packages are called."""
    if name == "orthanc-dicomweb":
        return ORTHANC_DICOMWEB.exists() and installed("orthanc")
    return shutil.which({"dcmtk": "storescu", "orthanc": "Orthanc"}[name]) is not None


def must_be_installed() -> bool:
    """Where scripts/install_peers.sh works, a missing peer is a failure and not a skip."""
    return os.environ.get("CI") == "true" and Path("/etc/debian_version").exists() and os.geteuid() == 0


def dcmtk(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a DCMTK tool with TCP_NODELAY=1 and returns what it printed; the caller judges the status."""
    return subprocess.run(
        [program, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=120,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


class _Peer:
    """A server process that ends with the block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self, *command: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env={**os.environ, "TCP_NODELAY": "1"},
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait(self, answers: Any) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if answers():
                return
            time.sleep(0.05)
        raise PeerFailed(f"did not start: {(self.root / 'log').read_text(errors='replace')[-800:]}")


class BitPreservingScp(_Peer):
    """DCMTK's storescp, which writes the data set as it was read: the reference for equal bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.port = free_port()

    def __enter__(self) -> Self:
        (self.root / "received").mkdir(parents=True, exist_ok=True)
        self._start(
            "storescp",
            *("--fork", "--accept-all", "--promiscuous", "--bit-preserving"),
            *("--output-directory", str(self.root / "received"), str(self.port)),
        )
        self._wait(lambda: dcmtk("echoscu", "127.0.0.1", str(self.port)).returncode == 0)
        return self

    def received(self) -> list[bytes]:
        """Part 10 streams of everything received, in no order."""
        return [path.read_bytes() for path in (self.root / "received").iterdir()]


class Orthanc(_Peer):
    """Orthanc with its REST interface, and its DICOMweb plugin if `configuration` has a `DicomWeb` part."""

    def __init__(self, root: Path, configuration: Mapping[str, Any]) -> None:
        super().__init__(root)
        self.dicom_port, self.http_port = free_port(), free_port()
        self._configuration = configuration
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=60)

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / "orthanc.json"
        file.write_text(
            json.dumps(
                {
                    "Name": "PEER",
                    "DicomAet": "ORTHANC",
                    "StorageDirectory": str(self.root / "storage"),
                    "IndexDirectory": str(self.root / "index"),
                    "DicomPort": self.dicom_port,
                    "HttpPort": self.http_port,
                    "Plugins": [str(ORTHANC_DICOMWEB)] if "DicomWeb" in self._configuration else [],
                    **self._configuration,
                }
            )
        )
        self._start("Orthanc", str(file))
        self._wait(self._answers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        super().__exit__(kind, error, trace)

    def upload(self, part10: bytes) -> str:
        """Gives Orthanc an instance over REST; returns Orthanc's identifier of it."""
        answer = self.client.post("/instances", content=part10)
        if answer.status_code != 200:
            raise PeerFailed(f"POST /instances answered {answer.status_code}")
        return str(answer.json()["ID"])

    def _answers(self) -> bool:
        try:
            return self.client.get("/system").status_code == 200
        except httpx.HTTPError:
            return False
