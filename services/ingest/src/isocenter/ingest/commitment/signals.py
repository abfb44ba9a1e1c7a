"""What storage commitment tells operators. No UID passes here: a request is named by its opaque id."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from isocenter.common.telemetry import Counter, LogEvent

if TYPE_CHECKING:
    from isocenter.common.index.commitments import Commitment
    from isocenter.common.telemetry import Telemetry
    from isocenter.ingest.commitment.domain import Refusal


class CommitmentSignals:
    """The one place of storage commitment that knows names of metrics and log events."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._metrics = telemetry.metrics
        self._log = telemetry.log

    def requested(self, commitment: Commitment, *, again: bool) -> None:
        self._count("requested")
        self._log.info(
            LogEvent.COMMITMENT_REQUESTED,
            commitment_id=commitment.id,
            sender=commitment.requester,
            count=len(commitment.references),
            detail="again" if again else "first",
        )

    def refused(self, requester: str, reason: Refusal, error: Exception | None = None) -> None:
        self._count("refused")
        self._log.warning(
            LogEvent.COMMITMENT_REFUSED, sender=requester, reason=reason.value, error=error or reason.value
        )

    def checked(self, commitment: Commitment, failures: dict[int, int], seconds: float) -> None:
        reasons = Tally(failures.values())
        committed = len(commitment.references) - len(failures)
        if committed:
            self._metrics.add(Counter.COMMITMENT_INSTANCES, committed, outcome="committed")
        for reason, count in reasons.items():
            self._metrics.add(Counter.COMMITMENT_INSTANCES, count, outcome=f"{reason:04x}")
        self._log.info(
            LogEvent.COMMITMENT_CHECKED,
            commitment_id=commitment.id,
            sender=commitment.requester,
            instances=committed,
            rejected=len(failures),
            detail=" ".join(f"{reason:04x}:{count}" for reason, count in sorted(reasons.items())),
            seconds=round(seconds, 3),
        )

    def reported(self, commitment: Commitment) -> None:
        self._count("reported")
        self._log.info(LogEvent.COMMITMENT_REPORTED, commitment_id=commitment.id, sender=commitment.requester)

    def delayed(self, commitment: Commitment, cause: str | Exception, attempts: int, seconds: float) -> None:
        self._log.warning(
            LogEvent.COMMITMENT_DELAYED,
            commitment_id=commitment.id,
            sender=commitment.requester,
            error=cause,
            attempt=attempts,
            seconds=round(seconds, 1),
        )

    def given_up(self, commitment: Commitment, cause: str, attempts: int) -> None:
        self._count("given-up")
        self._log.error(
            LogEvent.COMMITMENT_GIVEN_UP,
            commitment_id=commitment.id,
            sender=commitment.requester,
            error=cause,
            attempt=attempts,
        )

    def failed(self, error: BaseException) -> None:
        self._log.error(LogEvent.TASK_FAILED, error=error)

    def index_unavailable(self, error: Exception) -> None:
        self._log.warning(LogEvent.COMMITMENTS_PAUSED, error=error)

    def _count(self, outcome: str) -> None:
        self._metrics.add(Counter.COMMITMENT_REQUESTS, outcome=outcome)
