from __future__ import annotations

from pathlib import Path

import pytest

from isocenter.cli.files import Skipped, find, inspect
from isocenter.common.errors import RejectReason


def test_a_folder_is_walked_in_name_order_and_what_is_no_dicom_is_skipped(
    package: Path, tmp_path: Path
) -> None:
    for name in ("b.dcm", "a"):
        (tmp_path / name).write_bytes((package / "CT_small.dcm").read_bytes())
    (tmp_path / "README").write_text("no images here")

    found = list(find([tmp_path]))

    assert [Skipped(tmp_path / "README", "not DICOM"), tmp_path / "a", tmp_path / "b.dcm"] == found


def test_a_file_that_was_named_is_never_skipped(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")

    assert [note] == list(find([note]))


def test_a_data_set_without_file_meta_is_not_taken_for_something_else(package: Path, tmp_path: Path) -> None:
    """Skipping it would lose an image silently: it must be named as refused."""
    bare = tmp_path / "bare"
    bare.write_bytes((package / "ExplVR_LitEndNoMeta.dcm").read_bytes())

    assert [bare] == list(find([tmp_path]))
    assert RejectReason.NOT_DICOM is inspect(bare).problem


def test_header_and_offset_are_those_of_the_file(package: Path) -> None:
    candidate = inspect(package / "CT_small.dcm")

    assert candidate.problem is None
    assert candidate.header is not None
    assert candidate.meta is not None
    assert candidate.header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert b"\x08\x00\x05\x00" == (package / "CT_small.dcm").read_bytes()[candidate.meta.header_bytes :][:4]


def test_the_data_sets_own_uids_win_over_those_of_file_meta(package: Path) -> None:
    """`rtdose.dcm` has another SOP Instance UID in its file meta information."""
    candidate = inspect(package / "rtdose.dcm")

    assert candidate.meta is not None
    assert candidate.sop is not None
    assert candidate.meta.sop_instance_uid != candidate.sop[1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dicomdirtests/DICOMDIR", RejectReason.SOP_CLASS_UNSUPPORTED),
        ("meta_missing_tsyntax.dcm", RejectReason.NOT_DICOM),
        ("priv_SQ.dcm", RejectReason.MISSING_UID),
    ],
)
def test_what_cannot_be_sent_says_why(package: Path, name: str, reason: RejectReason) -> None:
    assert reason is inspect(package / name).problem
