"""What kvikio and cuFile read from the environment: set before either is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

TASK_BYTES: Final = 4 << 20


def threads() -> int:
    """Of kvikio: its own default is one, and all overlap comes from their number."""
    return max(8, min(16, len(os.sched_getaffinity(0))))


def prepare(environment: MutableMapping[str, str], folder: Path) -> None:
    """Compatibility mode until a probe has said otherwise: the other one may hang a process for ever."""
    environment.setdefault("KVIKIO_COMPAT_MODE", "ON")
    environment.setdefault("KVIKIO_NTHREADS", str(threads()))
    environment.setdefault("KVIKIO_TASK_SIZE", str(TASK_BYTES))
    environment.setdefault("CUFILE_LOGFILE_PATH", str(folder / "cufile.log"))
