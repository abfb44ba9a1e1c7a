"""Retrieves a study over WADO-RS and says whether it is what was sent, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import httpx

from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import Part10Splitter

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """SHA-256 of a Part 10 file, whole and without file meta information."""

    sop_instance_uid: str
    whole: str
    data_set: str
    size: int


class RetrievalError(Exception):
    """The gateway's answer is not the study."""


def fingerprint(data: bytes | memoryview) -> Fingerprint:
    """Raises InvalidInstance."""
    splitter = Part10Splitter()
    data_set = bytes(splitter.feed(data)) + splitter.finish()
    if splitter.meta is None:
        raise RetrievalError("file meta information does not end")
    scanner = HeaderScanner(splitter.meta.transfer_syntax_uid)
    header = scanner.feed(data_set) or scanner.finish()
    return Fingerprint(
        header.sop_instance_uid,
        hashlib.sha256(data).hexdigest(),
        hashlib.sha256(data_set).hexdigest(),
        len(data),
    )


def fingerprint_file(path: Path) -> Fingerprint:
    return fingerprint(path.read_bytes())


def retrieve(dicom_web: str, study_instance_uid: str) -> Iterator[bytes]:
    """Every instance of a study as the Part 10 file that the gateway sends.

    Raises:
        RetrievalError: no study, or an answer that is no multipart/related.
    """
    try:
        response = httpx.get(
            f"{dicom_web}/studies/{study_instance_uid}", headers={"Accept": ACCEPT}, timeout=_TIMEOUT
        )
    except httpx.HTTPError as error:
        raise RetrievalError(f"the gateway does not answer: {error}") from error
    if response.status_code != 200:
        raise RetrievalError(f"the gateway answers {response.status_code}")
    yield from parts(response.headers.get("content-type", ""), response.content)


def parts(content_type: str, body: bytes) -> Iterator[bytes]:
    """The payloads of a multipart body (RFC 2046 section 5.1). Raises RetrievalError."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_maintype() != "multipart" or not isinstance(boundary, str):
        raise RetrievalError(f"no multipart answer but {message.get_content_type()}")
    delimiter = b"--" + boundary.encode()
    position = body.find(delimiter)
    while position >= 0 and not body.startswith(b"--", position + len(delimiter)):
        start = body.index(b"\r\n\r\n", position) + 4
        position = body.find(b"\r\n" + delimiter, start)
        if position < 0:
            raise RetrievalError("the multipart answer is cut off")
        yield body[start:position]
        position += 2
    if position < 0:
        raise RetrievalError("the multipart answer has no end")


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent under one SOP Instance UID; `whole` where the protocol keeps the file itself."""

    fingerprint: Fingerprint
    whole: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came back, against what was sent."""

    equal_whole: int
    equal_data_set: int
    different: tuple[str, ...]
    """SOP Instance UIDs."""
    size: int

    @property
    def proven(self) -> bool:
        return not self.different and self.equal_whole + self.equal_data_set > 0


def compare(retrieved: Iterable[bytes], sent: dict[str, list[Sent]]) -> Comparison:
    """Each instance must equal one that was sent under its UID: the whole file after STOW-RS, the data set
    after C-STORE (which carries no file meta information).
    """
    whole = data_set = size = 0
    different = []
    for data in retrieved:
        got = fingerprint(data)
        size += got.size
        candidates = sent.get(got.sop_instance_uid, [])
        if any(each.whole and each.fingerprint.whole == got.whole for each in candidates):
            whole += 1
        elif any(not each.whole and each.fingerprint.data_set == got.data_set for each in candidates):
            data_set += 1
        else:
            different.append(got.sop_instance_uid)
    return Comparison(whole, data_set, tuple(different), size)
