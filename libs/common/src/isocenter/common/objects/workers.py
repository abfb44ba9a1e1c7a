"""Threads for blocking calls, with one wake-up of the event loop for each call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


class WorkersClosed(Exception):
    """No call is taken any more."""


class _Uncancelled(asyncio.Future[Result]):
    """A task that is cancelled while it waits for this hears of it when the thread is done, not before."""

    def cancel(self, msg: object = None) -> bool:
        return False


_Job = Callable[[], None]


class Workers:
    """At most `count` threads, started when they are needed."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0
        self._closed = False

    async def run(self, call: Callable[[], Result]) -> Result:
        """What the call returns or raises. The thread is through with it then, even for a caller that is
        cancelled: descriptors and buffers may be used again.

        Raises:
            WorkersClosed
        """
        loop = asyncio.get_running_loop()
        future = _Uncancelled[Result](loop=loop)

        def job() -> None:
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                done: Callable[[], None] = _failed(future, error)
            else:
                done = _returned(future, result)
            with suppress(RuntimeError):  # the loop is gone, and whoever waited with it
                loop.call_soon_threadsafe(done)

        self._submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done():
                future.exception()
            raise

    def close(self) -> None:
        """Waits for calls in flight. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise WorkersClosed
            self._busy += 1
            if self._busy > len(self._threads) and len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # what it holds may be large, and the next may be long in coming
            with self._lock:
                self._busy -= 1


def _returned(future: asyncio.Future[Result], result: Result) -> Callable[[], None]:
    return lambda: future.set_result(result)


def _failed(future: asyncio.Future[Result], error: BaseException) -> Callable[[], None]:
    return lambda: future.set_exception(error)
