"""Event loop, signals and HTTP for a process that runs services."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn

from isocenter.common.errors import Misconfigured
from isocenter.common.service import ASGIApp

HURRY_SECONDS = 0.5
"""What each stage of a stop still gets after a second signal."""
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
    app: ASGIApp, host: str, port: int, *, drain_seconds: float = 25.0
) -> AsyncIterator[int]:
    """Serves an ASGI application while the block runs; yields the port, which matters when 0 was asked.

    Leaving the block lets requests in hand finish, for `drain_seconds` at most.

    Raises:
        Misconfigured: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from None
    bound = int(listener.getsockname()[1])
    config = uvicorn.Config(
        app,
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


class _Server(uvicorn.Server):
    """Signals belong to the process, not to one of its several servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
