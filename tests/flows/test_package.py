"""Every DICOM file of the pydicom package: kept byte for byte, or refused with the reason written here."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.embedded import Embedded
from tests.flows.conftest import PACKAGE
from tests.flows.helpers import ENVIRONMENT, isocenter_json, settled

from isocenter.cli.files import inspect
from isocenter.common.clock import SystemClock
from isocenter.common.engines import Engines
from isocenter.common.errors import NotFound
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.sealed import Sealed
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault
from isocenter.common.settings import PlatformSettings

NOT_DICOM = "not-dicom"
MISSING_UID = "missing-uid"
NO_INSTANCE = "sop-class-unsupported"
MISMATCH = "names another SOP Class or Instance UID"

TRUNCATED = "Cannot Understand"

REFUSED = {
    # Its pixel data break off within their value.
    "MR_truncated.dcm": TRUNCATED,
    # A data set without file meta information: nobody can say in which transfer syntax it is (PS3.10 7.1).
    "ExplVR_BigEndNoMeta.dcm": NOT_DICOM,
    "ExplVR_LitEndNoMeta.dcm": NOT_DICOM,
    "meta_missing_tsyntax.dcm": NOT_DICOM,
    "no_meta.dcm": NOT_DICOM,
    "rtstruct.dcm": NOT_DICOM,
    # Fragments made to test one thing, without the UIDs that place an instance (PS3.3 C.12.1, C.7.3.1).
    "JPEGLSNearLossless_08.dcm": MISSING_UID,
    "JPEGLSNearLossless_16.dcm": MISSING_UID,
    "SC_rgb_jls_lossy_line.dcm": MISSING_UID,
    "SC_rgb_jls_lossy_sample.dcm": MISSING_UID,
    "UN_sequence.dcm": MISSING_UID,
    "chrSQEncoding.dcm": MISSING_UID,
    "chrSQEncoding1.dcm": MISSING_UID,
    "empty_charset_LEI.dcm": MISSING_UID,
    "nested_priv_SQ.dcm": MISSING_UID,
    "no_meta_group_length.dcm": MISSING_UID,
    "priv_SQ.dcm": MISSING_UID,
    # Media directories: indexes of files, no composite instances (PS3.3 annex F).
    "DICOMDIR": NO_INSTANCE,
    "DICOMDIR-bigEnd": NO_INSTANCE,
    "DICOMDIR-empty.dcm": NO_INSTANCE,
    "DICOMDIR-implicit": NO_INSTANCE,
    "DICOMDIR-nooffset": NO_INSTANCE,
    "DICOMDIR-nopatient": NO_INSTANCE,
    "DICOMDIR-reordered": NO_INSTANCE,
}
"""Refused over either protocol."""

PALETTES = ("fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring", "summer", "winter")
"""Colour palettes belong to no study (PS3.3 section A.58, a Non-Patient object)."""

REFUSED_OVER_DIMSE = {
    f"{name}.dcm": "no presentation context: Color Palette Storage" for name in PALETTES
} | {"rtplan_truncated.dcm": TRUNCATED}

REFUSED_OVER_STOW = {f"{name}.dcm": MISSING_UID for name in PALETTES} | {
    # File meta information and data set name different instances. C-STORE carries no file meta information.
    "badVR.dcm": MISMATCH,
    "chrJapMulti.dcm": MISMATCH,
    "chrJapMultiExplicitIR6.dcm": MISMATCH,
    "rtdose.dcm": MISMATCH,
    "rtdose_1frame.dcm": MISMATCH,
    "rtdose_expb.dcm": MISMATCH,
    "rtdose_expb_1frame.dcm": MISMATCH,
    "rtplan.dcm": MISMATCH,
    "rtplan_truncated.dcm": MISMATCH,
}


@dataclass(frozen=True)
class Delivered:
    """What one protocol made of the package; the platform is stopped."""

    protocol: str
    data_dir: Path
    report: dict[str, Any]


@pytest.fixture(scope="module", params=["dimse", "stow"])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    protocol = str(request.param)
    with Embedded(tmp_path_factory.mktemp(protocol), ENVIRONMENT) as platform:
        option = ["--stow"] if protocol == "stow" else []
        report = isocenter_json("send", *option, PACKAGE, data_dir=platform.data_dir, expect=1)
        settled(platform.data_dir, report["studies"])
    return Delivered(protocol, platform.data_dir, report)


def test_exactly_these_are_refused_and_this_is_why(delivered: Delivered) -> None:
    expected = REFUSED | (REFUSED_OVER_STOW if delivered.protocol == "stow" else REFUSED_OVER_DIMSE)

    found = {Path(each["path"]).name: each["reason"] for each in delivered.report["refused"]}

    assert set(expected) == set(found)
    assert {} == {name: found[name] for name, reason in expected.items() if reason not in found[name]}


def test_every_other_file_is_kept_byte_for_byte(delivered: Delivered) -> None:
    """Looked up by content, so that instances whose SOP Instance UID occurs twice are checked as well.

    Over STOW-RS the object is the file itself; of files that differ only in file meta information the first
    is kept.
    """
    paths = [Path(each["path"]) for each in delivered.report["files"] if each["fate"] == "stored"]

    kept = asyncio.run(_kept(delivered.data_dir, paths))

    assert len(paths) >= 150
    assert [] == [path.name for path, (data_set, _) in kept.items() if not data_set]
    if delivered.protocol == "stow":
        by_object: dict[str, list[bool]] = {}
        for path, (_, whole) in kept.items():
            by_object.setdefault(_name(delivered.data_dir, path), []).append(whole)
        assert [] == [name for name, wholes in by_object.items() if not any(wholes)]


def test_files_in_the_package_that_are_no_dicom_are_skipped(delivered: Delivered) -> None:
    skipped = {Path(each["path"]).name for each in delivered.report["files"] if each["fate"] == "skipped"}

    assert {"README.txt", "crayons.icc", "rtplan.dump", "zipMR.gz"} <= skipped
    assert not any(name.endswith(".dcm") for name in skipped)


def test_every_study_of_the_package_settled_with_all_its_instances(delivered: Delivered) -> None:
    studies = isocenter_json("studies", "--limit", "500", data_dir=delivered.data_dir)
    stored: dict[str, set[str]] = {}
    for each in delivered.report["files"]:
        if each["fate"] == "stored":
            stored.setdefault(each["study_instance_uid"], set()).add(each["sop_instance_uid"])

    assert {uid: len(instances) for uid, instances in stored.items()} == {
        study["study_instance_uid"]: study["instances"] for study in studies
    }


async def _kept(data_dir: Path, paths: list[Path]) -> dict[Path, tuple[bool, bool]]:
    """Path -> (an object holds its data set, an object holds the whole file)."""
    engines = Engines.embedded(PlatformSettings(data_dir=data_dir))
    store, study_keys = await engines.open_store(), await engines.open_study_keys(SystemClock())
    vault = Vault(store, Sealed(study_keys))
    keys = SiteKeys.load_or_create(data_dir / "keys" / "site.key")
    found = {}
    try:
        for path in paths:
            candidate = inspect(path)
            assert candidate.header is not None
            assert candidate.meta is not None
            context = SealContext(
                keys.study_key(candidate.header.study_instance_uid),
                keys.instance_key(candidate.header.sop_instance_uid),
            )
            try:
                held = await vault.get(_name(data_dir, path), context)
            except NotFound:
                found[path] = (False, False)
                continue
            sent = path.read_bytes()
            found[path] = (held.endswith(sent[candidate.meta.header_bytes :]), held == sent)
    finally:
        await store.close()
        await study_keys.close()
    return found


def _name(data_dir: Path, path: Path) -> str:
    """The object key of a file's content, computed here from its bytes."""
    candidate = inspect(path)
    assert candidate.header is not None
    assert candidate.meta is not None
    digest = hashlib.sha256(path.read_bytes()[candidate.meta.header_bytes :]).hexdigest()
    keys = SiteKeys.load_or_create(data_dir / "keys" / "site.key")
    return keys.object_key(candidate.header.sop_instance_uid, candidate.meta.transfer_syntax_uid, digest)
