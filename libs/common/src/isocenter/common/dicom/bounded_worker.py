"""The child of `isocenter.common.dicom.bounded`: describes what it is sent, in bounds, and knows nothing
else.

Started as `python -I -m isocenter.common.dicom.bounded_worker '<Bounds as JSON>' PARENT` with an empty
environment; PARENT is its parent's process id. It reads batches from standard input and answers on standard
output; it opens no file of its own, and ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

sys.modules["numpy"] = None  # type: ignore[assignment] # pydicom goes without it, and 50 MB are saved

from isocenter.common.dicom.bounded_wire import FRAME, ITEM, RANGE, RESULT, Bounds, Kind  # noqa: E402
from isocenter.common.dicom.describe import InstanceDescription, describe  # noqa: E402
from isocenter.common.errors import InvalidInstance, RejectReason  # noqa: E402

_PR_SET_PDEATHSIG: Final = 1
_STDIN, _STDOUT = 0, 1
_PIECE: Final = 1 << 20

Describe = Callable[..., Coroutine[Any, Any, InstanceDescription]]


class _NoBytes(Exception):
    """The parent cannot read what is asked for."""


class _Orphaned(Exception):
    """Standard input ended."""


def main(arguments: Sequence[str], *, using: Describe = describe) -> int:
    """Serves until standard input ends. `using` is replaced in tests."""
    bounds = Bounds(**json.loads(arguments[0]))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(arguments[1]):
        return 1  # it died before it could be asked to take this process along; 1 is a service in a container
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    _limit(bounds)
    try:
        _Worker(bounds, using).serve()
    except _Orphaned:
        return 0
    return 0


def _limit(bounds: Bounds) -> None:
    os.nice(bounds.nice)
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_AS, bounds.memory_bytes),
    ):
        resource.setrlimit(name, (value, value))


class _Worker:
    def __init__(self, bounds: Bounds, using: Describe) -> None:
        self._bounds = bounds
        self._tags = frozenset(bounds.tags)
        self._describe = using
        self._answers: list[bytes] = []

    def serve(self) -> None:
        self._answer(Kind.READY, b"")
        self._flush()
        while True:
            kind, body = _receive()
            if kind != Kind.BATCH:
                raise _Orphaned
            position = 0
            while position < len(body):
                size, length = ITEM.unpack_from(body, position)
                position += ITEM.size
                self._one(size, body[position : position + length])
                position += length
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._flush()

    def _one(self, size: int, beginning: bytes) -> None:
        self._allow_cpu()
        try:
            described = self._run(size, beginning)
            self._answer(Kind.DESCRIBED, self._encoded(described))
        except InvalidInstance as error:
            self._refuse(error.reason, error.message)
        except (MemoryError, RecursionError):
            self._refuse(RejectReason.TOO_LARGE, "describing it takes too much memory")
        except _NoBytes:
            self._answer(Kind.GIVEN_UP, b"")

    def _run(self, size: int, beginning: bytes) -> InstanceDescription:
        async def read(start: int, end: int) -> bytes:
            return beginning[start:end] if min(end, size) <= len(beginning) else self._ask(start, end)

        # Nothing in it waits for anything but `read`, which blocks: one step is all of it.
        running = self._describe(read, size, inline=True)
        try:
            running.send(None)
        except StopIteration as stop:
            described: InstanceDescription = stop.value
            return described
        raise InvalidInstance(RejectReason.UNKNOWN, "describing did not come to its end")

    def _encoded(self, described: InstanceDescription) -> bytes:
        header = described.header
        text = json.dumps(
            [
                header.sop_class_uid,
                header.sop_instance_uid,
                header.study_instance_uid,
                header.series_instance_uid,
                described.transfer_syntax_uid,
                {tag: described.attributes[tag] for tag in self._tags & described.attributes.keys()},
            ],
            separators=(",", ":"),
        ).encode()
        frames = described.frames.pack() if described.frames else b""
        return b"".join((RESULT.pack(len(text), len(described.metadata)), text, described.metadata, frames))

    def _allow_cpu(self) -> None:
        """SIGPROF ends the process after so much of its processor time, unless it is set anew until then."""
        signal.setitimer(signal.ITIMER_PROF, self._bounds.cpu_seconds)

    def _ask(self, start: int, end: int) -> bytes:
        self._answer(Kind.READ, RANGE.pack(start, end))
        self._flush()
        kind, body = _receive()
        if kind != Kind.BYTES:
            raise _NoBytes
        return body

    def _refuse(self, reason: RejectReason, message: str) -> None:
        self._answer(Kind.REFUSED, json.dumps([reason.value, message]).encode())

    def _answer(self, kind: Kind, body: bytes) -> None:
        self._answers += (FRAME.pack(kind, len(body)), body)

    def _flush(self) -> None:
        waiting = memoryview(b"".join(self._answers))
        self._answers.clear()
        while waiting:
            waiting = waiting[os.write(_STDOUT, waiting) :]


def _receive() -> tuple[int, bytes]:
    kind, length = FRAME.unpack(_exactly(FRAME.size))
    return kind, _exactly(length)


def _exactly(length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.read(_STDIN, min(length, _PIECE))
        if not part:
            raise _Orphaned
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
