"""PDUs that lie, peers that say too much or too little: the association ends, and nothing else does.

What has no instance has no `instance.rejected` either: the answer is A-ABORT with a reason (PS3.8 table 9-26)
or the end of the connection, and a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import time

import pytest
from tests.hostile.attacks import CT, EXPLICIT, PIXELS, Instance, element
from tests.hostile.site import PATIENCE, Serve, Site, aborted, bounded, pdu

from isocenter.ingest.dimse.pdu import (
    MAX_ASSOCIATE_BYTES,
    PDU_HEADER,
    PDV_HEADER,
    AbortReason,
    PduType,
    abort,
)
from isocenter.ingest.testing import RELEASE_RQ, Wire, associate_rq, command_set, p_data, until

SERVICE_PROVIDER = 2
RQ = associate_rq((CT, EXPLICIT))
INVALID = (SERVICE_PROVIDER, AbortReason.INVALID_PARAMETER)
UNEXPECTED = (SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU)
UNRECOGNISED = (SERVICE_PROVIDER, AbortReason.UNRECOGNISED_PDU)
GIGABYTES = 0xFFFFFFFF


def item(kind: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(value) if length is None else length) + value


FIXED = b"\0\1\0\0" + b"ISOCENTER".ljust(16) + b"WIRE".ljust(16) + bytes(32)
APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")

BEFORE_ASSOCIATION = {
    "request of 4 GB": (pdu(1, RQ[6:], GIGABYTES), INVALID),
    "request of one byte too much": (pdu(1, b"", MAX_ASSOCIATE_BYTES + 1), INVALID),
    "request of nothing": (pdu(1), INVALID),
    "request shorter than its fixed part": (pdu(1, FIXED[:20]), INVALID),
    "request cut within an item": (pdu(1, FIXED + APPLICATION[:8]), INVALID),
    "item longer than the request": (pdu(1, FIXED + item(0x10, b"1.2", 60_000)), INVALID),
    "data before the association": (pdu(4, bytes(100)), UNEXPECTED),
    "4 GB of data before the association": (pdu(4, bytes(100), GIGABYTES), UNEXPECTED),
    "release before the association": (RELEASE_RQ, UNEXPECTED),
    "our own answer": (pdu(2, RQ[6:]), UNEXPECTED),
    "unknown type": (pdu(0x77, bytes(10)), UNRECOGNISED),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", UNRECOGNISED),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), UNRECOGNISED),
}


def value(data: bytes, length: int | None = None, context: int = 1, control: int = 3) -> bytes:
    """A presentation data value that claims `length`."""
    return struct.pack(">LBB", len(data) + 2 if length is None else length, context, control) + data


WITHIN_ASSOCIATION = {
    "4 GB of data": (pdu(4, bytes(100), GIGABYTES), INVALID),
    "data of one byte over the limit": (pdu(4, b"", (1 << 20) + 1), INVALID),
    "no data": (pdu(4), INVALID),
    "data too short for a value": (pdu(4, bytes(5)), INVALID),
    "value longer than its PDU": (pdu(4, value(b"abcd", 200)), INVALID),
    "value of 4 GB": (pdu(4, value(b"abcd", GIGABYTES)), INVALID),
    "value without its own header": (pdu(4, value(b"abcd", 1)), INVALID),
    "value of nothing": (pdu(4, value(b"abcd", 0)), INVALID),
    "rest too short for a value": (pdu(4, value(b"") + b"abc"), INVALID),
    "context that was not agreed": (p_data(3, command_set(1), command=True), INVALID),
    "data set without a command": (p_data(1, b"abcd", command=False), INVALID),
    "command without an end": (p_data(1, bytes(200_000), command=True), INVALID),
    "command that is none": (p_data(1, b"\xff" * 40, command=True), INVALID),
    "command whose length lies": (
        p_data(1, command_set(1, sop_class=CT)[:-1] + b"\xff", command=True),
        None,
    ),
    "second request": (RQ, UNEXPECTED),
    "release that is too long": (pdu(5, bytes(8)), INVALID),
    "release of 4 GB": (pdu(5, b"", GIGABYTES), INVALID),
    "unknown type": (pdu(0, bytes(10)), UNRECOGNISED),
}


async def test_lies_before_an_association(site: Site) -> None:
    with bounded():
        for name, (stream, expected) in BEFORE_ASSOCIATION.items():
            wire = await Wire.open(site.dicom_port)
            await wire.send(stream)
            assert await aborted(wire) == expected, name
            await wire.close()
    assert not site.world.bus.events


async def test_who_is_still_speaking_hears_the_reason(site: Site) -> None:
    """What comes after it is read and dropped: a reset for unread bytes would overtake the abort."""

    def speak() -> bytes:
        with socket.create_connection(("127.0.0.1", site.dicom_port), timeout=PATIENCE) as peer:
            peer.sendall(RELEASE_RQ + bytes(16 << 20))
            return peer.recv(100)

    for _ in range(5):
        assert await asyncio.to_thread(speak) == abort(AbortReason.UNEXPECTED_PDU)


async def test_who_never_stops_speaking_is_cut_off(site: Site) -> None:
    def speak() -> float:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", site.dicom_port), timeout=PATIENCE) as peer:
            while True:
                try:
                    peer.sendall(RELEASE_RQ + bytes(1 << 16))
                except OSError:
                    return time.monotonic() - began
                time.sleep(0.01)

    async with asyncio.timeout(PATIENCE):
        assert await asyncio.to_thread(speak) < PATIENCE


async def test_lies_within_an_association(site: Site) -> None:
    with bounded():
        for name, (stream, expected) in WITHIN_ASSOCIATION.items():
            wire = await site.associate()
            await wire.send(stream)
            if expected is None:
                wire.writer.write_eof()
            assert await aborted(wire) == expected, name
            await wire.close()
    assert not site.world.bus.events


@pytest.mark.parametrize("claim", [MAX_ASSOCIATE_BYTES, 1 << 20, 300 << 20, GIGABYTES])
async def test_a_stranger_cannot_make_us_hold_what_it_sends(site: Site, claim: int) -> None:
    """Published receivers held 300 MiB before anybody had said who they are."""
    piece = bytes(1 << 20)
    with bounded(megabytes=24):
        for _ in range(4):
            wire = await Wire.open(site.dicom_port)
            with contextlib.suppress(OSError):
                await wire.send(pdu(1, b"", claim))
                for _ in range(64):
                    await wire.send(piece)
            with contextlib.suppress(OSError):
                await aborted(wire)
            await wire.close()


async def test_a_request_that_drips_in_has_its_time_and_no_more(serve: Serve) -> None:
    async with serve(associate_timeout_seconds=0.5) as site:
        wires = [await Wire.open(site.dicom_port) for _ in range(8)]
        began = time.monotonic()

        async def drip(wire: Wire) -> float:
            with contextlib.suppress(OSError):
                for byte in RQ:
                    await wire.send(bytes((byte,)))
                    await asyncio.sleep(0.05)
            await aborted(wire)
            return time.monotonic() - began

        with bounded():
            lived = await asyncio.gather(*map(drip, wires))
        assert max(lived) < len(RQ) * 0.05 / 2
        for wire in wires:
            await wire.close()


@pytest.mark.parametrize("silent", ["after a header", "in a command", "in a data set", "dripping", "idle"])
async def test_a_slow_peer_loses_its_association(serve: Serve, silent: str) -> None:
    command = p_data(1, command_set(1, sop_class=CT, sop_instance="1.2.3", data_set=True), command=True)
    begin = {
        "after a header": PDU_HEADER.pack(PduType.DATA, 1 << 20),
        "in a command": PDU_HEADER.pack(PduType.DATA, 106) + PDV_HEADER.pack(102, 1, 1) + bytes(40),
        "in a data set": command + p_data(1, Instance().numbered().data_set(), command=False)[:-20],
        "dripping": command + PDU_HEADER.pack(PduType.DATA, 60_006) + PDV_HEADER.pack(60_002, 1, 2),
        "idle": b"",
    }[silent]
    async with serve(idle_timeout_seconds=0.5) as site:
        wire = await site.associate()
        began = time.monotonic()
        await wire.send(begin)

        async def drip() -> None:
            with contextlib.suppress(OSError):
                while silent == "dripping":
                    await wire.send(b"\0")
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        with bounded():
            assert await aborted(wire) in {(SERVICE_PROVIDER, AbortReason.NOT_SPECIFIED), None}
        assert time.monotonic() - began < PATIENCE / 2
        dripping.cancel()
        await asyncio.wait({dripping})
        await wire.close()
        await until(lambda: not site.world.staged())
        assert not site.world.bus.stored


async def test_a_peer_that_reads_nothing_is_dropped(serve: Serve) -> None:
    """Its responses pile up in the kernel, then nowhere."""
    verification, implicit = "1.2.840.10008.1.1", "1.2.840.10008.1.2"
    echo = p_data(1, command_set(0x30, sop_class=verification), command=True)
    async with serve(idle_timeout_seconds=0.5, associate_timeout_seconds=0.5) as site:
        wire = await site.associate((verification, implicit))
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        with bounded(cpu_seconds=10), contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await wire.send(echo * 6)
                    await asyncio.sleep(0)
        wire.writer.transport.abort()


async def test_half_closed_connections_end_at_every_stage(site: Site) -> None:
    """Whoever closes its side has no more to say: the association ends, and what was half sent is gone."""
    instance = Instance().numbered()
    command = p_data(1, command_set(1, sop_class=CT, sop_instance=instance.sop, data_set=True), command=True)
    stream = RQ + command + p_data(1, instance.data_set(), command=False, piece=64)
    with bounded():
        for cut in (0, 3, 6, 40, len(RQ), len(RQ) + 5, len(RQ) + len(command), len(stream) - 1):
            wire = await Wire.open(site.dicom_port)
            await wire.send(stream[:cut])
            wire.writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                while (await wire.pdu())[0]:
                    pass
            await wire.close()
    await until(lambda: not site.world.staged())
    assert await site.world.objects() == {}
    assert not site.world.bus.stored


async def test_associations_that_broke_off_keep_nothing(site: Site) -> None:
    """Also while nobody collects cycles: each has had megabytes of buffers."""
    command = p_data(1, command_set(1, sop_class=CT, sop_instance="1.2.3", data_set=True), command=True)
    data_set = Instance(tail=element(PIXELS, "OW", bytes(1_500_000))).numbered().data_set()
    gc.collect()
    gc.disable()
    try:
        with bounded(cpu_seconds=10):
            for _ in range(100):
                wire = await site.associate()
                await wire.send(command + p_data(1, data_set, command=False)[:-20])
                wire.writer.write_eof()
                async with asyncio.timeout(PATIENCE):
                    while (await wire.pdu())[0]:
                        pass
                await wire.close()
    finally:
        gc.enable()


async def test_a_hundred_silent_connections_keep_nobody_out(serve: Serve) -> None:
    async with serve(max_associations=8) as site:
        with bounded():
            wires = [await Wire.open(site.dicom_port) for _ in range(100)]
            assert await site.c_store(Instance().numbered()) == 0
            site.kept += 1
        for wire in wires:
            await wire.close()
