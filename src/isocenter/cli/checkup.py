"""What `isocenter doctor` looks at. Each check is one function that never raises."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sqlite3
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from isocenter.cli import state
from isocenter.cli.output import size_text
from isocenter.common.clock import SystemClock
from isocenter.common.engines import ENGINE_SETTINGS, Engines
from isocenter.common.errors import Misconfigured
from isocenter.common.keys import SiteKeys
from isocenter.common.settings import PlatformSettings, unknown_variables
from isocenter.gateway.settings import GatewaySettings
from isocenter.indexer.settings import IndexerSettings
from isocenter.ingest.settings import IngestSettings

LIBRARIES = ("isocenter", "pydicom", "pynetdicom", "faststream", "aiokafka", "starlette", "uvicorn", "uvloop")
MIN_FREE_BYTES = 1 << 30
LOW_FREE_BYTES = 10 << 30
SLOW_SYNC_MS = 25.0
MIN_OPEN_FILES = 1024
GOOD_OPEN_FILES = 4096
CLOCK_SKEW_SECONDS = 2.0
_SYNCS = 15
_TEST_ONLY = ("ISOCENTER_FAULT_", "ISOCENTER_TEST_")


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `hint` says what to do unless the verdict is ok."""

    name: str
    verdict: Verdict
    value: str
    hint: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(data_dir: Path, *, dicom_port: int, http_port: int) -> list[Finding]:
    """Every check, in the order in which a broken one explains the next."""
    running = state.find_running(data_dir)
    findings = [_python(), _libraries(), _sqlite(), _settings(data_dir), _open_files(), _clock()]
    findings += _data_dir(data_dir)
    findings += _disk(_existing(data_dir))
    findings.append(_key_file(data_dir))
    if running is None:
        findings += [_port("DICOM port", dicom_port), _port("HTTP port", http_port)]
        findings.append(Finding("platform", Verdict.INFO, f"none runs on {data_dir}"))
    else:
        findings.append(_ready(running))
    findings.append(
        Finding(
            "encryption",
            Verdict.WARN,
            "objects are sealed; the index is in clear",
            "put the index on an encrypted disk, and keep a copy of the wrapping key elsewhere",
        )
    )
    return findings


def _python() -> Finding:
    value = f"{platform.python_version()} on {platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    return Finding("Python", Verdict.OK, value)


def _libraries() -> Finding:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("libraries", Verdict.WARN, f"absent: {', '.join(missing)}", "make install")
    return Finding("libraries", Verdict.OK, ", ".join(found))


def _sqlite() -> Finding:
    value = sqlite3.sqlite_version
    # 3.35 brought RETURNING, which claims of work stand on.
    if sqlite3.sqlite_version_info < (3, 35, 0):
        return Finding("SQLite", Verdict.FAIL, value, "use a Python built with SQLite 3.35 or later")
    return Finding("SQLite", Verdict.OK, value)


def _settings(data_dir: Path) -> Finding:
    try:
        Engines.load(PlatformSettings.load(data_dir=data_dir))
        for settings in (IngestSettings, IndexerSettings, GatewaySettings):
            settings.load()
    except Misconfigured as error:
        return Finding("settings", Verdict.FAIL, error.message, "correct or unset the variables named")
    unknown = unknown_variables(
        PlatformSettings,
        *ENGINE_SETTINGS,
        IngestSettings,
        IndexerSettings,
        GatewaySettings,
        ignore=_TEST_ONLY,
    )
    if unknown:
        return Finding(
            "settings",
            Verdict.WARN,
            f"nothing reads {', '.join(unknown)}",
            "a misspelt name? correct or unset it",
        )
    ours = sorted(name for name in os.environ if name.startswith("ISOCENTER_"))
    return Finding("settings", Verdict.OK, f"valid; from the environment: {', '.join(ours) or 'none'}")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = f"{soft} (hard limit {hard})"
    if soft < MIN_OPEN_FILES:
        return Finding("open files", Verdict.FAIL, value, f"ulimit -n {GOOD_OPEN_FILES}")
    if soft < GOOD_OPEN_FILES:
        return Finding(
            "open files", Verdict.WARN, value, f"ulimit -n {GOOD_OPEN_FILES}, for many senders at once"
        )
    return Finding("open files", Verdict.OK, value)


def _clock() -> Finding:
    now = SystemClock().now()
    if not 2025 <= now.year < 2100:
        return Finding("clock", Verdict.FAIL, now.isoformat(), "set the clock; run an NTP client")
    return Finding("clock", Verdict.OK, f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _data_dir(path: Path) -> Iterator[Finding]:
    if not path.exists():
        parent = _existing(path)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding("data directory", Verdict.OK, f"{path} does not exist yet; it can be made")
        else:
            yield Finding(
                "data directory",
                Verdict.FAIL,
                f"{path} cannot be made: {parent} is not writable",
                "--data-dir",
            )
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding("data directory", Verdict.FAIL, f"{path} is not writable", "give it to this user")
    elif mode & 0o077:
        yield Finding("data directory", Verdict.FAIL, f"{path} has mode {mode:04o}", f"chmod 700 {path}")
    else:
        yield Finding("data directory", Verdict.OK, f"{path}, mode {mode:04o}")


def _disk(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path).free
    value = f"{size_text(free)} free at {path}"
    if free < MIN_FREE_BYTES:
        yield Finding(
            "disk space", Verdict.FAIL, value, "make room: with a full disk every instance is refused"
        )
    elif free < LOW_FREE_BYTES:
        yield Finding("disk space", Verdict.WARN, value, "room for some days only at most sites")
    else:
        yield Finding("disk space", Verdict.OK, value)
    try:
        yield from _sync(path)
    except OSError as error:
        yield Finding("disk sync", Verdict.FAIL, f"cannot write at {path}: {error.strerror}", "--data-dir")


def _sync(path: Path) -> Iterator[Finding]:
    """Latency of write and fsync, and whether the file system's clock agrees with ours."""
    times = []
    with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
        for _ in range(_SYNCS):
            file.write(b"\0" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
        skew = SystemClock().now().timestamp() - Path(file.name).stat().st_mtime
    median, worst = statistics.median(times), max(times)
    value = f"fsync takes {median:.2f} ms (worst {worst:.1f} ms)"
    if median > SLOW_SYNC_MS:
        yield Finding("disk sync", Verdict.WARN, value, "every Success waits for it: use a faster disk")
    else:
        yield Finding("disk sync", Verdict.OK, value)
    if abs(skew) > CLOCK_SKEW_SECONDS:
        yield Finding(
            "file clock",
            Verdict.WARN,
            f"{skew:+.1f} s from ours",
            "a network file system? synchronise both clocks",
        )


def _key_file(data_dir: Path) -> Finding:
    try:
        named = PlatformSettings.load(data_dir=data_dir).site_key_file
        if named is not None:
            SiteKeys.load(named)
            return Finding(
                "site key", Verdict.OK, f"{named}; the same for every replica, and backed up apart"
            )
    except Misconfigured as error:
        return Finding("site key", Verdict.FAIL, error.message, "one file of 32 random bytes per site")
    path = data_dir / "keys" / "site.key"
    if not path.exists():
        return Finding("site key", Verdict.OK, "not made yet; the first start makes it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding("site key", Verdict.FAIL, f"{path} has mode {mode:04o}", f"chmod 600 {path}")
    return Finding(
        "site key",
        Verdict.OK,
        f"mode {mode:04o}; back it up apart: without it no study can be found by its key",
    )


def _port(name: str, port: int) -> Finding:
    if port == 0:
        return Finding(name, Verdict.OK, "any free one")
    try:
        with socket.create_server(("127.0.0.1", port)):
            return Finding(name, Verdict.OK, f"{port} is free")
    except OSError as error:
        option = "--dicom-port" if name.startswith("DICOM") else "--http-port"
        return Finding(
            name, Verdict.FAIL, f"{port}: {error.strerror}", f"isocenter up {option} 0, or free it"
        )


def _ready(running: state.RunningPlatform) -> Finding:
    where = (
        f"process {running.pid}, {running.ae_title}@{running.host}:{running.dicom_port}, {running.dicom_web}"
    )
    try:
        answer = httpx.get(f"http://{running.host}:{running.http_port}/readyz", timeout=5)
        failed = [
            f"{c['service']} {c['name']}: {c['detail']}" for c in answer.json()["checks"] if not c["ok"]
        ]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Finding(
            "platform",
            Verdict.FAIL,
            f"{where} does not answer ({type(error).__name__})",
            "see its log; restart it",
        )
    if failed:
        return Finding("platform", Verdict.FAIL, f"{where} is not ready: {'; '.join(failed)}", "see its log")
    return Finding("platform", Verdict.OK, f"{where}, ready")


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
