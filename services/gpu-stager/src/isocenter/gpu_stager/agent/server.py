"""The node agent: processes of this node ask it for staged volumes over a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.gpu_stager.agent.protocol import LIMIT, VERSION, ProtocolError, decode, encode, require_own
from isocenter.gpu_stager.cache.ledger import Pin, Priority
from isocenter.gpu_stager.cache.staging import Lease

RENEW_SECONDS: Final = 15.0


class Node(Protocol):
    """What the agent offers to processes of this node."""

    async def open(self, target: str, *, stage: bool, priority: Priority) -> list[Lease]:
        """Leases every series of a study, or one series. Raises NotFound, and what staging raises."""
        ...

    def renew(self, lease: Lease) -> bool: ...

    def release(self, lease: Lease) -> None: ...

    async def stage(
        self, target: str, *, priority: Priority, pin: Pin, forced: bool
    ) -> list[dict[str, Any]]: ...

    async def evict(self, target: str) -> list[str]: ...

    async def damaged(self, name: str) -> None: ...

    def status(self) -> dict[str, Any]:
        """Entries, limits, counters and the node's verdict: what `isocenter staged` shows."""
        ...

    def opened(self, lease: Lease, loaded: dict[str, Any]) -> None:
        """A client says how a load went."""
        ...


class Agent:
    """Serves a node on a socket that only this user can open."""

    def __init__(self, node: Node, path: Path) -> None:
        self.path = path
        self._node = node
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises Misconfigured: the socket cannot be made, or another agent answers on it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_own(self.path)
            if await _answers(self.path):
                raise Misconfigured("another stager answers on the node's socket")
            self.path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._accept, self.path, limit=LIMIT)
            self.path.chmod(0o600)
        except OSError as error:
            raise Misconfigured(f"the node's socket cannot be made: {error.strerror}") from None

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._node, writer)
        renewing = asyncio.create_task(connection.renew())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):  # ValueError: too long
                while line := await reader.readline():
                    connection.take(line)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await connection.close()
            writer.close()


class _Connection:
    """Requests of one process, several at a time, and the leases that it holds."""

    def __init__(self, node: Node, writer: asyncio.StreamWriter) -> None:
        self._node = node
        self._writer = writer
        self._leases: dict[str, Lease] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._operations: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "hello": self._hello,
            "open": self._open,
            "release": self._release,
            "loaded": self._loaded,
            "stage": self._stage,
            "evict": self._evict,
            "damaged": self._damaged,
            "status": self._status,
        }

    def take(self, line: bytes) -> None:
        task = asyncio.create_task(self._answer(line))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def close(self) -> None:
        """Who is gone waits for nothing and holds nothing."""
        for task in list(self._requests):
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for lease in self._leases.values():
            self._node.release(lease)

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for lease in self._leases.values():
                self._node.renew(lease)

    async def _answer(self, line: bytes) -> None:
        number: Any = None
        try:
            message = decode(line)
            number = message.get("id")
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise ProtocolError("no such operation")
            answer: dict[str, Any] = {"id": number, "ok": await operation(message)}
        except IsocenterError as error:
            answer = {"id": number, "error": {"code": error.code, "message": str(error)}}
        except (KeyError, TypeError, ValueError):
            answer = {"id": number, "error": {"code": "protocol", "message": "a field is missing or wrong"}}
        with suppress(ConnectionError):
            self._writer.write(encode(answer))
            await self._writer.drain()

    async def _hello(self, message: dict[str, Any]) -> dict[str, Any]:
        status = self._node.status()
        return {"version": VERSION, "node": status["node"], "verdict": status["verdict"]}

    async def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        leases = await self._node.open(
            str(message["target"]),
            stage=bool(message.get("stage", True)),
            priority=Priority[str(message.get("priority", "inference")).upper()],
        )
        self._leases.update({lease.id: lease for lease in leases})
        return {"leases": [{"lease": each.id, "name": each.name, "path": str(each.path)} for each in leases]}

    async def _release(self, message: dict[str, Any]) -> dict[str, Any]:
        lease = self._leases.pop(str(message["lease"]), None)
        if lease is not None:
            self._node.release(lease)
        return {}

    async def _loaded(self, message: dict[str, Any]) -> dict[str, Any]:
        lease = self._leases.get(str(message["lease"]))
        if lease is not None:
            self._node.opened(lease, message)
        return {}

    async def _stage(self, message: dict[str, Any]) -> dict[str, Any]:
        staged = await self._node.stage(
            str(message["target"]),
            priority=Priority[str(message.get("priority", "inference")).upper()],
            pin=Pin(message.get("pin", "none")),
            forced=bool(message.get("forced", False)),
        )
        return {"staged": staged}

    async def _evict(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"evicted": await self._node.evict(str(message["target"]))}

    async def _damaged(self, message: dict[str, Any]) -> dict[str, Any]:
        lease = self._leases.pop(str(message["lease"]), None)
        if lease is not None:
            await self._node.damaged(lease.name)
        return {}

    async def _status(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._node.status()


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True
