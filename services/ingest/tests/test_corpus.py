"""Every DICOM file that ships with pydicom: stored bit for bit, or refused with the reason given here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom.data

from isocenter.common.dicom.part10 import FileMeta, Part10Splitter
from isocenter.common.errors import InvalidInstance, RejectReason
from isocenter.common.events.models import Protocol

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World

ROOT = Path(pydicom.data.__file__).parent
FILES = sorted(
    path
    for path in ROOT.rglob("*")
    if path.is_file() and path.suffix in {".dcm", ""} and not path.name.startswith("README")
)

# The data set is a DICOMDIR, a colour palette, or lost UIDs when it was made an example.
MISSING_UID = {
    *(f"test_files/dicomdirtests/DICOMDIR{end}" for end in ("", "-bigEnd", "-empty.dcm", "-implicit")),
    *(f"test_files/dicomdirtests/DICOMDIR{end}" for end in ("-nopatient", "-reordered")),
    "test_files/dicomdirtests/TINY_ALPHA/DICOMDIR",
    *(f"palettes/{name}.dcm" for name in ("fall", "hotiron", "hotmetalblue", "pet")),
    *(f"palettes/{name}.dcm" for name in ("pet20step", "spring", "summer", "winter")),
    "charset_files/chrSQEncoding.dcm",
    "charset_files/chrSQEncoding1.dcm",
    "test_files/JPEGLSNearLossless_08.dcm",
    "test_files/JPEGLSNearLossless_16.dcm",
    "test_files/SC_rgb_jls_lossy_line.dcm",
    "test_files/SC_rgb_jls_lossy_sample.dcm",
    "test_files/UN_sequence.dcm",
    "test_files/empty_charset_LEI.dcm",
    "test_files/nested_priv_SQ.dcm",
    "test_files/no_meta_group_length.dcm",
    "test_files/priv_SQ.dcm",
}
# File meta information names another SOP Instance UID than the data set.
SOP_MISMATCH = {
    "charset_files/chrJapMulti.dcm",
    "charset_files/chrJapMultiExplicitIR6.dcm",
    "test_files/badVR.dcm",
    "test_files/rtdose.dcm",
    "test_files/rtdose_1frame.dcm",
    "test_files/rtdose_expb.dcm",
    "test_files/rtdose_expb_1frame.dcm",
    "test_files/rtplan.dcm",
    "test_files/rtplan_truncated.dcm",
}
# A length points beyond the end of what holds it.
MALFORMED = {"test_files/MR_truncated.dcm", "test_files/dicomdirtests/DICOMDIR-nooffset"}
# No preamble, no file meta information, or none that names a transfer syntax.
NOT_DICOM = {
    "test_files/ExplVR_BigEndNoMeta.dcm",
    "test_files/ExplVR_LitEndNoMeta.dcm",
    "test_files/meta_missing_tsyntax.dcm",
    "test_files/no_meta.dcm",
    "test_files/rtstruct.dcm",
}


def expected(name: str) -> RejectReason | None:
    if name in MISSING_UID:
        return RejectReason.MISSING_UID
    if name in SOP_MISMATCH:
        return RejectReason.SOP_MISMATCH
    if name in MALFORMED:
        return RejectReason.MALFORMED
    return RejectReason.NOT_DICOM if name in NOT_DICOM else None


async def test_as_files(world: World) -> None:
    intake = world.intake()
    found, wanted = {}, {}
    async with intake.transfer(Protocol.STOW, "stow") as transfer:
        for path in FILES:
            name, data = str(path.relative_to(ROOT)), path.read_bytes()
            wanted[name] = expected(name)
            async with transfer.instance() as receiver:
                for start in range(0, len(data), 50_000):
                    await receiver.write(data[start : start + 50_000])
                outcome = await receiver.finish()
            found[name] = outcome.reason
            if outcome.stored:
                [stored] = world.bus.stored[-1].instances
                assert data == await world.store.get(stored.object_key), name
    assert wanted == found
    refused = sum(reason is not None for reason in wanted.values())
    assert len(world.bus.rejected) == refused


def file_meta(path: Path) -> FileMeta | None:
    splitter = Part10Splitter()
    try:
        splitter.feed(path.read_bytes())
        splitter.finish()
    except InvalidInstance:
        return None
    return splitter.meta


async def test_over_c_store(service: IngestService, world: World, scu: type[Scu], dicom: Dicom) -> None:
    sendable = {path: meta for path in FILES if (meta := file_meta(path)) and meta.sop_class_uid}
    contexts = sorted({(meta.sop_class_uid, meta.transfer_syntax_uid) for meta in sendable.values()})
    assert len(contexts) <= 128

    def send() -> dict[str, int | None]:
        association = scu(service.dicom_port).associate(*contexts)
        statuses: dict[str, int | None] = {}
        for path in sendable:
            name = str(path.relative_to(ROOT))
            try:
                statuses[name] = int(association.send_c_store(path).Status)
            except ValueError:
                statuses[name] = None  # no presentation context was accepted
        association.release()
        return statuses

    statuses = await asyncio.to_thread(send)

    kept = {dicom.data_set(data) for data in (await world.objects()).values()}
    for path in sendable:
        name = str(path.relative_to(ROOT))
        if statuses[name] == 0:
            assert dicom.data_set(path.read_bytes()) in kept, name
    not_storage = {name for name, status in statuses.items() if status is None}
    assert not_storage == {n for n in statuses if "DICOMDIR" in n or n.startswith("palettes/")}
    refused = {name: status for name, status in statuses.items() if status}
    names = {str(path.relative_to(ROOT)) for path in sendable} - not_storage
    cannot_understand = names & (MISSING_UID | MALFORMED)
    assert refused == dict.fromkeys(names & SOP_MISMATCH, 43264) | dict.fromkeys(cannot_understand, 49152)
