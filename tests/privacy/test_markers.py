"""A thousand marks in names, UIDs and pixels: found nowhere on the disk in clear but in the index.

The index holds attributes of studies in clear, by design: it answers queries, and its volume must be
encrypted by the machine. Nothing else does: objects, the journal, what is staged, the event log, spans,
temporary files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from benchmarks.dimse import Association, AssociationError, DataSet
from benchmarks.embedded import Embedded
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage

STUDIES, INSTANCES = 10, 34
"""With three marks in each instance, over a thousand."""
NAME = b"Qxvmarkjz"
UID = b"2.25.77308130731077081"
PIXEL = b"\xfa\x11MARK\x7f\xce\x01\xaf"
"""Every mark holds one of these, and a number of its own."""
INDEX = "index.sqlite"


def instance(study: int, number: int) -> DataSet:
    found = Dataset()
    found.SOPClassUID = CTImageStorage
    found.SOPInstanceUID = f"{UID.decode()}.{study}.1.{number}"
    found.PatientName = f"{NAME.decode()}{study:02}{number:03}^Planted"
    found.PatientID = f"{NAME.decode()}-{study:02}"
    found.StudyInstanceUID = f"{UID.decode()}.{study}"
    found.SeriesInstanceUID = f"{UID.decode()}.{study}.1"
    found.Modality = "CT"
    found.Rows, found.Columns = 64, 64
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
    found.PixelRepresentation, found.SamplesPerPixel = 0, 1
    found.PhotometricInterpretation = "MONOCHROME2"
    mark = PIXEL + study.to_bytes(2, "big") + number.to_bytes(2, "big")
    found.PixelData = (mark * (64 * 64 * 2 // len(mark) + 1))[: 64 * 64 * 2]
    found["PixelData"].VR = "OW"
    data = BytesIO()
    out = DicomFileLike(data)
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, found)
    return DataSet(CTImageStorage, found.SOPInstanceUID, (data.getvalue(),))


def spellings(mark: bytes) -> Iterator[bytes]:
    yield mark
    yield mark.hex().encode()
    yield mark.decode("latin-1").encode("utf-16-le")
    for lead in range(3):
        # What of the base64 form does not depend on what stands around it.
        text = base64.b64encode(bytes(lead) + mark)
        yield text[4 if lead else 0 : len(text) // 4 * 4 - 4]


ANY = [each for mark in (NAME, UID, PIXEL) for each in spellings(mark)]
PIXELS = list(spellings(PIXEL))


def in_clear(*folders: Path) -> dict[str, int]:
    """Files that hold a mark, and how many. Of the index: those of pixels."""
    hits = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            data = path.read_bytes()
            if count := sum(map(data.count, PIXELS if path.name.startswith(INDEX) else ANY)):
                hits[str(path.relative_to(folder))] = count
    return hits


def send(platform: Embedded, instances: Sequence[DataSet]) -> int:
    """How many were acknowledged."""
    acknowledged = 0
    try:
        with Association(
            ("127.0.0.1", platform.dicom_port), [CTImageStorage], called=platform.ae_title
        ) as association:
            for each in instances:
                acknowledged += association.store(each) == 0
    except AssociationError:
        pass
    return acknowledged


@pytest.mark.slow
def test_nothing_that_was_sent_lies_on_the_disk_in_clear(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    platform = Embedded(tmp_path / "site", {"TMPDIR": str(temporary), "ISOCENTER_LOG_LEVEL": "debug"})
    everywhere = (platform.data_dir, temporary, platform.log.parent)
    sent = {
        study: [instance(study, number) for number in range(INSTANCES)] for study in range(1, STUDIES + 1)
    }
    with platform:
        for study, instances in sent.items():
            assert len(instances) == send(platform, instances)
            if study % 3 == 0:
                assert {} == in_clear(*everywhere)
                platform.kill()
                assert {} == in_clear(*everywhere), "after a crash"
                platform.launch()
                platform.wait_ready()
        for study, instances in sent.items():
            back = platform.instances(f"/dicom-web/studies/{UID.decode()}.{study}", at_least=len(instances))
            assert all(PIXEL in each and NAME in each and UID in each for each in back)
        assert {} == in_clear(*everywhere), "after retrieval"
        platform.kill()
        assert {} == in_clear(*everywhere), "after the last crash"
    index = platform.data_dir / INDEX
    assert any(NAME in path.read_bytes() for path in index.parent.glob(f"{INDEX}*")), "the marks are searched"


def test_the_search_finds_what_is_in_clear(tmp_path: Path) -> None:
    each = instance(1, 1)
    plain = b"".join(bytes(part) for part in each.parts)
    for number, data in enumerate(
        (plain, plain.hex().encode(), base64.b64encode(plain), NAME.decode().encode("utf-16-le"))
    ):
        (tmp_path / str(number)).write_bytes(b"...." + data)
    (tmp_path / INDEX).write_bytes(plain)

    assert {"0", "1", "2", "3", INDEX} == in_clear(tmp_path).keys()
