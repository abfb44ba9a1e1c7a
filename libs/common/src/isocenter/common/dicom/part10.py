"""The Part 10 file format (PS3.10 section 7): preamble and file meta information, written and split off."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from isocenter.common.dicom import preamble
from isocenter.common.dicom.uids import is_deflated, is_valid_uid
from isocenter.common.dicom.vr import SHORT_LENGTH_VRS
from isocenter.common.errors import InvalidInstance, RejectReason

IMPLEMENTATION_CLASS_UID: Final = "2.25.176764939679964867496148656791204954034"
IMPLEMENTATION_VERSION_NAME: Final = "ISOCENTER_1"

DEFAULT_META_LIMIT: Final = 1 << 20
"""Bytes of preamble and file meta information above which a file is refused. Real ones are below 1 KiB."""

_PREFIX_LENGTH: Final = 132
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<I")
_WANTED: Final = {0x0002: "sop_class_uid", 0x0003: "sop_instance_uid", 0x0010: "transfer_syntax_uid"}
# No UID is longer than 64 bytes; some writers pad generously.
_MAX_UID_VALUE: Final = 128


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What file meta information says. The two SOP UIDs are empty where it says nothing.

    Attributes:
        header_bytes: length of preamble, prefix and file meta information: the offset of the data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    header_bytes: int


def encode_file_meta(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    source_application_entity_title: str = "",
) -> bytes:
    """Preamble of zeros, `DICM` and group 2 in explicit VR little endian. Ends where the data set begins."""
    elements = [
        _long_element(0x0001, b"OB", b"\x00\x01"),
        _element(0x0002, b"UI", sop_class_uid, b"\0"),
        _element(0x0003, b"UI", sop_instance_uid, b"\0"),
        _element(0x0010, b"UI", transfer_syntax_uid, b"\0"),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0"),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" "),
    ]
    if source_application_entity_title:
        elements.append(_element(0x0016, b"AE", source_application_entity_title, b" "))
    body = b"".join(elements)
    group_length = _SHORT.pack(2, 0, b"UL", 4) + _LONG.pack(len(body))
    return bytes(128) + b"DICM" + group_length + body


def _element(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    if len(value) % 2:
        value += padding
    return _SHORT.pack(2, element, vr, len(value)) + value


def _long_element(element: int, vr: bytes, value: bytes) -> bytes:
    return _SHORT.pack(2, element, vr, 0) + _LONG.pack(len(value)) + value


class Part10Splitter:
    """Splits a Part 10 byte stream, in any pieces, into file meta information and data set.

    Group 2 is walked element by element. Its declared length (0002,0000) is believed only where an element
    ends exactly there and the data set is deflated (whose first bytes could pass for group 2); otherwise
    group 2 ends at the first element of another group, so a missing or wrong group length does no harm.

    Args:
        limit: bytes of preamble and file meta information that are buffered at most.
        safe: refuse preambles that begin something else than an image, see `preamble`.
    """

    def __init__(self, limit: int = DEFAULT_META_LIMIT, *, safe: bool = False) -> None:
        self.meta: FileMeta | None = None
        self._limit = limit
        self._safe = safe
        self._buffer = bytearray()
        self._position = _PREFIX_LENGTH
        self._declared_end: int | None = None
        self._values: dict[str, str] = {}

    def feed(self, data: bytes | bytearray | memoryview) -> bytes | memoryview:
        """The data set bytes contained in `data`; a view of it once file meta information is behind.

        Raises:
            InvalidInstance: NOT_DICOM, INVALID_UID, MALFORMED, TOO_LARGE or UNSAFE_PREAMBLE.
        """
        if self.meta is not None:
            return memoryview(data)
        before = len(self._buffer)
        # One byte more than the limit is enough to know that it is passed.
        self._buffer += memoryview(data)[: max(0, self._limit + 1 - before)]
        meta = self.meta = self._walk(at_end=False)
        if meta is None:
            if len(self._buffer) > self._limit:
                raise InvalidInstance(RejectReason.TOO_LARGE, "file meta information passes the limit")
            return b""
        # The data set may begin in an earlier piece: up to 7 bytes are needed to see that group 2 is over.
        earlier = bytes(self._buffer[meta.header_bytes : before]) if meta.header_bytes < before else b""
        self._buffer.clear()
        rest = memoryview(data)[max(0, meta.header_bytes - before) :]
        return earlier + bytes(rest) if earlier else rest

    def finish(self) -> bytes:
        """Ends the stream. Data set bytes not handed out yet: only where fewer than two follow group 2.

        Raises:
            InvalidInstance: NOT_DICOM when the bytes end within preamble or file meta information.
        """
        if self.meta is not None:
            return b""
        meta = self.meta = self._walk(at_end=True)
        if meta is None:
            raise InvalidInstance(RejectReason.NOT_DICOM, "ends within preamble or file meta information")
        rest = bytes(self._buffer[meta.header_bytes :])
        self._buffer.clear()
        return rest

    def _walk(self, *, at_end: bool) -> FileMeta | None:
        buffer, size = self._buffer, len(self._buffer)
        if size < _PREFIX_LENGTH:
            return None
        if buffer[128:132] != b"DICM":
            raise InvalidInstance(RejectReason.NOT_DICOM, "no DICM prefix at offset 128")
        if self._safe and preamble.is_unsafe(buffer[:128]):
            raise InvalidInstance(RejectReason.UNSAFE_PREAMBLE, "the preamble begins something to run")
        while True:
            position = self._position
            if self._is_over(position, at_end=at_end):
                return self._complete(position)
            if size < position + 8:
                return None
            _, element, vr, length = _SHORT.unpack_from(buffer, position)
            if not vr.isalpha() or not vr.isupper():
                raise InvalidInstance(RejectReason.NOT_DICOM, "file meta information is not explicit VR")
            start = position + 8
            if vr not in SHORT_LENGTH_VRS:
                if size < position + 12:
                    return None
                (length,) = _LONG.unpack_from(buffer, start)
                start += 4
            end = start + length
            if end > self._limit:
                raise InvalidInstance(RejectReason.TOO_LARGE, "file meta information passes the limit")
            if size < end:
                return None
            self._take(element, start, end)
            self._position = end

    def _is_over(self, position: int, *, at_end: bool) -> bool:
        buffer = self._buffer
        if position == self._declared_end and is_deflated(self._values.get("transfer_syntax_uid", "")):
            return True
        if len(buffer) >= position + 2:
            return buffer[position] != 2 or buffer[position + 1] != 0
        return at_end

    def _take(self, element: int, start: int, end: int) -> None:
        if element == 0 and end - start == 4:
            self._declared_end = end + int(_LONG.unpack_from(self._buffer, start)[0])
        name = _WANTED.get(element)
        if name is None:
            return
        if end - start > _MAX_UID_VALUE:
            raise InvalidInstance(
                RejectReason.INVALID_UID, f"{name} of the file meta information is too long"
            )
        self._values[name] = bytes(self._buffer[start:end]).decode("ascii", "replace").strip(" \0")

    def _complete(self, position: int) -> FileMeta:
        for name, value in self._values.items():
            if value and not is_valid_uid(value):
                raise InvalidInstance(
                    RejectReason.INVALID_UID, f"{name} of the file meta information is no UID"
                )
        transfer_syntax_uid = self._values.get("transfer_syntax_uid", "")
        if not transfer_syntax_uid:
            raise InvalidInstance(RejectReason.NOT_DICOM, "file meta information names no transfer syntax")
        return FileMeta(
            sop_class_uid=self._values.get("sop_class_uid", ""),
            sop_instance_uid=self._values.get("sop_instance_uid", ""),
            transfer_syntax_uid=transfer_syntax_uid,
            header_bytes=position,
        )
