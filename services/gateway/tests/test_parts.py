from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.common.dicom.frames import align_bits
from isocenter.gateway import multipart
from isocenter.gateway.bits import aligned
from isocenter.gateway.domain import Problem, Target, parse_frames, target_of
from isocenter.gateway.native_xml import to_xml
from isocenter.gateway.ranges import parse_range

NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-", (10, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("Bytes = 5-6", (5, 7)),
        ("bytes=5-4", None),
        ("bytes=0-1,4-5", None),
        ("lines=1-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
    ],
)
def test_byte_ranges(text: str | None, expected: tuple[int, int] | None) -> None:
    assert expected == parse_range(text, 100)


@pytest.mark.parametrize(
    ("text", "size"), [("bytes=100-", 100), ("bytes=500-600", 100), ("bytes=-0", 100), ("bytes=0-", 0)]
)
def test_a_range_past_the_end_is_416_and_says_the_size(text: str, size: int) -> None:
    with pytest.raises(Problem) as refused:
        parse_range(text, size)
    assert refused.value.status == 416
    assert refused.value.headers == (("content-range", f"bytes */{size}"),)


@pytest.mark.parametrize(("text", "expected"), [("1", (1,)), ("3,1,2", (3, 1, 2)), ("1,1", (1, 1))])
def test_frame_lists(text: str, expected: tuple[int, ...]) -> None:
    assert expected == parse_frames(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1,", "a", "1-3", "1.5", "9" * 30, ",".join("1" * 10_001)])
def test_frame_lists_that_are_none(text: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_frames(text)
    assert (refused.value.status, refused.value.parameter) == (400, "frames")


def test_targets_name_the_parameter_that_is_no_uid() -> None:
    assert target_of({"study": "1.2", "series": "1.3", "instance": "1.4"}) == Target("1.2", "1.3", "1.4")
    for name in ("study", "series", "instance"):
        with pytest.raises(Problem) as refused:
            target_of({"study": "1.2", "series": "1.3", "instance": "1.4"} | {name: "1.02"})
        assert (refused.value.status, refused.value.parameter) == (400, name)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


async def test_multipart_reads_back_with_the_standard_library() -> None:
    async def parts() -> AsyncIterator[multipart.Part]:
        yield multipart.Part((("Content-Type", "application/dicom"),), pieces(b"on", b"e\r\n"))
        yield multipart.Part((("Content-Type", "application/dicom"),), pieces(b""))

    kind = multipart.content_type("limit", "application/dicom")
    body = await joined(multipart.encode("limit", parts()))
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    read = [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]
    assert read == [b"one\r\n", b""]
    assert body.endswith(b"\r\n--limit--\r\n")


def test_native_model_of_every_kind_of_value() -> None:
    document = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane^^Dr", "Ideographic": "山田^太郎"}]},
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
        "00081030": {"vr": "LO", "Value": ["a < b & \x0bc"]},
        "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]},
        "00091001": {"vr": "UN", "InlineBinary": "AAE="},
        "00090010": {"vr": "LO", "Value": ["ACME 1"]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "http://host/x?a=1&b=2"},
        "00200011": {"vr": "IS"},
    }
    root = ET.fromstring(to_xml(document))  # noqa: S314 - our own output
    found = {element.get("keyword") or element.get("tag"): element for element in root}
    assert root.tag == f"{NATIVE}NativeDicomModel"
    assert found["PatientName"].findtext(f".//{NATIVE}FamilyName") == "Doe"
    assert (
        found["PatientName"].findtext(f"{NATIVE}PersonName/{NATIVE}Ideographic/{NATIVE}GivenName") == "太郎"
    )
    assert found["PatientName"].find(f".//{NATIVE}MiddleName") is None
    assert [(v.get("number"), v.text) for v in found["ImageType"]] == [("1", "ORIGINAL"), ("3", "AXIAL")]
    assert found["StudyDescription"].findtext(f"{NATIVE}Value") == "a < b & \ufffdc"
    item = found["ReferencedImageSequence"].find(f"{NATIVE}Item")
    assert item is not None
    assert item.findtext(f"{NATIVE}DicomAttribute/{NATIVE}Value") == "1.2.3"
    assert found["00090001"].get("privateCreator") == "ACME 1"
    assert found["00090001"].findtext(f"{NATIVE}InlineBinary") == "AAE="
    bulk = found["PixelData"].find(f"{NATIVE}BulkData")
    assert bulk is not None
    assert bulk.get("uri") == "http://host/x?a=1&b=2"
    assert list(found["SeriesNumber"]) == []
    tags = [element.get("tag") for element in root]
    assert sorted(document) == [tag if tag != "00090001" else "00091001" for tag in tags]


@given(
    data=st.binary(min_size=1, max_size=64),
    offset=st.integers(0, 7),
    cuts=st.integers(1, 9),
    part=st.floats(0, 1),
)
async def test_bits_move_to_the_first_byte(data: bytes, offset: int, cuts: int, part: float) -> None:
    bits = int(part * (len(data) * 8 - offset))
    needed = data[: (offset + bits + 7) // 8]
    split = pieces(*(needed[at : at + cuts] for at in range(0, len(needed), cuts)))
    assert align_bits(needed, offset, bits) == await joined(aligned(split, offset, bits))
