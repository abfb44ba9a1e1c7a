"""The data set of an N-ACTION request (PS3.4 table J.3-1): its transaction UID and references.

Read within bounds: to pydicom a few megabytes of empty items would become gigabytes of objects. This reads
the four attributes that count and steps over the rest.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from isocenter.common.dicom.uids import is_big_endian, is_implicit, is_valid_uid
from isocenter.common.dicom.vr import (
    ITEM,
    ITEM_DELIMITATION,
    KNOWN_VRS,
    MAX_DEPTH,
    SEQUENCE_DELIMITATION,
    SHORT_LENGTH_VRS,
    UNDEFINED_LENGTH,
)
from isocenter.common.index.commitments import Reference
from isocenter.ingest.commitment.domain import MAX_REFERENCES, Refusal, Refused

MAX_ELEMENTS: Final = 1_000_000
"""Elements and items walked in one data set."""
MAX_UID_BYTES: Final = 64

_TRANSACTION: Final = 0x00081195
_REFERENCES: Final = 0x00081199
_CLASS: Final = 0x00081150
_INSTANCE: Final = 0x00081155


class _Element(NamedTuple):
    tag: int
    start: int
    length: int


def decode(data: bytes | bytearray, transfer_syntax: str) -> tuple[str, tuple[Reference, ...]]:
    """The transaction UID and the references in their order.

    Raises:
        Refused: MALFORMED, INVALID_VALUE (a UID is missing or none, or there is no reference), TOO_LARGE.
    """
    return _Decoder(data, transfer_syntax).request()


class _Decoder:
    def __init__(self, data: bytes | bytearray, transfer_syntax: str) -> None:
        self._data = data
        self._implicit = is_implicit(transfer_syntax)
        order = ">" if is_big_endian(transfer_syntax) else "<"
        self._long = struct.Struct(order + "HHL")
        self._tag = struct.Struct(order + "HH")
        self._short_length = struct.Struct(order + "H")
        self._long_length = struct.Struct(order + "L")
        self._position = 0
        self._left = MAX_ELEMENTS

    def request(self) -> tuple[str, tuple[Reference, ...]]:
        transaction = ""
        references: list[Reference] = []
        size = len(self._data)
        while self._position < size:
            element = self._next(size)
            if element.tag == _TRANSACTION:
                transaction = self._uid(element, size)
            elif element.tag == _REFERENCES:
                references += self._sequence(element, size)
            else:
                self._skip(element, size, depth=0)
        if not transaction or not references:
            raise Refused(Refusal.INVALID_VALUE)
        return transaction, tuple(references)

    def _sequence(self, element: _Element, end: int) -> list[Reference]:
        references: list[Reference] = []
        end = self._end(element, end)
        while self._position < end:
            item = self._next(end)
            if item.tag == SEQUENCE_DELIMITATION and element.length == UNDEFINED_LENGTH:
                return references
            if item.tag != ITEM:
                raise Refused(Refusal.MALFORMED)
            if len(references) >= MAX_REFERENCES:
                raise Refused(Refusal.TOO_LARGE)
            references.append(self._reference(item, end))
        if element.length == UNDEFINED_LENGTH:
            raise Refused(Refusal.MALFORMED)
        return references

    def _reference(self, item: _Element, end: int) -> Reference:
        sop_class = sop_instance = ""
        end = self._end(item, end)
        while True:
            if self._position >= end:
                if item.length == UNDEFINED_LENGTH:
                    raise Refused(Refusal.MALFORMED)
                break
            element = self._next(end)
            if element.tag == ITEM_DELIMITATION and item.length == UNDEFINED_LENGTH:
                break
            if element.tag == _CLASS:
                sop_class = self._uid(element, end)
            elif element.tag == _INSTANCE:
                sop_instance = self._uid(element, end)
            else:
                self._skip(element, end, depth=1)
        if not sop_class or not sop_instance:
            raise Refused(Refusal.INVALID_VALUE)
        return Reference(sop_class, sop_instance)

    def _next(self, end: int) -> _Element:
        self._left -= 1
        if self._left < 0:
            raise Refused(Refusal.TOO_LARGE)
        start = self._position
        if end - start < self._long.size:
            raise Refused(Refusal.MALFORMED)
        group, number, length = self._long.unpack_from(self._data, start)
        tag = group << 16 | number
        start += self._long.size
        if not self._implicit and group != 0xFFFE:
            vr = bytes(self._data[start - 4 : start - 2])
            if vr not in KNOWN_VRS:
                raise Refused(Refusal.MALFORMED)
            if vr in SHORT_LENGTH_VRS:
                (length,) = self._short_length.unpack_from(self._data, start - 2)
            elif end - start < self._long_length.size:
                raise Refused(Refusal.MALFORMED)
            else:
                (length,) = self._long_length.unpack_from(self._data, start)
                start += self._long_length.size
        if length != UNDEFINED_LENGTH and length > end - start:
            raise Refused(Refusal.MALFORMED)
        self._position = start
        return _Element(tag, start, length)

    def _end(self, element: _Element, end: int) -> int:
        return end if element.length == UNDEFINED_LENGTH else element.start + element.length

    def _uid(self, element: _Element, end: int) -> str:
        if element.length > MAX_UID_BYTES:
            raise Refused(Refusal.INVALID_VALUE)
        value = bytes(self._data[element.start : element.start + element.length])
        self._position = element.start + element.length
        uid = value.decode("ascii", "replace").strip(" \0")
        if not is_valid_uid(uid):
            raise Refused(Refusal.INVALID_VALUE)
        return uid

    def _skip(self, element: _Element, end: int, *, depth: int) -> None:
        """Steps over a value; one of undefined length is a sequence and ends where its delimiter is."""
        if element.length != UNDEFINED_LENGTH:
            self._position = element.start + element.length
            return
        if depth >= MAX_DEPTH or element.tag in {ITEM_DELIMITATION, SEQUENCE_DELIMITATION}:
            raise Refused(Refusal.MALFORMED)
        last = ITEM_DELIMITATION if element.tag == ITEM else SEQUENCE_DELIMITATION
        while True:
            inner = self._next(end)
            if inner.tag == last:
                return
            self._skip(inner, end, depth=depth + 1)
