"""What ingest tells operators: spans, metrics and log lines. No UID of a patient's object passes here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanKind, Status, StatusCode

from isocenter.common.errors import Overloaded, RejectReason
from isocenter.common.telemetry import STUDY_KEY, Counter, Gauge, Histogram, LogEvent, context_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import Span

    from isocenter.common.errors import IsocenterError
    from isocenter.common.events.models import Protocol
    from isocenter.common.telemetry import Telemetry
    from isocenter.ingest.pipeline import Transfer
    from isocenter.ingest.pull.domain import Tally


_TRACED_FIRST: Final = 16
_TRACED_EACH: Final = 100
"""A span for each instance would cost more than writing a small one."""


class Signals:
    """The one place of ingest that knows names of spans, metrics and log events."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tracer = telemetry.tracer
        self._metrics = telemetry.metrics
        self._log = telemetry.log

    # -- instances ------------------------------------------------------------------------------------------

    def begin_store(self, protocol: Protocol, number: int) -> Span | None:
        """A span for each of the first instances of a transfer, then for some: `number` counts from 0.

        An instance that fails always has one. Of the others the transfer's span has the count.
        """
        if number >= _TRACED_FIRST and number % _TRACED_EACH:
            return None
        return self._tracer.start_span("store", attributes={"isocenter.protocol": protocol.value})

    def stored(
        self, span: Span | None, *, protocol: Protocol, study_key: str, known: bool, size: int, seconds: float
    ) -> None:
        outcome = _outcome(known=known)
        if span is not None:
            span.set_attributes(
                {STUDY_KEY: study_key, "isocenter.size_bytes": size, "isocenter.outcome": outcome}
            )
        self._metrics.add(Counter.INGEST_INSTANCES, protocol=protocol.value, outcome=outcome)
        self._metrics.add(Counter.INGEST_BYTES, size, protocol=protocol.value)
        self._metrics.record(Histogram.INGEST_STORE, seconds, protocol=protocol.value)
        self._log.debug(
            LogEvent.INSTANCE_STORED,
            protocol=protocol.value,
            study_key=study_key,
            bytes=size,
            seconds=round(seconds, 6),
        )

    def store_failed(
        self, span: Span | None, reason: RejectReason, error: Exception | None, transfer: Transfer
    ) -> None:
        told = span or self._tracer.start_span(
            "store", attributes={"isocenter.protocol": transfer.protocol.value}
        )
        told.set_attribute("isocenter.reason", reason.value)
        told.set_status(Status(StatusCode.ERROR, reason.value))
        if span is None:
            told.end()
        if isinstance(error, Overloaded):
            return  # said once, when it began
        if reason is RejectReason.OUT_OF_RESOURCES:
            self._log.error(LogEvent.STORE_UNAVAILABLE, transfer_id=transfer.id, error=error or reason.value)
        elif reason is RejectReason.UNKNOWN:
            self._log.error(LogEvent.TASK_FAILED, transfer_id=transfer.id, error=error or reason.value)

    def refused(self, transfer: Transfer, reason: RejectReason, status: int) -> None:
        protocol = transfer.protocol.value
        self._metrics.add(Counter.INGEST_INSTANCES, protocol=protocol, outcome="rejected")
        self._metrics.add(Counter.INGEST_REJECTIONS, protocol=protocol, reason=reason.value)
        self._log.warning(
            LogEvent.INSTANCE_REJECTED,
            transfer_id=transfer.id,
            protocol=protocol,
            sender=transfer.sender,
            reason=reason.value,
            status=status,
        )

    def discard_failed(self, transfer: Transfer, error: Exception) -> None:
        self._log.error(LogEvent.STORE_UNAVAILABLE, transfer_id=transfer.id, error=error)

    # -- events that are only evidence ----------------------------------------------------------------------

    def not_announced(self, transfer: Transfer, event_type: str, error: Exception | str) -> None:
        self._log.warning(
            LogEvent.BUS_UNAVAILABLE, transfer_id=transfer.id, event_type=event_type, error=error
        )

    def healed(self, object_key: str) -> None:
        self._log.error(LogEvent.OBJECT_HEALED, object_key=object_key)

    def observe_debts(self, count: Callable[[], int]) -> None:
        self._metrics.observe(Gauge.UNANNOUNCED, lambda: [(count(), {})])

    def debts_open(self, error: BaseException) -> None:
        self._log.warning(LogEvent.ANNOUNCEMENT_DELAYED, error=error)

    def debts_paid(self, count: int) -> None:
        self._log.info(LogEvent.ANNOUNCEMENT_MADE_UP, count=count)

    # -- transfers ------------------------------------------------------------------------------------------

    @contextmanager
    def transfer(
        self, name: str, protocol: Protocol, sender: str, *, called: str = "", traceparent: str | None = None
    ) -> Iterator[Span]:
        """The span that every instance of the transfer, and all that follows from it, hangs on.

        It continues the trace of a sender that names one.
        """
        attributes = {"isocenter.protocol": protocol.value, "isocenter.sender": sender}
        if called:
            attributes["isocenter.called_ae_title"] = called
        with self._tracer.start_as_current_span(
            name,
            context=context_of(traceparent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
        ) as span:
            yield span

    def transfer_ended(self, span: Span, transfer: Transfer) -> None:
        span.set_attributes(
            {
                "isocenter.transfer_id": transfer.id,
                "isocenter.instances": transfer.stored,
                "isocenter.rejected": transfer.refused,
                "isocenter.aborted": transfer.aborted,
            }
        )
        outcome = "aborted" if transfer.aborted else "closed"
        self._metrics.add(Counter.INGEST_TRANSFERS, protocol=transfer.protocol.value, outcome=outcome)

    def association_accepted(self, calling: str, called: str) -> None:
        self._log.info(LogEvent.ASSOCIATION_ACCEPTED, sender=calling, called_ae_title=called)

    def association_rejected(self, calling: str, called: str, reason: str) -> None:
        self._metrics.add(Counter.INGEST_TRANSFERS, protocol="dimse", outcome="rejected")
        self._log.warning(
            LogEvent.ASSOCIATION_REJECTED, sender=calling, called_ae_title=called, reason=reason
        )

    def association_ended(self, transfer: Transfer, seconds: float) -> None:
        event = LogEvent.ASSOCIATION_ABORTED if transfer.aborted else LogEvent.ASSOCIATION_RELEASED
        self._log.info(
            event,
            sender=transfer.sender,
            transfer_id=transfer.id,
            instances=transfer.stored,
            rejected=transfer.refused,
            seconds=round(seconds, 3),
        )

    def stow_completed(self, transfer: Transfer, status: int, seconds: float) -> None:
        self._log.info(
            LogEvent.STOW_COMPLETED,
            sender=transfer.sender,
            transfer_id=transfer.id,
            instances=transfer.stored,
            rejected=transfer.refused,
            status=status,
            seconds=round(seconds, 3),
        )

    # -- announced studies ----------------------------------------------------------------------------------

    def pull_started(self, study_key: str, kind: str, source: str) -> None:
        self._log.info(LogEvent.PULL_STARTED, study_key=study_key, protocol=kind, sender=source)

    def pull_completed(self, study_key: str, kind: str, source: str, tally: Tally, seconds: float) -> None:
        self._metrics.add(Counter.INGEST_PULLS, protocol=kind, outcome="ok")
        self._log.info(
            LogEvent.PULL_COMPLETED,
            study_key=study_key,
            protocol=kind,
            sender=source,
            instances=tally.stored,
            duplicates=tally.skipped,
            seconds=round(seconds, 3),
        )

    def pull_failed(
        self, study_key: str, kind: str, source: str, error: IsocenterError, tally: Tally, seconds: float
    ) -> None:
        self._metrics.add(Counter.INGEST_PULLS, protocol=kind, outcome=error.reason_code)
        self._log.warning(
            LogEvent.PULL_FAILED,
            study_key=study_key,
            protocol=kind,
            sender=source,
            reason=error.reason_code,
            instances=tally.stored,
            duplicates=tally.skipped,
            seconds=round(seconds, 3),
        )

    # -- watermarks -----------------------------------------------------------------------------------------

    def observe_shortages(self, look: Callable[[], list[tuple[str, bool]]]) -> None:
        self._metrics.observe(
            Gauge.INGEST_REFUSING, lambda: [(int(short), {"reason": reason}) for reason, short in look()]
        )

    def intake_shut(self, reason: str, detail: str) -> None:
        self._log.error(LogEvent.INTAKE_SHUT, reason=reason, detail=detail)

    def intake_opened(self, reason: str) -> None:
        self._log.info(LogEvent.INTAKE_OPENED, reason=reason)

    def turned_away(self, protocol: Protocol) -> None:
        """A request as a whole, of which nothing was read."""
        self._metrics.add(Counter.INGEST_TRANSFERS, protocol=protocol.value, outcome="rejected")

    # -- the listener ---------------------------------------------------------------------------------------

    def observe_associations(self, count: Callable[[], int], limit: int) -> None:
        self._metrics.observe(Gauge.INGEST_ASSOCIATIONS, lambda: [(count(), {})])
        self._metrics.set(Gauge.INGEST_ASSOCIATIONS_LIMIT, limit)

    def listening(self, host: str, port: int, *, tls: bool = False) -> None:
        self._log.info(LogEvent.LISTENING, protocol="dimse-tls" if tls else "dimse", host=host, port=port)

    def handshake_failed(self, reason: str) -> None:
        self._metrics.add(Counter.INGEST_TLS_FAILURES)
        self._log.warning(LogEvent.TLS_HANDSHAKE_FAILED, reason=reason)

    def access_reloaded(self, peers: int) -> None:
        self._log.info(LogEvent.ACCESS_RELOADED, count=peers)

    def access_not_reloaded(self, error: Exception) -> None:
        self._log.error(LogEvent.ACCESS_NOT_RELOADED, error=error, detail=str(error))

    def drain_timeout(self, count: int) -> None:
        self._log.warning(LogEvent.DRAIN_TIMEOUT, count=count)

    def task_failed(self, error: BaseException) -> None:
        self._log.error(LogEvent.TASK_FAILED, error=error)


def _outcome(*, known: bool) -> str:
    return "known" if known else "stored"
