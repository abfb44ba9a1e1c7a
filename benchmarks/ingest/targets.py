"""The receivers under test, each started fresh in an empty directory with its own defaults."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.embedded import Embedded, NotStarted, free_port
from benchmarks.ingest.kept import announced, objects_kept, sealed
from benchmarks.ingest.processes import TargetFailed, accepts, await_ready, json_of, process, version_of
from benchmarks.peers import ORTHANC_DICOMWEB

CSTORE = "C-STORE"
STOW = "STOW-RS"


@dataclass(frozen=True, slots=True)
class Running:
    """A receiver that takes instances.

    Attributes:
        port, web: of C-STORE and of STOW-RS (0: it has none).
        count: study UIDs -> the instances it has, by its own account.
        counts_all: `count` does not look at the studies and includes the warm-up.
        sealed: what it stored cannot be read on the disk; None for peers.
    """

    pid: int
    port: int
    web: int
    called: str
    count: Callable[[Sequence[str]], int]
    counts_all: bool = True
    sealed: Callable[[], bool | None] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Attributes:
    durable: the bytes of an instance are flushed to stable storage before its Success.
    what: what it does before it answers, in words for the results page.
    protocols: those it is measured with.
    """

    name: str
    version: str
    durable: bool
    what: str
    settings: dict[str, Any]
    start: Callable[[Path], Any]
    protocols: tuple[str, ...] = (CSTORE,)


def orthanc(name: str, *, sync: bool = True, dicomweb: bool = False) -> Target | None:
    """Debian's Orthanc with its defaults. None where it, or the plugin, is not installed.

    Args:
        name: of the target.
        sync: SyncStorageArea, True by Orthanc's default.
        dicomweb: with the DICOMweb plugin, for STOW-RS.
    """
    program = shutil.which("Orthanc")
    if program is None or (dicomweb and not ORTHANC_DICOMWEB.exists()):
        return None
    plugins = [str(ORTHANC_DICOMWEB)] if dicomweb else []

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        dicom, web = free_port(), free_port()
        configuration = root / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "Name": "BENCH",
                    "StorageDirectory": str(root / "storage"),
                    "IndexDirectory": str(root / "index"),
                    "DicomPort": dicom,
                    "HttpPort": web,
                    "SyncStorageArea": sync,
                    "KeepAlive": True,
                    "Plugins": plugins,
                }
            )
        )

        def count(_: Sequence[str]) -> int:
            return int(json_of("GET", web, "/statistics")["CountInstances"])

        with process([program, str(configuration)], root) as running:
            await_ready(running, lambda: accepts(dicom) and count([]) == 0, root)
            yield Running(running.pid, dicom, web, "ORTHANC", count)

    return Target(
        name,
        version_of([program, "--version"]),
        durable=sync,
        what=f"writes {'and syncs ' if sync else ''}the file, writes its SQLite index, then answers",
        settings={
            "SyncStorageArea": sync,
            "KeepAlive": True,
            "plugins": "orthanc-dicomweb" if dicomweb else "none",
            "everything else": "as Orthanc's defaults",
        },
        start=start,
        protocols=(STOW,) if dicomweb else (CSTORE,),
    )


def storescp() -> Target | None:
    """DCMTK's storescp as it comes. It writes files and does NOT sync them."""
    program = shutil.which("storescp")
    if program is None:
        return None

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        port = free_port()
        received = root / "received"
        received.mkdir()

        def count(_: Sequence[str]) -> int:
            return sum(1 for entry in received.iterdir() if entry.is_file())

        # --fork: one process per association. Without it storescp serves one association at a time and the
        # rows with four associations would measure its queue.
        command = [program, "--fork", "--output-directory", str(received), str(port)]
        with process(command, root) as running:
            await_ready(running, lambda: accepts(port), root)
            yield Running(running.pid, port, 0, "STORESCP", count)

    return Target(
        "storescp",
        version_of([program, "--version"]),
        durable=False,
        what="decodes, writes the file and answers; no sync, no index",
        settings={"options": "--fork", "fsync": False},
        start=start,
    )


def isocenter() -> Target | None:
    """This platform embedded, as `isocenter up` runs it. None where it is not installed."""
    if importlib.util.find_spec("isocenter.cli.main") is None:
        return None

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        try:
            with Embedded(root) as platform:

                def count(studies: Sequence[str]) -> int:
                    return sum(_study_instances(platform.http_port, study) for study in studies)

                yield Running(
                    platform.pid,
                    platform.dicom_port,
                    platform.http_port,
                    platform.ae_title,
                    count,
                    counts_all=False,
                    sealed=partial(sealed, platform.data_dir),
                )
                if not platform.running:
                    raise TargetFailed(f"isocenter ended: {platform.log.read_text(errors='replace')[-800:]}")
        except NotStarted as error:
            raise TargetFailed(str(error)) from error

    return Target(
        "isocenter",
        importlib.metadata.version("isocenter"),
        durable=True,
        what="the whole platform in one process: what isocenter_ingest does, and indexing and lookups beside",
        settings={"command": "isocenter up", "everything": "as its defaults"},
        start=start,
        protocols=(CSTORE, STOW),
    )


def isocenter_ingest() -> Target | None:
    """The ingest service alone, with the object store and event log of the embedded platform."""
    if importlib.util.find_spec("isocenter.ingest") is None:
        return None

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        dicom, web, health = free_port(), free_port(), free_port()
        data = root / "data"
        environment = {
            "ISOCENTER_DATA_DIR": str(data),
            "ISOCENTER_INGEST_DICOM_PORT": str(dicom),
            "ISOCENTER_INGEST_HTTP_PORT": str(web),
            "ISOCENTER_INGEST_HEALTH_PORT": str(health),
        }

        def count(_: Sequence[str]) -> int:
            """Those that are durable and announced."""
            return min(objects_kept(data), announced(data))

        with process([sys.executable, "-m", "isocenter.ingest"], root, environment) as running:
            await_ready(running, lambda: json_of("GET", health, "/readyz") is not None, root)
            yield Running(running.pid, dicom, web, "ISOCENTER", count, sealed=partial(sealed, data))

    return Target(
        "isocenter_ingest",
        importlib.metadata.version("isocenter"),
        durable=True,
        what="hashes, seals and makes durable the object and the record of its event, then answers",
        settings={
            "command": "python -m isocenter.ingest",
            "bus": "embedded",
            "everything else": "as its defaults",
        },
        start=start,
        protocols=(CSTORE, STOW),
    )


def _study_instances(port: int, study: str) -> int:
    found = json_of("GET", port, f"/dicom-web/studies?StudyInstanceUID={study}&includefield=00201208")
    return sum(int(item["00201208"]["Value"][0]) for item in found)
