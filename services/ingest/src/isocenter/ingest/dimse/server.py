"""The DICOM port: listens, counts associations, and ends them in order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from isocenter.common.errors import Misconfigured
from isocenter.ingest.dimse.admission import Admission
from isocenter.ingest.dimse.association import Association, Buffers, Timing
from isocenter.ingest.dimse.door import TlsDoor

if TYPE_CHECKING:
    from isocenter.ingest.dimse.access import Access
    from isocenter.ingest.dimse.negotiation import Policy
    from isocenter.ingest.pipeline import Intake


class DicomListener:
    """Accepts associations until stopped.

    Args:
        max_associations: more are rejected as transient, which tells senders to try again (PS3.8 table 9-21).
            Connections without an association may be as many again; beyond that the oldest of them is
            closed, since a peer in earnest asks for its association at once. TLS handshakes under way may
            be as many once more.
        access: who may associate, and the certificate of the TLS port; None: anyone may, and there is none.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        policy: Policy,
        max_associations: int,
        timing: Timing | None = None,
        buffers: Buffers | None = None,
        access: Access | None = None,
    ) -> None:
        self._intake = intake
        self._policy = policy
        self._max = max_associations
        self._timing = timing or Timing()
        self._buffers = buffers or Buffers()
        self._access = access
        self._server: asyncio.Server | None = None
        self._door: TlsDoor | None = None
        self._connections: dict[Association, None] = {}  # in the order of their opening
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        intake.signals.observe_associations(lambda: len(self._tasks), max_associations)

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Opens the port and returns its number (of use with port 0). Raises OSError.

        Args:
            host: address.
            port: number.
            shared: other processes listen on it too (SO_REUSEPORT).
        """
        loop = asyncio.get_running_loop()
        self._draining = False
        self._server = await loop.create_server(
            self._association, host, port, backlog=256, reuse_port=shared or None
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        self._intake.signals.listening(host, bound)
        return bound

    def start_tls(self, host: str, port: int, *, shared: bool = False) -> int:
        """The same for the TLS port."""
        if self._access is None:
            raise Misconfigured("TLS without certificates")
        self._draining = False
        access, signals = self._access, self._intake.signals
        self._door = TlsDoor(
            protocol=self._association,
            context=lambda: access.context,
            limit=self._max,
            seconds=self._timing.associate,
            refused=signals.handshake_failed,
        )
        bound = self._door.open(host, port, reuse_port=shared)
        signals.listening(host, bound, tls=True)
        return bound

    async def stop(self, *, drain: float) -> None:
        """Takes no more associations, lets those running finish for `drain` seconds, then aborts them.

        An instance that is being stored at the end gets a moment more: its sender may hear Success yet.
        """
        self._draining = True
        if self._server is not None:
            self._server.close()
        if self._door is not None:
            await self._door.close()
        for association in list(self._connections):
            if not association.established:
                association.abort()
        await self._wait(drain)
        if self._tasks:
            self._intake.signals.drain_timeout(len(self._tasks))
        for association in list(self._connections):
            association.abort()
        await self._wait(_AFTER_ABORT)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for association in list(self._connections):
            association.drop()
        self._server = self._door = None

    @property
    def listening(self) -> bool:
        """Every port that was opened takes connections, and there is one."""
        plain, tls = self._server, self._door
        return (
            not (plain is None and tls is None)
            and (plain is None or plain.is_serving())
            and (tls is None or tls.listening)
        )

    # -- what associations ask and tell ---------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._draining or len(self._tasks) >= self._max

    @property
    def admission(self) -> Admission:
        return self._access.admission if self._access is not None else _OPEN

    def opened(self, association: Association) -> bool:
        """Whether the connection may stay."""
        if self._draining:
            return False
        if len(self._connections) >= 2 * self._max:
            silent = next((other for other in self._connections if not other.established), None)
            if silent is None:
                return False
            del self._connections[silent]
            silent.drop()
        self._connections[association] = None
        return True

    def closed(self, association: Association) -> None:
        self._connections.pop(association, None)

    def established(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._intake.signals.task_failed(error)

    def _association(self) -> Association:
        return Association(
            intake=self._intake,
            policy=self._policy,
            timing=self._timing,
            buffers=self._buffers,
            listener=self,
        )

    async def _wait(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)


_OPEN = Admission()
_AFTER_ABORT = 5.0
"""Seconds for `transfer.closed` of what was aborted, and for an instance whose last byte had come."""
