"""What is worth staging before anybody asks: pure decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from isocenter.common.index.records import DicomJson, StudyRecord

LEFT_OUT: Final = frozenset({"SR", "PR", "KO", "DOC", "SEG", "REG", "RTSTRUCT", "RTPLAN", "ECG", "AU"})
"""Modalities that inference does not read as volumes."""


@dataclass(frozen=True, slots=True)
class SeriesRef:
    """A series of a settled study, and where it says what it consists of."""

    study_key: str
    series_key: str
    manifest_key: str
    version: int


def series_of(study: StudyRecord, series_key: str | None = None) -> list[SeriesRef]:
    """Those of the settled version; none of a study that has not settled yet."""
    return [
        SeriesRef(study.study_key, key, manifest, study.version)
        for key, manifest in sorted(study.manifests.items())
        if series_key in {None, key}
    ]


def wanted(modalities: Iterable[str], policy: frozenset[str]) -> bool:
    """Whether a settled study of these modalities is staged at once."""
    return bool(policy.intersection(modalities))


def priors(study: StudyRecord, others: Iterable[StudyRecord], count: int) -> list[StudyRecord]:
    """The newest earlier studies of the patient that a reader would put beside this one: of the same
    modality, and body part where both name one.
    """
    body = _body(study.attributes)

    def comparable(other: StudyRecord) -> bool:
        theirs = _body(other.attributes)
        return (
            other.study_key != study.study_key
            and other.patient == study.patient
            and bool(set(other.modalities) & set(study.modalities) - LEFT_OUT)
            and _date(other.attributes) <= _date(study.attributes)
            and (not body or not theirs or body == theirs)
            and bool(other.manifests)
        )

    found: Sequence[StudyRecord] = [other for other in others if comparable(other)]
    return sorted(found, key=lambda other: _date(other.attributes), reverse=True)[:count]


def _date(attributes: DicomJson) -> str:
    return _first(attributes, "00080020") + _first(attributes, "00080030")


def _body(attributes: DicomJson) -> str:
    return _first(attributes, "00180015").upper()


def _first(attributes: DicomJson, tag: str) -> str:
    values = attributes.get(tag, {}).get("Value") or [""]
    return str(values[0])
