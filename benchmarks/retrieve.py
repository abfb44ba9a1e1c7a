"""Reads DICOMweb answers with the standard library alone, so that the platform is not its own judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def parts(headers: Mapping[str, str], body: bytes) -> list[bytes]:
    """The bodies of a multipart/related response (RFC 2046 section 5.1.1). `headers` have lower-case names.

    Raises:
        ValueError: not multipart, no closing delimiter.
    """
    parameters = headers["content-type"].split(";")
    if parameters[0].strip().lower() != "multipart/related":
        raise ValueError("not multipart/related")
    boundary = next(
        value.strip().strip('"')
        for name, _, value in (parameter.strip().partition("=") for parameter in parameters[1:])
        if name.lower() == "boundary"
    )
    delimiter = b"\r\n--" + boundary.encode()
    pieces = (b"\r\n" + body).split(delimiter)
    if not pieces[-1].startswith(b"--"):
        raise ValueError("no closing delimiter: the response was cut")
    return [piece.split(b"\r\n\r\n", 1)[1] for piece in pieces[1:-1]]


def data_set(part10: bytes) -> bytes:
    """The data set behind preamble and file meta information (PS3.10 section 7.1).

    Raises:
        ValueError: not a Part 10 stream with a group length.
    """
    if part10[128:132] != b"DICM" or part10[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise ValueError("not a Part 10 stream with a group length")
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def digest(part10: bytes) -> str:
    """SHA-256 of the data set, hex."""
    return hashlib.sha256(memoryview(data_set(part10))).hexdigest()


def sop_instance_uid(part10: bytes) -> str:
    """Media Storage SOP Instance UID (0002,0003) of the file meta information."""
    start = part10.index(b"\x02\x00\x03\x00UI", 132)
    length = int.from_bytes(part10[start + 6 : start + 8], "little")
    return part10[start + 8 : start + 8 + length].rstrip(b"\0 ").decode("ascii")
