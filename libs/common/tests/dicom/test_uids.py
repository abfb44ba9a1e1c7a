"""UIDs and transfer syntaxes, against pydicom's tables."""

from __future__ import annotations

import pytest
from pydicom.uid import UID, AllTransferSyntaxes

from isocenter.common.dicom import uids

NOT_STORED = "1.2.840.10008.1.2.7."  # SMPTE streams: real-time video, never a data set in a file


@pytest.mark.parametrize("syntax", [syntax for syntax in AllTransferSyntaxes if NOT_STORED not in syntax])
def test_transfer_syntaxes_are_what_pydicom_says(syntax: UID) -> None:
    assert syntax.is_implicit_VR == uids.is_implicit(syntax)
    assert syntax.is_little_endian != uids.is_big_endian(syntax)
    jpip = "JPIP" in syntax.name
    # JPIP data sets hold a URL in place of pixel data; their deflated forms are deflated as a whole.
    assert (syntax.is_deflated or (jpip and "Deflate" in syntax.name)) == uids.is_deflated(syntax)
    assert (syntax.is_encapsulated and not jpip) == uids.is_encapsulated(syntax)
    assert uids.is_native(syntax) == (not syntax.is_encapsulated and not jpip)


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.3.46.670589.33.1.4.1", "1.2.3"])
def test_private_transfer_syntaxes_read_as_explicit_little_endian(syntax: str) -> None:
    assert uids.is_native(syntax)
    assert not uids.is_implicit(syntax)
    assert not uids.is_big_endian(syntax)
    assert not uids.is_deflated(syntax)


def test_frame_wise_deflate_is_encapsulated() -> None:
    assert uids.is_encapsulated(uids.DEFLATED_IMAGE_FRAME)
    assert not uids.is_deflated(uids.DEFLATED_IMAGE_FRAME)


@pytest.mark.parametrize("text", ["1", "0.0", "1.2.840.10008.1.2", "2.25." + "9" * 39, "1." + "2" * 62])
def test_uids(text: str) -> None:
    assert uids.is_valid_uid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1.",
        ".1",
        "1..2",
        "1.02",
        "00",
        "1.2\n",
        "1.2 ",
        "1.a",
        "1.-2",
        "1.٣",
        "1." + "2" * 63,
        "../1",
    ],
)
def test_what_is_no_uid(text: str) -> None:
    assert not uids.is_valid_uid(text)
