"""CPU time and memory of a process and its children, from /proc (proc_pid_stat(5), proc_pid_status(5))."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.1


def process_tree(pid: int) -> list[int]:
    """The process and its descendants that are alive now."""
    found, wave = [pid], [pid]
    while wave:
        wave = [child for parent in wave for child in _children(parent)]
        found += wave
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the living tree, and of the children that the root has reaped."""
    ticks = 0
    for member in process_tree(pid):
        fields = _stat(member)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
            if member == pid:
                ticks += int(fields[13]) + int(fields[14])
    return ticks / _TICKS


def resident_mb(pid: int, field: str = "VmRSS") -> float:
    """Sum over the living tree, in MB. `VmHWM` is each process's own peak: exact for one process, and for
    several at most too high.
    """
    return sum(_kilobytes(member, field) for member in process_tree(pid)) * 1024 / 1e6


def environment(pid: int) -> dict[str, str]:
    """The environment the process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


class PeakMemory:
    """Peak resident memory of a process tree while the block runs, in MB.

    The kernel's own peak of the processes alive at the end, or the highest sum seen in samples, where
    children came and went.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.megabytes = 0.0

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        self.megabytes = max(self.megabytes, resident_mb(self._pid, "VmHWM"))

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.megabytes = max(self.megabytes, resident_mb(self._pid))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass  # the process or one of its threads ended while we looked
    return found


def _stat(pid: int) -> list[str]:
    """Fields from state on: the command name before them may hold spaces and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return []


def _kilobytes(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
