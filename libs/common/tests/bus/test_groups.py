"""Groups: who gets what, who loses it, and what a loser may still do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import ConsumerRebalanceListener  # type: ignore[import-untyped]  # ships no py.typed marker

from isocenter.common.bus.embedded.consumer import EmbeddedConsumer
from isocenter.common.bus.kafka import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalOperation,
    IllegalStateError,
    TopicPartition,
)

Until = Callable[..., Awaitable[None]]


async def test_order_holds_per_key_over_several_members(backend: Any, make: Any, until: Until) -> None:
    topic, seen = await backend.topic(6), list[tuple[int, str]]()
    brokers = [backend.raw() for _ in range(3)]
    for member, broker in enumerate(brokers):

        async def handle(body: str, member: int = member) -> None:
            await asyncio.sleep(0)
            seen.append((member, body))

        make.listen(broker, topic)(_with_one_argument(handle))
    await asyncio.gather(*(broker.start() for broker in brokers))
    await until(lambda: all(broker.subscribers[0].consumer.assignment() for broker in brokers))

    for number in range(120):
        await brokers[0].publish(f"{number % 12}:{number}", topic, key=str(number % 12).encode())
    await until(lambda: len({body for _, body in seen}) == 120)

    for key in range(12):
        mine = [body for _, body in seen if body.startswith(f"{key}:")]
        assert [f"{key}:{n}" for n in range(key, 120, 12)] == list(dict.fromkeys(mine))
    assert {0, 1, 2} == {member for member, _ in seen}


def _with_one_argument(handle: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
    async def call(body: str) -> None:
        await handle(body)

    return call


async def test_two_topics_in_one_group_reach_only_those_who_subscribe(
    backend: Any, make: Any, until: Until
) -> None:
    """Assigning over all members of a group, whatever they subscribe to, would lose half of each topic."""
    first, second = await backend.topic(4), await backend.topic(4)
    broker, seen = backend.raw(), {first: Counter[str](), second: Counter[str]()}
    for topic in (first, second):

        async def handle(body: str, topic: str = topic) -> None:
            seen[topic][body] += 1

        make.listen(broker, topic)(_with_one_argument(handle))
    await broker.start()

    for number in range(20):
        await broker.publish(str(number), first, key=str(number).encode())
        await broker.publish(str(number), second, key=str(number).encode())
    await until(lambda: all(len(counts) == 20 for counts in seen.values()))

    assert {str(n): 1 for n in range(20)} == dict(seen[first]) == dict(seen[second])


async def test_a_member_that_leaves_hands_its_partitions_over(backend: Any, make: Any, until: Until) -> None:
    topic, seen = await backend.topic(4), list[str]()
    brokers = [backend.raw(), backend.raw()]

    async def handle(body: str) -> None:
        seen.append(body)

    for broker in brokers:
        make.listen(broker, topic)(handle)
        await broker.start()
    await until(lambda: all(broker.subscribers[0].consumer.assignment() for broker in brokers))

    await brokers[1].stop()
    for number in range(16):
        await brokers[0].publish(str(number), topic, key=str(number).encode())

    await until(lambda: len(set(seen)) == 16)


async def test_a_handler_past_the_poll_interval_loses_the_record_to_another_member(
    backend: Any, make: Any, until: Until
) -> None:
    """The slow member is evicted; its late commit is refused, so the record is not skipped.

    aiokafka looks at the interval with each heartbeat, so these must be more frequent than it.
    """
    topic, starts, ends = await backend.topic(), list[int](), list[int]()
    brokers = [backend.raw(), backend.raw()]
    for member, broker in enumerate(brokers):

        async def handle(body: str, member: int = member) -> None:
            starts.append(member)
            if len(starts) == 1:
                await asyncio.sleep(2.5)
            ends.append(member)

        make.listen(broker, topic, max_poll_interval_ms=500)(_with_one_argument(handle))
        await broker.start()
    await brokers[0].publish("slow", topic, key=b"k")

    await until(lambda: len(ends) == 2)

    assert starts[1] != starts[0]
    assert [starts[1], starts[0]] == ends


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the base is untyped
    def __init__(self) -> None:
        self.calls: list[tuple[str, set[TopicPartition]]] = []

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.calls.append(("revoked", set(revoked)))

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.calls.append(("assigned", set(assigned)))


def consumer(embedded: Any, topic: str, listener: Any = None, **options: Any) -> EmbeddedConsumer:
    owned = embedded.transport.open()
    options = {"group_id": "g", "auto_offset_reset": "earliest", "enable_auto_commit": False, **options}
    made = EmbeddedConsumer(owned.log, owned.coordinator, **options)
    made.subscribe([topic], listener=listener)
    return made


async def fill(embedded: Any, topic: str, count: int, partition: int = 0) -> None:
    broker = embedded.raw()
    await broker.connect()
    for number in range(count):
        await broker.publish(str(number), topic, partition=partition)


async def test_revoked_is_called_before_assigned_and_only_for_what_moves(embedded: Any) -> None:
    topic = await embedded.topic(2)
    every = {TopicPartition(topic, 0), TopicPartition(topic, 1)}
    one, other = Listener(), Listener()
    first, second = consumer(embedded, topic, one), consumer(embedded, topic, other)

    await first.start()
    await second.start()
    moved = second.assignment()

    assert [("assigned", every), ("revoked", moved), ("assigned", every - moved)] == one.calls
    assert [("assigned", moved)] == other.calls
    await first.stop()
    await second.stop()


async def test_a_commit_inside_the_revoke_callback_still_counts(embedded: Any) -> None:
    topic = await embedded.topic(2)
    await fill(embedded, topic, 1, 0)
    await fill(embedded, topic, 1, 1)

    class Committing(Listener):
        async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
            await first.commit()

    first, second = consumer(embedded, topic, Committing()), consumer(embedded, topic)
    await first.start()
    await first.getone()
    await first.getone()
    await second.start()

    assert [1] == [await second.committed(partition) for partition in second.assignment()]
    await first.stop()
    await second.stop()


async def test_a_callback_that_fails_does_not_stop_the_group(embedded: Any) -> None:
    topic = await embedded.topic(2)

    class Broken(Listener):
        async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
            raise RuntimeError

    first, second = consumer(embedded, topic, Broken()), consumer(embedded, topic)
    await first.start()
    await second.start()

    assert 1 == len(second.assignment())
    await first.stop()
    await second.stop()


async def test_a_commit_after_losing_the_partition_is_refused(embedded: Any, until: Until) -> None:
    topic = await embedded.topic(1)
    await fill(embedded, topic, 3)
    first, second = consumer(embedded, topic, max_poll_interval_ms=100), consumer(embedded, topic)
    await first.start()
    record = await first.getone()
    await second.start()
    await until(second.assignment)

    with pytest.raises(CommitFailedError):
        await first.commit({TopicPartition(topic, 0): record.offset + 1})
    with pytest.raises(CommitFailedError):
        await first.commit()
    with pytest.raises(IllegalStateError):
        first.seek(TopicPartition(topic, 0), 0)

    assert 0 == (await second.getone()).offset
    await first.stop()
    await second.stop()


async def test_an_evicted_member_comes_back_when_it_asks_again(embedded: Any, until: Until) -> None:
    topic = await embedded.topic(1)
    await fill(embedded, topic, 2)
    only = consumer(embedded, topic, max_poll_interval_ms=50)
    await only.start()
    await only.getone()
    await until(lambda: not only.assignment())

    assert 0 == (await only.getone()).offset
    await only.commit()
    assert 1 == await only.committed(TopicPartition(topic, 0))
    await only.stop()


async def test_a_waiting_member_is_never_evicted(embedded: Any) -> None:
    topic = await embedded.topic(1)
    only = consumer(embedded, topic, max_poll_interval_ms=50)
    await only.start()
    asking = asyncio.create_task(only.getone())
    await asyncio.sleep(0.3)

    assert only.assignment()
    await fill(embedded, topic, 1)
    assert 0 == (await asking).offset
    await only.stop()


async def test_getone_after_stop_says_so(embedded: Any) -> None:
    topic = await embedded.topic(1)
    only = consumer(embedded, topic)
    await only.start()
    asking = asyncio.create_task(only.getone())
    await asyncio.sleep(0.02)
    await only.stop()

    with pytest.raises(ConsumerStoppedError):
        await asking
    with pytest.raises(ConsumerStoppedError):
        await only.getone()


async def test_without_a_group_nothing_can_be_committed(embedded: Any) -> None:
    topic = await embedded.topic(1)
    await fill(embedded, topic, 1)
    only = consumer(embedded, topic, group_id=None)
    await only.start()
    await only.getone()

    with pytest.raises(IllegalOperation):
        await only.commit()
    await only.stop()


async def test_a_pattern_follows_topics_that_appear_later(embedded: Any, until: Until) -> None:
    owned = embedded.transport.open()
    await owned.log.create_topic("alpha.one", 1)
    only = EmbeddedConsumer(owned.log, owned.coordinator, group_id="p", auto_offset_reset="earliest")
    only.subscribe(pattern=r"alpha\..*")
    await only.start()
    await owned.log.create_topic("alpha.two", 1)
    await owned.log.create_topic("beta.one", 1)

    await until(lambda: len(only.assignment()) == 2)

    assert {"alpha.one", "alpha.two"} == only.subscription()
    await only.stop()


async def test_lag_is_end_minus_position(embedded: Any) -> None:
    topic = await embedded.topic(1)
    await fill(embedded, topic, 10)
    only, partition = consumer(embedded, topic), TopicPartition(topic, 0)
    await only.start()
    for _ in range(7):
        await only.getone()

    assert (10, 7, None) == (
        only.highwater(partition),
        await only.position(partition),
        await only.committed(partition),
    )
    assert {partition: 10} == await only.end_offsets([partition])
    await only.stop()


async def test_seek_delivers_from_there_whatever_was_fetched(embedded: Any) -> None:
    topic = await embedded.topic(1)
    await fill(embedded, topic, 5)
    only, partition = consumer(embedded, topic), TopicPartition(topic, 0)
    await only.start()
    offsets = [(await only.getone()).offset for _ in range(3)]
    only.seek(partition, 1)

    assert [0, 1, 2, 1, 2] == offsets + [(await only.getone()).offset for _ in range(2)]
    await only.stop()


async def test_getmany_takes_from_every_partition_up_to_the_limit(embedded: Any) -> None:
    topic = await embedded.topic(2)
    await fill(embedded, topic, 3, 0)
    await fill(embedded, topic, 3, 1)
    only = consumer(embedded, topic)
    await only.start()

    found = await only.getmany(timeout_ms=1000, max_records=4)

    assert 4 == sum(len(records) for records in found.values())
    assert {} == await consumer(embedded, await embedded.topic(1)).getmany(timeout_ms=10)
    await only.stop()


async def test_spare_members_know_that_they_are_spare(embedded: Any) -> None:
    topic = await embedded.topic(1)
    members = [consumer(embedded, topic) for _ in range(2)]
    await members[0].start()
    assert not members[0].is_spare()
    await members[1].start()

    assert [1, 0] == [len(member.assignment()) for member in members]
    assert members[1].is_spare()
    for member in members:
        await member.stop()


async def test_members_that_come_and_go_at_once_leave_no_partition_behind(embedded: Any) -> None:
    """Callbacks take a moment, and the next member joins or leaves meanwhile."""
    topic = await embedded.topic(6)

    class Slow(Listener):
        async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
            await asyncio.sleep(0.01)

    members = [consumer(embedded, topic, Slow()) for _ in range(6)]
    await members[0].start()
    joining = [asyncio.create_task(member.start()) for member in members[1:]]
    await asyncio.sleep(0.005)
    leaving = asyncio.create_task(members[0].stop())
    await asyncio.gather(leaving, *joining)

    owned = sorted(partition for member in members[1:] for partition in member.assignment())
    assert [TopicPartition(topic, part) for part in range(6)] == owned
    await asyncio.gather(*(member.stop() for member in members))
