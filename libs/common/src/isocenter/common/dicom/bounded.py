"""Describing instances in child processes that can be cut off.

What a header costs to parse is decided by whoever wrote it. Here a runaway costs its own instance and nothing
else: a child has limits of memory, processor time and wall-clock time, no secrets, no files, and is replaced
when it is lost. Instances go in batches, so that the trip costs little, and are parsed beside the event loop
rather than under its interpreter lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from isocenter.common.dicom.bounded_wire import FRAME, ITEM, RANGE, RESULT, Bounds, Kind
from isocenter.common.dicom.header import InstanceHeader
from isocenter.common.dicom.inflate import Read
from isocenter.common.errors import (
    InvalidInstance,
    IsocenterError,
    ParserUnavailable,
    RejectReason,
    Transient,
)

WORKER: Final = (sys.executable, "-I", "-m", "isocenter.common.dicom.bounded_worker")
WALL_SECONDS: Final = 60.0
"""For the next answer of a child that has what it asked for. Its processor time is limited below that."""
STRICT_CPU_SECONDS: Final = 1.0
STRICT_SECONDS: Final = 60.0
"""For so long after an instance cost a child, every instance gets `STRICT_CPU_SECONDS` at most: ordinary ones
need a hundredth of it, and an event full of hostile ones stays an event that can be handled.
"""
MAX_ANSWER_BYTES: Final = 512 << 20
BATCH_BYTES: Final = 1 << 20

_STREAM_LIMIT: Final = 1 << 20
_START_SECONDS: Final = 60.0
_UID_FIELDS: Final = ("sop_class_uid", "sop_instance_uid", "study_instance_uid", "series_instance_uid")


class Loss(StrEnum):
    """How a child was lost over an instance."""

    TIME = "time"
    """It gave no answer in time."""
    DIED = "died"
    """It ended: processor time or memory, a crash, or somebody killed it."""
    NONSENSE = "nonsense"
    """It answered what no child answers."""


@dataclass(frozen=True, slots=True)
class Source:
    """One instance to describe.

    Attributes:
        size: of the plaintext Part 10 object.
        beginning: its first bytes; what the header needs beyond them is asked for through `read`.
    """

    size: int
    beginning: bytes
    read: Read


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a child found. Holds PHI. `attributes`, `metadata`: as in `InstanceDescription`, of the tags asked
    for. `frames`: packed, empty where there is none.
    """

    header: InstanceHeader
    transfer_syntax_uid: str
    attributes: dict[str, Any]
    metadata: bytes
    frames: bytes


Outcome = Parsed | IsocenterError


class _Lost(Exception):
    def __init__(self, how: Loss) -> None:
        super().__init__(how.value)
        self.how = how


class ParserPool:
    """A few children, each with one batch at a time. They start when they are needed and stay.

    Args:
        children: how many, which is how many batches are described at the same time.
        lost: called once for each instance that cost a child.
        command: what runs a child; the bounds and the process that asks for it are its last arguments.
    """

    def __init__(
        self,
        children: int = 1,
        *,
        bounds: Bounds | None = None,
        wall_seconds: float = WALL_SECONDS,
        lost: Callable[[Loss], None] = lambda _: None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._bounds = bounds or Bounds()
        self._command = tuple(command)
        self._wall_seconds = wall_seconds
        self._lost = lost
        self._free: asyncio.LifoQueue[_Child | None] = asyncio.LifoQueue()
        self._children: set[_Child] = set()
        self._closed = False
        self._strict_until = float("-inf")
        for _ in range(children):
            self._free.put_nowait(None)

    @property
    def pids(self) -> list[int]:
        """Of the children that live."""
        return [child.pid for child in self._children]

    async def describe(self, sources: Sequence[Source]) -> list[Outcome]:
        """One outcome for each: what was found, why it was refused, or what `Source.read` raised.

        An instance that costs a child its life is refused (InvalidInstance) once it did so alone: others of
        its batch are not blamed.

        Raises:
            Transient: the pool is closed, or no child can be started (ParserUnavailable).
        """
        outcomes, _ = await self._batch(sources)
        for number in range(len(outcomes), len(sources)):
            # Whose fault it was is not known, nor that it was theirs: once more, and alone.
            found, loss = await self._batch(sources[number : number + 1])
            if loss is not None:
                self._lost(loss)
                found = [InvalidInstance(RejectReason.TOO_LARGE, "parsing it was cut off")]
            outcomes += found
        return outcomes

    async def close(self) -> None:
        """Batches in hand are given up."""
        self._closed = True
        for child in list(self._children):
            await self._end(child)

    async def _batch(self, sources: Sequence[Source]) -> tuple[list[Outcome], Loss | None]:
        """Outcomes of the first instances: fewer than were asked for if the child was lost."""
        outcomes: list[Outcome] = []
        loss: Loss | None = None
        child = await self._free.get()
        try:
            if child is None or child.gone or child.strict is not self._strict:
                if child is not None:
                    await self._end(child)
                    child = None
                child = await self._start()
            try:
                await child.describe(sources, outcomes, self._wall_seconds)
            except _Lost as lost:
                if self._closed:
                    raise Transient("parsing ends with the service") from None
                await self._end(child)
                child = None
                loss = lost.how
                self._strict_until = asyncio.get_running_loop().time() + STRICT_SECONDS
        except BaseException:
            if child is not None:  # in the middle of a conversation: nobody else may take it up
                await self._end(child)
                child = None
            raise
        finally:
            self._free.put_nowait(child)
        return outcomes, loss

    @property
    def _strict(self) -> bool:
        return asyncio.get_running_loop().time() < self._strict_until

    async def _start(self) -> _Child:
        if self._closed:
            raise Transient("parsing ends with the service")
        bounds, strict = self._bounds, self._strict
        if strict:
            bounds = replace(bounds, cpu_seconds=min(bounds.cpu_seconds, STRICT_CPU_SECONDS))
        try:
            async with asyncio.timeout(_START_SECONDS):
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    json.dumps(asdict(bounds), separators=(",", ":")),
                    str(os.getpid()),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,  # libraries quote values in warnings
                    env={"LC_ALL": "C.UTF-8"},
                    cwd="/",
                    limit=_STREAM_LIMIT,
                )
        except (OSError, TimeoutError) as error:
            raise ParserUnavailable("no parser can be started", cause=type(error).__name__) from None
        child = _Child(process, strict=strict)
        self._children.add(child)
        try:
            await child.ready(_START_SECONDS)
        except _Lost as lost:
            await self._end(child)
            raise ParserUnavailable("no parser can be started", cause=lost.how.value) from None
        except BaseException:
            await self._end(child)
            raise
        return child

    async def _end(self, child: _Child) -> None:
        self._children.discard(child)
        await child.kill()


class _Child:
    def __init__(self, process: asyncio.subprocess.Process, *, strict: bool) -> None:
        self._process = process
        self.strict = strict
        if process.stdin is None or process.stdout is None:
            raise ParserUnavailable("no parser can be started")
        self._in, self._out = process.stdin, process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def gone(self) -> bool:
        return self._process.returncode is not None or self._out.at_eof()

    async def ready(self, wall_seconds: float) -> None:
        """Imports take a while on a busy machine: no instance is to blame for that. Raises _Lost."""
        kind, _ = await self._receive(wall_seconds)
        if kind != Kind.READY:
            raise _Lost(Loss.NONSENSE)

    async def describe(self, sources: Sequence[Source], outcomes: list[Outcome], wall_seconds: float) -> None:
        """Appends outcomes as they come. Raises _Lost."""
        parts: list[bytes] = []
        for source in sources:
            parts += (ITEM.pack(source.size, len(source.beginning)), source.beginning)
        await self._send(Kind.BATCH, b"".join(parts), wall_seconds)
        failed: IsocenterError | None = None
        while len(outcomes) < len(sources):
            kind, body = await self._receive(wall_seconds)
            if kind == Kind.READ:
                start, end = RANGE.unpack(body)
                try:
                    data = await sources[len(outcomes)].read(start, end)
                except IsocenterError as error:
                    failed = error
                    await self._send(Kind.NO_BYTES, b"", wall_seconds)
                else:
                    await self._send(Kind.BYTES, data, wall_seconds)
            elif kind == Kind.GIVEN_UP and failed is not None:
                outcomes.append(failed)
            else:
                outcomes.append(_outcome(kind, body))

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._in.close()
        await self._process.wait()

    async def _send(self, kind: Kind, body: bytes, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                self._in.write(FRAME.pack(kind, len(body)) + body)
                await self._in.drain()
        except TimeoutError:
            raise _Lost(Loss.TIME) from None
        except OSError:
            raise _Lost(Loss.DIED) from None

    async def _receive(self, seconds: float) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(seconds):
                kind, length = FRAME.unpack(await self._out.readexactly(FRAME.size))
                if length > MAX_ANSWER_BYTES:
                    raise _Lost(Loss.NONSENSE)
                return kind, await self._out.readexactly(length)
        except TimeoutError:
            raise _Lost(Loss.TIME) from None
        except (asyncio.IncompleteReadError, OSError):
            raise _Lost(Loss.DIED) from None


def _outcome(kind: int, body: bytes) -> Outcome:
    """Believes nothing: what a child says was made from foreign bytes. Raises _Lost."""
    with contextlib.suppress(ValueError, TypeError, struct.error):
        if kind == Kind.REFUSED:
            reason, message = json.loads(body)
            return InvalidInstance(RejectReason(reason), message)
        if kind == Kind.DESCRIBED:
            text, metadata = RESULT.unpack_from(body)
            begin = RESULT.size + text
            *names, attributes = json.loads(body[RESULT.size : begin])
            known = len(names) == len(_UID_FIELDS) + 1 and all(isinstance(name, str) for name in names)
            if known and isinstance(attributes, dict):
                header = InstanceHeader(**dict(zip(_UID_FIELDS, names[:-1], strict=True)))
                end = begin + metadata
                return Parsed(header, names[-1], attributes, body[begin:end], body[end:])
    raise _Lost(Loss.NONSENSE)
