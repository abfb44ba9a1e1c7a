"""Values as DICOM JSON: what is kept, left out, and kept elsewhere."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from isocenter.common.dicom import metadata
from isocenter.common.dicom.describe import InstanceDescription, describe, describe_bytes
from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.common.dicom.uids import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from isocenter.common.dicom.values import BadValue, element_json, text_encodings
from isocenter.common.dicom.walk import DescribeLimits
from isocenter.common.errors import IntegrityError, InvalidInstance, RejectReason


def dataset(**attributes: object) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.5"
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def encode(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def document(description: InstanceDescription) -> dict[str, Any]:
    assert description.complete
    return metadata.decode(description.metadata)


def value(vr: str, raw: bytes, encodings: tuple[str, ...] = ("iso8859",), *, little: bool = True) -> Any:
    return element_json(vr, raw, little=little, encodings=encodings)


@pytest.mark.parametrize(
    ("vr", "raw", "expected"),
    [
        ("LO", b" a \\\\b \0", [" a", None, "b"]),
        ("LT", b"one\\two  ", ["one\\two"]),
        ("CS", b" A \\B", ["A", "B"]),
        ("UI", b"1.2.3\0", ["1.2.3"]),
        ("DS", b"1.50\\ -2e3 \\", [1.5, -2000.0, None]),
        ("IS", b" 12\\-7", [12, -7]),
        ("AT", b"\x10\x00\x20\x00", ["00100020"]),
        ("US", b"\x01\x00\xff\xff", [1, 65535]),
        ("SV", b"\xff" * 8, [-1]),
        ("PN", b"DOE^JANE=\\=X=Y ", [{"Alphabetic": "DOE^JANE"}, {"Ideographic": "X", "Phonetic": "Y"}]),
    ],
)
def test_values(vr: str, raw: bytes, expected: list[object]) -> None:
    assert {"vr": vr, "Value": expected} == value(vr, raw)


@pytest.mark.parametrize("vr", ["LO", "PN", "US", "OB", "DS", "AT", "UT"])
def test_empty_values_have_no_value(vr: str) -> None:
    assert {"vr": vr} == value(vr, b"")


@pytest.mark.parametrize(
    ("vr", "raw"),
    [
        ("US", b"\1"), ("FD", b"\0" * 7), ("AT", b"\0\0"), ("DS", b"abc"), ("DS", b"1_0"), ("DS", b"nan"),
        ("DS", b"1e999"), ("IS", b"1.5"), ("IS", b"9" * 5000), ("FL", struct.pack("<f", float("nan"))),
    ],
)  # fmt: skip
def test_bad_values_are_left_out(vr: str, raw: bytes) -> None:
    with pytest.raises(BadValue):
        value(vr, raw)


@pytest.mark.parametrize(
    ("term", "raw", "expected"),
    [
        (b"ISO_IR 100", "Buc^Jérôme".encode("latin-1"), "Buc^Jérôme"),
        (b"ISO_IR 192", "王^小東".encode(), "王^小東"),
        (b"GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "山田^太郎"),
        (b"ISO-IR 100", b"\xe9", "é"),
        (b"NO SUCH SET", b"\xe9", "é"),
        (b"ISO_IR 192", b"\xff\xfe", "��"),
        (b"", b"plain", "plain"),
    ],
)
def test_character_sets(term: bytes, raw: bytes, expected: str) -> None:
    assert {"vr": "PN", "Value": [{"Alphabetic": expected}]} == value("PN", raw, text_encodings(term))


def test_words_are_little_endian_in_json() -> None:
    assert value("OW", b"\x01\x02\x03\x04", little=False) == value("OW", b"\x02\x01\x04\x03")
    assert value("OB", b"\x01\x02", little=False) == value("OB", b"\x01\x02")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_long_binary_values_are_bulk_data_inside_sequences_too(syntax: str) -> None:
    item = Dataset()
    item.add_new(0x00181074, "OB", b"\1" * 1026)
    item.add_new(0x00420011, "OB", b"\2" * 1024)
    data = encode(
        dataset(
            RadiopharmaceuticalInformationSequence=Sequence([Dataset(), item]),
            BitsAllocated=16,
            PixelRepresentation=0,
            PixelData=b"\0\0",
        ),
        syntax,
    )
    description = describe_bytes(data)
    found = document(description)

    # (0018,1074) is DS by dictionary, which implicit VR has to go by: then it is text, and no text.
    bulk = {path: data[start:end] for path, start, end in description.bulk}
    nested = found["00540016"]["Value"][1]
    if syntax == ExplicitVRLittleEndian:
        assert nested["00181074"] == {"vr": "OB", "BulkDataURI": "bulkdata/00540016/1/00181074"}
        assert bulk["00540016/1/00181074"] == b"\1" * 1026
    assert "InlineBinary" in nested["00420011"]
    assert found["7FE00010"]["BulkDataURI"] == "bulkdata/7FE00010"
    assert bulk["7FE00010"] == b"\0\0"
    assert "7FE00010" not in description.attributes
    assert "00540016" in description.attributes


def test_group_lengths_and_file_meta_are_left_out_and_text_is_utf_8() -> None:
    made = dataset(SpecificCharacterSet="ISO_IR 100", PatientName="Buc^Jérôme")
    made.add_new(0x00080000, "UL", 10)
    found = document(describe_bytes(encode(made)))
    assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert found["00100010"]["Value"] == [{"Alphabetic": "Buc^Jérôme"}]
    assert not [name for name in found if name.startswith("0002") or name.endswith("0000")]


def test_vrs_come_from_the_dictionary_where_the_bytes_have_none() -> None:
    made = dataset(PixelRepresentation=1, SmallestImagePixelValue=-5)
    block = made.private_block(0x0009, "GEMS_IDEN_01", create=True)
    block.add_new(0x01, "LO", "full fidelity")
    made.add_new(0x00091199, "OB", b"unknown!")
    found = document(describe_bytes(encode(made, ImplicitVRLittleEndian)))
    assert found["00280106"] == {"vr": "SS", "Value": [-5]}
    assert found["00091001"] == {"vr": "LO", "Value": ["full fidelity"]}
    assert found["00091199"]["vr"] == "UN"


def element(tag: int, vr: bytes, raw: bytes) -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(raw)) + raw


HEAD = b"".join(
    struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", 6) + b"1.2.3\0"
    for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)
)


def part10(data_set: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    meta = encode_file_meta(sop_class_uid="1.2.3", sop_instance_uid="1.2.3", transfer_syntax_uid=str(syntax))
    return meta + data_set


def test_deep_nesting_ends_the_walk_and_keeps_the_rest() -> None:
    nest = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    description = describe_bytes(part10(HEAD + nest * 5000))
    assert not description.complete
    assert description.header.study_instance_uid == "1.2.3"
    metadata.decode(description.metadata)


def test_a_broken_item_does_not_hide_what_follows_its_sequence() -> None:
    broken = element(0x00400275, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 1 << 30) + bytes(8))
    after = element(0x00420010, b"UT", b"title!")
    description = describe_bytes(part10(HEAD + broken + after))
    assert not description.complete
    assert description.attributes["00420010"] == {"vr": "UT", "Value": ["title!"]}


def test_more_than_the_limits_is_left_out() -> None:
    text = element(0x00420010, b"UT", b"x" * 2000)
    many = element(0x00091001, b"UT", b"") * 100
    data = part10(HEAD + text + many)
    large = describe_bytes(data, limits=DescribeLimits(value_bytes=1000))
    assert metadata.decode(large.metadata)["00420010"]["BulkDataURI"] == "bulkdata/00420010"
    few = describe_bytes(data, limits=DescribeLimits(elements=50))
    assert not few.complete
    small = describe_bytes(part10(HEAD + text * 100), limits=DescribeLimits(header_bytes=20_000))
    assert not small.complete


async def describe_deflated(data_set: bytes, limits: DescribeLimits) -> InstanceDescription:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = part10(squeeze.compress(data_set) + squeeze.flush(), DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)

    async def read(start: int, end: int) -> bytes:
        return data[start:end]

    return await describe(read, len(data), limits=limits)


async def test_a_bomb_is_described_up_to_the_bomb() -> None:
    bomb = element(0x00420011, b"OB", bytes(32 << 20))
    description = await describe_deflated(HEAD + bomb, DescribeLimits())
    assert not description.complete
    assert description.header.study_instance_uid == "1.2.3"
    with pytest.raises(InvalidInstance) as caught:
        await describe_deflated(bomb + HEAD, DescribeLimits())
    assert caught.value.reason == RejectReason.MISSING_UID


async def test_bulk_ranges_of_a_deflated_object_count_inflated_bytes() -> None:
    description = await describe_deflated(HEAD + element(0x00420011, b"OB", b"\5" * 3000), DescribeLimits())
    assert description.complete
    assert description.inflated
    start = description.header_bytes + len(HEAD) + 12
    assert description.bulk == (("00420011", start, start + 3000),)


def test_metadata_survives_what_json_cannot_hold() -> None:
    assert metadata.decode(metadata.encode({"a": "\ud800"})) == {"a": "?"}


@pytest.mark.parametrize(
    "data", [b"", b"x", zlib.compress(b"["), zlib.compress(b"[]"), zlib.compress(b"{}")[:-1]]
)
def test_damaged_metadata_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        metadata.decode(data)
