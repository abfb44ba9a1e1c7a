"""What a requestor may ask for beside its contexts: roles, extended negotiation, a window (PS3.7 annex D)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from isocenter.ingest.dimse.pdu import PDU_HEADER, PduType
from isocenter.ingest.testing import Wire, associate_rq, command_set, p_data

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
STORAGE, STUDY_ROOT = "1.2.840.10008.4.2", "1.2.840.10008.5.1.4.1.2.2.1"
WINDOW, ROLES, EXTENDED, COMMON, IDENTITY, IDENTITY_ANSWER = 0x53, 0x54, 0x56, 0x57, 0x58, 0x59
ACCEPTED, NOT_SUPPORTED = 0, 3


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def text(value: str) -> bytes:
    return struct.pack(">H", len(value)) + value.encode()


def window(invoked: int, performed: int) -> bytes:
    return item(WINDOW, struct.pack(">HH", invoked, performed))


def roles(uid: str, *, scu: bool, scp: bool) -> bytes:
    return item(ROLES, text(uid) + bytes((scu, scp)))


def common(uid: str, service_class: str, *general: str) -> bytes:
    related = b"".join(text(each) for each in general)
    value = text(uid) + text(service_class) + struct.pack(">H", len(related)) + related
    return item(COMMON, value)


def request(*contexts: tuple[str, str], sub_items: bytes = b"") -> bytes:
    """An A-ASSOCIATE-RQ with more user information."""
    pdu = associate_rq(*contexts)
    body = pdu[PDU_HEADER.size :]
    at = body.rindex(b"\x51\x00\x00\x04") - 4
    length = struct.unpack_from(">H", body, at + 2)[0] + len(sub_items)
    body = body[: at + 2] + struct.pack(">H", length) + body[at + 4 :] + sub_items
    return PDU_HEADER.pack(PduType.ASSOCIATE_RQ, len(body)) + body


async def associate(
    service: IngestService, rq: bytes
) -> tuple[Wire, dict[int, int], list[tuple[int, bytes]]]:
    """The association, the result of each context, and our user information."""
    wire = await Wire.open(service.dicom_port)
    await wire.send(rq)
    kind, body = await wire.pdu()
    assert kind == PduType.ASSOCIATE_AC
    results, user = {}, []
    for sub, value in items(body[68:]):
        if sub == 0x21:
            results[value[0]] = value[2]
        elif sub == 0x50:
            user = items(value)
    return wire, results, user


def items(data: bytes) -> list[tuple[int, bytes]]:
    found, position = [], 0
    while position < len(data):
        kind, length = struct.unpack_from(">BxH", data, position)
        found.append((kind, data[position + 4 : position + 4 + length]))
        position += 4 + length
    return found


@pytest.mark.parametrize(
    ("proposed", "agreed"), [((1, 1), (1, 1)), ((4, 0), (4, 1)), ((0, 0), (8, 1)), ((500, 500), (8, 1))]
)
async def test_a_window_is_agreed_up_to_a_limit(
    service: IngestService, proposed: tuple[int, int], agreed: tuple[int, int]
) -> None:
    wire, _, user = await associate(service, request((CT, EXPLICIT), sub_items=window(*proposed)))
    assert dict(user)[WINDOW] == struct.pack(">HH", *agreed)
    await wire.close()


async def test_without_a_window_nothing_is_said_of_one(service: IngestService) -> None:
    wire, _, user = await associate(service, request((CT, EXPLICIT)))
    assert sorted(kind for kind, _ in user) == [0x51, 0x52, 0x55]
    await wire.close()


async def test_a_full_window_is_taken_without_a_reply_in_between(
    service: IngestService, world: World, dicom: Dicom
) -> None:
    """Eight instances under way; the last one's data set comes only after the reply to the first."""
    wire, _, _ = await associate(service, request((CT, EXPLICIT), sub_items=window(8, 1)))
    instances = [dicom.instance(pixels=40_000) for _ in range(8)]
    messages = []
    for instance in instances:
        rq = command_set(1, sop_class=CT, sop_instance=str(instance.SOPInstanceUID), data_set=True)
        data = p_data(1, dicom.data_set(dicom.file(instance)), command=False)
        messages.append((p_data(1, rq, command=True), data))
    await wire.send(b"".join(rq + data for rq, data in messages[:-1]) + messages[-1][0])
    assert await wire.status() == 0
    await wire.send(messages[-1][1])
    assert [await wire.status() for _ in messages[1:]] == [0] * 7
    assert len(await world.objects()) == 8
    await wire.close()


@pytest.mark.parametrize(
    ("scu", "scp", "result", "answer"),
    [(True, False, ACCEPTED, (1, 0)), (True, True, ACCEPTED, (1, 0)), (False, True, 1, None)],
)
async def test_the_requestor_is_the_one_who_sends(
    service: IngestService, scu: bool, scp: bool, result: int, answer: tuple[int, int] | None
) -> None:
    """A requestor that will only be SCP wants to be sent to: nobody here does that on its association."""
    rq = request((CT, EXPLICIT), (VERIFICATION, EXPLICIT), sub_items=roles(CT, scu=scu, scp=scp))
    wire, results, user = await associate(service, rq)
    assert results == {1: result, 3: ACCEPTED}
    given = [value for kind, value in user if kind == ROLES]
    assert [tuple(value[-2:]) for value in given] == ([answer] if answer else [])
    await wire.close()


async def test_storage_says_what_it_keeps(service: IngestService) -> None:
    """Level 2, all attributes; digital signatures as they came; no coercion (PS3.4 table B.3-1)."""
    extended = item(EXTENDED, text(CT) + bytes((2, 0, 3, 0, 0, 0)))
    wire, _, user = await associate(service, request((CT, EXPLICIT), sub_items=extended))
    assert dict(user)[EXTENDED] == text(CT) + bytes((2, 0, 3, 0, 0, 0))
    await wire.close()


async def test_a_new_class_that_says_what_it_is_is_taken_as_that(world: World) -> None:
    """With unknown classes turned off, one related to a storage class that is known passes."""
    service = world.service(accept_unknown_sop_classes=False)
    await service.start()
    new, other, query = "1.2.3.4.5", "1.2.3.4.6", "1.2.3.4.7"
    rq = request(
        *((uid, EXPLICIT) for uid in (new, other, query)),
        sub_items=common(new, STORAGE, CT) + common(query, "1.2.840.10008.4.3", STUDY_ROOT),
    )
    wire, results, _ = await associate(service, rq)
    assert results == {1: ACCEPTED, 3: NOT_SUPPORTED, 5: NOT_SUPPORTED}
    await wire.close()
    await service.stop()


async def test_a_user_identity_is_not_read_and_not_answered(service: IngestService) -> None:
    identity = item(IDENTITY, bytes((2, 0)) + text("somebody") + text("a password"))
    wire, results, user = await associate(service, request((CT, EXPLICIT), sub_items=identity))
    assert results == {1: ACCEPTED}
    assert IDENTITY_ANSWER not in dict(user)
    await wire.close()


@pytest.mark.parametrize("kind", [0x5A, 0xFF])
async def test_items_of_a_later_standard_are_ignored(service: IngestService, kind: int) -> None:
    wire, results, _ = await associate(service, request((CT, EXPLICIT), sub_items=item(kind, b"later")))
    assert results == {1: ACCEPTED}
    await wire.close()


@pytest.mark.parametrize(
    "sub_items",
    [
        window(1, 1)[:-1],
        item(WINDOW, b"\0"),
        item(ROLES, b"\0\xff1.2"),
        b"\x54\0\xff\xff",
        item(COMMON, b"\0"),
    ],
)
async def test_a_request_that_cannot_be_read_is_aborted(service: IngestService, sub_items: bytes) -> None:
    wire = await Wire.open(service.dicom_port)
    await wire.send(request((CT, EXPLICIT), sub_items=sub_items))
    assert (await wire.pdu())[0] == PduType.ABORT
    await wire.close()
