"""Consumer groups of one process: who owns which partition, and who lost it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from isocenter.common.bus.embedded.log import EmbeddedLog
from isocenter.common.bus.kafka import TopicPartition

CALLBACK_SECONDS = 30.0
"""A rebalance waits this long for one member's callback, then goes on without it."""


class Member(Protocol):
    """What a group needs of a consumer."""

    member_id: str
    max_poll_seconds: float

    def wants(self, topics: Sequence[str]) -> set[str]:
        """Of these topics, the ones it subscribes to."""
        ...

    def poll_age(self, now: float) -> float:
        """Seconds since it last asked for records; 0 while it is asking."""
        ...

    def pause(self, partitions: set[TopicPartition]) -> None: ...
    def drop(self, partitions: set[TopicPartition]) -> None: ...
    def take(self, partitions: set[TopicPartition]) -> None: ...
    def evicted(self) -> None: ...
    def on_revoked(self, partitions: set[TopicPartition]) -> object: ...
    def on_assigned(self, partitions: set[TopicPartition]) -> object: ...


@dataclass
class _Group:
    members: list[Member] = field(default_factory=list)
    owners: dict[TopicPartition, Member] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int = 0


class Coordinator:
    """Assigns each topic's partitions round-robin over the members that subscribe to that topic.

    Partitions that stay where they were keep their position: only what moves is read again from the committed
    offset. (aiokafka's eager protocol stops every member; here nothing forces that.)
    """

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log
        self._groups: dict[str, _Group] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._rebalancing: set[asyncio.Task[None]] = set()
        log.topic_listeners.add(self._topics_changed)

    def owns(self, group: str, member: Member, partition: TopicPartition) -> bool:
        return self._group(group).owners.get(partition) is member

    def is_spare(self, group: str, topics: set[str]) -> bool:
        """True when the group has more members on these topics than there are partitions."""
        members = [member for member in self._group(group).members if member.wants(list(topics))]
        return len(members) > sum(self._log.partitions.get(topic, 0) for topic in topics)

    async def join(self, group: str, member: Member) -> None:
        state = self._group(group)
        if member not in state.members:
            state.members.append(member)
        if self._watchdog is None or self._watchdog.done():
            self._watchdog = asyncio.create_task(self._evict_idle())
        await self._log.subscribe(group, member.wants(list(self._log.partitions)))
        await self.rebalance(group)

    async def leave(self, group: str, member: Member) -> None:
        state = self._group(group)
        if member in state.members:
            state.members.remove(member)
            await self.rebalance(group, leaving=member)

    async def rewind(self, group: str, topic: str) -> None:
        """Every partition of the topic goes back to its first record; members read on from there."""
        state = self._group(group)
        async with state.lock:
            partitions = self._log.partitions_of(topic)
            self._log.commit(group, {one: self._log.first_offset(one) for one in partitions})
            for partition in partitions:
                if (owner := state.owners.get(partition)) is not None:
                    owner.drop({partition})
                    owner.take({partition})

    async def close(self) -> None:
        self._log.topic_listeners.discard(self._topics_changed)
        tasks = [task for task in (self._watchdog, *self._rebalancing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def rebalance(self, group: str, *, leaving: Member | None = None) -> None:
        state = self._group(group)
        async with state.lock:
            # Members may come and go while callbacks run; whoever does, rebalances after this.
            members = list(state.members)
            target = self._assign(members)
            everyone = [*members, *([leaving] if leaving is not None else [])]
            held = {
                id(member): {tp for tp, owner in state.owners.items() if owner is member}
                for member in everyone
            }
            for member in everyone:
                lost = held[id(member)] - target.get(id(member), set())
                if lost:
                    member.pause(lost)
                    # The old owner may still commit here: it owns the partition until this returns.
                    await _bounded(member.on_revoked, lost)
                    member.drop(lost)
            state.generation += 1
            members = [member for member in members if member in state.members]
            state.owners = {tp: member for member in members for tp in target[id(member)]}
            for member in members:
                gained = target[id(member)] - held[id(member)]
                member.take(gained)
                await _bounded(member.on_assigned, target[id(member)])

    def _assign(self, members: Sequence[Member]) -> dict[int, set[TopicPartition]]:
        target: dict[int, set[TopicPartition]] = {id(member): set() for member in members}
        topics = list(self._log.partitions)
        wanted = {id(member): member.wants(topics) for member in members}
        for topic in topics:
            readers = [member for member in members if topic in wanted[id(member)]]
            for index, partition in enumerate(self._log.partitions_of(topic) if readers else ()):
                target[id(readers[index % len(readers)])].add(partition)
        return target

    async def _evict_idle(self) -> None:
        """Takes partitions from members that did not ask for records within `max_poll_interval_ms`."""
        while True:
            members = [member for state in self._groups.values() for member in state.members]
            shortest = min((member.max_poll_seconds for member in members), default=1.0)
            await asyncio.sleep(min(1.0, shortest / 4))
            now = time.monotonic()
            for name, state in self._groups.items():
                late = [member for member in state.members if member.poll_age(now) > member.max_poll_seconds]
                for member in late:
                    state.members.remove(member)
                    member.evicted()
                    state.owners = {tp: owner for tp, owner in state.owners.items() if owner is not member}
                if late:
                    self._schedule(name)

    def _topics_changed(self) -> None:
        for name in self._groups:
            self._schedule(name)

    def _schedule(self, group: str) -> None:
        task = asyncio.get_running_loop().create_task(self.rebalance(group))
        self._rebalancing.add(task)
        task.add_done_callback(self._rebalancing.discard)

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())


def matching(pattern: str, topics: Sequence[str]) -> set[str]:
    """Topics that a pattern subscription covers: the pattern matches the whole name, as in Kafka."""
    expression = re.compile(pattern)
    return {topic for topic in topics if expression.fullmatch(topic)}


async def _bounded(
    callback: Callable[[set[TopicPartition]], object], partitions: set[TopicPartition]
) -> None:
    """Runs a member's callback. One that fails or hangs must not hold the whole group."""
    with contextlib.suppress(Exception):
        outcome = callback(partitions)
        if inspect.isawaitable(outcome):
            async with asyncio.timeout(CALLBACK_SECONDS):
                await outcome
