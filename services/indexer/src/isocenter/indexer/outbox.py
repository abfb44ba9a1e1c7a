"""The relay: events that were decided together with a change of the index go out, at least once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from isocenter.common.errors import Permanent, Transient
from isocenter.common.index.ports import IndexWriter
from isocenter.common.index.records import OutboxEntry
from isocenter.common.telemetry import LogEvent, Telemetry

PAGE = 100


@dataclass(frozen=True, slots=True)
class OutboxRelay:
    """Publishes oldest first, one at a time, so that the order per key is the order of the decisions.

    An entry leaves the outbox after the bus has it. If the process dies between, it goes out again with the
    same event id.
    """

    index: IndexWriter
    publish: Callable[[OutboxEntry], Awaitable[None]]
    telemetry: Telemetry

    async def run_once(self) -> bool:
        """True if everything that waited is out.

        An entry that the bus refuses for good stays, and holds back only its own key. Raises
        IndexUnavailable.
        """
        held: set[str] = set()
        blocked = 0
        while True:
            waiting = (await self.index.pending_outbox(PAGE + blocked))[blocked:]
            if not waiting:
                return not blocked
            published: list[str] = []
            moved = True
            for entry in waiting:
                if entry.key in held:
                    continue
                try:
                    await self.publish(entry)
                except Transient as error:
                    self._delayed(entry, error)
                    moved = False
                    break
                except Permanent as error:
                    self._delayed(entry, error)
                    held.add(entry.key)
                else:
                    published.append(entry.event_id)
            await self.index.outbox_published(published)
            if not moved:
                return False
            blocked += len(waiting) - len(published)

    def _delayed(self, entry: OutboxEntry, error: Exception) -> None:
        self.telemetry.log.warning(
            LogEvent.OUTBOX_DELAYED,
            event_id=entry.event_id,
            topic=entry.topic,
            study_key=entry.key,
            error=error,
        )
