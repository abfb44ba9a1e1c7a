"""Which mode works here: found out in a child process with a time limit, once per boot.

A driver that hangs costs that limit, and never the service.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from isocenter.common.errors import IntegrityError
from isocenter.gpu_stager.modes.verdict import Device, Mode, Verdict

LIMIT_SECONDS: Final = 15.0
_KNOWN: Final = "mode.json"
_NEEDED: Final = {
    Mode.NUMPY: "",
    Mode.POSIX_PINNED: "copy",
    Mode.KVIKIO_COMPAT: "compat",
}


def probe(
    scratch: Path,
    *,
    limit_seconds: float = LIMIT_SECONDS,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Verdict:
    """Never raises, and returns within the limit and some seconds: what cannot be tried is not used.

    Args:
        scratch: a folder on the disk of the staged volumes: GPUDirect Storage depends on its file system.
        limit_seconds: for all steps together.
        python: the interpreter of the child.
        environment: of the child; None: ours.
    """
    started = time.monotonic()
    lines: list[dict[str, Any]] = []
    ended = "it could not be started"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=scratch) as folder:
            lines, ended = _run(Path(folder), limit_seconds, python, environment)
    except OSError as error:
        ended = f"the probe could not be run: {error.strerror}"
    return judged(lines, ended, time.monotonic() - started)


def known_or_probed(folder: Path, **options: Any) -> Verdict:
    """The verdict of this boot and these packages, if there is one; else a probe's, which is kept."""
    if find_spec("cupy") is None:
        return Verdict(Mode.NUMPY, ("cupy is not installed: no package of the extra `gpu` is here",))
    path, key = folder / _KNOWN, _circumstances()
    try:
        document = json.loads(path.read_text())
        if document["circumstances"] == key:
            return Verdict.from_json(document["verdict"])
    except (OSError, ValueError, KeyError, TypeError, IntegrityError):
        pass
    verdict = probe(folder, **options)
    try:
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps({"circumstances": key, "verdict": verdict.to_json()}))
        scratch.chmod(0o600)
        scratch.rename(path)
    except OSError:
        pass  # then the next start probes again
    return verdict


def judged(lines: list[dict[str, Any]], ended: str, seconds: float) -> Verdict:
    """From what the child said: the fastest mode all of whose steps went well."""
    passed = {line["step"]: line for line in lines if line.get("ok")}
    mode = Mode.NUMPY
    for each in (Mode.POSIX_PINNED, Mode.KVIKIO_COMPAT):
        if _NEEDED[each] in passed:
            mode = each
    if "gds" in passed and mode is Mode.KVIKIO_COMPAT:
        mode = Mode(passed["gds-present"].get("way", Mode.GDS_NVFS))
    reasons = []
    last = lines[-1] if lines else None
    if last is None:
        reasons.append(f"the probe said nothing: {ended}")
    elif not last.get("ok"):
        why = f"{last['error']}: {last.get('detail', '')}" if "error" in last else ended
        reasons.append(f"{last['step']}: {why}")
    versions = {
        name: str(passed[step][key])
        for step, key, name in (
            ("cupy", "version", "cupy"),
            ("kvikio", "version", "kvikio"),
            ("device", "driver", "driver"),
            ("device", "cuda", "cuda"),
        )
        if step in passed and key in passed[step]
    }
    devices = (
        tuple(Device(**one) for one in passed.get("device", {}).get("devices", ())) if mode.on_device else ()
    )
    return Verdict(mode, tuple(reasons), devices, versions, round(seconds, 3))


def _run(
    folder: Path, limit: float, python: str, environment: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], str]:
    """What the child said, and how it ended. In a session of its own: whatever it started ends with it."""
    output = folder / "said"
    with output.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [python, "-m", f"{__package__}.steps", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.DEVNULL,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        try:
            process.wait(limit)
            ended = f"it ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"no answer within {limit:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                ended += ", and it cannot be killed"
    lines = []
    for line in output.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), str):
            lines.append(found)
    return lines, ended


def _circumstances() -> str:
    """A verdict holds for a boot, an interpreter and the packages in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "unknown"
    names = ("cupy-cuda13x", "cupy-cuda12x", "kvikio-cu13", "kvikio-cu12", "nvidia-cufile")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return " ".join([boot, sys.executable, *versions, os.environ.get("CUDA_VISIBLE_DEVICES", "")])
