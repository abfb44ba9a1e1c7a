"""The rest of what strangers reach on a running platform: requests for commitment, and what is read back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import pytest
from benchmarks.embedded import Embedded
from tests.hostile.attacks import ITEM, UNDEFINED, Instance, mark
from tests.hostile.site import Address, multipart

from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.testing import Wire, p_data

PUSH_MODEL = "1.2.840.10008.1.20.1"
IMPLICIT = "1.2.840.10008.1.2"
TRANSACTION = "1.2.826.0.1.3680043.8.498.77"
JSON, XML = "application/dicom+json", "application/dicom+xml"
LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><NativeDicomModel>&b;</NativeDicomModel>'
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><NativeDicomModel>&a;</NativeDicomModel>'


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("platform")) as running:
        yield running
        assert running.running
        assert "Traceback" not in running.log.read_text(errors="replace")


def request_for(sop_instance: str) -> bytes:
    reference = {
        "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00081155": {"vr": "UI", "Value": [sop_instance]},
    }
    return json.dumps({"00081199": {"vr": "SQ", "Value": [reference]}}).encode()


def post(platform: Embedded, transaction: str, body: bytes, kind: str = JSON) -> httpx.Response:
    url = f"{platform.dicom_web}/commitment-requests/{transaction}"
    return httpx.post(url, content=body, headers={"Content-Type": kind, "Accept": JSON}, timeout=30)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"[" * 1_000_000, JSON, 400),
        (b'{"a":' * 200_000, JSON, 400),
        (b"1" * 100_000, JSON, 400),
        (request_for("../../etc/passwd"), JSON, 400),
        (request_for("1.2." + "3" * 64), JSON, 400),
        (b'"\\ud800"', JSON, 400),
        (b"\xff\xfe" + b"[\0]\0", JSON, 400),
        (b" " * (17 << 20), JSON, 413),
        (LAUGHS, XML, 400),
        (OUTSIDE, XML, 400),
        (b"<a>" * 500_000, XML, 400),
        (b"<a " + b" ".join(b'b%d="c"' % n for n in range(100_000)) + b"/>", XML, 400),
        (b'<?xml version="1.0" encoding="UUF-8"?><NativeDicomModel/>', XML, 400),
        (b'<?xml version="1.0" encoding="shift_jis"?><NativeDicomModel/>', XML, 400),
        (b'<?xml version="1.0" encoding="zip"?><NativeDicomModel/>', XML, 400),
        (b"PK\3\4", "application/zip", 415),
    ],
    ids=[
        *("lists in lists", "objects in objects", "a long number", "a path", "a long UID", "half a pair"),
        *("UTF-16", "17 MiB", "entities", "a file as entity", "elements in elements", "attributes"),
        *("an encoding that nobody has", "an encoding of several bytes", "no text encoding", "ZIP"),
    ],
)
def test_a_request_for_commitment_that_lies(platform: Embedded, body: bytes, kind: str, status: int) -> None:
    began = time.monotonic()
    answer = post(platform, TRANSACTION, body, kind)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"root" not in answer.content
    assert b"etc" not in answer.content
    assert time.monotonic() - began < 20


def test_a_request_for_commitment_that_stalls_keeps_nobody_waiting(platform: Embedded) -> None:
    head = (
        f"POST /dicom-web/commitment-requests/{TRANSACTION}.1 HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: {JSON}\r\nContent-Length: 1000000\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stalled:
        for _ in range(4):
            connection = stalled.enter_context(socket.create_connection(("127.0.0.1", platform.http_port)))
            connection.sendall(head + b" " * 400_000)
        began = time.monotonic()
        answer = post(platform, f"{TRANSACTION}.2", request_for("1.2.3"))
        assert answer.status_code in {200, 202}
        assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    "data_set",
    [
        struct.pack("<HHI", 0x0008, 0x1199, UNDEFINED) + mark(ITEM, UNDEFINED) * 10_000,
        (struct.pack("<HHI", 0x0008, 0x1140, UNDEFINED) + mark(ITEM, UNDEFINED)) * 10_000,
        struct.pack("<HHI", 0x0008, 0x1195, 0xFFFFFFFE) + b"1.2",
        struct.pack("<HHI", 0x0008, 0x1195, 6) + b"../../",
        mark(ITEM) * 100_000,
        b"",
    ],
    ids=["open items", "depth", "a length of 4 GB", "a path", "items", "nothing"],
)
async def test_an_n_action_that_lies(platform: Embedded, data_set: bytes) -> None:
    elements = (
        (0x0003, PUSH_MODEL.encode()),
        (0x0100, struct.pack("<H", 0x0130)),
        (0x0110, struct.pack("<H", 7)),
        (0x0800, struct.pack("<H", 0)),
        (0x1001, b"1.2.840.10008.1.20.1.1"),
        (0x1008, struct.pack("<H", 1)),
    )
    command = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
    wire = await Wire.open(platform.dicom_port)
    assert await wire.associate((PUSH_MODEL, IMPLICIT)) == PduType.ASSOCIATE_AC
    await wire.send(p_data(1, command, command=True) + p_data(1, data_set, command=False))
    async with asyncio.timeout(20):
        assert await wire.status() != 0
    await wire.close()


@pytest.mark.parametrize("preamble", [b"II*\0\x10\0\0\0", b"Made by a scanner & friends"])
async def test_what_is_read_back_is_rendered_by_nobody(platform: Embedded, preamble: bytes) -> None:
    """Whatever the preamble looks like to a browser, it is told what it gets, and to run nothing of it."""
    study = f"1.2.826.0.1.3680043.8.498.{preamble[0]}"
    file = Instance(preamble=preamble, study=study).numbered().file()
    answer = await Address(platform.dicom_port, platform.http_port).post(multipart(file))
    assert answer.status == 200
    assert await asyncio.to_thread(platform.instances, f"/dicom-web/studies/{study}") == [file]
    url = json.loads(answer.body)["00081199"]["Value"][0]["00081190"]["Value"][0]
    back = await asyncio.to_thread(
        platform.get, url[url.index("/dicom-web") :], "application/dicom; transfer-syntax=*"
    )
    assert back[0] == 200
    assert back[2] == file
    assert back[1]["content-type"].startswith("application/dicom")
    assert back[1]["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in back[1]["content-security-policy"]
    assert "sandbox" in back[1]["content-security-policy"]
