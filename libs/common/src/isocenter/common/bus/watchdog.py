"""Notices a consumer that lives and takes nothing, and starts it anew.

Clients of Kafka can end up so after a broker's restart or a rebalance: connected, a member of the group, and
silent. A ping does not see it, nor do the high watermarks that the client holds, because these come with the
records. So the ends of the partitions are asked for, and compared with what was taken between two looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from isocenter.common.bus.delivery import Channel
from isocenter.common.bus.health import is_spare
from isocenter.common.bus.kafka import KafkaError, TopicPartition
from isocenter.common.telemetry import Counter, LogEvent, Telemetry

LOOK_SECONDS = 5.0
"""Bound on one look: a consumer that cannot even say where it stands is judged like one that stands still."""
FORGOTTEN_SECONDS = 90.0
"""Longer than any join takes: to leave and come back makes the whole group begin again."""
RESTART_SECONDS = 30.0
MAX_RESTARTS = 3
"""In a row without a record taken. Then only a new process can help: the service says that it is dead."""


class Watchdog:
    """Of one consumer."""

    def __init__(self, channel: Channel, subscriber: Any, telemetry: Telemetry) -> None:
        self._channel = channel
        self._subscriber = subscriber
        self._telemetry = telemetry
        self._positions: dict[TopicPartition, int] | None = None
        self._since = time.monotonic()
        self.stuck = ""
        """Why it is being started anew."""
        self.restarts = 0
        """In a row."""
        self._ended = False
        self._restarting: asyncio.Task[None] | None = None

    @property
    def given_up(self) -> bool:
        return self.restarts >= MAX_RESTARTS

    async def look(self, *, broker_answers: bool) -> int | None:
        """Begins a restart of the consumer if it must be. Call it every few seconds.

        Args:
            broker_answers: to somebody else; while it does not, nobody is to blame for standing still.

        Returns:
            Records of its partitions that were not handed out yet; None when nobody knows.
        """
        if self._channel.subscription.halt_reason is not None:
            return 0
        if self._restarting is not None and not self._restarting.done():
            return None
        lag, reason = await self._judge(broker_answers=broker_answers)
        if reason and not self._channel.subscription.stopping.is_set():
            self.stuck = reason
            # Of its own: cut off half-way it would leave a client behind that nobody closes.
            self._restarting = asyncio.create_task(self._restart(reason))
        return lag

    async def finish(self) -> None:
        """Waits for a restart that is under way."""
        if self._restarting is not None:
            await asyncio.wait([self._restarting])

    async def _judge(self, *, broker_answers: bool) -> tuple[int | None, str]:
        consumer = self._subscriber.consumer
        if consumer is None or not self._subscriber.running:
            return None, "it is not running" if self.stuck else ""
        ended = not self._subscriber.tasks or all(task.done() for task in self._subscriber.tasks)
        twice, self._ended = ended and self._ended, ended  # FastStream may be about to begin a new one
        if ended:
            return None, "its consume loop has ended" if twice else ""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                positions = {one: await consumer.position(one) for one in consumer.assignment()}
                ends = await consumer.end_offsets(list(positions)) if positions else {}
        except (KafkaError, OSError, TimeoutError):
            return None, self._verdict(None, broker_answers=broker_answers)
        lag = sum(max(0, ends[one] - at) for one, at in positions.items())
        if lag == 0 or (self._positions and positions != self._positions):
            self.restarts = 0
        if positions != self._positions:
            self._positions = positions
            self._since = time.monotonic()
        if not positions and not is_spare(consumer):
            forgotten = time.monotonic() - self._since > FORGOTTEN_SECONDS
            return lag, "no partition is assigned to it" if forgotten and broker_answers else ""
        return lag, self._verdict(lag, broker_answers=broker_answers)

    def _verdict(self, lag: int | None, *, broker_answers: bool) -> str:
        """Why it must be started anew. `lag`: None when it does not even say where it stands."""
        if lag == 0 or not broker_answers or self._channel.progress.busy_since is not None:
            self._since = time.monotonic()
        idle = time.monotonic() - max(self._since, self._channel.progress.last_finished)
        # Each time later: where it does not help, it must not keep the group busy with joins.
        if idle <= self._channel.subscription.policy.fetch_stall * 2**self.restarts:
            return ""
        return "it takes no records" if lag else "it does not answer"

    async def _restart(self, reason: str) -> None:
        one = self._channel.subscription
        topic = one.retry_topic if self._channel.retrying else one.topic
        log, metrics = self._telemetry.log, self._telemetry.metrics
        self.restarts += 1
        log.warning(LogEvent.CONSUMER_RESTARTED, topic=topic, group=one.group, reason=reason)
        metrics.add(Counter.CONSUMER_RESTARTS, topic=topic, group=one.group)
        self._positions = None
        self._since = time.monotonic()
        old = self._subscriber.consumer
        try:
            async with asyncio.timeout(RESTART_SECONDS):
                await self._subscriber.stop()
        except Exception:  # noqa: BLE001 - what is stuck may not even stop
            self._subscriber.consumer = None
        # Asked for offsets meanwhile, a client opens a connection although it is closed.
        if (client := getattr(old, "_client", None)) is not None:
            with contextlib.suppress(Exception):
                await client.close()
        try:
            async with asyncio.timeout(RESTART_SECONDS):
                await self._subscriber.start()
        except (KafkaError, OSError, TimeoutError):
            return  # it stays stuck: the next look tries again
        self.stuck = ""
