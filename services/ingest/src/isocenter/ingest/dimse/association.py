"""One association on the wire: connection, timers and the upper layer's states.

Receiving and storing run apart. `buffer_updated` cuts what arrived into commands and chunks of data set and
returns at once; a `Session` in a task of its own takes them in order. While it is behind, the socket is not
read, so memory per association stays at a few chunks however large an instance is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol, cast

from isocenter.ingest.dimse import command as dimse
from isocenter.ingest.dimse.command import InvalidCommand
from isocenter.ingest.dimse.inbox import End, Inbox, Request
from isocenter.ingest.dimse.negotiation import Accepted, Context, Policy, negotiate
from isocenter.ingest.dimse.pdu import (
    RELEASE_RP,
    AbortReason,
    PduReader,
    PduType,
    ProtocolViolation,
    abort,
)
from isocenter.ingest.dimse.session import Session
from isocenter.ingest.dimse.tls import fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isocenter.ingest.dimse.admission import Admission
    from isocenter.ingest.pipeline import Intake


class State(Enum):
    """PS3.8 table 9-10, as far as an acceptor has them."""

    AWAITING_ASSOCIATE = auto()
    """Sta2: transport connection open, waiting for A-ASSOCIATE-RQ."""
    ESTABLISHED = auto()
    """Sta6: ready for data transfer."""
    RELEASING = auto()
    """Sta8 and Sta13: release requested, or answered and waiting for the transport connection to close."""
    CLOSED = auto()
    """Sta1, and Sta13 after an abort or a rejection of ours: nothing that arrives is looked at."""


EXPECTED: Final[Mapping[State, frozenset[PduType]]] = {
    State.AWAITING_ASSOCIATE: frozenset({PduType.ASSOCIATE_RQ, PduType.ABORT}),
    State.ESTABLISHED: frozenset({PduType.DATA, PduType.RELEASE_RQ, PduType.ABORT}),
    State.RELEASING: frozenset({PduType.ABORT}),
    State.CLOSED: frozenset(),
}
"""PDUs that may arrive in a state; any other is answered with A-ABORT (PS3.8 table 9-10, AA-1 and AA-8)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    Attributes:
        associate: until A-ASSOCIATE-RQ is complete, and for the peer to close after a release (ARTIM).
        idle: without a byte from the peer while it is its turn, or without it taking a byte of ours.
        progress: bytes that must come in `idle` seconds while a message is not complete: who sends one after
            the other would keep an association for ever.
    """

    associate: float = 10.0
    idle: float = 30.0
    progress: int = 1024


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes per association.

    Attributes:
        receive: what one read of the socket takes at most.
        chunk: pieces in which a data set goes to the intake; one that is smaller goes in one piece.
        chunks: pieces that may be out before the socket is no longer read.
        requests: that may wait beside the one in work; more than the asynchronous operations window that
            is ever agreed (PS3.7 section D.3.3.3), since a few too many do no harm.
        pdu_limit: longest P-DATA-TF taken from a peer that does not keep to what was negotiated.
    """

    receive: int = 256 << 10
    chunk: int = 1 << 18
    chunks: int = 4
    requests: int = 8
    pdu_limit: int = 1 << 20


_LINGER_SECONDS: Final = 2.0
"""For the peer to read why it was turned away; it has nothing else to do by then."""


class Listener(Protocol):
    """What associations need of their listener."""

    @property
    def full(self) -> bool:
        """No further association is taken now."""
        ...

    @property
    def admission(self) -> Admission:
        """Who may associate."""
        ...

    def opened(self, association: Association) -> bool:
        """Whether the connection may stay."""
        ...

    def closed(self, association: Association) -> None: ...
    def established(self, task: asyncio.Task[None]) -> None: ...


class Association(asyncio.BufferedProtocol):
    """asyncio's protocol of one connection, the reader's PduSink, and the session's Channel."""

    def __init__(
        self, *, intake: Intake, policy: Policy, timing: Timing, buffers: Buffers, listener: Listener
    ) -> None:
        self._intake = intake
        self._policy = policy
        self._timing = timing
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._state = State.AWAITING_ASSOCIATE
        self._receive = memoryview(bytearray(buffers.receive))
        self._max_requests = buffers.requests
        self._reader = PduReader(self, limit=max(buffers.pdu_limit, policy.max_pdu))
        self._inbox = Inbox(
            chunk_bytes=buffers.chunk,
            limit=buffers.chunks,
            pause=self._pause_reading,
            resume=self._resume_reading,
        )
        self._transport: asyncio.Transport | None = None
        self._certificate: str | None = None
        self._contexts: Mapping[int, Context] = {}
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._arrived = 0
        self._writable = asyncio.Event()
        self._writable.set()
        # The command set or data set that is arriving.
        self._context_id = 0
        self._in_command = False
        self._command = bytearray()
        self._data_set_of = 0

    @property
    def established(self) -> bool:
        return self._task is not None and self._state is not State.CLOSED

    # -- transport ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._certificate = fingerprint_of(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None:
            # A response is one small segment: it must not wait for the peer's acknowledgement of another.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._listener.opened(self):
            self._arm(self._timing.associate)
        else:
            self._state = State.CLOSED
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receive

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is State.CLOSED:
            return
        try:
            self._reader.feed(self._receive[:nbytes])
        except ProtocolViolation as violation:
            self.abort(violation.reason)
        self._arrived += nbytes
        within = self._data_set_of or self._command or self._reader.within
        if not within or self._arrived >= self._timing.progress:
            self._arrived, self._heard = 0, self._loop.time()

    def eof_received(self) -> bool:
        """A half-closed connection cannot be answered in order: it is closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._listener.closed(self)
        # Connection, association and session refer to each other: until the collector of cycles comes by,
        # each of those that ended would keep megabytes.
        self._receive = memoryview(b"")
        self._inbox.release()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._heard = self._loop.time()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- PduSink --------------------------------------------------------------------------------------------

    def pdu_header(self, kind: PduType, length: int) -> None:
        if kind not in EXPECTED[self._state]:
            raise ProtocolViolation(AbortReason.UNEXPECTED_PDU)
        if kind in {PduType.RELEASE_RQ, PduType.ABORT} and length != 4:
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER)

    def control_pdu(self, kind: PduType, body: bytes) -> None:
        if kind is PduType.ASSOCIATE_RQ:
            self._associate(body)
        elif kind is PduType.RELEASE_RQ:
            if self._data_set_of or self._command:
                raise ProtocolViolation(AbortReason.UNEXPECTED_PDU)
            self._state = State.RELEASING
            self._inbox.put(End.RELEASED)
        else:
            self._end()
            self._close()

    def fragment_header(self, context_id: int, *, command: bool) -> None:
        awaited = self._data_set_of
        if context_id not in self._contexts or command == bool(awaited):
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
        if (awaited and context_id != awaited) or (self._command and context_id != self._context_id):
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
        self._context_id = context_id
        self._in_command = command

    def fragment(self, data: memoryview) -> None:
        if not self._in_command:
            self._inbox.write(data)
            return
        if len(self._command) + len(data) > dimse.MAX_COMMAND_BYTES:
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
        self._command += data

    def fragment_end(self, *, last: bool) -> None:
        if not last:
            return
        if not self._in_command:
            self._data_set_of = 0
            self._inbox.end_data_set()
            return
        try:
            command = dimse.decode(self._command)
        except InvalidCommand:
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER) from None
        self._command.clear()
        if command.kind & dimse.RESPONSE:
            raise ProtocolViolation(AbortReason.UNEXPECTED_PARAMETER)
        if self._inbox.requests >= self._max_requests:
            # Each may bring a data set, and one read of the socket holds thousands.
            raise ProtocolViolation(AbortReason.UNEXPECTED_PDU)
        if command.has_data_set:
            self._data_set_of = self._context_id
        self._inbox.put(Request(self._context_id, self._contexts[self._context_id], command))

    # -- Channel --------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        self._write(data)
        self._heard = self._loop.time()
        if not self._writable.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.idle):
                    await self._writable.wait()
                return
            self.abort()

    def release(self) -> None:
        self._write(RELEASE_RP)
        if self._state is State.RELEASING:
            self._arm(self._timing.associate)

    def abort(self, reason: AbortReason = AbortReason.NOT_SPECIFIED) -> None:
        """Ends the association from our side. What was stored stays; what was half received is dropped."""
        if self._state is not State.CLOSED:
            self._write(abort(reason))
            self._end()
            self._linger()

    def drop(self) -> None:
        """Closes the connection without a further word."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    # -- states ---------------------------------------------------------------------------------------------

    def _associate(self, body: bytes) -> None:
        answer = negotiate(
            body,
            self._policy,
            full=self._listener.full,
            admission=self._listener.admission,
            certificate=self._certificate,
        )
        self._write(answer.reply)
        if not isinstance(answer, Accepted):
            self._intake.signals.association_rejected(
                answer.calling_ae_title, answer.called_ae_title, answer.reason
            )
            self._end()
            self._linger()
            return
        self._contexts = answer.contexts
        self._state = State.ESTABLISHED
        session = Session(intake=self._intake, agreed=answer, inbox=self._inbox, channel=self)
        self._task = self._loop.create_task(session.run())
        self._listener.established(self._task)
        self._arm(self._timing.idle)

    def _end(self) -> None:
        """Nothing more is taken from the peer; the session learns of it after what it has in hand."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writable.set()
        if self._state is not State.CLOSED:
            self._state = State.CLOSED
            self._inbox.put(End.LOST)

    def _linger(self) -> None:
        """Sta13: what still comes is read and dropped until the peer closes. A connection that is closed with
        bytes unread is reset by the kernel, and a reset may overtake the reason that was just written.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        self._timer = self._loop.call_later(min(self._timing.associate, _LINGER_SECONDS), transport.abort)

    def _close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # A peer that reads nothing would keep the connection: what it does not take in time is dropped.
            self._timer = self._loop.call_later(self._timing.associate, self._transport.abort)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        if self._task is None or self._task.done():
            self.abort()
            return
        now = self._loop.time()
        if not self._inbox.idle:
            # It is our turn: the peer waits for us.
            self._heard = now
        if now - self._heard >= self._timing.idle:
            self.abort()
        else:
            self._arm(self._timing.idle - (now - self._heard))
