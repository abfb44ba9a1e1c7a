"""Event loop, signals and HTTP for a process that runs services."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from isocenter.common.errors import Misconfigured
from isocenter.common.service import ASGIApp

HURRY_SECONDS = 0.5
"""What each stage of a stop still gets after a second signal."""
HEADER_SECONDS = 20.0
"""In which the header of an HTTP request must come, from the connection or the request before on."""
SAME_WISH_SECONDS = 0.5
"""Signals this close together are one: `timeout` and terminals signal a process and its group."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Uvloop where it is installed: half the CPU per association."""
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a later second one cuts the drain off. Call it in the main thread."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    first = 0.0

    def hurry() -> None:
        # A stop has several stages and one cancellation ends only the stage that waits: go on until all are.
        if task is not None and not task.done():
            task.cancel()
            loop.call_later(HURRY_SECONDS, hurry)

    def on_signal() -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
            stop.set()
        elif loop.time() - first > SAME_WISH_SECONDS:
            hurry()

    signals = (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, on_signal)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


@contextlib.asynccontextmanager
async def serve_http(
    app: ASGIApp, host: str, port: int, *, drain_seconds: float = 25.0, shared: bool = False
) -> AsyncIterator[int]:
    """Serves an ASGI application while the block runs; yields the port, which matters when 0 was asked.

    With `shared` other processes may listen on the port, too.
    Leaving the block lets requests in hand finish, for `drain_seconds` at most.

    Raises:
        Misconfigured: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512, reuse_port=shared)
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from None
    bound = int(listener.getsockname()[1])
    config = uvicorn.Config(
        app,
        http=_Protocol,
        interface="asgi3",  # detection takes a bound method for ASGI 2 and answers 500
        lifespan="off",  # a service starts and stops by its own methods
        log_config=None,
        access_log=False,  # request lines hold UIDs
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"http:{bound}")
    try:
        while not server.started:
            if task.done():
                await task
                raise Misconfigured(f"the HTTP server on {host}:{bound} did not start")
            await asyncio.sleep(0.005)
        yield bound
    finally:
        server.should_exit = True
        try:
            await asyncio.wait([task])
        finally:
            listener.close()


class _Protocol(H11Protocol):
    """Closes a connection whose request header does not come; uvicorn would wait for ever.

    Connections that say nothing would otherwise use up the descriptors that the object store needs.
    """

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def _expect_header(self) -> None:
        if self._header_timer is None and self._is_idle():
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._late, self.cycle)

    def _late(self, cycle: object) -> None:
        self._header_timer = None
        if self.cycle is not cycle:
            self._expect_header()
        elif not self.transport.is_closing():
            self.transport.close()

    def _is_idle(self) -> bool:
        # uvicorn declares a cycle, but has none before the first request.
        cycle: object = self.cycle
        return cycle is None or self.cycle.response_complete


class _Server(uvicorn.Server):
    """Signals belong to the process, not to one of its several servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
