"""A streaming reader of multipart bodies (RFC 2046 section 5.1), without I/O.

python-multipart reads the form-data of browsers: it takes no preamble, no padding after a boundary and no
`multipart/related`. DICOM senders use what RFC 2046 permits, so this follows its grammar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

MAX_PART_HEADER_BYTES: Final = 16 << 10
MAX_PREAMBLE_BYTES: Final = 64 << 10
_CRLF: Final = b"\r\n"
_PADDING: Final = b" \t"


class MalformedMultipart(Exception):
    """The body does not follow RFC 2046; the text says how and quotes nothing."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """Field names are lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Never empty; valid until the next `feed`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete: its closing delimiter was seen."""


Piece = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()
    """Behind `--boundary`, before the end of its line."""
    HEADERS = auto()
    """From the line break of the delimiter's line on."""
    BODY = auto()
    """From the line break of the empty line on, which is not content."""
    EPILOGUE = auto()


class MultipartReader:
    """Cuts a body, in any pieces, into parts. Holds less than a delimiter of a part's content.

    Args:
        boundary: without the leading hyphens.
        max_parts: a body with more is refused.
    """

    def __init__(self, boundary: str, *, max_parts: int) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._max_parts = max_parts
        self._parts = 0
        self._state = _State.PREAMBLE
        # The first delimiter may stand at the very beginning: the line break before it is imagined.
        self._rest = _CRLF
        self._preamble = 0
        self._line_break = 0

    @property
    def parts(self) -> int:
        """Parts begun."""
        return self._parts

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that `data` completes. Exhaust it before feeding again. Raises MalformedMultipart."""
        buffer = self._rest + data if self._rest else data
        self._rest = b""
        position = 0
        while position < len(buffer):
            state = self._state
            if state is _State.EPILOGUE:
                return
            if state is _State.DELIMITER:
                line_end = self._delimiter_line(buffer, position)
                if line_end is None:
                    return
                position = line_end
            elif state is _State.HEADERS:
                end = buffer.find(_CRLF + _CRLF, position)
                if (len(buffer) if end < 0 else end) - position > MAX_PART_HEADER_BYTES:
                    raise MalformedMultipart("the header of a part is too long")
                if end < 0:
                    self._rest = buffer[position:]
                    return
                self._parts += 1
                if self._parts > self._max_parts:
                    raise MalformedMultipart("too many parts")
                yield PartBegin(_headers(buffer[position + len(_CRLF) : end]))
                position = end + len(_CRLF)
                self._state, self._line_break = _State.BODY, len(_CRLF)
            else:
                end = buffer.find(self._delimiter, position)
                stop = _undecided(buffer, position, self._delimiter) if end < 0 else end
                if stop > position and state is _State.BODY:
                    begin, self._line_break = position + self._line_break, 0
                    if stop > begin:
                        yield PartData(buffer[begin:stop])
                elif state is _State.PREAMBLE:
                    self._preamble += stop - position
                    if self._preamble > MAX_PREAMBLE_BYTES:
                        raise MalformedMultipart("no boundary at the beginning")
                if end < 0:
                    self._rest = buffer[stop:]
                    return
                if state is _State.BODY:
                    yield PartEnd()
                position = end + len(self._delimiter)
                self._state = _State.DELIMITER

    def finish(self) -> None:
        """Raises MalformedMultipart unless the closing delimiter was seen."""
        if self._state is not _State.EPILOGUE:
            raise MalformedMultipart("the body ends before its closing delimiter")

    def _delimiter_line(self, buffer: bytes, position: int) -> int | None:
        """Where the line break behind a delimiter begins; None while that is not known or nothing follows."""
        if buffer[position : position + 2] == b"--":
            self._state = _State.EPILOGUE
            return len(buffer)
        end = buffer.find(_CRLF, position)
        padding = (buffer[position:] if end < 0 else buffer[position:end]).strip(_PADDING)
        # A piece may end within the closing hyphens or within the line break.
        if padding and not (end < 0 and padding in {b"-", b"\r"}):
            raise MalformedMultipart("a boundary is followed by something else")
        if end < 0:
            if len(buffer) - position > MAX_PART_HEADER_BYTES:
                raise MalformedMultipart("a boundary line is too long")
            self._rest = buffer[position:]
            return None
        self._state = _State.HEADERS
        return end


def _undecided(buffer: bytes, position: int, delimiter: bytes) -> int:
    """Where the bytes begin that may turn out to be a delimiter: the end of the buffer if there are none."""
    start = max(position, len(buffer) - len(delimiter) + 1)
    while (start := buffer.find(b"\r", start)) >= 0:
        if delimiter.startswith(buffer[start:]):
            return start
        start += 1
    return len(buffer)


def _headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    unfolded = block.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
    for line in unfolded.split(_CRLF) if unfolded else ():
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise MalformedMultipart("a line of a part's header is no field")
        headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
    return headers
