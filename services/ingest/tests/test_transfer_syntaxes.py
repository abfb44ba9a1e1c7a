"""Every transfer syntax of PS3.6 table A-1, sent by pynetdicom: stored bytes are those that were sent."""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from pydicom.uid import AllTransferSyntaxes, generate_uid
from pynetdicom import AE

from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.ingest.testing import Scu

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.uid import UID

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

VIDEO_ENDOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
IMPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
FRAGMENTS = (b"\0\0\1\xb3" * 40_000, b"\xff\x4f", bytes(range(256)) * 200)


def element(tag: int, vr: str, value: bytes, syntax: str) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if syntax == IMPLICIT:
        return struct.pack("<HHL", group, number, len(value)) + value
    order = ">" if syntax == BIG else "<"
    if vr in {"OB", "OW", "UN"}:
        return struct.pack(f"{order}HH2s2xL", group, number, vr.encode(), len(value)) + value
    return struct.pack(f"{order}HH2sH", group, number, vr.encode(), len(value)) + value


def uid_value(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def fragments() -> bytes:
    """Pixel Data of undefined length: an empty offset table, fragments of odd sizes of their own, the end."""
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(each)) + each for each in (b"", *FRAGMENTS))
    return (
        struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF) + items + bytes.fromhex("feffdde000000000")
    )


def data_set(syntax: UID, instance: str) -> bytes:
    """As it travels: in the byte order and with the compression of its transfer syntax."""
    elements = [
        (0x00080016, "UI", uid_value(VIDEO_ENDOSCOPIC)),
        (0x00080018, "UI", uid_value(instance)),
        (0x00100010, "PN", b"DOE^JANE"),
        (0x0020000D, "UI", uid_value(generate_uid())),
        (0x0020000E, "UI", uid_value(generate_uid())),
    ]
    out = b"".join(element(*each, str(syntax)) for each in elements)
    if (syntax.is_encapsulated and not str(syntax).startswith("1.2.840.10008.1.2.4.20")) or _is_ht(syntax):
        out += fragments()
    elif not _is_by_reference(syntax):
        out += element(0x7FE00010, "OW", bytes(range(256)) * 1000, str(syntax))
    if str(syntax) in DEFLATED:
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        out = deflater.compress(out) + deflater.flush()
        out += b"\0" * (len(out) % 2)
    return out


def _is_ht(syntax: UID) -> bool:
    return str(syntax) in {f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)}


def _is_by_reference(syntax: UID) -> bool:
    """JPIP: the pixels are elsewhere."""
    return "JPIP" in syntax.name


async def test_each_is_kept_as_it_was_sent(
    service: IngestService, world: World, dicom: Dicom, tmp_path: Path, scu: type[Scu]
) -> None:
    sent: dict[str, bytes] = {}
    for syntax in AllTransferSyntaxes:
        instance = generate_uid()
        sent[syntax] = data_set(syntax, instance)
        meta = encode_file_meta(
            sop_class_uid=VIDEO_ENDOSCOPIC,
            sop_instance_uid=instance,
            transfer_syntax_uid=str(syntax),
            source_application_entity_title="MODALITY",
        )
        (tmp_path / f"{syntax}.dcm").write_bytes(meta + sent[syntax])

    def send() -> dict[str, int]:
        ae = AE(ae_title="MODALITY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        for syntax in AllTransferSyntaxes:
            ae.add_requested_context(VIDEO_ENDOSCOPIC, syntax)
        association = ae.associate("127.0.0.1", service.dicom_port)
        # Each syntax in a context of its own: one that was refused would raise.
        statuses = {str(s): int(association.send_c_store(tmp_path / f"{s}.dcm").Status) for s in sent}
        association.release()
        return statuses

    assert await asyncio.to_thread(send) == dict.fromkeys(map(str, sent), 0)
    kept = {}
    for each in world.bus.stored:
        for stored in each.instances:
            kept[stored.transfer_syntax_uid] = dicom.data_set(await world.store.get(stored.object_key))
    assert kept.keys() == set(map(str, sent))
    assert [syntax for syntax, data in sent.items() if kept[syntax] != data] == []


@pytest.mark.parametrize("max_pdu", [4096, 65_536, 0])
async def test_whatever_length_of_pdu_the_sender_takes(
    service: IngestService, dicom: Dicom, tmp_path: Path, scu: type[Scu], max_pdu: int
) -> None:
    """`max_pdu` is what the sender says of itself: responses keep to it."""
    path = tmp_path / "one.dcm"
    path.write_bytes(dicom.file(dicom.instance(pixels=300_000)))
    assert await scu(service.dicom_port, max_pdu=max_pdu).store(path, path) == [0, 0]
