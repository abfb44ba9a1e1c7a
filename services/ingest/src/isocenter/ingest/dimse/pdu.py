"""The upper layer's PDUs on the wire (PS3.8 section 9.3), and a reader for any split of the stream."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, Protocol

PDU_HEADER: Final = struct.Struct(">BxL")
PDV_HEADER: Final = struct.Struct(">LBB")
MAX_ASSOCIATE_BYTES: Final = 64 << 10
"""An A-ASSOCIATE-RQ with 128 presentation contexts of ten transfer syntaxes each is below this."""


class PduType(IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(IntEnum):
    """Reason of an A-ABORT by the service provider (PS3.8 table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolViolation(Exception):
    """The peer broke PS3.8 in a way that ends the association."""

    def __init__(self, reason: AbortReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


RELEASE_RP: Final = PDU_HEADER.pack(PduType.RELEASE_RP, 4) + bytes(4)


def abort(reason: AbortReason) -> bytes:
    """A-ABORT, source: service provider."""
    return PDU_HEADER.pack(PduType.ABORT, 4) + bytes((0, 0, 2, reason))


def reject(*, transient: bool, source: int, diagnostic: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return PDU_HEADER.pack(PduType.ASSOCIATE_RJ, 4) + bytes((0, 2 if transient else 1, source, diagnostic))


def command_pdus(context_id: int, command: bytes, max_pdu: int) -> bytes:
    """A command set as P-DATA-TF PDUs of at most `max_pdu` bytes (0: no limit)."""
    piece = len(command) if max_pdu == 0 else max(1, max_pdu - PDV_HEADER.size)
    out = bytearray()
    for start in range(0, len(command), piece):
        fragment = command[start : start + piece]
        control = 3 if start + piece >= len(command) else 1
        out += PDU_HEADER.pack(PduType.DATA, len(fragment) + PDV_HEADER.size)
        out += PDV_HEADER.pack(len(fragment) + 2, context_id, control)
        out += fragment
    return bytes(out)


class PduSink(Protocol):
    """What a reader tells. Any method may raise ProtocolViolation."""

    def pdu_header(self, kind: PduType, length: int) -> None:
        """A PDU begins; called before a byte of it is buffered."""
        ...

    def control_pdu(self, kind: PduType, body: bytes) -> None:
        """A PDU other than P-DATA-TF is complete."""
        ...

    def fragment_header(self, context_id: int, *, command: bool) -> None:
        """A presentation data value begins."""
        ...

    def fragment(self, data: memoryview) -> None:
        """Bytes of the presentation data value; the view is valid during the call only."""
        ...

    def fragment_end(self, *, last: bool) -> None:
        """The presentation data value is complete; `last` one of its command set or data set."""
        ...


_HEADER, _PDV, _PAYLOAD, _CONTROL = range(4)


class PduReader:
    """Cuts a byte stream into PDUs. Holds at most one control PDU, and nothing of P-DATA.

    Args:
        limit: longest P-DATA-TF PDU taken, whatever was negotiated: senders that exceed what we asked for by
            a few bytes exist and do no harm, since nothing is buffered.
    """

    def __init__(self, sink: PduSink, *, limit: int) -> None:
        self._sink = sink
        self._limit = limit
        self._state = _HEADER
        self._need = PDU_HEADER.size
        self._carry = bytearray()
        self._kind = PduType.DATA
        self._pdu_left = 0
        self._pdv_left = 0
        self._last = False

    @property
    def within(self) -> bool:
        """A PDU has begun that is not complete."""
        return self._state != _HEADER or bool(self._carry)

    def feed(self, data: memoryview) -> None:
        """Raises ProtocolViolation."""
        position, size = 0, len(data)
        while position < size:
            if self._state == _PAYLOAD:
                taken = min(self._pdv_left, size - position)
                self._sink.fragment(data[position : position + taken])
                position += taken
                self._pdv_left -= taken
                if self._pdv_left == 0:
                    self._fragment_end()
                continue
            carry = self._carry
            if carry or size - position < self._need:
                taken = min(self._need - len(carry), size - position)
                carry += data[position : position + taken]
                position += taken
                if len(carry) < self._need:
                    return
                block = bytes(carry)
                carry.clear()
            else:
                block = bytes(data[position : position + self._need])
                position += self._need
            if self._state == _PDV:
                self._fragment_header(block)
            elif self._state == _HEADER:
                self._pdu_header(block)
            else:
                self._await_header()
                self._sink.control_pdu(self._kind, block)

    def _await_header(self) -> None:
        self._state, self._need = _HEADER, PDU_HEADER.size

    def _pdu_header(self, block: bytes) -> None:
        number, length = PDU_HEADER.unpack(block)
        try:
            kind = PduType(number)
        except ValueError:
            raise ProtocolViolation(AbortReason.UNRECOGNISED_PDU) from None
        self._sink.pdu_header(kind, length)
        self._kind = kind
        if kind is PduType.DATA:
            if not PDV_HEADER.size <= length <= self._limit:
                raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
            self._pdu_left = length
            self._state, self._need = _PDV, PDV_HEADER.size
        else:
            if length > MAX_ASSOCIATE_BYTES or length == 0:
                raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
            self._state, self._need = _CONTROL, length

    def _fragment_header(self, block: bytes) -> None:
        length, context_id, control = PDV_HEADER.unpack(block)
        self._pdu_left -= 4 + length
        rest_is_impossible = 0 < self._pdu_left < PDV_HEADER.size
        if length < 2 or self._pdu_left < 0 or rest_is_impossible:
            raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
        self._last = bool(control & 2)
        self._pdv_left = length - 2
        self._sink.fragment_header(context_id, command=bool(control & 1))
        self._state = _PAYLOAD
        if self._pdv_left == 0:
            self._fragment_end()

    def _fragment_end(self) -> None:
        if self._pdu_left:
            self._state, self._need = _PDV, PDV_HEADER.size
        else:
            self._await_header()
        self._sink.fragment_end(last=self._last)
