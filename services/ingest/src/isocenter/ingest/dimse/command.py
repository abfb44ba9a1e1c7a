"""The DIMSE command set (PS3.7 section 6.3 and annex E): always implicit VR little endian, always small."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

NO_DATA_SET: Final = 0x0101
MAX_COMMAND_BYTES: Final = 16 << 10

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
N_ACTION_RQ: Final = 0x0130
RESPONSE: Final = 0x8000

# Status codes of PS3.7 annex C beside those of the storage service.
INVALID_SOP_INSTANCE: Final = 0x0117
NO_SUCH_SOP_CLASS: Final = 0x0118
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
UNRECOGNISED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212

_ELEMENT: Final = struct.Struct("<HHL")
_US: Final = struct.Struct("<H")
_AFFECTED_SOP_CLASS: Final = 0x0002
_REQUESTED_SOP_CLASS: Final = 0x0003
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_MESSAGE_ID_RESPONDED: Final = 0x0120
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_AFFECTED_SOP_INSTANCE: Final = 0x1000
_REQUESTED_SOP_INSTANCE: Final = 0x1001
_ACTION_TYPE: Final = 0x1008


class InvalidCommand(Exception):
    """The bytes are no command set that could be answered."""


@dataclass(frozen=True, slots=True)
class Command:
    """A request as far as storage needs it.

    Attributes:
        kind: Command Field (0000,0100).
        sop_class_uid: Affected SOP Class UID (of N-ACTION: Requested), empty where the request has none.
        has_data_set: Command Data Set Type (0000,0800) is not 0101H.
        action_type: Action Type ID (0000,1008) of N-ACTION, 0 of all others.
    """

    kind: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    has_data_set: bool
    action_type: int = 0


def decode(data: bytes | bytearray) -> Command:
    """Raises InvalidCommand."""
    values: dict[int, bytes] = {}
    position, size = 0, len(data)
    while position < size:
        if size - position < _ELEMENT.size:
            raise InvalidCommand
        group, element, length = _ELEMENT.unpack_from(data, position)
        position += _ELEMENT.size
        if group != 0 or length > size - position:
            raise InvalidCommand
        values[element] = bytes(data[position : position + length])
        position += length
    kind = _number(values, _COMMAND_FIELD)
    requested = kind == N_ACTION_RQ
    return Command(
        kind=kind,
        message_id=_number(values, _MESSAGE_ID, default=0),
        sop_class_uid=_uid(values, _REQUESTED_SOP_CLASS if requested else _AFFECTED_SOP_CLASS),
        sop_instance_uid=_uid(values, _REQUESTED_SOP_INSTANCE if requested else _AFFECTED_SOP_INSTANCE),
        has_data_set=_number(values, _DATA_SET_TYPE) != NO_DATA_SET,
        action_type=_number(values, _ACTION_TYPE, default=0) if requested else 0,
    )


def encode_response(command: Command, status: int) -> bytes:
    """The response to a request, without data set (PS3.7 sections 9.3.1.2, 9.3.5.2 and 10.3.4.2)."""
    elements = [
        (_AFFECTED_SOP_CLASS, _uid_value(command.sop_class_uid)),
        (_COMMAND_FIELD, _US.pack(command.kind | RESPONSE)),
        (_MESSAGE_ID_RESPONDED, _US.pack(command.message_id)),
        (_DATA_SET_TYPE, _US.pack(NO_DATA_SET)),
        (_STATUS, _US.pack(status)),
        (_AFFECTED_SOP_INSTANCE, _uid_value(command.sop_instance_uid)),
    ]
    body = b"".join(
        _ELEMENT.pack(0, element, len(value)) + value
        for element, value in elements
        if value or element not in {_AFFECTED_SOP_CLASS, _AFFECTED_SOP_INSTANCE}
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def _number(values: dict[int, bytes], element: int, default: int | None = None) -> int:
    value = values.get(element)
    if value is None and default is not None:
        return default
    if value is None or len(value) != _US.size:
        raise InvalidCommand
    return int(_US.unpack(value)[0])


def _uid(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("ascii", "replace").strip(" \0")


def _uid_value(uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    return value + b"\0" if len(value) % 2 else value
