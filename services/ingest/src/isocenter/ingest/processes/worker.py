"""One process of ingest: started, looked after, started anew with growing patience, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import httpx

from isocenter.common.runtime import EXIT_MISCONFIGURED
from isocenter.common.telemetry import LogEvent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from isocenter.common.telemetry.log import Log

WORKER: Final = "--worker-of"
"""Command line of a process that has a supervisor, whose process id follows."""
LOOK_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 3.0
SILENCES: Final = 12
"""Looks in a row without any answer: the process hangs."""
REFUSALS: Final = 3
"""Looks in a row at which it says itself that only a new process can help."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
PROVEN_SECONDS: Final = 60.0
"""Who has lived so long begins again with the shortest pause."""
_PR_SET_PDEATHSIG: Final = 1


def die_with(supervisor: int) -> None:
    """In a worker: SIGTERM comes when its supervisor is gone, even killed. Exits where it is gone already.

    SIGHUP is the supervisor's, who may send it before anybody listens to it.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere an operator kills both
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        sys.exit(1)


class Worker:
    """Runs one process after the other until stopped.

    Args:
        number: from 1 on.
        health_port: on this machine's loopback.
        environment: of the process.
        stop_seconds: from SIGTERM to SIGKILL.
        log: of the supervisor.
    """

    def __init__(
        self,
        number: int,
        *,
        health_port: int,
        environment: Mapping[str, str],
        stop_seconds: float,
        log: Log,
        folder: Path | None = None,
    ) -> None:
        self.number = number
        self.name = f"process-{number}"
        self.misconfigured = False
        """It says that restarting does not help."""
        self.served = False
        """The process of now was ready at some time."""
        self._base = f"http://127.0.0.1:{health_port}"
        self._environment = dict(environment)
        self._stop_seconds = stop_seconds
        self._log = log
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.losses = 0
        """Processes that ended without being asked to."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def run(self, client: httpx.AsyncClient) -> None:
        """Returns when stopped, or when the process says that it is misconfigured."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            self.served = False
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "isocenter.ingest", WORKER, str(os.getpid())),
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
            )
            self._log.info(LogEvent.WORKER_STARTED, detail=self.name, pid=self._process.pid)
            code = await self._look_after(self._process, client)
            self._process = None
            if self._stopping.is_set():
                return
            if code == EXIT_MISCONFIGURED:
                self.misconfigured = True
                return
            self.losses += 1
            lived = time.monotonic() - began
            pause = FIRST_PAUSE_SECONDS if lived >= PROVEN_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._log.error(LogEvent.WORKER_LOST, detail=self.name, exit_code=code, seconds=round(pause, 3))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it in time."""
        self._stopping.set()
        if (process := self._process) is not None:
            await self._end(process)

    def hang_up(self) -> None:
        """Tells it to read certificates and peers again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def get(self, client: httpx.AsyncClient, path: str) -> httpx.Response | None:
        """What its health port says; None: nothing."""
        if self._process is None:
            return None
        try:
            return await client.get(f"{self._base}{path}", timeout=ANSWER_SECONDS)
        except httpx.HTTPError:
            return None

    async def _look_after(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> int:
        """The exit status, at last."""
        ended = asyncio.ensure_future(process.wait())
        silent = refused = 0
        while not ended.done():
            await asyncio.wait({ended}, timeout=LOOK_SECONDS)
            if ended.done() or self._stopping.is_set():
                break
            answer = await self.get(client, "/livez")
            silent = silent + 1 if answer is None else 0
            refused = refused + 1 if answer is not None and answer.status_code == 503 else 0
            if silent >= SILENCES or refused >= REFUSALS:
                self._log.error(
                    LogEvent.WORKER_LOST, detail=f"{self.name}: it hangs and is ended", pid=process.pid
                )
                await self._end(process)
        return await ended

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._stop_seconds):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
