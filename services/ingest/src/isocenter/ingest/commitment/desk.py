"""Takes requests for storage commitment: checked, then durable, and only then answered."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import Transient
from isocenter.common.index.commitments import Commitment
from isocenter.ingest.commitment.decoding import decode
from isocenter.ingest.commitment.domain import (
    HTTP_REQUESTER,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_COMMITMENT,
    Refusal,
    Refused,
    same_request,
)
from isocenter.ingest.domain import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isocenter.common.clock import Clock
    from isocenter.common.index.commitments import Reference
    from isocenter.common.index.ports import Index
    from isocenter.common.peers import Peers
    from isocenter.ingest.commitment.signals import CommitmentSignals
    from isocenter.ingest.dimse.command import Command

# Statuses of N-ACTION (PS3.7 section 10.1.4.1.10). None of them says that a transaction UID is in use: its
# value is what is wrong.
STATUS_OF: Final[Mapping[Refusal, int]] = MappingProxyType(
    {
        Refusal.MALFORMED: 0x0110,
        Refusal.INVALID_VALUE: 0x0115,
        Refusal.TOO_LARGE: 0x0213,
        Refusal.WRONG_INSTANCE: 0x0112,
        Refusal.WRONG_ACTION: 0x0123,
        Refusal.NO_ADDRESS: 0x0124,
        Refusal.DUPLICATE_TRANSACTION: 0x0115,
        Refusal.UNAVAILABLE: 0x0213,
    }
)


class Desk:
    """Where requests of both protocols come in.

    Args:
        accepted: called when a request was kept.
    """

    def __init__(
        self,
        *,
        index: Index,
        clock: Clock,
        peers: Callable[[], Peers],
        signals: CommitmentSignals,
        accepted: Callable[[], None],
    ) -> None:
        self._index = index
        self._clock = clock
        self._peers = peers
        self._signals = signals
        self._accepted = accepted

    def turns_away(self, requester: str, command: Command) -> int | None:
        """The status of an N-ACTION request that is refused whatever its data set says; None: it depends."""
        try:
            self._check(requester, command)
        except Refused as refused:
            self._signals.refused(requester, refused.reason)
            return STATUS_OF[refused.reason]
        return None

    async def action(
        self, requester: str, command: Command, data: bytes | bytearray | None, transfer_syntax: str
    ) -> int:
        """An N-ACTION request that was not turned away; its status. Success only once the request is durable.

        Args:
            requester: calling AE title.
            command: of the presentation context of the Push Model.
            data: the data set; None: there was none, or more than may be.
            transfer_syntax: of the presentation context.
        """
        try:
            transaction, references = await asyncio.to_thread(_decode, command, data, transfer_syntax)
            await self._keep(requester, transaction, references, repeatable=True)
        except Refused as refused:
            self._signals.refused(requester, refused.reason)
            return STATUS_OF[refused.reason]
        except Transient as error:
            self._signals.refused(requester, Refusal.UNAVAILABLE, error)
            return STATUS_OF[Refusal.UNAVAILABLE]
        return SUCCESS

    def _check(self, requester: str, command: Command) -> None:
        if command.sop_class_uid != PUSH_MODEL or command.sop_instance_uid != PUSH_MODEL_INSTANCE:
            raise Refused(Refusal.WRONG_INSTANCE)
        if command.action_type != REQUEST_COMMITMENT:
            raise Refused(Refusal.WRONG_ACTION)
        peer = self._peers().get(requester)
        if peer is None or peer.host is None:
            raise Refused(Refusal.NO_ADDRESS)

    async def post(self, transaction: str, references: tuple[Reference, ...]) -> Commitment:
        """A request of PS3.18. Returns once it is durable.

        Raises:
            Refused: DUPLICATE_TRANSACTION.
            IndexUnavailable
        """
        try:
            return await self._keep(HTTP_REQUESTER, transaction, references, repeatable=False)
        except Refused as refused:
            self._signals.refused(HTTP_REQUESTER, refused.reason)
            raise

    async def get(self, transaction: str) -> Commitment | None:
        """A request of PS3.18 as it stands. Raises IndexUnavailable."""
        return await self._index.get_commitment(HTTP_REQUESTER, transaction)

    async def _keep(
        self, requester: str, transaction: str, references: tuple[Reference, ...], *, repeatable: bool
    ) -> Commitment:
        offered = Commitment(
            id=self._clock.new_id(),
            requester=requester,
            transaction_uid=transaction,
            references=references,
            requested_at=self._clock.now(),
        )
        kept = await self._index.create_commitment(offered)
        again = kept.id != offered.id
        if again and not (repeatable and same_request(kept, offered)):
            raise Refused(Refusal.DUPLICATE_TRANSACTION)
        if again:
            # The answer to the first one, or the report, was lost on the way: it is found out and told anew.
            await self._index.repeat_commitment(kept, self._clock.now())
        self._signals.requested(kept, again=again)
        self._accepted()
        return kept


def _decode(
    command: Command, data: bytes | bytearray | None, transfer_syntax: str
) -> tuple[str, tuple[Reference, ...]]:
    if data is None:
        raise Refused(Refusal.TOO_LARGE if command.has_data_set else Refusal.INVALID_VALUE)
    return decode(data, transfer_syntax)
