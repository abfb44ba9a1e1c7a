"""The consumer side of the log, with the part of AIOKafkaConsumer's surface that FastStream uses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from isocenter.common.bus.embedded.groups import Coordinator, matching
from isocenter.common.bus.embedded.log import EmbeddedLog
from isocenter.common.bus.kafka import (
    CommitFailedError,
    ConsumerRebalanceListener,
    ConsumerRecord,
    ConsumerStoppedError,
    IllegalOperation,
    IllegalStateError,
    KafkaError,
    TopicPartition,
)
from isocenter.common.errors import BusUnavailable

PREFETCH_RECORDS = 200
_numbers = itertools.count(1)


@dataclass(slots=True)
class _Position:
    """What one partition has delivered and fetched. `following` is the next offset to deliver."""

    following: int
    buffer: deque[ConsumerRecord] = field(default_factory=deque)
    paused: bool = False
    epoch: int = 0
    """Moves with every seek: a fetch that started before must not fill the buffer."""

    def fetch_from(self) -> int:
        return self.buffer[-1].offset + 1 if self.buffer else self.following

    def move(self, offset: int) -> None:
        self.following = offset
        self.buffer.clear()
        self.epoch += 1


class EmbeddedConsumer:
    """One member of a group, or, without a group, a reader of whole topics.

    Connection options that only make sense over a network are accepted and ignored. Session time-outs
    are among them: a member in the coordinator's own process and event loop cannot be cut off from it.
    """

    def __init__(
        self,
        log: EmbeddedLog,
        coordinator: Coordinator,
        *,
        group_id: str | None = None,
        auto_offset_reset: Literal["earliest", "latest", "none"] = "latest",
        enable_auto_commit: bool = True,
        auto_commit_interval_ms: int = 5_000,
        max_poll_interval_ms: int = 300_000,
        max_poll_records: int | None = None,
        **_network: Any,
    ) -> None:
        self._log = log
        self._members = coordinator
        self._group_id = group_id
        self._reset = auto_offset_reset
        self._auto_commit = enable_auto_commit and group_id is not None
        self._auto_commit_seconds = auto_commit_interval_ms / 1000
        self.max_poll_seconds = max_poll_interval_ms / 1000
        self._max_poll_records = max_poll_records
        self.member_id = f"embedded-{next(_numbers)}"
        self._positions: dict[TopicPartition, _Position] = {}
        self._delivered: set[TopicPartition] = set()
        """Partitions with records handed out and not committed: losing one of them fences the next commit."""
        self._lost: set[TopicPartition] = set()
        self._manual = False
        self._topics: set[str] = set()
        self._pattern: str | None = None
        self._listener: ConsumerRebalanceListener | None = None
        self._wake = asyncio.Event()
        self._started = self._closed = self._out = False
        self._polling = 0
        self._last_poll = self._last_auto_commit = time.monotonic()
        # Names that FastStream's rebalance listener reads.
        self._subscription = SimpleNamespace(topics=self._topics)
        self._coordinator = SimpleNamespace(member_id=self.member_id)

    # life ---------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: Iterable[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        self._topics.clear()
        self._topics.update(topics)
        self._pattern = pattern
        self._listener = listener
        self._manual = False

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Reads exactly these partitions; no group membership, no rebalance, no fencing."""
        self._manual = True
        self.take({TopicPartition(*partition) for partition in partitions})

    async def start(self) -> None:
        self._started = True
        self._last_poll = time.monotonic()
        self._log.watch(self._grown)
        if self._manual:
            return
        if self._group_id is None:
            self.take({tp for topic in self.wants(list(self._log.partitions)) for tp in self._all(topic)})
        else:
            await self._members.join(self._group_id, self)

    async def stop(self) -> None:
        """Commits if it commits by itself, then leaves the group. Whoever waits in `getone` is told."""
        if self._closed:
            return
        if self._auto_commit and not self._out:
            self._commit_positions()
        self._closed = True
        self._wake.set()
        self._log.unwatch(self._grown)
        if self._group_id is not None and not self._manual:
            await self._members.leave(self._group_id, self)

    # reading ------------------------------------------------------------------------------------------------

    async def getone(self, *partitions: TopicPartition) -> ConsumerRecord:
        """The next record.

        Raises:
            ConsumerStoppedError: the consumer was stopped.
            KafkaError: the log could not be read.
        """
        with self._asking():
            while True:
                if (record := self._next(partitions)) is not None:
                    return record
                await self._fetch(None)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Records that are there within the time-out, at most `max_records` of all partitions together."""
        limit = max_records or self._max_poll_records or PREFETCH_RECORDS
        until = time.monotonic() + timeout_ms / 1000
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        with self._asking():
            while not found:
                await self._fetch(max(0.0, until - time.monotonic()))
                while limit and (record := self._next(partitions)) is not None:
                    found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
                    limit -= 1
                if time.monotonic() >= until:
                    break
        return found

    async def __aiter__(self) -> AsyncIterator[ConsumerRecord]:
        while True:
            try:
                yield await self.getone()
            except ConsumerStoppedError:
                return

    # offsets ------------------------------------------------------------------------------------------------

    async def commit(self, offsets: dict[TopicPartition, int] | None = None) -> None:
        """Commits the given offsets, or everything delivered so far.

        Returns when the offsets are on their way to the disk; a crash before that costs one more delivery.

        Raises:
            CommitFailedError: a partition was lost to another member in the meantime.
            IllegalOperation: there is no group.
        """
        if self._group_id is None:
            raise IllegalOperation("Requires group_id")
        if offsets is None:
            fenced, self._lost = self._lost | (self._delivered if self._out else set()), set()
            if fenced:
                self._delivered.clear()
                raise CommitFailedError
            self._commit_positions()
            return
        if not self._manual:
            for partition in offsets:
                if self._out or not self._members.owns(self._group_id, self, partition):
                    raise CommitFailedError
        self._log.commit(self._group_id, dict(offsets))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Delivers from this offset next.

        Not if the partition was taken away since its last record was handed out, even if it came back at
        once (a rewind): then this is about a record of the earlier assignment.

        Raises:
            IllegalStateError: the partition is not assigned to this consumer.
        """
        if (position := self._positions.get(partition)) is None:
            raise IllegalStateError(f"partition {partition.topic}/{partition.partition} is not assigned")
        if partition in self._lost:
            return
        position.move(offset)
        self._delivered.discard(partition)
        self._wake.set()

    async def position(self, partition: TopicPartition) -> int:
        if (position := self._positions.get(partition)) is None:
            raise IllegalStateError(f"partition {partition.topic}/{partition.partition} is not assigned")
        return position.following

    async def committed(self, partition: TopicPartition) -> int | None:
        if self._group_id is None:
            raise IllegalOperation("Requires group_id")
        return self._log.committed(self._group_id, partition)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: self._log.end_offset(partition) for partition in partitions}

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: self._log.first_offset(partition) for partition in partitions}

    def highwater(self, partition: TopicPartition) -> int | None:
        return self._log.end_offset(partition)

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def subscription(self) -> set[str]:
        return self.wants(list(self._log.partitions))

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {tp.partition for tp in self._all(topic)} or None

    def is_spare(self) -> bool:
        """True when there are more members than partitions, so that having none is right."""
        return self._group_id is not None and self._members.is_spare(self._group_id, self.subscription())

    # group membership (called by the coordinator) -----------------------------------------------------------

    def wants(self, topics: Sequence[str]) -> set[str]:
        named = self._topics & set(topics)
        return named | matching(self._pattern, topics) if self._pattern else named

    def poll_age(self, now: float) -> float:
        return 0.0 if self._polling else now - self._last_poll

    def pause(self, partitions: set[TopicPartition]) -> None:
        for partition in partitions & self._positions.keys():
            self._positions[partition].paused = True

    def drop(self, partitions: set[TopicPartition]) -> None:
        self._lost |= partitions & self._delivered
        self._delivered -= partitions
        for partition in partitions:
            if (position := self._positions.pop(partition, None)) is not None:
                position.epoch += 1

    def take(self, partitions: set[TopicPartition]) -> None:
        for partition in sorted(partitions):
            self._positions[partition] = _Position(self._starting_offset(partition))
        self._wake.set()

    def evicted(self) -> None:
        self._out = True
        self.drop(set(self._positions))

    def on_revoked(self, partitions: set[TopicPartition]) -> object:
        return self._listener.on_partitions_revoked(partitions) if self._listener is not None else None

    def on_assigned(self, partitions: set[TopicPartition]) -> object:
        return self._listener.on_partitions_assigned(partitions) if self._listener is not None else None

    # inside -------------------------------------------------------------------------------------------------

    def _all(self, topic: str) -> list[TopicPartition]:
        return self._log.partitions_of(topic)

    def _starting_offset(self, partition: TopicPartition) -> int:
        group = self._group_id
        committed = self._log.committed(group, partition) if group is not None else None
        first, end = self._log.first_offset(partition), self._log.end_offset(partition)
        if committed is not None and first <= committed <= end:
            return committed
        return end if self._reset == "latest" else first

    def _next(self, only: tuple[TopicPartition, ...]) -> ConsumerRecord | None:
        """A fetched record. The partition it came from goes to the back, so that none starves."""
        for partition, position in self._positions.items():
            if position.buffer and not position.paused and (not only or partition in only):
                record = position.buffer.popleft()
                position.following = record.offset + 1
                self._delivered.add(partition)
                self._positions[partition] = self._positions.pop(partition)
                return record
        return None

    async def _fetch(self, patience: float | None) -> None:
        """Fills empty buffers, or waits until there may be something to fill them with."""
        if self._closed:
            raise ConsumerStoppedError
        if self._out and self._group_id is not None:
            self._out = False
            await self._members.join(self._group_id, self)
        await asyncio.sleep(0)  # records from memory must not keep the event loop from everybody else
        self._wake.clear()
        found = False
        for partition, position in list(self._positions.items()):
            if position.paused or position.buffer:
                continue
            offset, epoch = position.fetch_from(), position.epoch
            if offset >= self._log.end_offset(partition):
                continue
            try:
                records = await self._log.read(partition, offset, PREFETCH_RECORDS)
            except BusUnavailable as error:
                raise KafkaError(str(error)) from None
            if self._positions.get(partition) is position and position.epoch == epoch:
                position.buffer.extend(records)
                found = found or bool(records)
        if found or any(position.buffer for position in self._positions.values()):
            return
        if self._auto_commit:
            due = self._last_auto_commit + self._auto_commit_seconds - time.monotonic()
            if due <= 0:
                self._commit_positions()
                due = self._auto_commit_seconds
            patience = due if patience is None else min(patience, due)
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            return

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Marks the time during which the consumer asks for records: outside of it the poll interval runs."""
        self._polling += 1
        self._lost.clear()  # whoever asks for more is done with what it had
        due = self._last_auto_commit + self._auto_commit_seconds
        if self._auto_commit and not self._out and time.monotonic() >= due:
            self._commit_positions()
        try:
            yield
        finally:
            self._polling -= 1
            self._last_poll = time.monotonic()

    def _commit_positions(self) -> None:
        self._last_auto_commit = time.monotonic()
        group = self._group_id
        if group is None:
            return
        moved = {
            partition: position.following
            for partition, position in self._positions.items()
            if self._log.committed(group, partition) != position.following
        }
        self._delivered.clear()
        if moved:
            self._log.commit(group, moved)

    def _grown(self, partitions: set[TopicPartition]) -> None:
        if not partitions.isdisjoint(self._positions):
            self._wake.set()
