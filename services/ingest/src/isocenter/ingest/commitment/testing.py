"""For tests of storage commitment: a requester that asks and listens, an index that knows what was stored."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role

from isocenter.common.index.ports import Arrival
from isocenter.common.index.records import InstanceRecord
from isocenter.ingest.commitment.domain import PUSH_MODEL, PUSH_MODEL_INSTANCE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from isocenter.common.index.ports import Index
    from isocenter.common.objects.ports import ObjectStore

    Pair = tuple[str, str]


@dataclass(frozen=True)
class Report:
    """An N-EVENT-REPORT as it came. `role`: whether the listener is SCU, whether it is SCP."""

    sop_instance_uid: str
    event_type: int
    transaction_uid: str
    committed: list[Pair]
    failed: dict[str, int]
    role: tuple[bool, bool]


@dataclass
class Requester:
    """A storage commitment SCU: asks on one association, is told on another, which we listen for."""

    ae_title: str = "MODALITY"
    port: int = 0
    answer: int = 0x0000
    """Status of N-EVENT-REPORT responses."""
    reports: list[Report] = field(default_factory=list)
    _server: Any = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def listen(self, *, roles: bool = True, tls: ssl.SSLContext | None = None) -> Self:
        """Opens the port, or the same one again. Without `roles` a caller can only be SCU."""
        ae = AE(ae_title=self.ae_title)
        both = True if roles else None
        ae.add_supported_context(PUSH_MODEL, scu_role=both, scp_role=both)
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._reported)]
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=tls
        )
        self.port = int(self._server.socket.getsockname()[1])
        return self

    def hang_up(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _reported(self, event: evt.Event) -> tuple[int, Dataset | None]:
        request: Any = event.request
        data = event.event_information
        context = event.assoc.accepted_contexts[0]
        report = Report(
            str(request.AffectedSOPInstanceUID),
            int(request.EventTypeID or 0),
            str(data.TransactionUID),
            [_pair(item) for item in data.get("ReferencedSOPSequence", ())],
            {
                str(i.ReferencedSOPInstanceUID): int(i.FailureReason)
                for i in data.get("FailedSOPSequence", ())
            },
            (bool(context.as_scu), bool(context.as_scp)),
        )
        with self._changed:
            self.reports.append(report)
            self._changed.notify_all()
        return self.answer, None

    async def report(self, number: int = 1, seconds: float = 20.0) -> Report:
        """The report of that number. Raises TimeoutError."""

        def wait() -> Report:
            with self._changed:
                if not self._changed.wait_for(lambda: len(self.reports) >= number, seconds):
                    raise TimeoutError(f"{len(self.reports)} reports came, not {number}")
                return self.reports[number - 1]

        return await asyncio.to_thread(wait)

    async def ask(self, port: int, transaction: str, references: Iterable[Pair], **how: Any) -> int:
        """Sends N-ACTION; the status, -1 if the context or the association was refused."""
        return await asyncio.to_thread(self._ask, port, request_of(transaction, references), how)

    def _ask(self, port: int, data: Dataset, how: dict[str, Any]) -> int:
        ae = AE(ae_title=self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.add_requested_context(PUSH_MODEL)
        association = ae.associate(
            "127.0.0.1", port, ae_title="ISOCENTER", ext_neg=[build_role(PUSH_MODEL, scu_role=True)]
        )
        if not association.is_established:
            return -1
        try:
            if not association.accepted_contexts:
                return -1
            status, _ = association.send_n_action(
                data,
                how.get("action", 1),
                how.get("sop_class", PUSH_MODEL),
                how.get("sop_instance", PUSH_MODEL_INSTANCE),
                meta_uid=PUSH_MODEL,
            )
            return int(status.Status) if "Status" in status else -1
        finally:
            association.release()


def request_of(transaction: str, references: Iterable[Pair]) -> Dataset:
    """Action Information (PS3.4 table J.3-1)."""
    data = Dataset()
    data.TransactionUID = transaction
    items = []
    for sop_class, sop_instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        items.append(item)
    data.ReferencedSOPSequence = items
    return data


def _pair(item: Dataset) -> Pair:
    return str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)


async def index_everything(index: Index, store: ObjectStore) -> list[Pair]:
    """Does the indexer's work for what is in the store; (class, instance) of each."""
    found: list[Pair] = []
    async for info in store.list("instances/"):
        facts = info.metadata
        data = dcmread(BytesIO(await store.get(info.key)), stop_before_pixels=True)
        record = InstanceRecord(
            study_instance_uid=str(data.StudyInstanceUID),
            series_instance_uid=str(data.SeriesInstanceUID),
            sop_instance_uid=str(data.SOPInstanceUID),
            sop_class_uid=str(data.SOPClassUID),
            transfer_syntax_uid=facts["transfer_syntax_uid"],
            study_key=facts["study_key"],
            series_key=facts["series_key"],
            instance_key=facts["instance_key"],
            object_key=info.key,
            content_digest=facts["content_digest"],
            size_bytes=info.size,
            received_at=info.stored_at,
            sender=facts["sender"],
            attributes={},
            metadata=b"",
            frames=b"",
        )
        at = info.stored_at
        await index.apply([record], Arrival(at, at, at, None), lambda _, __: ())
        found.append((record.sop_class_uid, record.sop_instance_uid))
    return found


def numbered(count: int, root: str = "1.2.826.0.1.3680043.9.7") -> Sequence[Pair]:
    """References to instances that nobody has."""
    return [(str(CTImageStorage), f"{root}.{number}") for number in range(count)]
