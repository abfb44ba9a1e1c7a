"""N-EVENT-REPORT to the requester (PS3.4 section J.3.3): an association of our own, in which we are the SCP.

pynetdicom calls, in a thread of its own: this is rare, and off the path of instances.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pynetdicom import AE
from pynetdicom.presentation import build_role

from isocenter.common.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from isocenter.common.errors import Misconfigured
from isocenter.ingest.commitment.domain import PUSH_MODEL, PUSH_MODEL_INSTANCE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from isocenter.common.index.commitments import Commitment, Reference
    from isocenter.common.peers import Peer

ALL_COMMITTED: Final = 1
FAILURES_EXIST: Final = 2
"""Event Types (PS3.4 section J.3.3.1.2)."""

# It quotes what it sends and gets. Whatever went wrong is the reason of a NotReported.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class NotReported(Exception):
    """The requester was not told. `reason` is one of a few words, for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class CallTimes:
    """Seconds."""

    connect: float = 10.0
    associate: float = 10.0
    answer: float = 60.0


class Reporter:
    """Tells peers what became of their requests.

    Args:
        ae_title: ours; the called and retrieve AE title of the site.
        tls: what associations to peers with `tls` are opened with, asked for each of them; None: there can be
            none.
    """

    def __init__(
        self,
        ae_title: str,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        times: CallTimes | None = None,
    ) -> None:
        self._ae_title = ae_title
        self._tls = tls
        self._times = times or CallTimes()

    async def report(self, commitment: Commitment, peer: Peer) -> None:
        """Returns when the peer has answered Success. Raises NotReported."""
        if peer.host is None or peer.port is None:
            raise NotReported("no-address")
        if peer.tls and self._tls is None:
            raise NotReported("no-tls")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if answered.done():
                return
            if error is None:
                answered.set_result(None)
            else:
                answered.set_exception(error)

        def call() -> None:
            error: Exception | None = None
            try:
                self._call(commitment, peer)
            except Exception as caught:  # noqa: BLE001 - raised where it is awaited
                error = caught
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell, error)

        # A daemon, unlike those of an executor: a silent peer must not hold up the end of the process.
        threading.Thread(target=call, name="commitment-report", daemon=True).start()
        await answered

    def _call(self, commitment: Commitment, peer: Peer) -> None:
        ae = AE(ae_title=self._ae_title)
        ae.connection_timeout = self._times.connect
        ae.acse_timeout = self._times.associate
        ae.dimse_timeout = ae.network_timeout = self._times.answer
        ae.add_requested_context(PUSH_MODEL, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
        association = ae.associate(
            peer.host or "",
            peer.port or 0,
            ae_title=peer.ae_title,
            ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
            tls_args=self._tls_of(peer),
        )
        if not association.is_established:
            raise NotReported("rejected" if association.is_rejected else "unreachable")
        try:
            if not any(context.as_scp for context in association.accepted_contexts):
                raise NotReported("role-refused")
            event = FAILURES_EXIST if commitment.failures else ALL_COMMITTED
            data = result_data_set(commitment, self._ae_title)
            try:
                status, _ = association.send_n_event_report(data, event, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            except (RuntimeError, ValueError):
                raise NotReported("aborted") from None
            if "Status" not in status:
                raise NotReported("no-answer")
            if status.Status != 0x0000:
                raise NotReported(f"status-{int(status.Status):04x}")
        finally:
            if association.is_established:
                association.release()

    def _tls_of(self, peer: Peer) -> tuple[ssl.SSLContext, str] | None:
        if not peer.tls or self._tls is None:
            return None
        try:
            return self._tls(), peer.host or ""
        except Misconfigured:
            raise NotReported("tls-files") from None


def result_data_set(commitment: Commitment, retrieve_ae_title: str) -> Dataset:
    """Event Information (PS3.4 table J.3-2): each reference of the request in one of the two sequences."""
    committed, failed = [], []
    for position, reference in enumerate(commitment.references):
        reason = commitment.failures.get(position)
        item = _item(reference)
        if reason is None:
            committed.append(item)
        else:
            item.FailureReason = reason
            failed.append(item)
    data = Dataset()
    data.TransactionUID = commitment.transaction_uid
    data.RetrieveAETitle = retrieve_ae_title
    if committed:
        data.ReferencedSOPSequence = DicomSequence(committed)
    if failed:
        data.FailedSOPSequence = DicomSequence(failed)
    return data


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item
