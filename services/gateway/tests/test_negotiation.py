from __future__ import annotations

import pytest

from isocenter.gateway.domain import Problem
from isocenter.gateway.negotiation import (
    Document,
    choose_bulk,
    choose_document,
    choose_frames,
    choose_instances,
    frame_media_type,
    frame_transfer_syntax,
    parse_accept,
)

JPEG = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, Document.DICOM_JSON),
        ("", Document.DICOM_JSON),
        ("*/*", Document.DICOM_JSON),
        ("application/*", Document.DICOM_JSON),
        ("application/dicom+json", Document.DICOM_JSON),
        ("application/dicom+json, application/json", Document.DICOM_JSON),
        ("application/json", Document.JSON),
        ("application/json;q=0.1, application/dicom+json;q=0.9", Document.DICOM_JSON),
        ("APPLICATION/DICOM+JSON", Document.DICOM_JSON),
        ('multipart/related; type="application/dicom+xml"', Document.XML),
        ("multipart/related; type=application/dicom+xml", Document.XML),
        ('image/png, multipart/related;type="application/dicom+xml"', Document.XML),
    ],
)
def test_search_and_metadata_representations(accept: str | None, expected: Document) -> None:
    assert expected is choose_document(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "image/png",
        "application/dicom+xml",
        "application/dicom+json;q=0",
        ";;;",
        'multipart/related; type="a/b"',
    ],
)
def test_what_is_not_offered_is_not_acceptable(accept: str) -> None:
    with pytest.raises(Problem) as refused:
        choose_document(accept)
    assert refused.value.status == 406


@pytest.mark.parametrize(
    ("accept", "multipart", "syntaxes"),
    [
        (None, True, None),
        ("*/*", True, None),
        ('multipart/related; type="application/dicom"', True, None),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', True, None),
        ("multipart/related; type=application/dicom; transfer-syntax=*", True, None),
        (f'multipart/related; type="application/dicom"; transfer-syntax={JPEG}', True, {JPEG}),
        (
            (
                f'multipart/related; type="application/dicom"; transfer-syntax={JPEG},'
                f' multipart/related; type="application/dicom"; transfer-syntax="{EXPLICIT}"'
            ),
            True,
            {JPEG, EXPLICIT},
        ),
        ("application/dicom", False, None),
        ('application/dicom;q=0.5, multipart/related; type="application/dicom"', True, None),
    ],
)
def test_instance_representations(accept: str | None, *, multipart: bool, syntaxes: set[str] | None) -> None:
    packaging = choose_instances(accept, single=True)
    assert multipart is packaging.multipart
    assert syntaxes == (None if packaging.transfer_syntaxes is None else set(packaging.transfer_syntaxes))


def test_a_study_is_no_single_part() -> None:
    with pytest.raises(Problem) as refused:
        choose_instances("application/dicom", single=False)
    assert refused.value.status == 406


@pytest.mark.parametrize(
    ("accept", "syntax", "multipart"),
    [
        (None, JPEG, True),
        ('multipart/related; type="*/*"', JPEG, True),
        ('multipart/related; type="application/octet-stream"; transfer-syntax="*"', JPEG, True),
        ('multipart/related; type="image/jpeg"', JPEG, True),
        (f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}', JPEG, True),
        ("image/jpeg", JPEG, False),
        ("image/*", JPEG, False),
        ("application/octet-stream", EXPLICIT, False),
        ('multipart/related; type="application/octet-stream"', EXPLICIT, True),
        (
            'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
            EXPLICIT,
            True,
        ),
        ('multipart/related; type="image/x-jls"', "1.2.840.10008.1.2.4.80", True),
    ],
)
def test_frame_representations(accept: str | None, syntax: str, *, multipart: bool) -> None:
    assert multipart is choose_frames(accept, syntax, single=True)


@pytest.mark.parametrize(
    ("accept", "syntax", "single"),
    [
        ('multipart/related; type="application/octet-stream"', JPEG, True),
        ('multipart/related; type="image/jpeg"', EXPLICIT, True),
        (f'multipart/related; type="application/octet-stream"; transfer-syntax={JPEG}', EXPLICIT, True),
        ("application/octet-stream", EXPLICIT, False),
        ("image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.70", JPEG, True),
    ],
)
def test_frames_are_not_transcoded(accept: str, syntax: str, *, single: bool) -> None:
    with pytest.raises(Problem) as refused:
        choose_frames(accept, syntax, single=single)
    assert refused.value.status == 406
    assert frame_transfer_syntax(syntax) in refused.value.detail


@pytest.mark.parametrize(
    ("syntax", "media_type"),
    [
        ("1.2.840.10008.1.2", "application/octet-stream"),
        ("1.2.840.10008.1.2.4.50", "image/jpeg"),
        ("1.2.840.10008.1.2.4.70", "image/jpeg"),
        ("1.2.840.10008.1.2.4.80", "image/jls"),
        ("1.2.840.10008.1.2.4.91", "image/jp2"),
        ("1.2.840.10008.1.2.4.201", "image/jphc"),
        ("1.2.840.10008.1.2.5", "image/dicom-rle"),
        ("1.2.840.10008.1.2.4.102", "application/octet-stream"),
        ("1.2.3.4", "application/octet-stream"),
    ],
)
def test_media_type_of_a_frame(syntax: str, media_type: str) -> None:
    assert media_type == frame_media_type(syntax)


def test_bytes_that_equal_explicit_little_endian_say_so() -> None:
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"):
        assert frame_transfer_syntax(syntax) == EXPLICIT
    for syntax in ("1.2.840.10008.1.2.2", JPEG, "1.2.3.4"):
        assert frame_transfer_syntax(syntax) == syntax


@pytest.mark.parametrize(
    ("accept", "multipart"),
    [
        (None, False),
        ("application/octet-stream", False),
        ('multipart/related; type="*/*"', True),
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', True),
    ],
)
def test_bulk_representations(accept: str | None, *, multipart: bool) -> None:
    assert multipart is choose_bulk(accept)


def test_bulk_is_octets_only() -> None:
    with pytest.raises(Problem) as refused:
        choose_bulk("application/pdf")
    assert refused.value.status == 406


def test_quoted_commas_and_semicolons_do_not_split() -> None:
    (only,) = parse_accept('multipart/related; type="a/b"; note="one, two; three \\" four"; q=0.5')
    assert only.parameters == {"type": "a/b", "note": 'one, two; three " four'}
    assert only.quality == 0.5


def test_preference_goes_by_quality_then_by_order() -> None:
    assert ["c/c", "a/a", "d/d", "b/b"] == [
        element.media_type for element in parse_accept("a/a;q=0.5, b/b;q=0.1, c/c, d/d;q=0.5")
    ]
