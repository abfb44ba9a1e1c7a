"""What the node is, recorded before anything is measured on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

_PACKAGES = (
    "cupy-cuda13x",
    "cupy-cuda12x",
    "kvikio-cu13",
    "kvikio-cu12",
    "nvidia-cufile",
    "numpy",
    "pydicom",
)
_ASKED = "name,uuid,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"


def node(scratch: Path) -> dict[str, Any]:
    """Driver, CUDA, PCIe, kernel, file system: whatever decides the figures."""
    return {
        **machine(),
        "gpus": _gpus(),
        "proc_modules": Path("/proc/modules").exists(),
        "nvidia_fs": _loaded("nvidia_fs"),
        "run_udev": os.access("/run/udev", os.R_OK),
        "kernel": os.uname().release,
        "scratch": _mount(scratch),
        "packages": _versions(),
    }


def _gpus() -> list[str]:
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    command = [nvidia_smi, f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines()


def _loaded(module: str) -> bool:
    try:
        return any(line.startswith(module) for line in Path("/proc/modules").read_text().splitlines())
    except OSError:
        return False


def _mount(path: Path) -> dict[str, str]:
    """File system and mount options of a folder."""
    best: tuple[int, dict[str, str]] = (-1, {})
    whole = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, kind, options = line.split()[:4]
        if (whole + "/").startswith(where.rstrip("/") + "/") and len(where) > best[0]:
            best = len(where), {"device": device, "type": kind, "options": options}
    return best[1]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
