"""What storage commitment decides, without I/O: why not, when again, and what counts as the same request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isocenter.common.index.commitments import Commitment, Located, Reference

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""
PUSH_MODEL_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its well-known SOP Instance (PS3.4 section J.3.5)."""
REQUEST_COMMITMENT: Final = 1
"""The one Action Type of N-ACTION (PS3.4 section J.3.2.1.2)."""

HTTP_REQUESTER: Final = "\\http"
"""Stands for every client of PS3.18, since none is signed in. No AE title has a backslash."""

MAX_REFERENCES: Final = 100_000
MAX_DATA_SET_BYTES: Final = 16 << 20


class FailureReason(IntEnum):
    """Failure Reason (0008,1197), PS3.3 section C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    """The object is there and is not what was recorded, or it could not be read in all the time there was."""
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


class Refusal(StrEnum):
    """Why a request is not taken at all, for the log."""

    MALFORMED = "malformed"
    INVALID_VALUE = "invalid-value"
    TOO_LARGE = "too-large"
    WRONG_INSTANCE = "wrong-instance"
    WRONG_ACTION = "wrong-action"
    NO_ADDRESS = "no-address"
    """There is no address in the peers file to which the result could be sent."""
    DUPLICATE_TRANSACTION = "duplicate-transaction"
    UNAVAILABLE = "unavailable"
    """The index database cannot keep the request now."""


class Refused(Exception):
    """The request is not taken; nothing of it is kept."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    Attributes:
        unknown: an instance that the index does not know is looked up again for so long after the request,
            or after the start of the process that answers: it may have been stored a moment before.
        give_up: after the request, the requester is called no more, and what could not be read has failed.
        fresh: a finding older than this is not sent: the objects are read again first.
        keep: requests are forgotten so long after they were made.
    """

    unknown: float = 300.0
    give_up: float = 72 * 3600.0
    fresh: float = 900.0
    keep: float = 30 * 86400.0


FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 1800.0


def pause_after(attempts: int) -> float:
    """Seconds until the next try after so many that failed: doubled each time up to half an hour."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempts - 1, 20)))


def look_again_after(requested_at: datetime, now: datetime) -> timedelta:
    """Until the next look-up of instances that are not known yet: soon at first, then every few seconds."""
    waited = max(0.0, (now - requested_at).total_seconds())
    return timedelta(seconds=min(5.0, max(0.25, waited / 4)))


def same_request(one: Commitment, other: Commitment) -> bool:
    """Whether a request that came again under its transaction UID asks for the same."""
    return one.references == other.references


def candidates(reference: Reference, located: Sequence[Located]) -> list[Located] | FailureReason:
    """The objects that must all be whole for a reference to be committed, or why it cannot be.

    An instance that is in several studies, or of which other content came later, is committed only if all of
    its objects are whole: the requester does not say which of them it sent.
    """
    of_study = [
        each
        for each in located
        if not reference.study_instance_uid or each.study_instance_uid == reference.study_instance_uid
    ]
    if not of_study:
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    studies = {each.study_instance_uid for each in of_study if each.sop_class_uid == reference.sop_class_uid}
    if not studies:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    return [each for each in of_study if each.study_instance_uid in studies]
