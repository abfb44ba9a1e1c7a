"""Requests for storage commitment (PS3.4 annex J, PS3.18 chapter 13) as the index database keeps them.

A request is durable before its sender hears that it was taken, and stays until its answer was given and its
time is up. No object says anything of it: a rebuild of the index leaves requests alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol


class Reference(NamedTuple):
    """One referenced SOP Instance. Study and series only where the request was by study."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""


class CommitmentState(StrEnum):
    CHECKING = "checking"
    """What became of the instances is not known yet."""
    REPORTING = "reporting"
    """The answer is known, and the requester is to be told."""
    DONE = "done"
    """The requester was told, or asks by itself."""
    GIVEN_UP = "given-up"
    """The requester could not be told within the time set for it."""


OPEN = (CommitmentState.CHECKING, CommitmentState.REPORTING)
"""Something remains to be done."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """One request.

    Attributes:
        id: opaque; the only name of a request outside the index.
        requester: AE title, or `http:` for PS3.18. With the transaction UID it is the natural key.
        failures: position in `references` -> Failure Reason (0008,1197) of what is not committed; of use once
            `checked_at` is set.
        checked_at: when the objects were read.
        attempts: of the state that it is in.
        revision: moves with every claim and fences what the claimant writes.
    """

    id: str
    requester: str
    transaction_uid: str = field(repr=False)
    references: tuple[Reference, ...] = field(repr=False)
    requested_at: datetime
    state: CommitmentState = CommitmentState.CHECKING
    failures: dict[int, int] = field(default_factory=dict)
    checked_at: datetime | None = None
    attempts: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What a claimant found out: the request's next state, and when it is looked at again."""

    state: CommitmentState
    due_at: datetime
    attempts: int
    failures: dict[int, int]
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Located:
    """Where the index has an instance of a SOP Instance UID: its current object or a conflicting one.

    `sop_class_uid` and `content_digest` are empty for a conflicting object: its metadata has them.
    """

    study_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    study_key: str
    instance_key: str
    object_key: str
    content_digest: str


class Commitments(Protocol):
    """Raises IndexUnavailable when the database cannot be used, and while the index is being rebuilt: half
    an index would deny instances that are safe.
    """

    async def create_commitment(self, commitment: Commitment) -> Commitment:
        """The request that is kept under this requester and transaction UID: this one, or an earlier one.
        Durable on return.
        """
        ...

    async def get_commitment(self, requester: str, transaction_uid: str) -> Commitment | None: ...

    async def claim_commitments(self, now: datetime, lease_seconds: float, limit: int) -> list[Commitment]:
        """Leases open requests that are due, longest waiting first. A lease that is not used runs out."""
        ...

    async def renew_commitment(self, commitment: Commitment, until: datetime) -> bool:
        """Prolongs a lease. False: another claimed it meanwhile."""
        ...

    async def advance_commitment(self, commitment: Commitment, step: Step) -> bool:
        """Writes what the claimant of this revision found out and ends its lease. False, and nothing written,
        if another claimed it meanwhile.
        """
        ...

    async def repeat_commitment(self, commitment: Commitment, now: datetime) -> bool:
        """A request that came again: one whose answer was given or given up is checked and answered anew.
        False if it is open.
        """
        ...

    async def purge_commitments(self, before: datetime) -> int:
        """Forgets requests made before that nothing remains to be done for; how many."""
        ...

    async def commitments(self, limit: int) -> list[Commitment]:
        """Newest first."""
        ...

    async def locate(self, sop_instance_uids: Sequence[str]) -> list[Located]:
        """Every object that the index has of these UIDs, in whatever study; at most 1000 UIDs at once."""
        ...
