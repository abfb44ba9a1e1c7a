"""The platform on a machine that fails it: a disk that answers EIO, a wall clock that jumps.

    python tests/faults/unreliable.py CONTROL up --data-dir ...

CONTROL is a JSON file, looked at before every call: `eio` names the calls that fail (`sync`, `write`,
`read`) for files below `below`, and `clock` is added to the wall clock, in seconds. The calls are those of
`os` and the C library under the local store, so what fails fails where a failing disk would.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from isocenter.common.clock import SystemClock
from isocenter.common.objects import files


@dataclass(frozen=True, slots=True)
class Faults:
    """What fails now."""

    eio: list[str] = field(default_factory=list)
    below: str = "/"
    clock: float = 0.0

    def set(self, control: Path) -> None:
        """In one step: a reader sees the old or the new."""
        fresh = control.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(control)


class Machine:
    """Reads the control file again whenever it was replaced."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._seen = 0
        self._faults = Faults()

    @property
    def faults(self) -> Faults:
        found = self._control.stat().st_ino
        if found != self._seen:
            self._faults = Faults(**json.loads(self._control.read_text()))
            self._seen = found
        return self._faults

    def touch(self, what: str, descriptor: int) -> None:
        """Raises OSError where this call must fail."""
        faults = self.faults
        if what in faults.eio and Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(faults.below):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Libc:
    """`syncfs` fails by its return value, as in C."""

    def __init__(self, machine: Machine, real: Any) -> None:
        self._machine = machine
        self._real = real

    def syncfs(self, descriptor: int) -> int:
        self._machine.touch("sync", descriptor)
        return int(self._real.syncfs(descriptor))


def main(control: Path, arguments: Sequence[str]) -> None:
    machine = Machine(control)
    for name, what in {"fsync": "sync", "fdatasync": "sync", "write": "write", "pread": "read"}.items():
        setattr(os, name, _failing(machine, what, getattr(os, name)))
    os.pwritev = _failing_pwritev(machine, os.pwritev)
    files._LIBC = Libc(machine, files._LIBC)  # type: ignore[misc,assignment]
    truth = SystemClock.now

    def now(self: SystemClock) -> datetime:
        return truth(self) + timedelta(seconds=machine.faults.clock)

    SystemClock.now = now  # type: ignore[method-assign]
    sys.argv = ["isocenter", *arguments]
    from isocenter.cli.main import app  # noqa: PLC0415 - behind the faults, so that nothing keeps the real calls

    app()


def _failing(machine: Machine, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(descriptor: int, *arguments: Any) -> Any:
        machine.touch(what, descriptor)
        return real(descriptor, *arguments)

    return call


def _failing_pwritev(machine: Machine, real: Callable[..., int]) -> Callable[..., int]:
    """With `RWF_DSYNC` it is a write and a sync in one call."""

    def call(descriptor: int, buffers: Sequence[bytes], offset: int, flags: int = 0) -> int:
        machine.touch("write", descriptor)
        if flags & os.RWF_DSYNC:
            machine.touch("sync", descriptor)
        return real(descriptor, buffers, offset, flags)

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
