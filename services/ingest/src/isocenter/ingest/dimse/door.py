"""The TLS port: handshakes run beside each other, bounded in number and time, before associations exist."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from isocenter.ingest.dimse.tls import handshake_failure

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

_BREATH: Final = 1.0
"""Seconds without accepting when the process has no descriptors left."""


class TlsDoor:
    """Accepts connections on one port and hands those on whose handshake succeeded.

    asyncio's own server takes any number of connections that never finish their handshake, and keeps the
    certificate it was started with.

    Args:
        protocol: makes what serves a connection.
        context: asked for each connection, so that a new certificate holds from the next one on.
        limit: handshakes that may be under way; beyond it the oldest of them is given up.
        seconds: for a handshake.
        refused: told why a handshake failed.
    """

    def __init__(
        self,
        *,
        protocol: Callable[[], asyncio.BaseProtocol],
        context: Callable[[], ssl.SSLContext],
        limit: int,
        seconds: float,
        refused: Callable[[str], None],
    ) -> None:
        self._protocol = protocol
        self._context = context
        self._limit = limit
        self._seconds = seconds
        self._refused = refused
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order of their beginning

    def open(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listens, and returns the port (of use with port 0). Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=256, reuse_port=reuse_port)
        self._socket.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._socket))
        return int(self._socket.getsockname()[1])

    @property
    def listening(self) -> bool:
        return self._accepting is not None and not self._accepting.done()

    @property
    def handshakes(self) -> int:
        return len(self._handshakes)

    async def close(self) -> None:
        """Takes no more connections and gives up the handshakes under way."""
        tasks = [*([self._accepting] if self._accepting else []), *self._handshakes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        self._socket = self._accepting = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(_BREATH)
                continue
            if len(self._handshakes) >= self._limit:
                next(iter(self._handshakes)).cancel()
            task = loop.create_task(self._handshake(connection))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _handshake(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._context(),
                ssl_handshake_timeout=self._seconds,
                ssl_shutdown_timeout=self._seconds,
            )
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                connection.close()
            self._refused("gave way to others")
            raise
        except (OSError, TimeoutError) as error:
            self._refused(handshake_failure(error))
