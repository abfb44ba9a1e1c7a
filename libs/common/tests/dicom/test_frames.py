"""Frame indexes with every kind of offset table, with none, and with tables that lie."""

from __future__ import annotations

import io
import random
import struct

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import JPEG2000, UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from isocenter.common.dicom.describe import InstanceDescription, describe
from isocenter.common.dicom.frames import FrameIndex, align_bits
from isocenter.common.errors import IntegrityError, NotFound

FRAMES = [bytes([number]) * (100 + number * 2) + b"\xff\xd9" for number in range(1, 6)]


class Reads:
    """An object in memory that counts what is fetched of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched = 0
        self.calls = 0

    async def __call__(self, start: int, end: int) -> bytes:
        self.calls += 1
        self.fetched += min(end, len(self.data)) - start
        return self.data[start:end]

    async def describe(self) -> InstanceDescription:
        return await describe(self, len(self.data))


def image(frames: int, pixel_data: bytes, syntax: str = JPEG2000, **attributes: object) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.5"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = 16, 16, 1, 8
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = frames
    dataset.PixelData = pixel_data
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def cut_out(data: bytes, index: FrameIndex) -> list[bytes]:
    return [
        b"".join(data[start:end] for start, end in index.ranges(frame))
        for frame in range(1, index.number_of_frames + 1)
    ]


async def frames_of(data: bytes) -> list[bytes] | None:
    description = await Reads(data).describe()
    assert description.complete
    if description.frames is None:
        return None
    assert FrameIndex.unpack(description.frames.pack()) == description.frames
    return cut_out(data, description.frames)


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("has_bot", [True, False])
async def test_encapsulated_frames(fragments: int, has_bot: bool) -> None:
    pixels = encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=has_bot)
    theirs = list(generate_frames(pixels, number_of_frames=len(FRAMES)))
    assert theirs == await frames_of(image(len(FRAMES), pixels))


async def test_one_frame_in_many_fragments_without_a_table() -> None:
    pixels = encapsulate([bytes(1000)], fragments_per_frame=7, has_bot=False)
    assert [bytes(1000)] == await frames_of(image(1, pixels))


async def test_an_extended_offset_table_leaves_padding_out() -> None:
    frames = [frame + b"!" * (number % 2) for number, frame in enumerate(FRAMES)]
    pixels, offsets, _ = encapsulate_extended(frames)
    lengths = struct.pack("<5Q", *map(len, frames))
    data = image(len(frames), pixels, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    assert frames == await frames_of(data)


async def test_tables_that_lie_are_not_believed() -> None:
    pixels = bytearray(encapsulate(FRAMES))
    pixels[12:16] = struct.pack("<I", 7)
    assert FRAMES == await frames_of(image(len(FRAMES), bytes(pixels)))

    pixels_extended, offsets, lengths = encapsulate_extended(FRAMES)
    for table in (bytes(40), struct.pack("<5Q", *[1 << 60] * 5), offsets[:-8]):
        data = image(
            len(FRAMES), pixels_extended, ExtendedOffsetTable=table, ExtendedOffsetTableLengths=lengths
        )
        assert FRAMES == await frames_of(data)


@pytest.mark.parametrize("lost", [b"", b"\xff\xd9"])
async def test_boundaries_that_cannot_be_known_are_not_guessed(lost: bytes) -> None:
    """Without tables and with a marker too few or too many, any answer would be wrong for some frame."""
    frames = [FRAMES[0], FRAMES[1][:-2] + lost + bytes(12), FRAMES[2] + FRAMES[3]]
    pixels = encapsulate(frames, fragments_per_frame=2, has_bot=False)
    assert await frames_of(image(2 if lost else 4, pixels)) is None


async def test_fragments_behind_the_last_marker_belong_to_no_frame_for_certain() -> None:
    pixels = encapsulate([FRAMES[0], FRAMES[1], bytes(100)], fragments_per_frame=1, has_bot=False)
    assert await frames_of(image(2, pixels)) is None


async def test_a_video_stream_has_no_frame_index() -> None:
    pixels = encapsulate([bytes(5000)], has_bot=False)
    assert await frames_of(image(100, pixels)) is None


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
async def test_single_bit_frames_share_bytes(syntax: str) -> None:
    """15 pixels of 1 bit: frames begin within a byte."""
    stream = random.Random(1).getrandbits(15 * 9)
    pixels = stream.to_bytes(17, "little") + b"\0"
    data = image(9, pixels, syntax, Rows=3, Columns=5, BitsAllocated=1)
    description = await Reads(data).describe()
    index = description.frames
    assert index is not None
    assert index.inflated == (syntax == DeflatedExplicitVRLittleEndian)
    base = index.start
    for number in range(1, 10):
        ((start, end),) = index.ranges(number)
        frame = align_bits(pixels[start - base : end - base], index.bit_offset(number), 15)
        expected = stream >> 15 * (number - 1) & 0x7FFF
        assert expected == int.from_bytes(frame, "little")
    assert FrameIndex.unpack(index.pack()) == index


@pytest.mark.parametrize(
    ("attributes", "length", "frame"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, 768, 768),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}, 512, 512),
        ({"BitsAllocated": 16}, 512, 512),
        ({"NumberOfFrames": None}, 256, 256),
        ({"NumberOfFrames": 0}, 256, 256),
    ],
)
async def test_native_frame_lengths(attributes: dict[str, object], length: int, frame: int) -> None:
    data = image(1, bytes(length), ExplicitVRLittleEndian, **attributes)
    frames = await frames_of(data)
    assert frames == [bytes(frame)]


@pytest.mark.parametrize(
    "attributes", [{"Rows": 17}, {"NumberOfFrames": 2}, {"BitsAllocated": 16}, {"Rows": None}]
)
async def test_native_pixel_data_that_is_too_short_has_no_index(attributes: dict[str, object]) -> None:
    assert await frames_of(image(1, bytes(256), ExplicitVRLittleEndian, **attributes)) is None


async def test_truncated_native_pixel_data_has_no_index() -> None:
    data = image(1, bytes(256), ExplicitVRLittleEndian)
    description = await Reads(data[:-1]).describe()
    assert (None, False) == (description.frames, description.complete)
    assert description.attributes["00280010"] == {"vr": "US", "Value": [16]}


async def test_native_pixel_data_is_never_fetched() -> None:
    reads = Reads(image(400, bytes(400 << 16), ExplicitVRLittleEndian, Rows=256, Columns=256))
    description = await reads.describe()
    assert description.frames is not None
    assert description.frames.number_of_frames == 400
    assert reads.fetched <= 48 << 10
    assert reads.calls <= 2


async def test_large_fragments_are_jumped_over() -> None:
    frames = [bytes(1 << 20)] * 20
    for has_bot in (True, False):
        reads = Reads(image(20, encapsulate(frames, has_bot=has_bot)))
        description = await reads.describe()
        assert cut_out(reads.data, description.frames or FrameIndex(0, 0)) == frames
        assert reads.fetched < 200 << 10


def test_frames_are_numbered_from_one() -> None:
    index = FrameIndex(3, 1000, 16)
    assert [[(1000, 1002)], [(1002, 1004)], [(1004, 1006)]] == [index.ranges(n) for n in (1, 2, 3)]
    for number in (-1, 0, 4):
        with pytest.raises(NotFound):
            index.ranges(number)


async def test_a_packed_index_is_small() -> None:
    frames = [
        random.Random(number).randbytes(random.Random(number).randrange(200, 900)) for number in range(2000)
    ]
    description = await Reads(image(2000, encapsulate(frames))).describe()
    assert description.frames is not None
    assert len(description.frames.pack()) < 2000 * 4
    assert len(FrameIndex(1000, 2000, 512 * 512 * 16).pack()) == 26


@pytest.mark.parametrize("cut", [0, 1, 20, 26, 30, -1])
async def test_a_damaged_index_is_an_integrity_error(cut: int) -> None:
    description = await Reads(image(len(FRAMES), encapsulate(FRAMES, fragments_per_frame=2))).describe()
    assert description.frames is not None
    packed = description.frames.pack()
    for damaged in (packed[:cut], b"\xff" + packed[1:], packed[:30] + bytes(len(packed) - 30)):
        with pytest.raises(IntegrityError):
            FrameIndex.unpack(damaged)
