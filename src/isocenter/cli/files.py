"""Finds what `isocenter send` is asked to send and reads, in bounds, what a sender must know of each file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import FileMeta, Part10Splitter
from isocenter.common.errors import InvalidInstance, RejectReason

_PIECE = 64 << 10
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be sent.

    Attributes:
        meta: file meta information, None where the file has none (`problem` then says so).
        header: the four UIDs, None where they cannot be read (`problem` then says why).
        problem: what this sender finds wrong with the file; the receiver is asked all the same where a
            protocol can carry the file.
        detail: more about `problem`, or what may lead a receiver to refuse although nothing is wrong here.
    """

    path: Path
    size: int
    meta: FileMeta | None
    header: InstanceHeader | None
    problem: RejectReason | None = None
    detail: str = ""

    @property
    def sop(self) -> tuple[str, str] | None:
        """SOP Class and Instance UID: the data set's, else the file meta information's. None: not both."""
        if self.header is not None:
            return self.header.sop_class_uid, self.header.sop_instance_uid
        if self.meta is not None and self.meta.sop_class_uid and self.meta.sop_instance_uid:
            return self.meta.sop_class_uid, self.meta.sop_instance_uid
        return None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file in a folder that shows no sign of being DICOM. A file that was named is never skipped."""

    path: Path
    reason: str


def find(paths: Iterable[Path]) -> Iterator[Path | Skipped]:
    """Files in name order; folders are walked. Yields Skipped for what is no DICOM inside a folder."""
    for path in paths:
        if path.is_dir():
            for child in sorted(path.rglob("*")):
                if child.is_file():
                    yield child if _may_be_dicom(child) else Skipped(child, "not DICOM")
        else:
            yield path


def inspect(path: Path) -> Candidate:
    """Reads file meta information and the four UIDs; never pixel data.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    splitter = Part10Splitter()
    scanner: HeaderScanner | None = None
    header: InstanceHeader | None = None
    try:
        with path.open("rb") as file:
            while header is None and (piece := file.read(_PIECE)):
                data = splitter.feed(piece)
                if splitter.meta is None:
                    continue
                if splitter.meta.sop_class_uid == _MEDIA_DIRECTORY:
                    return Candidate(
                        path,
                        size,
                        splitter.meta,
                        None,
                        RejectReason.SOP_CLASS_UNSUPPORTED,
                        "a DICOMDIR, an index of files and no instance",
                    )
                scanner = scanner or HeaderScanner(splitter.meta.transfer_syntax_uid)
                header = scanner.feed(data)
            if header is None:
                splitter.finish()
                header = scanner.finish() if scanner else None
    except InvalidInstance as error:
        detail = error.message if error.message != error.reason.value else ""
        return Candidate(path, size, splitter.meta, None, error.reason, detail)
    if header is None:
        return Candidate(path, size, splitter.meta, None, RejectReason.MISSING_UID, "the data set is empty")
    meta = splitter.meta
    disagree = meta is not None and any(
        said and said != real
        for said, real in (
            (meta.sop_class_uid, header.sop_class_uid),
            (meta.sop_instance_uid, header.sop_instance_uid),
        )
    )
    detail = "file meta information names another SOP Class or Instance UID" if disagree else ""
    return Candidate(path, size, meta, header, detail=detail)


def _may_be_dicom(path: Path) -> bool:
    """Part 10 prefix, a DICOM suffix, or a first element of group 0002 or 0008 in either byte order."""
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"}:
        return True
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:2] in {b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"}
