"""Frames of single-bit images, which need not begin at a byte (PS3.5 section 8.1.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def aligned(pieces: AsyncIterator[bytes], bit_offset: int, bits: int) -> AsyncIterator[bytes]:
    """`bits` bits from `bit_offset` on, moved to the first byte's lowest bit; the last byte is zero-filled.

    Pixels fill a byte from its lowest bit. Memory does not grow with the frame.
    """
    left, carried = bits, b""
    async for piece in pieces:
        data = carried + piece
        whole = min(len(data) * 8 - bit_offset, left) // 8
        if whole > 0:
            number = int.from_bytes(data, "little") >> bit_offset
            yield (number & ((1 << whole * 8) - 1)).to_bytes(whole, "little")
            left -= whole * 8
            data = data[whole:]
        carried = data
    if left:
        number = int.from_bytes(carried, "little") >> bit_offset
        yield (number & ((1 << left) - 1)).to_bytes((left + 7) // 8, "little")
