"""What every server of the test bed can be told to do: the faults that a real one meets, included."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 90.0
STOPS_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


class ServerUnavailable(RuntimeError):
    """This machine cannot run the server; the message says what is missing and how to get it."""


class Server(ABC):
    """A server with its data in one folder. Ports stay the same across restarts."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def start(self) -> None:
        """Starts on the data that is there; returns when it takes requests.

        Raises:
            ServerUnavailable: this machine cannot run it.
        """

    @property
    @abstractmethod
    def version(self) -> str:
        """What runs, for the report: `Apache Kafka 4.4.0 (native)`."""

    def stop(self) -> None:
        """As a careful operator stops it."""
        for process in self._processes:
            process.terminate()
        self._wait(20.0)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all of it: what the kernel's OOM killer or a lost node does."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._wait(60.0)  # a process that waits for a busy disk takes its time to die
        self._processes.clear()

    def discard(self) -> None:
        """Kills it for good: what it kept outside its folder (a container) goes, too."""
        self.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers once this returns."""
        self._signal(signal.SIGSTOP)
        until = time.monotonic() + STOPS_SECONDS
        while not all(_stands_still(process.pid) for process in self._processes):
            if time.monotonic() > until:
                raise TimeoutError(f"{self.version} does not stand still")
            time.sleep(0.01)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def alive(self) -> bool:
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def log_tail(self, lines: int = 40) -> str:
        """The end of what its processes printed."""
        parts = []
        for path in sorted(self.folder.glob("*.out")):
            tail = path.read_text(errors="backslashreplace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def spawn(
        self, label: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process of this server, in a group of its own; it dies with the test run."""
        with (self.folder / f"{label}.out").open("ab") as out:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if environment is None else {**os.environ, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that a thread could hold
            )
        self._processes.append(process)
        return process

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Raises RuntimeError with the end of the server's output when it dies or takes too long."""
        until = time.monotonic() + seconds
        while not ready():
            if not self.alive or time.monotonic() > until:
                tail = self.log_tail()
                self.kill()
                raise RuntimeError(f"{self.name} did not start within {seconds:.0f} s\n{tail}")
            time.sleep(0.05)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            os.killpg(process.pid, number)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.01, until - time.monotonic()))


def _stands_still(pid: int) -> bool:
    """Every thread has taken the signal, or is gone. On a busy machine that takes a while."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "TtZX":
                    return False
    return True


def die_with_parent() -> None:
    """Runs in the child: the kernel kills it when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port nobody listens on now, below the range from which outgoing connections are given theirs."""
    for _ in range(200):
        port = 10_000 + int.from_bytes(os.urandom(2)) % 20_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0
