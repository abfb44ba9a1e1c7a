"""Pulls over DIMSE, study root (PS3.4 annex C): C-FIND to see what is there, then C-MOVE or C-GET.

pynetdicom does the talking in a worker thread. With C-MOVE the instances come as C-STORE to our DICOM port,
through the acceptor. With C-GET they come over this association: every C-STORE request is handed to the event
loop as the bytes that came, and is answered when the instance is durable, which is the backpressure.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_context, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import, not declared
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import Misconfigured
from isocenter.ingest.domain import PROCESSING_FAILURE, Announced
from isocenter.ingest.pull.domain import Place, PullError, PullFailed, PullReason, PullRefused, chosen

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event as PduEvent

    from isocenter.ingest.pull.ports import Sink
    from isocenter.ingest.pull.sources import DimseSource

T = TypeVar("T")

_FIND: Final = str(StudyRootQueryRetrieveInformationModelFind)
_GET: Final = str(StudyRootQueryRetrieveInformationModelGet)
_MOVE: Final = str(StudyRootQueryRetrieveInformationModelMove)
_MAX_CONTEXTS: Final = 128
_PATIENCE: Final = 10
"""A response may take so many times `idle_seconds`: one large instance comes before it."""
_UIDS_PER_REQUEST: Final = 200
"""A list of UIDs is one value of at most 64 KiB."""
_PIECE: Final = 1 << 20
_LAST_WORDS: Final = 2.0
"""Seconds for pynetdicom's thread to end after an abort."""
_MOVE_DESTINATION_UNKNOWN: Final = 0xA801
_NOT_AUTHORISED: Final = 0x0124


@dataclass(slots=True)
class _Talk:
    """What the worker thread and the event loop share. `failure` is why the association was broken off."""

    association: Association | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    failure: PullError | None = None
    received: int = 0

    def abort(self) -> None:
        """From any thread. The worker thread breaks the association off: to it, no message is a lost peer."""
        self.stopped.set()
        if self.association is not None:
            self.association.dimse.msg_queue.put((None, None))

    def hang_up(self) -> None:
        """Nothing of the association is left."""
        if self.association is None:
            return
        if self.association.is_established:
            self.association.abort()
        if self.association.is_alive():
            self.association.join(_LAST_WORDS)
        socket = self.association.dul.socket
        if socket is not None and socket.socket is not None:
            # After an abort it waits for the peer to close it, and nobody would wait with it.
            socket.socket.close()


class DimseRemote:
    """One study at a peer."""

    def __init__(self, source: DimseSource, study: str, *, our_ae_title: str) -> None:
        self._source = source
        self._study = study
        self._ours = our_ae_title

    async def places(self) -> list[Place] | None:
        return await self._in_thread(self._list)

    async def fetch(self, sink: Sink, here: set[str], places: list[Place] | None) -> None:
        if places is None:
            places = await self.places()
        if not places:
            raise PullFailed(PullReason.STUDY_NOT_FOUND)
        if len(places) > self._source.max_instances:
            raise PullRefused(PullReason.TOO_LARGE)
        missing, of_series = chosen(places, here)
        sink.known([place.sop_instance_uid for place in places if place.sop_instance_uid in here])
        if not missing:
            return
        requests = list(_identifiers(self._study, of_series, whole=len(missing) == len(places)))
        if self._source.retrieve == "move":
            await self._in_thread(lambda talk: self._move(talk, requests))
            # The peer counted our Success for each of them, and each Success means durable.
            sink.known([place.sop_instance_uid for place in missing])
        else:
            loop = asyncio.get_running_loop()
            await self._in_thread(lambda talk: self._get(talk, requests, missing, sink, loop))

    async def close(self) -> None:
        """Nothing is held open."""

    # -- in the worker thread -------------------------------------------------------------------------------

    def _list(self, talk: _Talk) -> list[Place]:
        association = self._associate(talk, [build_context(_FIND)])
        places = []
        query = _identifier("SERIES", self._study, SeriesInstanceUID="")
        for series in [str(each.get("SeriesInstanceUID", "")) for each in self._find(association, query)]:
            if not is_valid_uid(series):
                raise PullRefused(PullReason.MALFORMED_ANSWER)
            query = _identifier(
                "IMAGE", self._study, SeriesInstanceUID=series, SOPInstanceUID="", SOPClassUID=""
            )
            for found in self._find(association, query):
                uid, kind = str(found.get("SOPInstanceUID", "")), str(found.get("SOPClassUID", "") or "")
                if not is_valid_uid(uid):
                    raise PullRefused(PullReason.MALFORMED_ANSWER)
                places.append(Place(series, uid, kind if is_valid_uid(kind) else ""))
                if len(places) > self._source.max_instances:
                    raise PullRefused(PullReason.TOO_LARGE)
        association.release()
        return places

    def _find(self, association: Association, query: Dataset) -> list[Dataset]:
        found = []
        for status, identifier in association.send_c_find(query, _FIND):
            code = _status(status)
            if code in {0xFF00, 0xFF01} and identifier is not None:
                found.append(identifier)
            elif code != 0:
                raise _failed(code)
        return found

    def _move(self, talk: _Talk, requests: list[Dataset]) -> None:
        association = self._associate(talk, [build_context(_MOVE)])
        for request in requests:
            code, failed = PROCESSING_FAILURE, 0
            for status, _ in association.send_c_move(request, self._ours, _MOVE):
                code = _status(status)
                failed = int(status.get("NumberOfFailedSuboperations", 0) or 0)
            _judge(talk, code, failed)
        association.release()

    def _get(
        self,
        talk: _Talk,
        requests: list[Dataset],
        missing: list[Place],
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        classes = sorted({place.sop_class_uid for place in missing if place.sop_class_uid})
        if not classes or len(classes) >= _MAX_CONTEXTS:
            raise PullRefused(PullReason.MALFORMED_ANSWER)  # a peer that does not name the classes: use move

        def store(event: PduEvent) -> int:
            request, context = cast("C_STORE", event.request), event.context
            announced = Announced(
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID),
                str(context.transfer_syntax),
            )
            taking = asyncio.run_coroutine_threadsafe(
                sink.store(_pieces(request.DataSet or BytesIO()), announced), loop
            )
            try:
                return taking.result().status
            except (PullRefused, PullFailed) as error:
                talk.failure = error
                talk.abort()
                return PROCESSING_FAILURE

        def count(event: PduEvent) -> None:
            for item in getattr(event.pdu, "presentation_data_value_items", ()):
                talk.received += len(item.data)
            if talk.received > self._source.max_instance_bytes and talk.failure is None:
                talk.failure = PullRefused(PullReason.TOO_LARGE)
                talk.abort()

        def begin(_: PduEvent) -> None:
            talk.received = 0

        association = self._associate(
            talk,
            [build_context(_GET), *_storage_contexts(classes)],
            roles=[build_role(UID(uid), scp_role=True) for uid in classes],
            handlers=[(evt.EVT_C_STORE, store), (evt.EVT_PDU_RECV, count), (evt.EVT_DIMSE_RECV, begin)],
        )
        for request in requests:
            code, failed = PROCESSING_FAILURE, 0
            for status, _ in association.send_c_get(request, _GET):
                code = _status(status)
                failed = int(status.get("NumberOfFailedSuboperations", 0) or 0)
            # What we refused ourselves is judged by what we refused it for.
            _judge(talk, code, 0 if code == 0xB000 else failed)
        association.release()

    def _associate(
        self,
        talk: _Talk,
        contexts: list[Any],
        *,
        roles: list[Any] | None = None,
        handlers: list[Any] | None = None,
    ) -> Association:
        entity = AE(ae_title=self._source.calling_ae_title or self._ours)
        entity.acse_timeout = entity.connection_timeout = self._source.idle_seconds
        entity.dimse_timeout = entity.network_timeout = self._source.idle_seconds * _PATIENCE
        association = entity.associate(
            self._source.host,
            self._source.port,
            contexts=contexts,
            ae_title=self._source.ae_title,
            max_pdu=0x20000,
            ext_neg=roles or [],
            evt_handlers=handlers or [],
            tls_args=self._tls(),
        )
        talk.association = association
        if talk.stopped.is_set():
            association.abort()
        if association.is_rejected:
            raise PullFailed(PullReason.ACCESS_DENIED)
        if not association.is_established:
            raise PullFailed(PullReason.SOURCE_UNAVAILABLE)
        if not association.accepted_contexts or association.accepted_contexts[0].context_id != 1:
            association.abort()
            raise PullFailed(PullReason.ACCESS_DENIED)
        return association

    def _tls(self) -> tuple[ssl.SSLContext, str] | None:
        if not self._source.tls:
            return None
        ca, certificate = self._source.ca_file, self._source.certificate_file
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
            if certificate is not None:
                context.load_cert_chain(certificate, self._source.key_file)
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(
                f"source {self._source.name}: its certificates cannot be used: {type(error).__name__}"
            ) from None
        return context, self._source.host

    async def _in_thread(self, work: Callable[[_Talk], T]) -> T:
        """A cancelled pull breaks its association off and waits for the thread, which then ends at once."""
        talk = _Talk()
        running = asyncio.ensure_future(asyncio.to_thread(self._guarded, work, talk))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            talk.abort()
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()  # nobody else asks for it
            raise

    def _guarded(self, work: Callable[[_Talk], T], talk: _Talk) -> T:
        try:
            return work(talk)
        except (PullRefused, PullFailed, Misconfigured) as error:
            raise talk.failure or error from None
        except (RuntimeError, ValueError, AttributeError, OSError) as error:
            # What pynetdicom raises for a peer that went away or breaks the protocol.
            raise talk.failure or PullFailed(
                PullReason.SOURCE_UNAVAILABLE, cause=type(error).__name__
            ) from None
        finally:
            talk.hang_up()


def _identifier(level: str, study: str, **keys: Any) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = study
    for name, value in keys.items():
        setattr(identifier, name, value)
    return identifier


def _identifiers(study: str, of_series: dict[str, list[Place]], *, whole: bool) -> Iterator[Dataset]:
    if whole:
        yield _identifier("STUDY", study)
        return
    for series, places in of_series.items():
        if not places:
            yield _identifier("SERIES", study, SeriesInstanceUID=series)
        for start in range(0, len(places), _UIDS_PER_REQUEST):
            uids = [place.sop_instance_uid for place in places[start : start + _UIDS_PER_REQUEST]]
            yield _identifier("IMAGE", study, SeriesInstanceUID=series, SOPInstanceUID=uids)


def _storage_contexts(classes: list[str]) -> list[Any]:
    """Each transfer syntax in a context of its own as far as 128 contexts reach, so that the peer can send
    every instance as it is stored; the rest of them share one.
    """
    slots = (_MAX_CONTEXTS - 1) // len(classes)
    syntaxes = [str(uid) for uid in ALL_TRANSFER_SYNTAXES]
    single = syntaxes if len(syntaxes) <= slots else syntaxes[: slots - 1]
    shared = syntaxes[len(single) :]
    contexts = []
    for uid in classes:
        contexts += [build_context(uid, syntax) for syntax in single]
        if shared:
            contexts.append(build_context(uid, shared))
    return contexts


def _status(status: Dataset) -> int:
    """Of a response; none came: the association is gone."""
    if "Status" not in status:
        raise PullFailed(PullReason.SOURCE_UNAVAILABLE)
    return int(status.Status)


def _judge(talk: _Talk, code: int, failed: int) -> None:
    if talk.failure is not None:
        raise talk.failure
    if code not in {0, 0xB000}:
        raise _failed(code)
    if failed:
        raise PullFailed(PullReason.SOURCE_UNAVAILABLE, failed=failed)


def _failed(code: int) -> PullFailed:
    if code in {_MOVE_DESTINATION_UNKNOWN, _NOT_AUTHORISED}:
        return PullFailed(PullReason.ACCESS_DENIED, status=code)
    return PullFailed(PullReason.SOURCE_UNAVAILABLE, status=code)


async def _pieces(data: BytesIO) -> AsyncIterator[bytes]:
    view = data.getbuffer()
    try:
        for start in range(0, len(view), _PIECE):
            yield bytes(view[start : start + _PIECE])
    finally:
        view.release()
