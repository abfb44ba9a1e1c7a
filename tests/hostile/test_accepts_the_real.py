"""What DCMTK and pydicom both read, we take, over C-STORE and STOW-RS, and give back byte for byte.

Every exception is in one table with its reason; one that no longer applies fails the test, and so does a file
that is refused without standing there.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pydicom
import pytest
from benchmarks import peers
from tests.hostile.site import Site, failure_reasons, multipart

from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance, RejectReason
from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.domain import STATUS_OF
from isocenter.ingest.testing import RELEASE_RQ, Wire, command_set, p_data

_IGNORED = {
    ".py",
    ".pyc",
    ".json",
    ".txt",
    ".md",
    ".zip",
    ".npy",
    ".tar",
    ".jpg",
    ".license",
    ".toml",
    ".icc",
}

NO_UIDS = "a fragment made for one test, without the UIDs that place an instance (PS3.3 C.12.1, C.7.3.1)"
NO_INSTANCE = "an index of files and no instance (PS3.3 annex F)"
NO_STUDY = "a palette: it belongs to no study (PS3.3 annex A.58)"
OTHER_META = (
    "file meta information names another instance than the data set; C-STORE carries none and is taken"
)
NO_SYNTAX = "file meta information names no transfer syntax: readers guess, an archive may not"
NO_UID = "a UID with letters, or with a leading zero (PS3.5 section 9.1)"


@dataclass(frozen=True)
class Refusal:
    """Why a file that others read is refused.

    Attributes:
        stow: what it hears as a file.
        c_store: what it hears as a data set; SENT_NOT: no association carries it; TAKEN: it is taken.
    """

    why: str
    stow: RejectReason
    c_store: int


TAKEN, SENT_NOT, CANNOT_UNDERSTAND = 0, -1, 0xC000
EXCEPTIONS: dict[str, Refusal] = {
    **{
        f"test_files/{name}.dcm": Refusal(NO_UIDS, RejectReason.MISSING_UID, CANNOT_UNDERSTAND)
        for name in (
            *("JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "SC_rgb_jls_lossy_line", "priv_SQ"),
            *("SC_rgb_jls_lossy_sample", "UN_sequence", "no_meta_group_length"),
        )
    },
    **{
        f"charset_files/{name}.dcm": Refusal(NO_UIDS, RejectReason.MISSING_UID, CANNOT_UNDERSTAND)
        for name in ("chrSQEncoding", "chrSQEncoding1")
    },
    **{
        # Not even a SOP Class UID, so that there is no presentation context to ask for.
        f"test_files/{name}.dcm": Refusal(NO_UIDS, RejectReason.MISSING_UID, SENT_NOT)
        for name in ("empty_charset_LEI", "nested_priv_SQ")
    },
    **{
        f"palettes/{name}.dcm": Refusal(NO_STUDY, RejectReason.MISSING_UID, SENT_NOT)
        for name in ("fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring", "summer", "winter")
    },
    **{
        f"dicomdirtests/DICOMDIR{end}": Refusal(NO_INSTANCE, RejectReason.MISSING_UID, SENT_NOT)
        for end in ("", "-bigEnd", "-empty.dcm", "-implicit", "-nooffset", "-nopatient", "-reordered")
    },
    "TINY_ALPHA/DICOMDIR": Refusal(NO_INSTANCE, RejectReason.MISSING_UID, SENT_NOT),
    **{
        f"{name}.dcm": Refusal(OTHER_META, RejectReason.SOP_MISMATCH, TAKEN)
        for name in (
            *("charset_files/chrJapMulti", "charset_files/chrJapMultiExplicitIR6", "test_files/badVR"),
            *("test_files/rtdose", "test_files/rtdose_1frame", "test_files/rtdose_expb"),
            *("test_files/rtdose_expb_1frame", "test_files/rtplan"),
        )
    },
    "test_files/meta_missing_tsyntax.dcm": Refusal(NO_SYNTAX, RejectReason.NOT_DICOM, SENT_NOT),
    "data/bad_sequence.dcm": Refusal(NO_UID, RejectReason.INVALID_UID, CANNOT_UNDERSTAND),
    "dicom_files/RTImageStorage.dcm": Refusal(NO_UID, RejectReason.INVALID_UID, SENT_NOT),
}


@cache
def both_read() -> tuple[Path, ...]:
    """Files that DCMTK (dcmftest, dcmdump) and pydicom (every element) read without an error."""
    roots = []
    for package, folder in (("pydicom", "data"), ("data_store", "data"), ("pynetdicom", "tests")):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        roots.append(Path(spec.origin).parent / folder)
    files = [
        path
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix.lower() not in _IGNORED
    ]
    answers = peers.dcmtk("dcmftest", *files).stdout.splitlines()
    part10 = [Path(line.removeprefix("yes: ")) for line in answers if line.startswith("yes: ")]
    return tuple(path for path in part10 if pydicom_reads(path) and dcmtk_reads(path))


def dcmtk_reads(path: Path) -> bool:
    return peers.dcmtk("dcmdump", "-q", "-M", path).returncode == 0


def pydicom_reads(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in pydicom.dcmread(path).iterall():
                pass
    except Exception:  # noqa: BLE001 - whatever it fails with, it does not read the file
        return False
    return True


def name_of(path: Path) -> str:
    return "/".join(path.parts[-2:])


@dataclass(frozen=True)
class Read:
    """A file as a sender reads it. UIDs are the data set's, else those of file meta information."""

    file: bytes
    data_set: bytes
    syntax: str
    sop_class: str
    sop: str

    @classmethod
    def of(cls, path: Path) -> Read:
        file, splitter = path.read_bytes(), Part10Splitter()
        try:
            data_set = bytes(splitter.feed(file)) + splitter.finish()
        except InvalidInstance:
            return cls(file, b"", "", "", "")
        meta = splitter.meta
        assert meta is not None
        try:
            scanner = HeaderScanner(meta.transfer_syntax_uid)
            scanner.feed(data_set)
            header = scanner.finish()
        except InvalidInstance:
            return cls(file, data_set, meta.transfer_syntax_uid, meta.sop_class_uid, meta.sop_instance_uid)
        return cls(file, data_set, meta.transfer_syntax_uid, header.sop_class_uid, header.sop_instance_uid)


@pytest.fixture(scope="module")
def real() -> tuple[Path, ...]:
    if not peers.installed("dcmtk"):
        reason = "NOT RUN: Debian package dcmtk is not installed (scripts/install_peers.sh)"
        if peers.must_be_installed():
            pytest.fail(reason)
        pytest.skip(reason)
    return both_read()


@pytest.mark.peer
@pytest.mark.slow
async def test_over_stow(site: Site, real: tuple[Path, ...]) -> None:
    wrong, exceptions = [], set()
    for path in real:
        read = Read.of(path)
        answer = await site.post(multipart(read.file))
        expected = EXCEPTIONS.get(name_of(path))
        if answer.status == 200:
            if expected is not None:
                wrong.append(f"{name_of(path)}: taken, although it is an exception")
            if not await came_back(site, read, whole=True):
                wrong.append(f"{name_of(path)}: other bytes came back")
            continue
        exceptions.add(name_of(path))
        found = failure_reasons(answer)
        if expected is None or found != [STATUS_OF[expected.stow]]:
            wrong.append(f"{name_of(path)}: HTTP {answer.status}, {found}")
    assert not wrong, "\n".join(wrong)
    assert exceptions == set(EXCEPTIONS)
    site.kept = len(await site.world.objects())
    assert len(real) > 200


@pytest.mark.peer
@pytest.mark.slow
async def test_over_c_store(site: Site, real: tuple[Path, ...]) -> None:
    wrong = []
    for path in real:
        read, expected = Read.of(path), EXCEPTIONS.get(name_of(path))
        status = await c_store(site, read)
        wanted = TAKEN if expected is None else expected.c_store
        if status != wanted:
            wrong.append(f"{name_of(path)}: {status} instead of {wanted}")
        elif status == 0 and not await came_back(site, read, whole=False):
            wrong.append(f"{name_of(path)}: other bytes came back")
    assert not wrong, "\n".join(wrong)
    site.kept = len(await site.world.objects())


async def c_store(site: Site, read: Read) -> int:
    """The status; SENT_NOT where there is no presentation context for it."""
    if not (read.sop_class and read.syntax):
        return SENT_NOT
    wire = await Wire.open(site.dicom_port)
    try:
        assert await wire.associate((read.sop_class, read.syntax)) == PduType.ASSOCIATE_AC
        command = command_set(1, sop_class=read.sop_class, sop_instance=read.sop, data_set=True)
        await wire.send(p_data(1, command, command=True) + p_data(1, read.data_set, command=False))
        async with asyncio.timeout(60):
            try:
                status = await wire.status()
            except ConnectionError:
                return SENT_NOT
        await wire.send(RELEASE_RQ)
        assert (await wire.pdu())[0] == PduType.RELEASE_RP
        return status
    finally:
        await wire.close()


async def came_back(site: Site, read: Read, *, whole: bool) -> bool:
    """Whether the object that was announced last holds these bytes: the file, or the data set where other
    file meta information was there first.
    """
    key = site.world.bus.stored[-1].instances[-1].object_key
    stored = await site.world.store.get(key)
    if whole and stored == read.file:
        return True
    splitter = Part10Splitter()
    data_set = bytes(splitter.feed(stored)) + splitter.finish()
    told = [item.object_key for event in site.world.bus.stored for item in event.instances]
    return data_set == read.data_set and (not whole or told.count(key) > 1)
