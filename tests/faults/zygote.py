"""Starts the platform by fork from a process that has imported it already: a restart in a tenth of the time.

Most of a start is Python reading modules, which no kill can harm. The forked process runs the same command
line, in a session of its own, with nothing open and no thread running before the fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_EXIT_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class _Request:
    arguments: list[str]
    output: str
    log: str
    environment: dict[str, str]


class ForkedProcess:
    """A `Process` whose exit status is not known: it goes to the zygote."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired("isocenter", timeout or 0)
        return _EXIT_UNKNOWN

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._descriptor], [], [], timeout)[0]:
            os.close(self._descriptor)
            self.returncode = _EXIT_UNKNOWN
        return self.returncode


class Zygote:
    """A warm process. `spawn` has the shape that `Embedded` takes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def spawn(
        self, command: Sequence[str], output: Path, log: Path, environment: Mapping[str, str]
    ) -> ForkedProcess:
        # The arguments stand behind `python -m isocenter.cli`.
        request = _Request(list(command)[3:], str(output), str(log), dict(environment))
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the zygote has no pipes")
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        return ForkedProcess(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    for module in ("isocenter.cli.commands_up", "isocenter.cli.platform"):
        importlib.import_module(module)  # what a restart need not repeat
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.freeze()
    for line in sys.stdin:
        request = _Request(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            _become_platform(request)
        print(pid, flush=True)  # noqa: T201 - the protocol


def _become_platform(request: _Request) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.clear()
    os.environ.update(request.environment)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path, target in ((request.output, 1), (request.log, 2)):
        os.dup2(os.open(path, append, 0o600), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["isocenter", *request.arguments]
    from isocenter.cli.main import app  # noqa: PLC0415 - imported before the fork

    status = 1
    try:
        app()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
