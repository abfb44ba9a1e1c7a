"""What a hostile sender tries: floods, header fields that cost time, data sets that deceive later readers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.stow.negotiation import MAX_FIELD_CHARS, accepts_dicom_json, body_type, parse_media_type
from isocenter.ingest.testing import Wire, command_set, p_data

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
ECHO = p_data(1, command_set(0x0030, sop_class=VERIFICATION), command=True)
EMPTY_STORE = p_data(
    1, command_set(0x0001, sop_class=CT, sop_instance="1.2.3", data_set=True), command=True
) + p_data(1, b"", command=False)


async def answers_until_abort(wire: Wire) -> int:
    """How many responses came before the abort."""
    count = 0
    while True:
        kind, _ = await wire.pdu()
        if kind != PduType.DATA:
            assert kind in {PduType.ABORT, 0}  # a reset may overtake the abort: our side did not read all
            return count
        count += 1


@pytest.mark.parametrize(
    ("context", "request_"), [((VERIFICATION, IMPLICIT), ECHO), ((CT, EXPLICIT), EMPTY_STORE)]
)
async def test_a_flood_of_requests_without_waiting_is_aborted(
    service: IngestService, context: tuple[str, str], request_: bytes
) -> None:
    """No asynchronous operations window is agreed; each request could otherwise bring a chunk of 1 MiB."""
    wire = await Wire.open(service.dicom_port)
    await wire.associate(context)
    wire.writer.write(request_ * 2000)
    assert await answers_until_abort(wire) < 200
    await wire.close()


async def test_a_few_requests_ahead_are_answered(service: IngestService) -> None:
    wire = await Wire.open(service.dicom_port)
    await wire.associate((VERIFICATION, IMPLICIT))
    await wire.send(ECHO * 4)
    assert [await wire.status() for _ in range(4)] == [0, 0, 0, 0]
    await wire.close()


@pytest.mark.parametrize("transfer_syntax", [IMPLICIT, EXPLICIT])
async def test_a_data_set_that_begins_with_file_meta_information_is_refused(
    service: IngestService, world: World, transfer_syntax: str
) -> None:
    """Its own group 2 would merge with the one written in front: another transfer syntax, or unreadable."""
    uid = EXPLICIT.encode() + b"\0"
    head = struct.pack("<HHI" if transfer_syntax == IMPLICIT else "<HH2sH", *_head(transfer_syntax, len(uid)))
    wire = await Wire.open(service.dicom_port)
    await wire.associate((CT, transfer_syntax))
    await wire.send(
        p_data(1, command_set(1, sop_class=CT, sop_instance="1.2.3", data_set=True), command=True)
        + p_data(1, head + uid + bytes(64), command=False)
    )
    assert await wire.status() == 0xC000
    assert await world.objects() == {}
    await wire.close()


def _head(transfer_syntax: str, length: int) -> tuple[int | bytes, ...]:
    return (2, 0x10, length) if transfer_syntax == IMPLICIT else (2, 0x10, b"UI", length)


def test_extended_parameters_of_a_media_type_are_read() -> None:
    """RFC 2231: a value with a character set is a value all the same."""
    extended = "multipart/related; type*=utf-8''application%2Fdicom; boundary*=utf-8''BB"
    assert body_type(extended, None).boundary == "BB"
    assert accepts_dicom_json("application/dicom+json; q*=utf-8''1")


def test_media_types_too_long_to_parse_are_none() -> None:
    assert parse_media_type('a/b; c="' + ";" * MAX_FIELD_CHARS) == ("", {})


async def test_a_connection_cut_within_a_data_set_leaves_nothing(world: World, dicom: Dicom) -> None:
    service = world.service()
    await service.start()
    data_set = dicom.data_set(dicom.file(dicom.instance(pixels=1 << 20)))
    command = command_set(1, sop_class=CT, sop_instance="1.2.3", data_set=True)
    for cut in (0, 1, 100, 5000, len(data_set) - 1):
        wire = await Wire.open(service.dicom_port)
        await wire.associate((CT, EXPLICIT))
        await wire.send(p_data(1, command, command=True) + p_data(1, data_set, command=False)[: cut + 12])
        wire.writer.transport.abort()
    await service.stop()
    assert world.staged() == []
    assert await world.objects() == {}
