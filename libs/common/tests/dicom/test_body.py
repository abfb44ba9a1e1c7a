"""A data set is held to its lengths, its depth and its pixels, and what is real passes."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.common.dicom import preamble
from isocenter.common.dicom.body import BodyScanner
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance, RejectReason

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE, MPEG4 = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.102"
LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT"}
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

# What their data sets break off in, or promise: DCMTK's dcmdump refuses the first three as well.
UNSOUND = {
    "MR_truncated.dcm": RejectReason.MALFORMED,
    "rtplan_truncated.dcm": RejectReason.MALFORMED,
    "emri_small_jpeg_2k_lossless_too_short.dcm": RejectReason.MALFORMED,
}


def element(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<xxI", size) if vr in LONG else struct.pack("<H", size)) + value


def mark(tag: int, length: int = 0) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def refusal(data: bytes, transfer_syntax: str = EXPLICIT, piece: int = 1 << 20) -> RejectReason | None:
    scanner = BodyScanner(transfer_syntax)
    try:
        for start in range(0, len(data), piece):
            scanner.feed(data[start : start + piece])
        scanner.finish()
    except InvalidInstance as error:
        return error.reason
    return None


def image(rows: int, columns: int, frames: str, pixels: int, *, bits: int = 16) -> bytes:
    return (
        element(0x00280002, b"US", struct.pack("<H", 1))
        + element(0x00280008, b"IS", frames.encode().ljust(len(frames) + len(frames) % 2))
        + element(0x00280010, b"US", struct.pack("<H", rows))
        + element(0x00280011, b"US", struct.pack("<H", columns))
        + element(0x00280100, b"US", struct.pack("<H", bits))
        + element(0x7FE00010, b"OW", bytes(pixels))
    )


def test_every_file_that_is_accepted_is_sound(accepted_path: Path) -> None:
    splitter = Part10Splitter(safe=True)
    data_set = bytes(splitter.feed(accepted_path.read_bytes()))
    assert splitter.meta is not None
    syntax = splitter.meta.transfer_syntax_uid
    expected = UNSOUND.get(accepted_path.name)
    assert expected == refusal(data_set, syntax)
    if len(data_set) < 200_000:
        assert expected == refusal(data_set, syntax, piece=random.Random(1).randrange(1, 999))


def test_a_length_that_points_past_the_end_is_refused() -> None:
    whole = element(0x00100010, b"PN", b"A^B ") + element(0x00280010, b"US", b"\1\0")
    assert refusal(whole) is None
    for cut in range(1, len(whole)):
        # Between two elements nothing is missing.
        assert refusal(whole[:cut]) is (None if cut == 12 else RejectReason.MALFORMED), cut
    assert refusal(whole + element(0x7FE00010, b"OW", b"12", length=0xFFFFFFFE)) is RejectReason.MALFORMED
    assert refusal(whole + bytes(7)) is None
    assert refusal(whole + bytes(400)) is None


@pytest.mark.parametrize("defined", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_depth_is_bounded_however_it_is_written(syntax: str, *, defined: bool) -> None:
    def nested(depth: int) -> bytes:
        body = b""
        for _ in range(depth):
            length = len(body) if defined else UNDEFINED
            item = mark(ITEM, length) + body + (b"" if defined else mark(ITEM_END))
            length = len(item) if defined else UNDEFINED
            value = item + (b"" if defined else mark(SEQUENCE_END))
            if syntax == EXPLICIT:
                body = element(0x00081140, b"SQ", value, length=length)
            else:
                body = mark(0x00081140, length) + value
        return body

    assert refusal(nested(32), syntax) is None
    assert refusal(nested(33), syntax) is RejectReason.TOO_DEEP
    assert refusal(nested(2_000), syntax, piece=997) is RejectReason.TOO_DEEP


def test_a_sequence_holds_what_it_says_it_holds() -> None:
    inner = element(0x00080060, b"CS", b"CT")
    item = mark(ITEM, len(inner)) + inner
    assert refusal(element(0x00081140, b"SQ", item)) is None
    for wrong in (len(inner) - 2, len(inner) + 2):
        assert refusal(element(0x00081140, b"SQ", mark(ITEM, wrong) + inner)) is RejectReason.MALFORMED
    long = mark(ITEM, len(inner)) + element(0x00080060, b"CS", b"CT", length=60)
    assert refusal(element(0x00081140, b"SQ", long) + bytes(100)) is RejectReason.MALFORMED
    assert refusal(element(0x00081140, b"SQ", inner)) is RejectReason.MALFORMED
    assert refusal(mark(ITEM_END)) is RejectReason.MALFORMED
    open_ended = element(0x00081140, b"SQ", mark(ITEM, UNDEFINED) + inner, length=UNDEFINED)
    assert refusal(open_ended) is RejectReason.MALFORMED
    assert refusal(open_ended + mark(SEQUENCE_END)) is None  # the item's delimiter is missing: tolerated


def test_more_pixels_than_there_are_may_not_be_promised() -> None:
    assert refusal(image(4, 4, "2", 64)) is None
    assert refusal(image(4, 4, "2", 66)) is None
    assert refusal(image(4, 4, "2", 0)) is None
    assert refusal(image(4, 4, "2", 62)) is RejectReason.PIXEL_MISMATCH
    # 65,536 x 65,536 is 0 in 32 bits, and so is this in 64.
    assert refusal(image(65535, 65535, "2147483647", 64)) is RejectReason.PIXEL_MISMATCH
    assert refusal(image(32768, 32768, str(1 << 34), 64)) is RejectReason.PIXEL_MISMATCH
    assert refusal(image(4, 4, "9" * 60, 64)) is RejectReason.PIXEL_MISMATCH
    assert refusal(image(4, 4, "-1", 32)) is None
    assert refusal(image(3, 3, "1", 2, bits=1)) is None
    assert refusal(image(4, 4, "2", 62), DEFLATED) is RejectReason.MALFORMED
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = squeeze.compress(image(4, 4, "2", 62)) + squeeze.flush()
    assert refusal(deflated, DEFLATED) is RejectReason.PIXEL_MISMATCH


def test_frames_need_fragments_where_each_has_its_own() -> None:
    head = image(4, 4, "3", 0)[:-12]
    fragments = mark(ITEM) + (mark(ITEM, 2) + b"ab") * 2 + mark(SEQUENCE_END)
    pixels = head + element(0x7FE00010, b"OB", fragments, length=UNDEFINED)
    assert refusal(pixels, RLE) is RejectReason.PIXEL_MISMATCH
    assert refusal(pixels, MPEG4) is None
    assert refusal(pixels[:-8], RLE) is RejectReason.MALFORMED
    three = head + element(0x7FE00010, b"OB", mark(ITEM) + (mark(ITEM, 2) + b"ab") * 3, length=UNDEFINED)
    assert refusal(three + mark(SEQUENCE_END), RLE) is None


def test_deflate_is_bounded_in_ratio_and_size() -> None:
    def squeezed(size: int) -> bytes:
        squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return squeeze.compress(element(0x7FE00010, b"OW", bytes(size))) + squeeze.flush()

    assert refusal(squeezed(1 << 19), DEFLATED) is None
    assert refusal(squeezed(8 << 20), DEFLATED) is RejectReason.TOO_LARGE
    assert refusal(squeezed(1 << 19)[:-4], DEFLATED) is RejectReason.MALFORMED
    small = BodyScanner(DEFLATED, inflated_limit=1 << 18)
    with pytest.raises(InvalidInstance) as refused:
        small.feed(squeezed(1 << 19))
    assert refused.value.reason is RejectReason.TOO_LARGE


def test_elements_are_counted() -> None:
    assert refusal(element(0x00080000, b"UL") * 1_000_002) is RejectReason.TOO_LARGE
    items = element(0x00081140, b"SQ", mark(ITEM) * 1_000_002, length=UNDEFINED)
    assert refusal(items) is RejectReason.TOO_LARGE


@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from([IMPLICIT, EXPLICIT, BIG, DEFLATED, RLE]))
def test_no_bytes_do_more_than_be_refused_and_pieces_do_not_matter(
    data: bytes, piece: int, syntax: str
) -> None:
    assert refusal(data, syntax) == refusal(data, syntax, piece)


RUN = (
    *(b"MZ\x90\0", b"\x7fELF\2", b"#!/bin/sh\n", b"<html>", b"\n <!DOCTYPE html>", b"hello<script>"),
    *(b"%PDF-1.7", b"PK\3\4", b"\xca\xfe\xba\xbe", b"<?php ", b"\xef\xbb\xbf<svg onload=x>", b"\x1f\x8b\x08"),
)


@pytest.mark.parametrize("text", RUN)
def test_preambles_that_something_would_run_are_unsafe(text: bytes) -> None:
    assert preamble.is_unsafe(text.ljust(128, b"\0"))


@pytest.mark.parametrize("text", [b"", b"\1", b"II*\0\xe8\5\x08", b"MM\0*", b"Made by a scanner"])
def test_preambles_of_images_and_of_habit_are_kept(text: bytes) -> None:
    assert not preamble.is_unsafe(text.ljust(128, b"\0"))
