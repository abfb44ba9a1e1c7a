"""The data set of a request for storage commitment, as honest and as other senders write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from isocenter.common.index.commitments import Reference
from isocenter.ingest.commitment import decoding
from isocenter.ingest.commitment.decoding import decode
from isocenter.ingest.commitment.domain import Refusal, Refused
from isocenter.ingest.commitment.testing import numbered, request_of

if TYPE_CHECKING:
    from pydicom.uid import UID

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
ITEM, END_OF_ITEM, END_OF_SEQUENCE = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = b"\xff\xff\xff\xff"


def encoded(data: Dataset, syntax: UID) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    write_dataset(out, data)
    return bytes(out.getvalue())


def refusal(data: bytes, syntax: UID = ImplicitVRLittleEndian) -> Refusal:
    with pytest.raises(Refused) as refused:
        decode(data, str(syntax))
    return refused.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_request_is_read_in_every_encoding(syntax: UID, *, undefined: bool) -> None:
    """Also with attributes that say nothing to us, and sequences of undefined length."""
    request = request_of("2.25.1", numbered(3))
    request.StorageMediaFileSetUID = "1.2.3"
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "9.9.9"
    request.ReferencedStudySequence = [inner]
    for each in (request["ReferencedSOPSequence"], request["ReferencedStudySequence"]):
        each.is_undefined_length = undefined
        for item in each.value:
            item.is_undefined_length_sequence_item = undefined
    request.ReferencedSOPSequence[1].StorageMediaFileSetID = "DISC 1"

    transaction, references = decode(encoded(request, syntax), str(syntax))

    assert "2.25.1" == transaction
    assert tuple(Reference(*pair) for pair in numbered(3)) == references


@given(st.data())
def test_what_is_cut_or_changed_is_read_or_refused(data: st.DataObject) -> None:
    """Nothing else is raised, whatever comes."""
    syntax = data.draw(st.sampled_from(SYNTAXES))
    whole = bytearray(encoded(request_of("2.25.1", numbered(3)), syntax))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        transaction, references = decode(cut, str(syntax))
    except Refused:
        return
    assert transaction
    assert references


@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
def test_noise_is_refused(noise: bytes, syntax: UID) -> None:
    with pytest.raises(Refused):
        decode(noise, str(syntax))


def test_sequences_in_sequences_end_somewhere() -> None:
    nested = (b"\x08\x00\x10\x11" + UNDEFINED + ITEM + UNDEFINED) * 100_000
    assert Refusal.MALFORMED is refusal(nested)


def test_millions_of_empty_items_are_not_walked() -> None:
    items = (ITEM + bytes(4)) * (decoding.MAX_ELEMENTS + 1)
    assert Refusal.TOO_LARGE is refusal(b"\x08\x00\x10\x11" + UNDEFINED + items)


def test_no_more_references_than_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_REFERENCES", 2)
    assert Refusal.TOO_LARGE is refusal(encoded(request_of("2.25.1", numbered(3)), ImplicitVRLittleEndian))


@pytest.mark.parametrize(
    ("transaction", "references"),
    [
        ("", numbered(1)),
        ("2.25.1", []),
        ("2.25.01", numbered(1)),
        ("2.25.1", [("", "1.2.3")]),
        ("2.25.1", [("1.2.3", "")]),
        ("2.25.1", [("1.2.3", "DOE^JANE")]),
    ],
)
def test_what_is_missing_or_no_uid_is_refused(transaction: str, references: list[tuple[str, str]]) -> None:
    items = b"".join(
        ITEM + len(item).to_bytes(4, "little") + item
        for item in (
            b"\x08\x00\x50\x11" + _value(kind) + b"\x08\x00\x55\x11" + _value(uid) for kind, uid in references
        )
    )
    sequence = b"\x08\x00\x99\x11" + len(items).to_bytes(4, "little") + items
    assert Refusal.INVALID_VALUE is refusal(b"\x08\x00\x95\x11" + _value(transaction) + sequence)


def _value(text: str) -> bytes:
    value = text.encode()
    value += b"\0" * (len(value) % 2)
    return len(value).to_bytes(4, "little") + value
