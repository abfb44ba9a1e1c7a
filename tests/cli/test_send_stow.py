from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from isocenter.cli import send_stow
from isocenter.cli.files import inspect
from isocenter.cli.outcome import Fate
from isocenter.cli.send_stow import _judge, batches


def test_a_uid_occurs_once_per_request_and_a_file_without_one_goes_alone(package: Path) -> None:
    """The response names instances by SOP Instance UID: a refusal must not be pinned on the wrong file."""
    ct, sr, bare = (inspect(package / name) for name in ("CT_small.dcm", "test-SR.dcm", "no_meta.dcm"))

    found = [[each.path.name for each in batch] for batch in batches([ct, sr, ct, bare, sr])]

    assert [["CT_small.dcm", "test-SR.dcm"], ["CT_small.dcm"], ["no_meta.dcm"], ["test-SR.dcm"]] == found


def test_each_file_is_judged_by_its_own_entry(package: Path) -> None:
    ct, sr = inspect(package / "CT_small.dcm"), inspect(package / "test-SR.dcm")
    assert ct.sop is not None
    assert sr.sop is not None
    response = httpx.Response(
        202,
        json={
            "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [ct.sop[1]]}}]},
            "00081198": {
                "vr": "SQ",
                "Value": [
                    {
                        "00081155": {"vr": "UI", "Value": [sr.sop[1]]},
                        "00081197": {"vr": "US", "Value": [0xA900]},
                    }
                ],
            },
        },
    )

    outcomes = _judge([ct, sr], response)

    assert [Fate.STORED, Fate.REFUSED] == [each.fate for each in outcomes]
    assert outcomes[1].status == 0xA900


def test_a_problem_document_refuses_every_file_with_its_words(package: Path) -> None:
    response = httpx.Response(503, json={"title": "store is full", "detail": "try again later"})

    (outcome,) = _judge([inspect(package / "CT_small.dcm")], response)

    assert Fate.REFUSED is outcome.fate
    assert "HTTP 503 store is full: try again later" == outcome.reason


def test_an_answer_that_forgets_a_file_does_not_make_it_stored(package: Path) -> None:
    """Success only for what the receiver named."""
    response = httpx.Response(200, json={"00081199": {"vr": "SQ", "Value": []}})

    (outcome,) = _judge([inspect(package / "CT_small.dcm")], response)

    assert Fate.REFUSED is outcome.fate


@pytest.mark.parametrize("body", [b"", b"<html/>", b"[]"])
def test_an_answer_that_is_no_json_object_is_a_refusal(package: Path, body: bytes) -> None:
    (outcome,) = _judge([inspect(package / "CT_small.dcm")], httpx.Response(200, content=body))

    assert Fate.REFUSED is outcome.fate


def test_the_body_is_multipart_related_with_the_files_as_they_are(package: Path) -> None:
    ct = inspect(package / "CT_small.dcm")
    counted: list[int] = []

    body = b"".join(send_stow._body([ct, ct], "B", counted.append))

    part = b"--B\r\nContent-Type: application/dicom\r\n\r\n" + ct.path.read_bytes() + b"\r\n"
    assert part * 2 + b"--B--\r\n" == body
    assert 2 * ct.size == sum(counted)
