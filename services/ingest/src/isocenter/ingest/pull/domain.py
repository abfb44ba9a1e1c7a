"""What a pull decides, without I/O: why one failed, and whether what came is what was announced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from isocenter.common.errors import Permanent, RejectReason, Transient

if TYPE_CHECKING:
    from isocenter.ingest.domain import Outcome


class PullReason(StrEnum):
    """Why a pull was given up: the reason codes of dead letters (docs/event-contract.md)."""

    UNKNOWN_SOURCE = "unknown-source"
    LOCATION_REFUSED = "location-refused"
    REDIRECTED = "redirected"
    MALFORMED_ANSWER = "malformed-answer"
    TOO_LARGE = "too-large"
    STUDY_MISMATCH = "study-mismatch"
    INSTANCE_REFUSED = "instance-refused"
    COUNT_MISMATCH = "count-mismatch"
    STUDY_NOT_FOUND = "study-not-found"
    ACCESS_DENIED = "access-denied"
    SOURCE_UNAVAILABLE = "source-unavailable"
    TOO_SLOW = "too-slow"
    STORE_UNAVAILABLE = "store-unavailable"


class PullRefused(Permanent):
    """Trying again will not help; an operator may mend the cause and replay the dead letter."""

    code = "pull-refused"

    def __init__(self, reason: PullReason, **ids: str | int) -> None:
        super().__init__(reason.value, **ids)
        self.reason_code = reason.value


class PullFailed(Transient):
    """The same pull may succeed later; what it stored stays."""

    code = "pull-failed"

    def __init__(self, reason: PullReason, **ids: str | int) -> None:
        super().__init__(reason.value, **ids)
        self.reason_code = reason.value


PullError = PullRefused | PullFailed


@dataclass(frozen=True, slots=True)
class Place:
    """An instance as a source lists it; the SOP Instance UID tells whether it is here already."""

    series_instance_uid: str = field(repr=False)
    sop_instance_uid: str = field(repr=False)
    sop_class_uid: str = ""


@dataclass(slots=True)
class Tally:
    """What a pull knows to be here, by SOP Instance UID, and what was refused."""

    here: set[str] = field(default_factory=set, repr=False)
    stored: int = 0
    skipped: int = 0
    refused: dict[RejectReason, int] = field(default_factory=dict)

    def note(self, outcome: Outcome) -> None:
        if outcome.reason is None:
            self.stored += 1
            self.here.add(outcome.sop_instance_uid)
        else:
            self.refused[outcome.reason] = self.refused.get(outcome.reason, 0) + 1

    def skip(self, sop_instance_uids: Iterable[str]) -> None:
        """Not fetched, because they are here."""
        for uid in sop_instance_uids:
            self.skipped += 1
            self.here.add(uid)


def judge(tally: Tally, announced: int | None) -> PullError | None:
    """The verdict on a pull that came to its end; None: all is well.

    Objects that are no DICOM at all do not count against a pull that brought as many as were announced:
    exports hold an index page or a checksum file beside the instances.
    """
    count, refused = len(tally.here), dict(tally.refused)
    if refused.keys() & {RejectReason.OUT_OF_RESOURCES, RejectReason.UNKNOWN}:
        return PullFailed(PullReason.STORE_UNAVAILABLE, instances=count)
    if RejectReason.STUDY_MISMATCH in refused:
        return PullRefused(PullReason.STUDY_MISMATCH, instances=count)
    enough = announced is not None and count >= announced
    if enough:
        refused.pop(RejectReason.NOT_DICOM, None)
    if refused:
        return PullRefused(PullReason.INSTANCE_REFUSED, instances=count)
    if count == 0:
        return PullFailed(PullReason.STUDY_NOT_FOUND)
    if announced is not None and not enough:
        return PullFailed(PullReason.COUNT_MISMATCH, instances=count, announced=announced)
    return None


def chosen(places: list[Place], here: set[str]) -> tuple[list[Place], dict[str, list[Place]]]:
    """What is missing here, and of it, by series: an empty list means the whole series."""
    missing = [place for place in places if place.sop_instance_uid not in here]
    of_series: dict[str, list[Place]] = {}
    for place in missing:
        of_series.setdefault(place.series_instance_uid, []).append(place)
    known = {place.series_instance_uid for place in places if place.sop_instance_uid in here}
    return missing, {series: each if series in known else [] for series, each in of_series.items()}
