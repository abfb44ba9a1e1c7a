"""Random data sets and hostile bytes, in random pieces."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from isocenter.common.dicom.describe import describe_bytes
from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import Part10Splitter, encode_file_meta
from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import InvalidInstance, RejectReason

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

component = st.integers(0, 10**9).map(str)
uid = st.lists(component, min_size=2, max_size=6).map(".".join)
text = st.text("ABCxyz 0123", max_size=40)
raw = st.binary(max_size=200).map(lambda data: data + bytes(len(data) % 2))
elements = st.one_of(
    st.tuples(st.sampled_from([0x00080050, 0x00080090, 0x00100010, 0x00181030]), st.just("LO"), text),
    st.tuples(st.sampled_from([0x00090010, 0x00110011]), st.just("LO"), text),
    st.tuples(st.sampled_from([0x00091001, 0x00111101]), st.sampled_from(["OB", "UN"]), raw),
    st.tuples(st.sampled_from([0x00091002, 0x00280010]), st.just("US"), st.integers(0, 65535)),
    st.tuples(st.sampled_from([0x00091003, 0x00181041]), st.just("UT"), text),
    st.tuples(st.sampled_from([0x7FE00010, 0x00091004]), st.just("OW"), raw),
)


@st.composite
def datasets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    dataset = Dataset()
    for tag, vr, value in draw(st.lists(elements, max_size=6)):
        dataset.add_new(tag, vr, value)
    if depth:
        for tag in draw(st.lists(st.sampled_from([0x00081140, 0x00091005, 0x00400275]), max_size=2)):
            items = draw(st.lists(datasets(depth=depth - 1), max_size=2))
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
                # The same UIDs inside a sequence are another instance's.
                item.SOPInstanceUID = draw(uid)
                item.SeriesInstanceUID = draw(uid)
            dataset.add_new(tag, "SQ", Items(items))
            dataset[tag].is_undefined_length = draw(st.booleans())
    return dataset


def encode(dataset: Dataset, syntax: str) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def scan(pieces: Sequence[bytes]) -> InstanceHeader:
    splitter = Part10Splitter()
    scanner: HeaderScanner | None = None
    for piece in pieces:
        rest = splitter.feed(piece)
        if splitter.meta is not None:
            scanner = scanner or HeaderScanner(splitter.meta.transfer_syntax_uid)
            scanner.feed(rest)
    rest = splitter.finish()
    assert splitter.meta is not None
    scanner = scanner or HeaderScanner(splitter.meta.transfer_syntax_uid)
    scanner.feed(rest)
    return scanner.finish()


@settings(max_examples=150, deadline=None)
@given(
    datasets(), st.tuples(uid, uid, uid, uid), st.sampled_from(SYNTAXES), st.lists(st.integers(0, 1 << 20))
)
def test_any_data_set_in_any_pieces_reads_as_written(
    dataset: Dataset, uids: tuple[str, str, str, str], syntax: str, cuts: list[int]
) -> None:
    for keyword, value in zip(UIDS, uids, strict=True):
        setattr(dataset, keyword, value)
    data = encode(dataset, syntax)
    theirs = pydicom.dcmread(io.BytesIO(data))

    header = scan(cut(data, cuts))

    assert InstanceHeader(*(str(theirs[keyword].value) for keyword in UIDS)) == header
    if syntax != DeflatedExplicitVRLittleEndian:
        description = describe_bytes(data)
        assert header == description.header
        assert description.complete


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
    st.lists(st.integers(0, 1 << 20), max_size=5),
)
@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small_bigendian", "MR_small_implicit", "rtplan", "image_dfl", "nested_priv_SQ"]
)
def test_changed_bytes_are_read_or_refused(
    name: str, changes: list[tuple[int, int]], cuts: list[int]
) -> None:
    path = Path(pydicom.__file__).parent / "data/test_files" / f"{name}.dcm"
    data = bytearray(path.read_bytes()[:6000])
    for position, value in changes:
        data[position % len(data)] = value
    assert_read_or_refused(lambda: scan(cut(bytes(data), cuts)))
    assert_read_or_refused(lambda: describe_bytes(bytes(data)).header)


def assert_read_or_refused(read: Callable[[], InstanceHeader]) -> None:
    """Any other error fails the test, and so does a hang, by the suite's timeout."""
    try:
        header = read()
    except InvalidInstance:
        return
    assert all(is_valid_uid(value) for value in astuple(header))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(SYNTAXES), st.lists(st.integers(0, 400), max_size=5))
def test_noise_is_read_or_refused(noise: bytes, syntax: str, cuts: list[int]) -> None:
    scanner = HeaderScanner(syntax)

    def read() -> InstanceHeader:
        for piece in cut(noise, cuts):
            scanner.feed(piece)
        return scanner.finish()

    assert_read_or_refused(read)


EXPLICIT = str(ExplicitVRLittleEndian)
OPEN_SEQUENCE = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)


def refusal(data: bytes, syntax: str = EXPLICIT, limit: int = 8 << 20, step: int = 1 << 16) -> RejectReason:
    return refused(HeaderScanner(syntax, limit), data, step)


def refused(reader: HeaderScanner | Part10Splitter, data: bytes, step: int) -> RejectReason:
    try:
        for start in range(0, len(data), step):
            reader.feed(data[start : start + step])
        reader.finish()
    except InvalidInstance as error:
        return error.reason
    pytest.fail("was not refused")


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def long_element(tag: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)


SOP_CLASS = element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
SOP_INSTANCE = element(0x00080018, b"UI", b"1.2.3.4\0")
STUDY = element(0x0020000D, b"UI", b"1.2.3\0")
SERIES = element(0x0020000E, b"UI", b"1.2.5\0")
HEADER = InstanceHeader("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", "1.2.3", "1.2.5")


def test_nesting_is_bounded() -> None:
    assert refusal((OPEN_SEQUENCE + OPEN_ITEM) * 33) == RejectReason.TOO_DEEP
    assert refusal((OPEN_SEQUENCE + OPEN_ITEM) * 100_000) == RejectReason.TOO_DEEP
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * 32
    scanner = HeaderScanner(EXPLICIT)
    nested = (OPEN_SEQUENCE + OPEN_ITEM) * 32 + closed
    assert scanner.feed(SOP_CLASS + SOP_INSTANCE + nested + STUDY + SERIES) == HEADER


def test_a_deflate_bomb_is_too_large() -> None:
    def deflated(data: bytes) -> bytes:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        return squeeze.compress(data) + squeeze.flush()

    filler = long_element(0x00091001, b"UN", 500 << 20) + bytes(64 << 20)
    syntax = str(DeflatedExplicitVRLittleEndian)
    assert refusal(deflated(filler), syntax) == RejectReason.TOO_LARGE
    assert refusal(deflated(filler), syntax, limit=1 << 30) == RejectReason.TOO_LARGE
    assert refusal(b"\xff" * 100, syntax) == RejectReason.MALFORMED


def test_a_header_behind_too_much_is_too_large() -> None:
    filler = long_element(0x00091001, b"UN", 9 << 20) + bytes(9 << 20)
    assert refusal(filler + SOP_CLASS) == RejectReason.TOO_LARGE
    assert refusal(bytes(8) * (2 << 20), str(ImplicitVRLittleEndian)) == RejectReason.MALFORMED


def test_a_length_past_the_end_is_malformed() -> None:
    assert refusal(SOP_CLASS + long_element(0x00091001, b"OB", 1000) + bytes(10)) == RejectReason.MALFORMED
    assert refusal(SOP_CLASS[:-3]) == RejectReason.MALFORMED


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", RejectReason.MISSING_UID),
        (b"\0\0", RejectReason.MISSING_UID),
        (b"../../etc/passwd", RejectReason.INVALID_UID),
        (b"1.02", RejectReason.INVALID_UID),
        (b"1.2\\1.3\0", RejectReason.INVALID_UID),
        (b"1." + b"2" * 78, RejectReason.INVALID_UID),
        (b"1." * 200 + b"1", RejectReason.INVALID_UID),
        (b"1.2.\xd9\xa3", RejectReason.INVALID_UID),
    ],
)
def test_uids_that_are_none(value: bytes, reason: RejectReason) -> None:
    data = SOP_CLASS + SOP_INSTANCE + element(0x0020000D, b"UI", value) + SERIES
    assert reason == refusal(data)
    assert reason == refusal(data, step=1)


def test_a_missing_uid_is_named_once_its_place_is_passed() -> None:
    later = element(0x00200010, b"SH", b"ID")
    for order in ([SOP_CLASS, STUDY, SERIES], [SOP_CLASS, SOP_INSTANCE, STUDY]):
        assert refusal(b"".join(order) + later) == RejectReason.MISSING_UID
        assert refusal(b"".join(order)) == RejectReason.MISSING_UID
    assert refusal(b"") == RejectReason.MISSING_UID


def test_a_uid_that_contradicts_itself_is_malformed() -> None:
    again = element(0x00080018, b"UI", b"1.2.3.5\0")
    assert refusal(SOP_CLASS + SOP_INSTANCE + again + STUDY + SERIES) == RejectReason.MALFORMED


@pytest.mark.parametrize(
    "extra",
    [
        long_element(0x00090001, b"ZZ", 6) + b"future",
        element(0x00090001, b"LO", b"odd"),
        struct.pack("<HHI", 0x0009, 0x0001, 4) + b"none",
        long_element(0x00091001, b"UN", 0xFFFFFFFF)
        + OPEN_ITEM
        + struct.pack("<HHI", 0x0008, 0x0018, 2)
        + b"1\0"
        + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        OPEN_SEQUENCE + OPEN_ITEM + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        long_element(0x00091001, b"OB", 0xFFFFFFFF)
        + struct.pack("<HHI4s", 0xFFFE, 0xE000, 4, b"frag")
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ],
    ids=["unknown VR", "odd length", "no VR", "UN of undefined length", "item not closed", "fragments"],
)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_what_archives_meet_is_tolerated(extra: bytes, step: int) -> None:
    data = SERIES + STUDY + SOP_INSTANCE + extra + SOP_CLASS
    scanner = HeaderScanner(EXPLICIT)
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])
    assert scanner.finish() == HEADER


@pytest.mark.parametrize("title", ["", "STORESCU", "SIXTEEN_CHARS_AE"])
def test_file_meta_information_is_what_pydicom_reads(title: str) -> None:
    encoded = encode_file_meta(
        sop_class_uid=HEADER.sop_class_uid,
        sop_instance_uid=HEADER.sop_instance_uid,
        transfer_syntax_uid=EXPLICIT,
        source_application_entity_title=title,
    )
    data = encoded + SOP_CLASS + SOP_INSTANCE + STUDY + SERIES
    theirs = pydicom.dcmread(io.BytesIO(data))
    assert theirs.file_meta.MediaStorageSOPInstanceUID == HEADER.sop_instance_uid
    assert theirs.file_meta.get("SourceApplicationEntityTitle", "") == title
    assert theirs.file_meta.FileMetaInformationGroupLength == len(encoded) - 144
    splitter = Part10Splitter()
    assert splitter.feed(data) == data[len(encoded) :]
    assert splitter.meta is not None
    assert splitter.meta.header_bytes == len(encoded)


def test_a_deflated_data_set_that_looks_like_group_2_is_found_by_the_group_length() -> None:
    encoded = encode_file_meta(
        sop_class_uid="1.2",
        sop_instance_uid="1.3",
        transfer_syntax_uid=str(DeflatedExplicitVRLittleEndian),
    )
    splitter = Part10Splitter()
    assert splitter.feed(encoded + b"\x02\x00\x10\x00") == b"\x02\x00\x10\x00"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", RejectReason.NOT_DICOM),
        (bytes(140), RejectReason.NOT_DICOM),
        (bytes(128) + b"DICM", RejectReason.NOT_DICOM),
        (bytes(128) + b"DICM" + SOP_CLASS, RejectReason.NOT_DICOM),
        (bytes(128) + b"DICM" + struct.pack("<HHI", 2, 0x10, 4) + b"1.2\0", RejectReason.NOT_DICOM),
        (bytes(128) + b"DICM" + element(0x00020010, b"UI", b"x.y\0") + SOP_CLASS, RejectReason.INVALID_UID),
        (bytes(128) + b"DICM" + long_element(0x00020102, b"OB", 1 << 31), RejectReason.TOO_LARGE),
        (bytes(128) + b"DICM" + element(0x00020102, b"LO", bytes(100)) * 20_000, RejectReason.TOO_LARGE),
    ],
)
def test_what_is_no_part_10_file(data: bytes, reason: RejectReason) -> None:
    for step in (1 << 16, 7):
        assert reason == refused(Part10Splitter(), data, step)
