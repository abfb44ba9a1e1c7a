"""Decisions about settling, without I/O.

DICOM cannot say that a study is complete. A study is *settled* when there is evidence that it is worth
acting on, and settled again, with the next version, when more arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from isocenter.common.index.ports import Arrival

MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass(frozen=True, slots=True)
class SettlingPolicy:
    """When a study may settle. All times are the platform's clock at processing, never DICOM times.

    Attributes:
        quiet: without any arrival for so long, the study settles.
        quiet_after_close: the same, once every transfer that brought instances has ended.
        max_wait: from the first unsettled arrival; then it settles although instances still come.
    """

    quiet: timedelta = timedelta(seconds=60)
    quiet_after_close: timedelta = timedelta(seconds=2)
    max_wait: timedelta = timedelta(seconds=5400)

    def arrival(self, now: datetime, transfer_id: str | None, traceparent: str | None) -> Arrival:
        return Arrival(
            now=now,
            settle_at=now + self.quiet,
            latest_settle_at=now + self.max_wait,
            traceparent=traceparent,
            transfer_id=transfer_id,
        )

    def settle_at_after_close(self, now: datetime) -> datetime:
        return now + self.quiet_after_close


class StudyState(StrEnum):
    """Where a study stands, as the index has it. CLAIMED is a lease: it is receiving, and a settler works on
    it.
    """

    UNKNOWN = "unknown"
    RECEIVING = "receiving"
    CLAIMED = "claimed"
    SETTLED = "settled"


class Stimulus(StrEnum):
    """What can happen to a study."""

    NEW_INSTANCES = "new-instances"
    KNOWN_INSTANCES = "known-instances"
    CONFLICT = "conflict"
    """The same SOP Instance UID with other content, received later than the current one."""
    TRANSFER_CLOSED = "transfer-closed"
    SETTLE_NOW = "settle-now"
    CLAIM = "claim"
    """A settler asks for due studies, after the quiet period."""
    SETTLE = "settle"
    """The settler that claimed the study writes the revision."""
    LEASE_OVER = "lease-over"


@dataclass(frozen=True, slots=True)
class Transition:
    """What a stimulus does. `reports` names the events that go out with the change."""

    state: StudyState
    reports: tuple[str, ...] = ()
    refused: bool = False
    """Nothing happens, on purpose: the call says so, or the stimulus is a replay."""


def _stays(state: StudyState, *reports: str) -> Transition:
    return Transition(state, reports)


def _refused(state: StudyState) -> Transition:
    return Transition(state, refused=True)


_U, _R, _C, _S = StudyState.UNKNOWN, StudyState.RECEIVING, StudyState.CLAIMED, StudyState.SETTLED

TRANSITIONS: dict[tuple[StudyState, Stimulus], Transition] = {
    (_U, Stimulus.NEW_INSTANCES): Transition(_R),
    (_U, Stimulus.KNOWN_INSTANCES): _refused(_U),
    (_U, Stimulus.CONFLICT): _refused(_U),
    (_U, Stimulus.TRANSFER_CLOSED): _refused(_U),
    (_U, Stimulus.SETTLE_NOW): _refused(_U),
    (_U, Stimulus.CLAIM): _refused(_U),
    (_U, Stimulus.SETTLE): _refused(_U),
    (_U, Stimulus.LEASE_OVER): _refused(_U),
    (_R, Stimulus.NEW_INSTANCES): _stays(_R),
    (_R, Stimulus.KNOWN_INSTANCES): _refused(_R),
    (_R, Stimulus.CONFLICT): _stays(_R, "instance.conflicted"),
    (_R, Stimulus.TRANSFER_CLOSED): _stays(_R),
    (_R, Stimulus.SETTLE_NOW): _stays(_R),
    (_R, Stimulus.CLAIM): Transition(_C),
    (_R, Stimulus.SETTLE): _refused(_R),
    (_R, Stimulus.LEASE_OVER): _refused(_R),
    # An arrival takes the study out of the settler's hands: its write will be refused.
    (_C, Stimulus.NEW_INSTANCES): Transition(_R),
    (_C, Stimulus.KNOWN_INSTANCES): _refused(_C),
    # The current instances are the same, so the revision in the making is still right.
    (_C, Stimulus.CONFLICT): _stays(_C, "instance.conflicted"),
    (_C, Stimulus.TRANSFER_CLOSED): _refused(_C),
    (_C, Stimulus.SETTLE_NOW): _stays(_C),
    (_C, Stimulus.CLAIM): _refused(_C),
    (_C, Stimulus.SETTLE): Transition(_S, ("study.settled",)),
    (_C, Stimulus.LEASE_OVER): Transition(_R),
    (_S, Stimulus.NEW_INSTANCES): Transition(_R, ("study.updated",)),
    (_S, Stimulus.KNOWN_INSTANCES): _refused(_S),
    (_S, Stimulus.CONFLICT): _stays(_S, "instance.conflicted"),
    (_S, Stimulus.TRANSFER_CLOSED): _refused(_S),
    (_S, Stimulus.SETTLE_NOW): _refused(_S),
    (_S, Stimulus.CLAIM): _refused(_S),
    (_S, Stimulus.SETTLE): _refused(_S),
    (_S, Stimulus.LEASE_OVER): _refused(_S),
}


def reportable_modalities(modalities: tuple[str, ...]) -> list[str]:
    """Those that are code strings (PS3.5 table 6.2-1); anything else could be a name and stays inside."""
    return [modality for modality in modalities if MODALITY.fullmatch(modality)]
