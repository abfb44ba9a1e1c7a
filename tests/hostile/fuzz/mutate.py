"""Seeded damage: to any bytes, to PDUs of an association, to elements of a data set, to HTTP bodies."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from random import Random

from isocenter.common.dicom.uids import is_big_endian, is_deflated, is_implicit
from isocenter.common.dicom.vr import KNOWN_VRS, SHORT_LENGTH_VRS, UNDEFINED_LENGTH

NUMBERS = (0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE)
EDGES = (*NUMBERS, UNDEFINED_LENGTH)
MAX_BYTES = 1 << 20
_PDU = struct.Struct(">BxL")
_VRS = sorted(KNOWN_VRS)

Damage = Callable[[bytearray, Random], None]


def _at(data: bytearray, chance: Random) -> int:
    return chance.randrange(len(data)) if data else 0


def _flip(data: bytearray, chance: Random) -> None:
    if data:
        data[_at(data, chance)] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, chance: Random) -> None:
    if data:
        data[_at(data, chance)] = chance.randrange(256)


def _number(data: bytearray, chance: Random) -> None:
    """A length may be there: 16 or 32 bits, either order, at an edge."""
    form = chance.choice(("<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(data) > size:
        position = chance.randrange(len(data) - size)
        struct.pack_into(form, data, position, chance.choice(EDGES) & ((1 << 8 * size) - 1))


def _cut(data: bytearray, chance: Random) -> None:
    del data[_at(data, chance) :]


def _delete(data: bytearray, chance: Random) -> None:
    position = _at(data, chance)
    del data[position : position + chance.choice((1, 2, 4, 8, 64))]


def _insert(data: bytearray, chance: Random) -> None:
    position = _at(data, chance)
    data[position:position] = chance.randbytes(chance.choice((1, 2, 4, 8, 64, 1024)))


def _repeat(data: bytearray, chance: Random) -> None:
    position = _at(data, chance)
    piece = data[position : position + chance.choice((1, 4, 16, 256))]
    data[position:position] = piece * chance.choice((1, 2, 64))


def _move(data: bytearray, chance: Random) -> None:
    start, size = _at(data, chance), chance.choice((2, 8, 64))
    piece = data[start : start + size]
    del data[start : start + size]
    position = _at(data, chance)
    data[position:position] = piece


_BYTES: tuple[Damage, ...] = (_flip, _byte, _number, _number, _cut, _delete, _insert, _repeat, _move)


def some_bytes(data: bytes, chance: Random) -> bytes:
    """One to eight wounds anywhere."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        chance.choice(_BYTES)(out, chance)
    return bytes(out[:MAX_BYTES])


# -- associations -------------------------------------------------------------------------------------------


def pdus(stream: bytes) -> list[bytes]:
    """Whole PDUs; the rest, if any, as the last one."""
    found, position = [], 0
    while position + 6 <= len(stream):
        _, length = _PDU.unpack_from(stream, position)
        found.append(stream[position : position + 6 + length])
        position += 6 + length
    return [*found, stream[position:]] if position < len(stream) else found


def association(streams: list[bytes], chance: Random) -> bytes:
    """One of the recorded streams, damaged as bytes or as PDUs."""
    stream = chance.choice(streams)
    how = chance.randrange(10)
    if how < 3:
        return some_bytes(stream, chance)
    if how == 3:
        other = chance.choice(streams)
        return stream[: chance.randrange(len(stream))] + other[chance.randrange(len(other)) :]
    units = pdus(stream)
    for _ in range(chance.choice((1, 1, 2, 3))):
        number = chance.randrange(len(units))
        unit = units[number]
        act = chance.randrange(7)
        if act == 0:
            del units[number]
        elif act == 1:
            units.insert(number, unit)
        elif act == 2:
            units.insert(chance.randrange(len(units)), units.pop(number))
        elif act == 3 and len(unit) >= 6:
            length = chance.choice((len(unit) - 7, len(unit) - 5, *EDGES)) & 0xFFFFFFFF
            units[number] = _PDU.pack(unit[0], length) + unit[6:]
        elif act == 4:
            kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0xFF))
            body = chance.randbytes(chance.choice((0, 1, 4, 68, 1000)))
            units.insert(number, _PDU.pack(kind, len(body)) + body)
        elif act == 5:
            units[number] = unit[:6] + some_bytes(unit[6:], chance)
        else:
            inside = some_bytes(unit[6:], chance)
            units[number] = _PDU.pack(unit[0] if unit else 4, len(inside)) + inside
        if not units:
            break
    return b"".join(units)[:MAX_BYTES]


# -- data sets ----------------------------------------------------------------------------------------------


def elements(data: bytes, syntax: str) -> list[bytes]:
    """The top level, as far as it can be followed; the rest is the last one."""
    order = ">" if is_big_endian(syntax) else "<"
    found, position = [], 0
    while position + 8 <= len(data):
        group, _, length = struct.unpack_from(f"{order}HHI", data, position)
        start = position + 8
        if not is_implicit(syntax):
            vr, length = struct.unpack_from(f"{order}2sH", data, position + 4)
            if vr not in SHORT_LENGTH_VRS:
                if position + 12 > len(data):
                    break
                start, (length,) = start + 4, struct.unpack_from(f"{order}I", data, start)
        if length == UNDEFINED_LENGTH or group == 0xFFFE or start + length > len(data):
            break
        found.append(data[position : start + length])
        position = start + length
    return [*found, data[position:]] if position < len(data) else found


def data_set(data: bytes, syntax: str, chance: Random) -> bytes:
    """Damaged as bytes, or element by element; what is deflated also beneath the deflation."""
    if is_deflated(syntax):
        if chance.random() < 0.3:
            return some_bytes(data, chance)
        plain = data_set(zlib.decompress(data, -zlib.MAX_WBITS), "1.2.840.10008.1.2.1", chance)
        squeeze = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        return squeeze.compress(plain) + squeeze.flush()
    if chance.random() < 0.35:
        return some_bytes(data, chance)
    units = elements(data, syntax)
    order = ">" if is_big_endian(syntax) else "<"
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not units:
            break
        number = chance.randrange(len(units))
        unit = bytearray(units[number])
        act = chance.randrange(9)
        if act == 0:
            del units[number]
        elif act == 1:
            units.insert(number, bytes(unit))
        elif act == 2:
            units.insert(chance.randrange(len(units)), units.pop(number))
        elif act == 3 and len(unit) >= 8:
            struct.pack_into(f"{order}H", unit, 6, chance.choice(EDGES) & 0xFFFF)
            units[number] = bytes(unit)
        elif act == 4 and len(unit) >= 12:
            struct.pack_into(f"{order}I", unit, chance.choice((4, 8)), chance.choice(EDGES))
            units[number] = bytes(unit)
        elif act == 5 and len(unit) >= 6:
            unit[4:6] = chance.choice((*_VRS, b"ZZ", b"\0\0", chance.randbytes(2)))
            units[number] = bytes(unit)
        elif act == 6 and len(unit) >= 4:
            struct.pack_into(
                f"{order}HH", unit, 0, chance.choice((0, 2, 8, 0x20, 0x28, 0x7FE0, 0xFFFE)), 0x10
            )
            units[number] = bytes(unit)
        elif act == 7:
            units.insert(number, generated(chance, order))
        else:
            units[number] = some_bytes(bytes(unit), chance)
    return b"".join(units)[:MAX_BYTES]


def generated(chance: Random, order: str = "<", depth: int = 0) -> bytes:
    """Elements that nobody recorded: any tag, any VR, sequences of either length in each other."""
    out = []
    # One way down only: what branches at every level is not finished in this life.
    for _ in range(1 if depth else chance.choice((1, 1, 2, 5))):
        group = chance.choice((0x0008, 0x0009, 0x0010, 0x0020, 0x0028, 0x0040, 0x5400, 0x7FE0, 0xFFFC))
        head = struct.pack(f"{order}HH", group, chance.choice((0, 0x10, 0x1010, chance.randrange(1 << 16))))
        if depth < 60 and chance.random() < (0.9 if depth else 0.3):
            item = generated(chance, order, depth + 1)
            known = chance.random() < 0.5
            wrapped = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(item) if known else UNDEFINED_LENGTH)
            wrapped += item + (b"" if known else struct.pack(f"{order}HHI", 0xFFFE, 0xE00D, 0))
            length = len(wrapped) if chance.random() < 0.5 else UNDEFINED_LENGTH
            end = struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0) if length == UNDEFINED_LENGTH else b""
            vr = chance.choice((b"SQ", b"SQ", b"SQ", b"UN", b"OB"))
            out.append(head + vr + struct.pack(f"{order}xxI", length) + wrapped + end)
            continue
        vr = chance.choice(_VRS)
        value = chance.randbytes(chance.choice((0, 1, 2, 4, 16, 300)))
        form = f"{order}H" if vr in SHORT_LENGTH_VRS else f"{order}xxI"
        out.append(head + vr + struct.pack(form, len(value)) + value)
    return b"".join(out)


# -- HTTP ---------------------------------------------------------------------------------------------------


def body(whole: bytes, chance: Random) -> bytes:
    """A multipart body, damaged mostly where its delimiters and part headers are."""
    if chance.random() < 0.3:
        return some_bytes(whole, chance)
    lines = whole.split(b"\r\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        number = chance.choice((0, 1, 2, len(lines) - 2, len(lines) - 1, chance.randrange(len(lines))))
        number = max(0, min(number, len(lines) - 1))
        act = chance.randrange(4)
        if act == 0:
            lines.insert(number, lines[number])
        elif act == 1 and len(lines) > 1:
            del lines[number]
        elif act == 2:
            lines[number] = some_bytes(lines[number], chance)
        else:
            lines.insert(number, lines[0] + chance.choice((b"", b"--", b" ", b"x")))
    return b"\r\n".join(lines)[: 2 * MAX_BYTES]
