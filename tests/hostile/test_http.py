"""STOW-RS requests that lie: an answer of their own, in bounds; what was whole before the lie is kept."""

from __future__ import annotations

import gzip
import io
import time
import zipfile

import pytest
from tests.hostile.attacks import PIXELS, Instance, element, image
from tests.hostile.site import (
    BOUNDARY,
    MULTIPART,
    PATIENCE,
    Serve,
    Site,
    bounded,
    failure_reasons,
    head,
    multipart,
)

from isocenter.common.errors import RejectReason
from isocenter.ingest.testing import until

PROBLEM = "application/problem+json"


def parts(*numbers: int) -> list[bytes]:
    return [Instance().numbered().file() for _ in numbers]


@pytest.mark.parametrize("length", ["4294967296", "99999999999999999999", "2000"])
async def test_a_content_length_that_is_never_reached(site: Site, length: str) -> None:
    """Nothing is set aside for it, and the end of the connection is the end of the request."""
    body = multipart(Instance().numbered().file())[:-40]
    with bounded(megabytes=24):
        answers = await site.raw(head(length) + body, eof=True)
    assert [answer for answer in answers if answer.status == 200] == []
    await until(lambda: not site.world.staged())
    assert await site.world.objects() == {}


async def test_a_content_length_that_is_too_short(site: Site) -> None:
    """The rest is no request: it is not read as part of one either."""
    body = multipart(Instance().numbered().file())
    with bounded():
        answers = await site.raw(head(len(body) - 60, Connection="keep-alive") + body)
    assert answers
    assert {answer.status for answer in answers} == {400}
    assert await site.world.objects() == {}


@pytest.mark.parametrize("length", ["-1", "0x10", "1e3", "10, 20", "", "\xb2"])
async def test_a_content_length_that_is_no_number(site: Site, length: str) -> None:
    request = head("LENGTH", Connection="close").replace(b"LENGTH", length.encode("latin-1"))
    answers = await site.raw(request + multipart(Instance().numbered().file()), eof=True)
    assert {answer.status for answer in answers} <= {400}
    assert await site.world.objects() == {}


@pytest.mark.parametrize(
    "extra",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
async def test_two_lengths_smuggle_no_second_request(site: Site, extra: bytes) -> None:
    start = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\n".encode()
    second = head(0, Connection="close")
    answers = await site.raw(start + extra + b"\r\n0\r\n\r\n" + second, eof=True)
    assert {answer.status for answer in answers} <= {400, 501}
    assert await site.world.objects() == {}


@pytest.mark.parametrize("chunk", [b"FFFFFFFFFFFFFFFFF\r\nab", b"-5\r\nabcde\r\n", b"5;" + b"x" * 200_000])
async def test_chunks_that_lie(site: Site, chunk: bytes) -> None:
    request = head("", Transfer_Encoding="chunked")
    with bounded():
        answers = await site.raw(request + chunk, eof=True)
    assert {answer.status for answer in answers} <= {400}
    assert await site.world.objects() == {}


async def test_a_header_without_an_end(site: Site) -> None:
    with bounded():
        answers = await site.raw(b"POST /dicom-web/studies HTTP/1.1\r\n" + b"X: y\r\n" * 200_000, eof=True)
    assert {answer.status for answer in answers} <= {400, 431}


async def test_bombs_that_inflate_on_arrival_are_not_inflated(site: Site) -> None:
    """A gzip body is not a body of ours; inside a part nothing is undone."""
    bomb = gzip.compress(bytes(64 << 20))
    with bounded(megabytes=24):
        for coding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
            answer = await site.post(bomb, Content_Encoding=coding)
            assert answer.status == 415
            assert answer.headers["content-type"] == PROBLEM
        answer = await site.post(
            multipart(bomb, header=b"Content-Type: application/dicom\r\nContent-Encoding: gzip\r\n")
        )
        assert answer.status == 409
    await site.assert_rejected(RejectReason.NOT_DICOM, 0xC000)


async def test_archives_are_not_opened(site: Site) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../../tmp/isocenter-was-here", bytes(16 << 20))
    with bounded(megabytes=24):
        assert (await site.post(buffer.getvalue(), "application/zip")).status == 415
        answer = await site.post(multipart(buffer.getvalue()))
    assert answer.status == 409
    await site.assert_rejected(RejectReason.NOT_DICOM, 0xC000)


async def test_metadata_is_not_taken_and_not_parsed(site: Site) -> None:
    """No parser of XML or JSON sees a byte: no entities, no nesting, no numbers of a million digits."""
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "' + b"&a;" * 1000 + b'">]><x>&b;</x>'
    deep = b"[" * 1_000_000
    with bounded(megabytes=24):
        for body, kind in (
            (laughs, "application/dicom+xml"),
            (deep, "application/dicom+json"),
            (multipart(laughs), MULTIPART.replace("application/dicom", "application/dicom+xml")),
            (multipart(deep), MULTIPART.replace("application/dicom", "application/dicom+json")),
        ):
            answer = await site.post(body, kind)
            assert answer.status == 415
            assert answer.headers["content-type"] == PROBLEM
        part = b"Content-Type: application/dicom+json\r\n"
        assert (await site.post(multipart(deep, header=part))).status == 409
    await site.assert_rejected(RejectReason.NOT_DICOM, 0xC000)


async def test_the_boundary_inside_of_an_instance_ends_it(site: Site) -> None:
    """It is cut there, and what is cut is refused; what follows is no header of a part."""
    pixels = bytes(16) + f"\r\n--{BOUNDARY}\r\nno header\r\n\r\n".encode().ljust(64, b"x")
    cut = Instance(tail=image(4, 4, "1", element(PIXELS, "OW", pixels))).numbered().file()
    before = Instance().numbered().file()
    with bounded():
        answer = await site.post(multipart(before, cut))
    assert answer.status == 400
    assert answer.headers["content-type"] == PROBLEM
    assert list((await site.world.objects()).values()) == [before]
    site.kept += 1
    await site.assert_rejected(RejectReason.MALFORMED, 0xC000)


async def test_half_a_boundary_is_content(site: Site) -> None:
    """And so is one with something before or behind it, in whatever pieces it comes."""
    teasing = f"\r\n--{BOUNDARY[:-1]}\r\n--{BOUNDARY[:-1]}-\r\n -{BOUNDARY}\r\n--\r\n--{BOUNDARY.upper()}"
    pixels = (teasing.encode() * 2000).ljust(400_000, b"\r")
    files = [
        Instance(tail=image(4, 4, "1", element(PIXELS, "OW", pixels))).numbered().file() for _ in range(2)
    ]
    with bounded():
        assert (await site.post(multipart(*files))).status == 200
    assert sorted((await site.world.objects()).values()) == sorted(files)
    site.kept += 2


async def test_without_a_closing_boundary_what_was_whole_is_kept(site: Site) -> None:
    first, second = parts(1, 2)
    answer = await site.post(multipart(first, second, closing=False))
    assert answer.status == 400
    assert answer.headers["content-type"] == PROBLEM
    assert list((await site.world.objects()).values()) == [first]
    site.kept += 1


async def test_a_hundred_thousand_parts_are_too_many(site: Site) -> None:
    with bounded(cpu_seconds=12, megabytes=64):
        answer = await site.post(multipart(*[b"x"] * 100_000))
    assert answer.status == 400
    assert b"too many parts" in answer.body
    assert await site.world.objects() == {}
    assert {event.reason for event in site.world.bus.rejected} == {RejectReason.NOT_DICOM}


@pytest.mark.parametrize(
    "header",
    [
        b"X: " + b"y" * (8 << 20) + b"\r\n",
        b"X: y\r\n" * 1_000_000,
        b"no colon at all\r\n",
        b": no name\r\n",
        b"Content-Type: application/dicom\r\n" + b" folded\r\n" * 400_000,
    ],
    ids=["one long", "many", "no field", "no name", "folded"],
)
async def test_part_headers_are_bounded(site: Site, header: bytes) -> None:
    body = multipart(Instance().numbered().file(), header=header)
    with bounded():
        answer = await site.post(body)
    assert answer.status == 400
    assert await site.world.objects() == {}


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/related",
        'multipart/related; boundary=""',
        "multipart/related; boundary=" + "b" * 300,
        'multipart/related; boundary="a\tb"',
        "multipart/related; boundary=" + ";" * 60_000,
    ],
)
async def test_boundaries_that_are_none(site: Site, kind: str) -> None:
    with bounded():
        assert (await site.post(multipart(Instance().numbered().file()), kind)).status in {400, 415}


async def test_multipart_in_multipart_is_not_followed(site: Site) -> None:
    inner = multipart(Instance().numbered().file()).replace(BOUNDARY.encode(), b"inner")
    header = b'Content-Type: multipart/related; boundary="inner"\r\n'
    assert (await site.post(multipart(inner, header=header))).status == 409
    await site.assert_rejected(RejectReason.NOT_DICOM, 0xC000)


@pytest.mark.parametrize("slow", ["in the body", "in the header"])
async def test_a_request_that_drips_in_is_ended(
    serve: Serve, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isocenter.common.serving.HEADER_SECONDS", 0.5)
    whole = Instance().numbered().file()
    async with serve(idle_timeout_seconds=0.5) as site:
        began = time.monotonic()
        request = head(1 << 20) if slow == "in the body" else b"POST /dicom-web/studies HTTP/1.1\r\nX: "
        with bounded():
            answers = await site.raw(request, drip=multipart(whole * 10))
        assert time.monotonic() - began < PATIENCE / 2
        assert [answer.status for answer in answers] == ([408] if slow == "in the body" else [])
        assert await site.world.objects() == {}


async def test_one_lie_among_many_does_not_take_the_others_down(site: Site) -> None:
    first, last = parts(1, 2)
    liar = Instance(tail=element(PIXELS, "OW", b"ab", length=0xFFFFFFFE)).numbered().file()
    answer = await site.post(multipart(first, liar, last))
    assert answer.status == 202
    assert failure_reasons(answer) == [0xC000]
    assert sorted((await site.world.objects()).values()) == sorted([first, last])
    site.kept += 2
    await site.assert_rejected(RejectReason.MALFORMED, 0xC000)
