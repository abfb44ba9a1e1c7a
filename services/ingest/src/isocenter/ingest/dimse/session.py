"""The requests of one association, in order: C-ECHO, C-STORE, and N-ACTION of storage commitment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import RejectReason
from isocenter.common.events.models import Protocol as Arrival
from isocenter.ingest.commitment.domain import MAX_DATA_SET_BYTES, PUSH_MODEL
from isocenter.ingest.dimse import command as dimse
from isocenter.ingest.dimse.inbox import Chunk, End, Request
from isocenter.ingest.dimse.pdu import command_pdus
from isocenter.ingest.domain import SUCCESS, Announced

if TYPE_CHECKING:
    from isocenter.ingest.dimse.command import Command
    from isocenter.ingest.dimse.inbox import Inbox
    from isocenter.ingest.dimse.negotiation import Accepted, Context
    from isocenter.ingest.pipeline import Intake, Transfer

VERIFICATION: Final = "1.2.840.10008.1.1"


class Channel(Protocol):
    """The way back to the peer."""

    async def send(self, data: bytes) -> None:
        """Returns when the peer keeps up; data for a peer that is gone are dropped."""
        ...

    def release(self) -> None:
        """Answers the release request."""
        ...

    def abort(self) -> None: ...


class _Lost(Exception):
    """The association ended within an instance."""


class Session:
    """Serves one association until it ends. Runs in a task of its own."""

    def __init__(self, *, intake: Intake, agreed: Accepted, inbox: Inbox, channel: Channel) -> None:
        self._intake = intake
        self._agreed = agreed
        self._inbox = inbox
        self._channel = channel

    async def run(self) -> None:
        """Never raises for what the peer does. What was received whole is stored even if the peer is gone."""
        signals, sender, called = (
            self._intake.signals,
            self._agreed.calling_ae_title,
            self._agreed.called_ae_title,
        )
        began = time.perf_counter()
        signals.association_accepted(sender, called)
        with signals.transfer("association", Arrival.DIMSE, sender, called=called) as span:
            async with self._intake.transfer(Arrival.DIMSE, sender) as transfer:
                transfer.aborted = True
                try:
                    transfer.aborted = await self._requests(transfer) is not End.RELEASED
                except _Lost:
                    pass
                except BaseException:
                    self._channel.abort()
                    raise
                finally:
                    signals.transfer_ended(span, transfer)
            signals.association_ended(transfer, time.perf_counter() - began)

    async def _requests(self, transfer: Transfer) -> End:
        while True:
            item = await self._inbox.next()
            if isinstance(item, Request):
                status = await self._request(transfer, item)
                if status is not None:
                    response = dimse.encode_response(item.command, status)
                    await self._channel.send(
                        command_pdus(item.context_id, response, self._agreed.peer_max_pdu)
                    )
            elif isinstance(item, End):
                if item is End.RELEASED:
                    self._channel.release()
                return item

    async def _request(self, transfer: Transfer, request: Request) -> int | None:
        command = request.command
        if command.kind == dimse.C_STORE_RQ:
            return await self._store(transfer, request)
        if command.kind == dimse.N_ACTION_RQ:
            return await self._action(request)
        if command.has_data_set:
            await self._skip_data_set()
        if command.kind == dimse.C_CANCEL_RQ:
            return None
        if command.kind == dimse.C_ECHO_RQ:
            is_verification = request.context.abstract_syntax == VERIFICATION
            return SUCCESS if is_verification else dimse.SOP_CLASS_NOT_SUPPORTED
        return dimse.UNRECOGNISED_OPERATION

    async def _store(self, transfer: Transfer, request: Request) -> int:
        command, context = request.command, request.context
        refusal = _refusal(command, context)
        if refusal is not None:
            if command.has_data_set:
                await self._skip_data_set()
            reason, status = refusal
            transfer.reject(reason, status)
            return status
        announced = Announced(command.sop_class_uid, command.sop_instance_uid, context.transfer_syntax)
        async with transfer.instance(announced=announced) as receiver:
            while not (chunk := await self._next_chunk()).last:
                await receiver.write(chunk.view[: chunk.used])
                self._inbox.recycle(chunk)
            outcome = await receiver.finish(chunk.view[: chunk.used])
            self._inbox.recycle(chunk)
            return outcome.status

    async def _action(self, request: Request) -> int:
        command, context, desk = request.command, request.context, self._intake.commitments
        requester = self._agreed.calling_ae_title
        status: int | None = dimse.NO_SUCH_SOP_CLASS
        if desk is not None and context.abstract_syntax == PUSH_MODEL:
            status = desk.turns_away(requester, command)
        # Of a request that is refused already nothing is held.
        data = await self._data_set(0 if status else MAX_DATA_SET_BYTES) if command.has_data_set else None
        if status is not None or desk is None:
            return dimse.NO_SUCH_SOP_CLASS if status is None else status
        return await desk.action(requester, command, data, context.transfer_syntax)

    async def _data_set(self, limit: int) -> bytearray | None:
        """The whole data set that follows; None if it is longer than `limit` bytes."""
        data: bytearray | None = bytearray()
        last = False
        while not last:
            chunk = await self._next_chunk()
            last = chunk.last
            if data is not None and len(data) + chunk.used <= limit:
                data += chunk.view[: chunk.used]
            else:
                data = None
            self._inbox.recycle(chunk)
        return data

    async def _skip_data_set(self) -> None:
        last = False
        while not last:
            chunk = await self._next_chunk()
            last = chunk.last
            self._inbox.recycle(chunk)

    async def _next_chunk(self) -> Chunk:
        item = await self._inbox.next()
        if not isinstance(item, Chunk):
            raise _Lost
        return item


def _refusal(command: Command, context: Context) -> tuple[RejectReason, int] | None:
    """What is wrong with a C-STORE-RQ itself, whatever its data set (PS3.7 section 9.1.1.1.9)."""
    if not command.has_data_set:
        return RejectReason.MALFORMED, dimse.MISTYPED_ARGUMENT
    no_storage = context.abstract_syntax in {VERIFICATION, PUSH_MODEL}
    if no_storage or command.sop_class_uid != context.abstract_syntax:
        return RejectReason.SOP_CLASS_UNSUPPORTED, dimse.SOP_CLASS_NOT_SUPPORTED
    if not is_valid_uid(command.sop_instance_uid):
        return RejectReason.INVALID_UID, dimse.INVALID_SOP_INSTANCE
    return None
