"""What the acceptor takes, the indexer must describe, and as the same instance."""

from __future__ import annotations

import struct

import pytest

from isocenter.common.dicom.describe import describe_bytes
from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.common.errors import InvalidInstance, RejectReason

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
SOP_CLASS, SOP, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"ZZ"}


def element(tag: int, value: bytes, vr: bytes = b"UI") -> bytes:
    value += b"\0" * (len(value) % 2)
    if vr in LONG:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def identity(study_vr: bytes = b"UI") -> bytes:
    return (
        element(SOP_CLASS, CT.encode())
        + element(SOP, b"1.2.3.4")
        + element(STUDY, b"1.2.3", study_vr)
        + element(SERIES, b"1.2.3.5")
    )


def assert_described_as_accepted(data_set: bytes) -> None:
    accepted = HeaderScanner(EXPLICIT).feed(data_set)
    meta = encode_file_meta(sop_class_uid=CT, sop_instance_uid="1.2.3.4", transfer_syntax_uid=EXPLICIT)
    assert accepted is not None
    assert accepted == describe_bytes(meta + data_set).header


@pytest.mark.parametrize("vr", b"UI LO UN OB OW PN DS IS US FD AT SQ UT ZZ UC UR".split())
def test_a_uid_is_a_uid_whatever_vr_it_claims(vr: bytes) -> None:
    assert_described_as_accepted(identity(vr))


@pytest.mark.parametrize("tag", [SOP_CLASS, SOP, STUDY, SERIES])
def test_the_first_of_two_uids_counts(tag: int) -> None:
    """The acceptor has chosen keys and sealed the object before it sees the second."""
    assert_described_as_accepted(identity() + element(0x00200010, b"1", b"SH") + element(tag, b"9.9.9"))


@pytest.mark.parametrize(
    ("transfer_syntax", "head"),
    [
        (EXPLICIT, struct.pack("<HH2sH", 2, 0x10, b"UI", 20)),
        (IMPLICIT, struct.pack("<HHI", 2, 0x10, 20)),
    ],
)
def test_file_meta_information_inside_a_data_set_is_refused(transfer_syntax: str, head: bytes) -> None:
    with pytest.raises(InvalidInstance) as refused:
        HeaderScanner(transfer_syntax).feed(head + EXPLICIT.encode() + b"\0" + identity())
    assert refused.value.reason is RejectReason.MALFORMED


def test_a_sequence_of_an_unknown_vr_is_walked_as_the_description_walks_it() -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    head = struct.pack("<HH2sHI", 8, 5, b"ZZ", 0, 0xFFFFFFFF)
    implicit = struct.pack("<HHI", 8, 0x100, 2) + b"AB"
    assert_described_as_accepted(head + item + implicit + ends + identity())
