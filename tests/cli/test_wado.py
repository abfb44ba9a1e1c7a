from __future__ import annotations

from pathlib import Path

import pytest

from isocenter.cli.wado import RetrievalError, Sent, compare, fingerprint, parts

TYPE = 'multipart/related; type="application/dicom"; boundary=B'


def _body(*payloads: bytes) -> bytes:
    return (
        b"".join(b"--B\r\nContent-Type: application/dicom\r\n\r\n" + p + b"\r\n" for p in payloads)
        + b"--B--\r\n"
    )


def test_parts_keep_bytes_that_look_like_line_ends() -> None:
    payloads = [b"a\r\n\r\n--b\r\n", b"", b"\r\n", b"x" * 1000]

    assert payloads == list(parts(TYPE, _body(*payloads)))


def test_a_cut_answer_is_an_error() -> None:
    with pytest.raises(RetrievalError):
        list(parts(TYPE, _body(b"abc")[:-12]))


def test_an_answer_that_is_no_multipart_is_an_error() -> None:
    with pytest.raises(RetrievalError):
        list(parts("application/json", b"{}"))


def test_whole_files_and_data_sets_are_told_apart(package: Path) -> None:
    data = (package / "CT_small.dcm").read_bytes()
    mark = fingerprint(data)
    other_preamble = b"x" * 128 + data[128:]

    as_file = compare([data], {mark.sop_instance_uid: [Sent(mark, whole=True)]})
    as_data_set = compare([other_preamble], {mark.sop_instance_uid: [Sent(mark, whole=False)]})
    wrong = compare([other_preamble], {mark.sop_instance_uid: [Sent(mark, whole=True)]})

    assert (1, 0, True) == (as_file.equal_whole, as_file.equal_data_set, as_file.proven)
    assert (0, 1, True) == (as_data_set.equal_whole, as_data_set.equal_data_set, as_data_set.proven)
    assert not wrong.proven


def test_one_changed_bit_is_found(package: Path) -> None:
    data = bytearray((package / "CT_small.dcm").read_bytes())
    mark = fingerprint(bytes(data))
    data[-1] ^= 1

    assert not compare([bytes(data)], {mark.sop_instance_uid: [Sent(mark, whole=False)]}).proven


def test_nothing_retrieved_proves_nothing() -> None:
    assert not compare([], {}).proven
