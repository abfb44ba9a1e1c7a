"""A deflated data set read by inflated offsets, in bounds."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from isocenter.common.dicom.header import MAX_INFLATE_RATIO
from isocenter.common.errors import InvalidInstance, RejectReason

Read = Callable[[int, int], Awaitable[bytes]]
"""Plaintext bytes [start, end) of a Part 10 object, cut at its end."""

PIECE: Final = 256 << 10
_RATIO_FREE_BYTES: Final = 1 << 20


async def inflated(read: Read, header_bytes: int, size: int, *, limit: int) -> AsyncIterator[bytes]:
    """The inflated data set in pieces of at most 256 KiB. Memory does not grow with it.

    Args:
        read: the deflated Part 10 object.
        header_bytes: where its data set begins.
        size: of the object.
        limit: inflated bytes above which it is refused.

    Raises:
        InvalidInstance: MALFORMED if it does not inflate, TOO_LARGE beyond `limit` or 200:1.
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    produced = 0
    for start in range(header_bytes, size, PIECE):
        pending = await read(start, min(size, start + PIECE))
        consumed = start - header_bytes + len(pending)
        while True:
            try:
                piece = inflate.decompress(pending, PIECE)
            except zlib.error:
                raise InvalidInstance(RejectReason.MALFORMED, "the data set does not inflate") from None
            if not piece:
                break
            pending = inflate.unconsumed_tail
            produced += len(piece)
            if produced > limit or produced > max(_RATIO_FREE_BYTES, consumed * MAX_INFLATE_RATIO):
                raise InvalidInstance(RejectReason.TOO_LARGE, "the data set inflates beyond the limit")
            yield piece
        if inflate.eof:
            return


class InflatedReader:
    """Ranges of the Part 10 object with its data set inflated: `header_bytes` of zeros, then the data set.

    Made for one walk forwards: a step back beyond the last 256 KiB starts from the beginning again.
    """

    def __init__(self, read: Read, header_bytes: int, size: int, *, limit: int) -> None:
        self._open: Callable[[], AsyncIterator[bytes]] = lambda: inflated(
            read, header_bytes, size, limit=limit
        )
        self._header_bytes = header_bytes
        self._pieces = self._open()
        self._window = b""
        self._base = header_bytes

    async def read(self, start: int, end: int) -> bytes:
        """Inflated bytes [start, end), cut at the end. Raises InvalidInstance."""
        if start < self._base:
            self._pieces, self._window, self._base = self._open(), b"", self._header_bytes
        parts: list[bytes] = []
        position = start
        while position < end:
            stop = self._base + len(self._window)
            if position < stop:
                parts.append(self._window[position - self._base : end - self._base])
                position = min(stop, end)
                continue
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._base, self._window = stop, piece
        return b"".join(parts)
