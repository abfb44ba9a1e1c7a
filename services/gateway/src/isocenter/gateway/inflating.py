"""Reading inside a deflated data set (PS3.5 section A.5): forward only, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable

from isocenter.gateway.domain import Problem

_PIECE = 256 * 1024


class InflatedReader:
    """Byte ranges of the inflated data set.

    Ranges in ascending order cost one pass over the object; going back starts over.

    Args:
        stream: begins the deflated bytes anew (raw deflate, RFC 1951).
        limit: inflated bytes that are passed over or returned in all, so that a small object cannot keep a
            request busy for ever.
    """

    def __init__(self, stream: Callable[[], AsyncIterator[bytes]], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._spent = 0
        self._position = 0
        self._pieces: AsyncIterator[bytes] | None = None
        self._rest = b""

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Inflated bytes [start, end), cut at the end of the data set.

        Raises:
            Problem: 413 past the limit.
        """
        if self._pieces is None or start < self._position:
            self._pieces, self._position, self._rest = self._inflate(), 0, b""
        while self._position < end:
            if not self._rest:
                self._rest = await anext(self._pieces, b"")
                if not self._rest:
                    return
            skip = max(0, start - self._position)
            take = min(len(self._rest), end - self._position)
            if take > skip:
                yield self._rest[skip:take]
            self._position += take
            self._rest = self._rest[take:]

    async def _inflate(self) -> AsyncIterator[bytes]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        async for deflated in self._stream():
            pending = deflated
            while pending and not inflater.eof:
                piece = inflater.decompress(pending, _PIECE)
                pending = inflater.unconsumed_tail
                if piece:
                    yield self._charge(piece)
            if inflater.eof:
                return
        tail = inflater.flush(_PIECE)
        if tail:
            yield self._charge(tail)

    def _charge(self, piece: bytes) -> bytes:
        self._spent += len(piece)
        if self._spent > self._limit:
            raise Problem(413, "too-large", "The inflated data set passes the limit of this server.")
        return piece
