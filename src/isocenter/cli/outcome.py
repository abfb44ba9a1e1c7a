"""What became of each file that was sent, and the words for a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from isocenter.cli.files import Candidate, Skipped


class Fate(StrEnum):
    STORED = "stored"
    """The receiver answered Success, or a warning that keeps the instance."""
    REFUSED = "refused"
    """By the receiver, or by the sender where it cannot be put on the wire at all."""
    SKIPPED = "skipped"
    """Not DICOM, found in a folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One file's fate.

    Attributes:
        status: DIMSE status or STOW-RS failure reason; None where the receiver was not asked or gave none.
        reason: for people; empty when stored without a warning.
    """

    path: Path
    fate: Fate
    size: int
    status: int | None = None
    reason: str = ""
    study_instance_uid: str = ""
    sop_instance_uid: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "fate": self.fate.value,
            "bytes": self.size,
            "status": None if self.status is None else f"0x{self.status:04X}",
            "reason": self.reason,
            "study_instance_uid": self.study_instance_uid,
            "sop_instance_uid": self.sop_instance_uid,
        }


@dataclass(frozen=True, slots=True)
class Watcher:
    """Called as bytes leave and as files end."""

    on_bytes: Callable[[int], None] = lambda _: None
    on_outcome: Callable[[Outcome], None] = lambda _: None


def stored(candidate: Candidate, *, status: int | None = None, reason: str = "") -> Outcome:
    return _outcome(candidate, Fate.STORED, status, reason)


def refused(candidate: Candidate, *, status: int | None = None, reason: str) -> Outcome:
    return _outcome(candidate, Fate.REFUSED, status, reason)


def skipped(entry: Skipped) -> Outcome:
    return Outcome(entry.path, Fate.SKIPPED, 0, reason=entry.reason)


def status_text(status: int, comment: str = "") -> str:
    """`0xA900 data set does not match SOP class: ...`: the standard's words, then the receiver's own."""
    _, meaning = STORAGE_SERVICE_CLASS_STATUS.get(status, ("", ""))
    words = meaning or code_to_category(status)
    text = f"0x{status:04X} {words}".strip()
    return f"{text}: {comment}" if comment else text


def problem_text(candidate: Candidate) -> str:
    """What this sender finds about a file that was refused, in the platform's reason codes; often empty."""
    if candidate.problem is None:
        return candidate.detail
    return f"{candidate.problem.value}: {candidate.detail}" if candidate.detail else candidate.problem.value


def count(outcomes: Sequence[Outcome], fate: Fate) -> int:
    return sum(1 for outcome in outcomes if outcome.fate is fate)


def _outcome(candidate: Candidate, fate: Fate, status: int | None, reason: str) -> Outcome:
    header = candidate.header
    return Outcome(
        candidate.path,
        fate,
        candidate.size,
        status,
        reason,
        header.study_instance_uid if header else "",
        header.sop_instance_uid if header else "",
    )
