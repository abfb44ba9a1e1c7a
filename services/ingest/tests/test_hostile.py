"""Bytes made to hurt end at most one association; the listener goes on."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.ingest.dimse.command import InvalidCommand, decode, encode_response
from isocenter.ingest.dimse.negotiation import Accepted, Policy, negotiate
from isocenter.ingest.dimse.pdu import PDU_HEADER, PduReader, PduType, ProtocolViolation, command_pdus
from isocenter.ingest.testing import RELEASE_RQ, Wire, associate_rq, command_set, p_data

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
POLICY = Policy(ae_title="ISOCENTER", max_pdu=16384)


class Recorder:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self._data = bytearray()

    def pdu_header(self, kind: PduType, length: int) -> None:
        self.told.append(("pdu", kind, length))

    def control_pdu(self, kind: PduType, body: bytes) -> None:
        self.told.append((kind, body))

    def fragment_header(self, context_id: int, *, command: bool) -> None:
        self.told.append((context_id, command))
        self._data.clear()

    def fragment(self, data: memoryview) -> None:
        self._data += data

    def fragment_end(self, *, last: bool) -> None:
        self.told.append((bytes(self._data), last))


def told(stream: bytes, cuts: list[int]) -> list[object]:
    recorder = Recorder()
    reader = PduReader(recorder, limit=1 << 20)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    try:
        for start, end in pairwise(edges):
            reader.feed(memoryview(stream)[start:end])
    except ProtocolViolation as violation:
        recorder.told.append(violation.reason)
    return recorder.told


@given(
    values=st.lists(st.binary(max_size=60), max_size=6),
    piece=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 600), max_size=20),
)
def test_any_cut_of_the_stream_reads_the_same(values: list[bytes], piece: int, cuts: list[int]) -> None:
    stream = b"".join(p_data(1, value, command=False, piece=piece) for value in values) + RELEASE_RQ
    assert told(stream, cuts) == told(stream, []) == told(stream, list(range(len(stream))))


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_no_bytes_do_more_to_the_reader_than_be_refused(stream: bytes, cuts: list[int]) -> None:
    assert told(stream, cuts) == told(stream, [])
    for kind in PduType:
        told(PDU_HEADER.pack(kind, len(stream)) + stream, cuts)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_association_request_does_more_than_be_refused(data: st.DataObject) -> None:
    body = bytearray(associate_rq((CT, EXPLICIT), ("1.2.840.10008.1.1", "1.2.840.10008.1.2"))[6:])
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for request in (bytes(body), bytes(body[:cut])):
        try:
            answer = negotiate(request, POLICY, full=False)
        except ProtocolViolation:
            continue
        assert answer.reply
        if isinstance(answer, Accepted):
            assert all(context.transfer_syntax for context in answer.contexts.values())


@given(st.binary(max_size=100))
def test_no_command_set_does_more_than_be_refused(data: bytes) -> None:
    for candidate in (data, command_set(1, sop_class=CT, sop_instance="1.2") + data):
        try:
            command = decode(candidate)
        except InvalidCommand:
            continue
        encode_response(command, 0)


@given(max_pdu=st.integers(7, 64), size=st.integers(1, 300))
def test_a_response_never_passes_the_peers_maximum(max_pdu: int, size: int) -> None:
    stream = command_pdus(5, bytes(size), max_pdu)
    position, payload = 0, 0
    while position < len(stream):
        _, length = PDU_HEADER.unpack_from(stream, position)
        assert length <= max_pdu
        payload += length - 6
        position += 6 + length
    assert payload == size


@pytest.mark.parametrize("seed", range(5))
async def test_random_bytes_never_stop_the_listener(
    service: IngestService, world: World, dicom: Dicom, seed: int
) -> None:
    chance = random.Random(seed)
    instance = dicom.instance()
    good = associate_rq((CT, EXPLICIT))
    request = command_set(1, sop_class=CT, sop_instance=str(instance.SOPInstanceUID), data_set=True)
    good += p_data(1, request, command=True)
    good += p_data(1, dicom.data_set(dicom.file(instance)), command=False, piece=100) + RELEASE_RQ
    for _ in range(20):
        stream = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        if chance.random() < 0.3:
            del stream[chance.randrange(len(stream)) :]
        wire = await Wire.open(service.dicom_port)
        try:
            await wire.send(bytes(stream))
            wire.writer.write_eof()
            async with asyncio.timeout(10):
                while (await wire.pdu())[0]:
                    pass
        except ConnectionError:
            pass
        await wire.close()
    sound = await Wire.open(service.dicom_port)
    assert await sound.associate((CT, EXPLICIT)) == PduType.ASSOCIATE_AC
    await sound.send(good[len(associate_rq((CT, EXPLICIT))) :])
    assert await sound.status() == 0
    await sound.close()


async def test_of_more_connections_than_twice_the_associations_the_oldest_silent_is_closed(
    world: World,
) -> None:
    """The newest may be a peer in earnest; whoever holds connections without a word keeps nobody out."""
    service = world.service(max_associations=2)
    await service.start()
    wires = [await Wire.open(service.dicom_port) for _ in range(5)]
    assert await wires[0].pdu() == (0, b"")
    assert await wires[4].associate((CT, EXPLICIT)) == PduType.ASSOCIATE_AC
    wires.append(await Wire.open(service.dicom_port))
    assert await wires[1].pdu() == (0, b"")
    assert await wires[5].associate((CT, EXPLICIT)) == PduType.ASSOCIATE_AC
    for wire in wires:
        await wire.close()
    await service.stop()
