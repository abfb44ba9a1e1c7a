"""The multipart reader gives the same parts however the body is cut, and follows RFC 2046 section 5.1."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.ingest.stow.multipart import (
    MalformedMultipart,
    MultipartReader,
    PartBegin,
    PartData,
)

BOUNDARY = "b"
DELIMITER = b"\r\n--b"

# Content that is mostly line breaks, hyphens and the boundary's own letter comes close to a delimiter often.
content = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b", b"x", b"\r\n-", b"\r\n--"]), max_size=30).map(
    b"".join
)
parts = st.lists(content.filter(lambda data: DELIMITER not in b"\r\n" + data + b"\r\n"), max_size=5)
headers = st.sampled_from([b"", b"\r\nContent-Type: application/dicom", b"\r\nA: b\r\nContent-Type:  x"])


def read(body: bytes, cuts: list[int], *, max_parts: int = 100) -> list[tuple[dict[str, str], bytes]]:
    reader = MultipartReader(BOUNDARY, max_parts=max_parts)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    found: list[tuple[dict[str, str], bytearray]] = []
    ended = 0
    for start, end in pairwise(edges):
        for piece in reader.feed(body[start:end]):
            if isinstance(piece, PartBegin):
                assert ended == len(found)
                found.append((dict(piece.headers), bytearray()))
            elif isinstance(piece, PartData):
                assert piece.data
                found[-1][1].extend(piece.data)
            else:
                ended += 1
    reader.finish()
    assert ended == len(found)
    return [(fields, bytes(data)) for fields, data in found]


@given(
    contents=parts,
    fields=headers,
    preamble=st.sampled_from([b"", b"ignored\r\n", b"--\r\n"]),
    padding=st.sampled_from([b"", b" ", b"\t  "]),
    epilogue=st.sampled_from([b"", b"\r\n", b"\r\nignored --b"]),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
def test_any_cut_gives_the_same_parts(
    contents: list[bytes], fields: bytes, preamble: bytes, padding: bytes, epilogue: bytes, cuts: list[int]
) -> None:
    body = preamble
    for data in contents:
        body += b"--b" + padding + fields + b"\r\n\r\n" + data + b"\r\n"
    body += b"--b--" + epilogue
    assert [data for _, data in read(body, cuts)] == contents
    assert read(body, cuts) == read(body, []) == read(body, list(range(len(body))))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_do_more_than_be_refused(body: bytes, cuts: list[int]) -> None:
    for prefix in (b"", b"--b\r\n", b"--b\r\n\r\n"):
        try:
            read(prefix + body, cuts)
        except MalformedMultipart:
            continue


def test_header_names_are_lower_case_and_folded_lines_are_joined() -> None:
    body = b"--b\r\nContent-TYPE: application/dicom;\r\n transfer-syntax=1.2\r\nX:\r\n\r\ndata\r\n--b--"
    assert read(body, []) == [({"content-type": "application/dicom; transfer-syntax=1.2", "x": ""}, b"data")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--c\r\n\r\ndata\r\n--c--",
        b"--b\r\n\r\ndata",
        b"--b\r\n\r\ndata\r\n--b",
        b"--b\r\n\r\ndata\r\n--b-",
        b"--b\r\nno field\r\n\r\ndata\r\n--b--",
        b"--b\r\n: no name\r\n\r\ndata\r\n--b--",
        b"--bx\r\n\r\ndata\r\n--b--",
        b"--b-\r\n\r\ndata\r\n--b--",
        b"--b\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"--b\r\nX: " + b"x" * 20_000,
        b"x" * 100_000,
        b"--b" + b" " * 100_000,
        b"--b\r\n\r\n1\r\n--b\r\n\r\n2\r\n--b\r\n\r\n3\r\n--b--",
    ],
)
def test_what_is_malformed_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMultipart):
        read(body, [1, 2, 5, 50, 70_000], max_parts=2)
