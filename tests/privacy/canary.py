"""Values that must never leave the index and the sealed objects, and the search for them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from urllib.parse import quote

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ROOT = "1.2.826.0.1.3680043.10.7719"

VALUES = {
    "patient name": "DOE^JANE",
    "other name": "ZEBRAFINCH^QUILLA",
    "medical record number": "MRN-7719-XQ",
    "birth date": "19310703",
    "accession": "ACC-5518-QZ",
    "description": "HEAD WITHOUT KINGFISHER",
    "physician": "QUILLFEATHER^ROWAN",
    "institution": "SAINT CORMORANT INFIRMARY",
    "private": "PRIVATE-PELICAN-3391",
}
UIDS = {
    "study": f"{ROOT}.41.1",
    "series": f"{ROOT}.42.1",
    "first instance": f"{ROOT}.43.1",
    "second instance": f"{ROOT}.43.2",
    "stow instance": f"{ROOT}.43.3",
    "refused instance": f"{ROOT}.43.4",
    "poison instance": f"{ROOT}.43.5",
    "unknown study": f"{ROOT}.44.1",
    "transaction": f"{ROOT}.45.1",
}
CANARIES = {**VALUES, **UIDS}


def data_set(sop_instance_uid: str, pixel: int = 0, **changes: str | None) -> Dataset:
    """A CT instance with every canary value. `changes` replace attributes by keyword; None removes one."""
    data = Dataset()
    data.SOPClassUID = CT_IMAGE
    data.SOPInstanceUID = sop_instance_uid
    data.StudyDate = "20260102"
    data.AccessionNumber = VALUES["accession"]
    data.Modality = "CT"
    data.InstitutionName = VALUES["institution"]
    data.ReferringPhysicianName = VALUES["physician"]
    data.StudyDescription = VALUES["description"]
    data.PatientName = VALUES["patient name"]
    data.OtherPatientNames = VALUES["other name"]
    data.PatientID = VALUES["medical record number"]
    data.PatientBirthDate = VALUES["birth date"]
    data.StudyInstanceUID = UIDS["study"]
    data.SeriesInstanceUID = UIDS["series"]
    data.InstanceNumber = "1"
    block = data.private_block(0x0011, "CANARY", create=True)
    block.add_new(0x01, "LO", VALUES["private"])
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = bytes([pixel]) * 128
    for keyword, value in changes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def poison_and_others(objects: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Stored objects: those that the scenario put there in clear, and all others."""
    poison: list[bytes] = []
    others: list[bytes] = []
    for each in objects:
        (poison if UIDS["poison instance"].encode() in each else others).append(each)
    return poison, others


def encoded(data: Dataset) -> bytes:
    """The data set in Explicit VR Little Endian, without file meta information."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, data)
    return bytes(buffer.getvalue())


def part10(data: Dataset) -> bytes:
    """The data set as a file."""
    data.ensure_file_meta()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Search:
    """Looks for every canary as it is, quoted for a URL, in base64, hex and UTF-16, in any letter case."""

    def __init__(self) -> None:
        spellings: dict[bytes, set[str]] = {}
        for name, value in CANARIES.items():
            for spelling in _spellings(value):
                # UIDs that differ in their last bits only have base64 texts in common.
                spellings.setdefault(spelling.lower(), set()).add(name)
        self._names = spellings
        longest_first = sorted(spellings, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(spelling) for spelling in longest_first))

    def hits(self, *haystacks: bytes | str) -> set[str]:
        """Names of the canaries found, never their values."""
        return {
            name
            for haystack in haystacks
            for match in self._pattern.finditer(
                (haystack.encode(errors="surrogateescape") if isinstance(haystack, str) else haystack).lower()
            )
            for name in self._names[match.group()]
        }


def _spellings(value: str) -> Iterable[bytes]:
    raw = value.encode()
    yield raw
    yield quote(value, safe="").encode()
    yield quote(value, safe="").replace("%20", "+").encode()
    if "^" in value:
        family, given = value.split("^")
        yield f"{family}, {given}".encode()
        yield f"{given} {family}".encode()
        yield f"{family} {given}".encode()
    yield raw.hex().encode()
    yield value.encode("utf-16-le")
    yield value.encode("utf-16-be")
    for lead in range(3):
        yield from _base64_core(raw, lead)


def _base64_core(raw: bytes, lead: int) -> Iterable[bytes]:
    """The characters of the base64 text that are the same whatever stands before and behind the value.

    Letter case matters in base64, and the search ignores it: that can only find too much.
    """
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(b"\0" * lead + raw)
        start = -(-lead * 8 // 6)
        end = (lead + len(raw)) * 8 // 6
        yield text[start:end]
