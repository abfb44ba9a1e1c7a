"""The acceptor as a peer sees it byte by byte: negotiation, splits, violations, time limits, drain."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from isocenter.common.errors import RejectReason
from isocenter.common.keys.keyfile import KeyFile
from isocenter.common.keys.sqlite import SqliteKeyTable
from isocenter.common.keys.study import StudyKeys
from isocenter.common.objects.sealed import Sealed
from isocenter.ingest.dimse.pdu import PDU_HEADER, PduType
from isocenter.ingest.testing import RELEASE_RQ, Wire, associate_rq, command_set, p_data, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ACCEPTED, REJECTED, ABORTED = PduType.ASSOCIATE_AC, PduType.ASSOCIATE_RJ, PduType.ABORT

C_STORE, C_FIND, C_ECHO, C_CANCEL = 0x0001, 0x0020, 0x0030, 0x0FFF


@pytest.fixture
async def wire(service: IngestService) -> AsyncIterator[Wire]:
    wire = await Wire.open(service.dicom_port)
    yield wire
    await wire.close()


def store_rq(sop: str, *, sop_class: str = CT) -> bytes:
    return command_set(C_STORE, sop_class=sop_class, sop_instance=sop, data_set=True)


async def results(wire: Wire, rq: bytes) -> list[tuple[int, int, str]]:
    """Context id, result and transfer syntax of each answer in the A-ASSOCIATE-AC."""
    await wire.send(rq)
    kind, body = await wire.pdu()
    assert kind == ACCEPTED
    position, found = 68, []
    while position < len(body):
        length = int.from_bytes(body[position + 2 : position + 4], "big")
        if body[position] == 0x21:
            syntax = body[position + 12 : position + 4 + length].decode().rstrip("\0")
            found.append((body[position + 4], body[position + 6], syntax))
        position += 4 + length
    return found


# -- negotiation --------------------------------------------------------------------------------------------


async def test_of_the_proposed_transfer_syntaxes_the_first_is_taken(wire: Wire) -> None:
    htj2k, private, deflated = "1.2.840.10008.1.2.4.201", "1.3.6.1.4.1.5962.300.1", EXPLICIT + ".99"
    rq = associate_rq(
        (CT, f"{htj2k},{EXPLICIT}"),
        (CT, f"{BIG},{IMPLICIT}"),
        (CT, private),
        (CT, f"{deflated},{EXPLICIT}"),
    )
    assert await results(wire, rq) == [(1, 0, htj2k), (3, 0, BIG), (5, 0, private), (7, 0, deflated)]


async def test_storage_is_taken_and_other_services_are_not(wire: Wire) -> None:
    private_class = "1.3.12.2.1107.5.9.1"
    newer_class = "1.2.840.10008.5.1.4.1.1.999"
    contexts = (VERIFICATION, CT, private_class, newer_class, FIND, "1.2.840.10008.5.1.4.31")
    answers = await results(wire, associate_rq(*((uid, IMPLICIT) for uid in contexts)))
    assert [result for _, result, _ in answers] == [0, 0, 0, 0, 3, 3]


async def test_unknown_classes_can_be_turned_off(world: World) -> None:
    service = world.service(accept_unknown_sop_classes=False)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    answers = await results(wire, associate_rq(("1.3.12.2.1107.5.9.1", IMPLICIT), (CT, IMPLICIT)))
    assert [result for _, result, _ in answers] == [3, 0]
    await wire.close()
    await service.stop()


async def test_both_ae_titles_come_back_as_sent(wire: Wire) -> None:
    rq = associate_rq((CT, EXPLICIT), called="bad\\title", calling="\xc4\x01")
    await wire.send(rq)
    kind, body = await wire.pdu()
    assert kind == ACCEPTED
    assert body[4:36] == rq[10:42]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda rq: rq[:7] + b"\2" + rq[8:], (0, 1, 2, 2)),  # protocol version 2 only
        (lambda rq: rq.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2"), (0, 1, 1, 2)),
    ],
)
async def test_what_ps3_8_rejects_is_rejected(wire: Wire, change: object, answer: tuple[int, ...]) -> None:
    assert callable(change)
    await wire.send(change(associate_rq((CT, EXPLICIT))))
    assert await wire.pdu() == (REJECTED, bytes(answer))


async def test_another_called_ae_title_is_rejected_only_if_that_is_asked_for(world: World) -> None:
    service = world.service(require_called_ae_title=True)
    await service.start()
    for called, expected in (("OTHER", REJECTED), ("ISOCENTER", ACCEPTED)):
        wire = await Wire.open(service.dicom_port)
        await wire.send(associate_rq((CT, EXPLICIT), called=called))
        kind, body = await wire.pdu()
        assert kind == expected
        if kind == REJECTED:
            assert body == bytes((0, 1, 1, 7))
        await wire.close()
    await service.stop()


async def test_one_association_too_many_is_asked_to_come_back(world: World) -> None:
    service = world.service(max_associations=1)
    await service.start()
    first, second = [await Wire.open(service.dicom_port) for _ in range(2)]
    assert await first.associate((CT, EXPLICIT)) == ACCEPTED
    await second.send(associate_rq((CT, EXPLICIT)))
    assert await second.pdu() == (REJECTED, bytes((0, 2, 3, 2)))
    await first.send(RELEASE_RQ)
    assert (await first.pdu())[0] == PduType.RELEASE_RP
    for wire in (first, second):
        await wire.close()
    await service.stop()


# -- splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("segment", "value"), [(1, 100), (7, 2), (1013, 64), (65536, 1 << 16)])
async def test_any_split_of_the_stream_gives_the_same_instance(
    wire: Wire, world: World, dicom: Dicom, segment: int, value: int
) -> None:
    instance = dicom.instance(pixels=1500)
    data = dicom.data_set(dicom.file(instance))
    stream = associate_rq((CT, EXPLICIT))
    stream += p_data(1, store_rq(instance.SOPInstanceUID), command=True, piece=value)
    stream += p_data(1, data, command=False, piece=value) + RELEASE_RQ
    for start in range(0, len(stream), segment):
        wire.writer.write(stream[start : start + segment])
        await asyncio.sleep(0)
    assert (await wire.pdu())[0] == ACCEPTED
    assert await wire.status() == 0
    assert (await wire.pdu())[0] == PduType.RELEASE_RP
    [kept] = (await world.objects()).values()
    assert dicom.data_set(kept) == data


async def test_requests_sent_without_waiting_are_answered_in_order(
    wire: Wire, world: World, dicom: Dicom
) -> None:
    assert await wire.associate((CT, EXPLICIT), (VERIFICATION, IMPLICIT)) == ACCEPTED
    stream = b""
    for _ in range(5):
        instance = dicom.instance()
        stream += p_data(1, store_rq(instance.SOPInstanceUID), command=True)
        stream += p_data(1, dicom.data_set(dicom.file(instance)), command=False)
    stream += p_data(3, command_set(C_ECHO, sop_class=VERIFICATION), command=True) + RELEASE_RQ
    await wire.send(stream)
    assert [await wire.status() for _ in range(6)] == [0] * 6
    assert (await wire.pdu())[0] == PduType.RELEASE_RP
    assert len(await world.objects()) == 5


async def test_several_values_in_one_pdu(wire: Wire, dicom: Dicom) -> None:
    instance = dicom.instance()
    data = dicom.data_set(dicom.file(instance))
    values = p_data(1, store_rq(instance.SOPInstanceUID), command=True)[6:]
    values += b"".join(p_data(1, b"", command=False)[6:11] + b"\0" for _ in range(2))
    values += p_data(1, data, command=False)[6:]
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(PDU_HEADER.pack(PduType.DATA, len(values)) + values)
    assert await wire.status() == 0


# -- requests that are refused ------------------------------------------------------------------------------


async def test_requests_that_cannot_be_served_get_their_status(
    wire: Wire, world: World, dicom: Dicom
) -> None:
    assert await wire.associate((CT, EXPLICIT), (VERIFICATION, IMPLICIT)) == ACCEPTED
    cases = [
        (command_set(C_STORE, sop_class=CT, sop_instance="1.2.3"), False, 0x0212),
        (store_rq("1.2.3", sop_class=MR), True, 0x0122),
        (store_rq("../../etc/passwd"), True, 0x0117),
        (store_rq(""), True, 0x0117),
        (store_rq("1.2.3"), True, 0xC000),
        (command_set(C_FIND, sop_class=FIND, data_set=True), True, 0x0211),
        (command_set(C_ECHO, sop_class=VERIFICATION), False, 0x0122),
    ]
    for command, has_data_set, expected in cases:
        await wire.send(p_data(1, command, command=True))
        if has_data_set:
            await wire.send(p_data(1, b"no data set", command=False))
        assert await wire.status() == expected
    # The association is still good, and C-CANCEL has no answer.
    await wire.send(p_data(3, command_set(C_CANCEL), command=True))
    await wire.send(p_data(3, command_set(C_ECHO, sop_class=VERIFICATION), command=True))
    assert await wire.status() == 0
    assert await world.objects() == {}


async def test_a_data_set_that_is_another_instance_is_a900(wire: Wire, world: World, dicom: Dicom) -> None:
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(p_data(1, store_rq("1.2.3"), command=True))
    await wire.send(p_data(1, dicom.data_set(dicom.file(dicom.instance())), command=False))
    assert await wire.status() == 0xA900
    await wire.send(RELEASE_RQ)
    await wire.pdu()
    assert [event.reason for event in world.bus.rejected] == [RejectReason.SOP_MISMATCH]
    assert await world.objects() == {}


# -- violations ---------------------------------------------------------------------------------------------

CONTEXT_9 = p_data(9, command_set(C_ECHO, sop_class=CT), command=True)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (PDU_HEADER.pack(99, 4) + bytes(4), 1),
        (PDU_HEADER.pack(PduType.DATA, 100), 2),
        (RELEASE_RQ, 2),
        (PDU_HEADER.pack(PduType.ASSOCIATE_RQ, 1 << 20), 6),
        (PDU_HEADER.pack(PduType.ASSOCIATE_RQ, 10) + bytes(10), 6),
        (associate_rq((CT, EXPLICIT))[:-30] + b"\xff" * 30, 6),
    ],
)
async def test_a_violation_before_the_association_is_aborted(wire: Wire, stream: bytes, reason: int) -> None:
    await wire.send(stream)
    assert await wire.pdu() == (ABORTED, bytes((0, 0, 2, reason)))
    assert (await wire.pdu())[0] == 0


@pytest.mark.parametrize(
    "stream",
    [
        associate_rq((CT, EXPLICIT)),
        CONTEXT_9,
        p_data(1, b"data before a command", command=False),
        p_data(1, b"\0\0\0\1\xff\xff\xff\xff", command=True),
        p_data(1, command_set(0x8001), command=True),
        p_data(1, b"x" * 20_000, command=True),
        p_data(1, store_rq("1.2.3"), command=True) * 2,
        p_data(1, store_rq("1.2.3"), command=True) + RELEASE_RQ,
        PDU_HEADER.pack(PduType.DATA, 2 << 20),
        PDU_HEADER.pack(PduType.DATA, 6) + b"\0\0\0\1\1\3",
        PDU_HEADER.pack(PduType.DATA, 8) + b"\xff\xff\xff\xff\1\3\0\0",
        PDU_HEADER.pack(PduType.RELEASE_RQ, 5) + bytes(5),
    ],
)
async def test_a_violation_within_the_association_is_aborted(wire: Wire, stream: bytes) -> None:
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(stream)
    assert (await wire.pdu())[0] == ABORTED
    assert (await wire.pdu())[0] == 0


# -- ends ---------------------------------------------------------------------------------------------------


async def begin_instance(wire: Wire, dicom: Dicom, *, size: int = 4_000_000) -> None:
    """Sends an instance but for its last PDU."""
    instance = dicom.instance(pixels=size)
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(p_data(1, store_rq(instance.SOPInstanceUID), command=True))
    data = p_data(1, dicom.data_set(dicom.file(instance)), command=False, piece=16378)
    await wire.send(data[: len(data) // 16390 * 16390])


@pytest.mark.parametrize("how", ["abort", "close", "half-close", "violation"])
async def test_an_association_that_breaks_off_leaves_nothing_of_the_instance(
    wire: Wire, world: World, dicom: Dicom, how: str
) -> None:
    await begin_instance(wire, dicom)
    await until(world.staged)
    if how == "abort":
        await wire.send(PDU_HEADER.pack(PduType.ABORT, 4) + bytes(4))
    elif how == "close":
        wire.writer.transport.abort()
    elif how == "half-close":
        wire.writer.write_eof()
    else:
        await wire.send(b"x" * 3000)
    await until(lambda: not world.staged())
    assert await world.objects() == {}
    assert world.bus.events == []


async def test_what_was_stored_before_an_abort_stays_and_its_transfer_ends_aborted(
    wire: Wire, world: World, dicom: Dicom
) -> None:
    instance = dicom.instance()
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(p_data(1, store_rq(instance.SOPInstanceUID), command=True))
    await wire.send(p_data(1, dicom.data_set(dicom.file(instance)), command=False))
    assert await wire.status() == 0
    await wire.send(PDU_HEADER.pack(PduType.ABORT, 4) + bytes(4))
    await until(lambda: world.bus.closed)
    assert [(event.instances, event.aborted) for event in world.bus.closed] == [(1, True)]
    assert len(await world.objects()) == 1


async def test_a_connection_that_says_nothing_is_closed(world: World) -> None:
    service = world.service(associate_timeout_seconds=0.1)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    await wire.send(associate_rq((CT, EXPLICIT))[:50])
    async with asyncio.timeout(10):
        assert (await wire.pdu())[0] == ABORTED
    await wire.close()
    await service.stop()


async def test_an_association_that_falls_silent_is_aborted(world: World, dicom: Dicom) -> None:
    service = world.service(idle_timeout_seconds=0.1)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    await begin_instance(wire, dicom)
    async with asyncio.timeout(10):
        assert (await wire.pdu())[0] == ABORTED
    await until(lambda: not world.staged())
    await wire.close()
    await service.stop()


async def test_a_slow_store_is_not_taken_for_silence(world: World, dicom: Dicom) -> None:
    service = world.service(idle_timeout_seconds=0.1)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    instance = dicom.instance()
    world.bus.gate = asyncio.Event()
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    await wire.send(p_data(1, store_rq(instance.SOPInstanceUID), command=True))
    await wire.send(p_data(1, dicom.data_set(dicom.file(instance)), command=False))
    await asyncio.sleep(0.5)
    world.bus.gate.set()
    assert await wire.status() == 0
    await wire.close()
    await service.stop()


# -- drain --------------------------------------------------------------------------------------------------


async def test_a_stop_lets_a_running_association_finish(world: World, dicom: Dicom) -> None:
    service = world.service(association_drain_seconds=10)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    waiting = await Wire.open(service.dicom_port)
    instance = dicom.instance()
    assert await wire.associate((CT, EXPLICIT)) == ACCEPTED
    stopping = asyncio.create_task(service.stop())
    await asyncio.sleep(0.05)

    # One that has no association yet is turned away at once, and the port is closed.
    assert (await waiting.pdu())[0] == ABORTED
    with pytest.raises(ConnectionRefusedError):
        await Wire.open(service.dicom_port)
    await wire.send(p_data(1, store_rq(instance.SOPInstanceUID), command=True))
    await wire.send(p_data(1, dicom.data_set(dicom.file(instance)), command=False))
    assert await wire.status() == 0
    await wire.send(RELEASE_RQ)
    assert (await wire.pdu())[0] == PduType.RELEASE_RP
    await stopping
    assert [event.instances for event in world.bus.closed] == [1]
    assert world.bus.running is False
    for each in (wire, waiting):
        await each.close()


async def test_a_stop_aborts_what_does_not_finish_in_time(world: World, dicom: Dicom) -> None:
    service = world.service(association_drain_seconds=0.1)
    await service.start()
    wire = await Wire.open(service.dicom_port)
    # Small enough to be read by then: a connection that is closed with bytes unread is reset, and a peer may
    # see that before it sees the abort.
    await begin_instance(wire, dicom, size=100_000)
    await service.stop()
    assert (await wire.pdu())[0] == ABORTED
    assert world.staged() == []
    assert await world.objects() == {}
    await wire.close()


async def test_health_tells_whether_an_instance_could_be_acknowledged(world: World) -> None:
    service = world.service()
    assert [check.name for check in await service.health() if not check.ok] == ["dicom-port", "bus"]
    await service.start()
    assert [check.name for check in await service.health() if not check.ok] == []
    await service.stop()
    assert [check.name for check in await service.health() if not check.ok] == ["dicom-port", "bus"]


async def test_a_key_table_that_does_not_answer_is_told(world: World) -> None:
    """All replicas have the same one: to turn senders away from this one would help nobody."""
    table = await SqliteKeyTable.open(world.root / "keys.sqlite")
    wrapper = KeyFile.load_or_create(world.root / "wrap.key")
    sealing = Sealed(StudyKeys(table, wrapper, tenant="default", clock=world.clock))
    world.ports = replace(world.ports, sealing=sealing)
    service = world.service()
    await service.start()
    assert {("study-keys", True, "")} <= {(c.name, c.ok, c.detail) for c in await service.health()}
    await table.close()
    (found,) = [check for check in await service.health() if check.name == "study-keys"]
    assert found.ok
    assert found.detail.startswith("keys-unavailable: new studies are refused")
    await service.stop()
