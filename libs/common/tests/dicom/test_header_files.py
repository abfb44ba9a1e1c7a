"""The scanner and splitter over real files, compared with pydicom's own reading."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom

from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance, RejectReason


def read_header(data: bytes, step: int) -> InstanceHeader:
    splitter = Part10Splitter()
    scanner: HeaderScanner | None = None
    for start in range(0, len(data), step):
        rest = splitter.feed(memoryview(data)[start : start + step])
        if splitter.meta is not None:
            scanner = scanner or HeaderScanner(splitter.meta.transfer_syntax_uid)
            if (header := scanner.feed(rest)) is not None:
                return header
    rest = splitter.finish()
    assert splitter.meta is not None
    scanner = scanner or HeaderScanner(splitter.meta.transfer_syntax_uid)
    scanner.feed(rest)
    return scanner.finish()


def test_header_equals_pydicom_or_is_refused_for_want_of_a_uid(dicom_path: Path) -> None:
    data = dicom_path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pydicom.dcmread(dicom_path, stop_before_pixels=True, force=True)
        uids = [
            str(theirs.get(name) or "")
            for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        ]
    outcomes: list[InstanceHeader | RejectReason] = []
    for step in (len(data) or 1, 4096, 7, 1):
        try:
            outcomes.append(read_header(data, step))
        except InvalidInstance as error:
            outcomes.append(error.reason)
    assert len(set(outcomes)) == 1
    if isinstance(outcomes[0], InstanceHeader):
        assert InstanceHeader(*uids) == outcomes[0]
    elif data[128:132] != b"DICM" or dicom_path.name == "meta_missing_tsyntax.dcm":
        assert outcomes[0] == RejectReason.NOT_DICOM
    else:
        assert outcomes[0] in {RejectReason.MISSING_UID, RejectReason.INVALID_UID}, outcomes[0]
