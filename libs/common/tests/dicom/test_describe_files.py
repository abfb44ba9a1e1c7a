"""Every file of the packages, described: against pydicom's own reading of values and frames."""

from __future__ import annotations

import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.tag import BaseTag

from isocenter.common.dicom import metadata
from isocenter.common.dicom.describe import InstanceDescription, describe, describe_bytes
from isocenter.common.dicom.frames import FrameIndex, align_bits
from isocenter.common.dicom.inflate import inflated
from isocenter.common.dicom.values import swapped
from isocenter.common.errors import InvalidInstance, RejectReason

REFUSED = {RejectReason.NOT_DICOM, RejectReason.MISSING_UID, RejectReason.INVALID_UID}


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns about the odd files; this suite is not about its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


async def describe_data(data: bytes) -> InstanceDescription:
    async def read(start: int, end: int) -> bytes:
        assert 0 <= start < end
        return data[start:end]

    return await describe(read, len(data))


async def whole(data: bytes, description: InstanceDescription) -> bytes:
    """The bytes that the description's offsets count in."""
    if not description.inflated:
        return data

    async def read(start: int, end: int) -> bytes:
        return data[start:end]

    pieces = inflated(read, description.header_bytes, len(data), limit=1 << 30)
    return data[: description.header_bytes] + b"".join([piece async for piece in pieces])


@pytest.fixture
def data(accepted_path: Path) -> bytes:
    return accepted_path.read_bytes()


def theirs(path: Path) -> pydicom.FileDataset:
    with quiet():
        return pydicom.dcmread(path)


def matches(ours: Any, expected: Any) -> bool:
    """Equal but for what we do otherwise by choice: empty values, padding, bulk, group lengths, UTF-8."""
    if isinstance(expected, dict):
        if not isinstance(ours, dict):
            return not any(expected.values())
        if "BulkDataURI" in ours:
            return bool(ours["vr"] == expected["vr"])
        return all(
            matches(ours.get(name), value)
            for name, value in expected.items()
            if name != "00080005" and not (len(name) == 8 and name.endswith("0000"))
        )
    if isinstance(expected, list):
        pairs = zip_longest(ours or [], expected)
        return all(matches(mine, value) for mine, value in pairs)
    if isinstance(expected, str):
        return str(ours or "").strip(" \0") == expected.strip(" \0")
    return bool(ours == expected) or not (ours or expected)


def rendered(dataset: pydicom.Dataset, tag: BaseTag) -> dict[str, Any] | None:
    """pydicom's DICOM JSON of one element, or None where it cannot make any: then ours may leave it out."""
    try:
        document = dataset[tag].to_json_dict(None, 0)
        if dataset[tag].is_undefined_length and "InlineBinary" in document:
            document["vr"] = "OB"  # what fragments are, whatever the file calls them (PS3.5 annex A.4)
        elif "InlineBinary" in document and not dataset.original_encoding[1]:
            # pydicom hands out big endian words; DICOM JSON has little endian (PS3.18 F.2.7).
            words = swapped(document["vr"], b64decode(document["InlineBinary"]))
            document["InlineBinary"] = b64encode(words).decode()
        return dict(document)
    except Exception:  # noqa: BLE001 - pydicom raises whatever the bad value led to
        return None


async def test_values_equal_pydicom(accepted_path: Path, data: bytes) -> None:
    description = await describe_data(data)
    document = metadata.decode(description.metadata)
    dataset = theirs(accepted_path)
    differences = []
    with quiet():
        for tag in sorted(dataset.keys()):
            name = f"{tag:08X}"
            lost = name not in document and not description.complete
            expected = rendered(dataset, tag)
            if expected is None or tag.element == 0 or name == "00080005" or lost:
                continue
            if not matches(document.get(name), expected):
                differences.append((name, document.get(name), expected))
    assert differences == []


async def test_bulk_ranges_hold_the_values(accepted_path: Path, data: bytes) -> None:
    description = await describe_data(data)
    data = await whole(data, description)
    dataset = theirs(accepted_path)
    for path, start, end in description.bulk:
        *steps, last = path.split("/")
        item = dataset
        with quiet():
            for sequence, index in zip(steps[::2], steps[1::2], strict=True):
                item = item[int(sequence, 16)].value[int(index)]
            element = item.get_item(int(last, 16))
        assert element is not None
        value = element.value if element.value is not None else b""
        if isinstance(value, bytes):
            ours = data[start:end]
            assert ours == value or (element.is_undefined_length and value.startswith(ours)), path


def their_frames(dataset: pydicom.FileDataset) -> list[bytes] | None:
    if "PixelData" not in dataset:
        return None
    pixels = dataset.PixelData
    try:
        number = int(dataset.get("NumberOfFrames") or 1)
    except ValueError:
        number = 1
    if dataset.get_item("PixelData").is_undefined_length:
        tables = None
        if "ExtendedOffsetTable" in dataset:
            tables = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        return list(generate_frames(pixels, number_of_frames=number, extended_offsets=tables))
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits // 3 * 2
    if (bits * number + 7) // 8 > len(pixels):
        return None
    firsts = range(0, bits * number, bits)
    return [align_bits(pixels[bit // 8 : (bit + bits + 7) // 8], bit % 8, bits) for bit in firsts]


async def test_frames_equal_pydicom(accepted_path: Path, data: bytes) -> None:
    description = await describe_data(data)
    data = await whole(data, description)
    dataset = theirs(accepted_path)
    with quiet():
        expected = their_frames(dataset)
    index = description.frames
    if expected is None:
        assert index is None
        return
    assert index is not None
    assert len(expected) == index.number_of_frames
    for frame, want in enumerate(expected, start=1):
        got = b"".join(data[start:end] for start, end in index.ranges(frame))
        if not index.encapsulated:
            got = align_bits(got, index.bit_offset(frame), index.frame_bits)
        assert want == got
    packed = index.pack()
    assert index == FrameIndex.unpack(packed)


async def test_every_prefix_of_a_file_is_described_or_refused(data: bytes) -> None:
    """A truncated object loses what is missing, and nothing else happens."""
    full = await describe_data(data)
    end = max(full.header_bytes + 1, min(len(data), 40_000))
    for cut in range(full.header_bytes, end, max(1, (end - full.header_bytes) // 20)):
        try:
            description = await describe_data(data[:cut])
        except InvalidInstance as error:
            refusal = error.reason
        else:
            assert full.header == description.header
            assert all(stop <= cut for _, _, stop in description.bulk) or full.inflated
            continue
        assert refusal in REFUSED


async def test_describing_in_memory_is_the_same(data: bytes) -> None:
    description = await describe_data(data)
    if description.inflated:
        with pytest.raises(InvalidInstance):
            describe_bytes(data)
    else:
        assert description == describe_bytes(data)


@pytest.fixture
def refused_data(refused_path: Path) -> bytes:
    return refused_path.read_bytes()


async def test_a_file_that_ingest_refuses_is_not_described_either(refused_data: bytes) -> None:
    with pytest.raises(InvalidInstance) as caught:
        await describe_data(refused_data)
    assert caught.value.reason in REFUSED
