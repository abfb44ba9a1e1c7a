"""What each acknowledgement policy of FastStream does on this backend: one handler error on record 1 of 5."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]  # ships no py.typed marker
from faststream.kafka import KafkaMessage
from faststream.middlewares import AckPolicy

Until = Callable[..., Awaitable[None]]
ONCE = ["0", "1", "2", "3", "4"]
TABLE = {
    AckPolicy.ACK_FIRST: ONCE,
    AckPolicy.ACK: ONCE,
    AckPolicy.REJECT_ON_ERROR: ONCE,
    AckPolicy.NACK_ON_ERROR: ["0", "1", "1", "2", "3", "4"],
    AckPolicy.MANUAL: ONCE,
}


def committed(broker: Any, topic: str, offset: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        found = await broker.subscribers[0].consumer.committed(TopicPartition(topic, 0))
        return bool(found == offset)

    return holds


@pytest.mark.filterwarnings("ignore:AckPolicy.REJECT_ON_ERROR")  # the advice is right; the row shows why
@pytest.mark.parametrize("policy", TABLE, ids=lambda policy: policy.name)
async def test_delivered_and_committed(backend: Any, make: Any, until: Until, policy: AckPolicy) -> None:
    topic, broker, seen = await backend.topic(), backend.raw(), list[str]()

    async def handle(body: str, message: KafkaMessage) -> None:
        seen.append(body)
        if seen == ["0", "1"]:
            raise RuntimeError
        if policy is AckPolicy.MANUAL:
            await message.ack()

    make.listen(broker, topic, policy=policy, auto_commit_interval_ms=50)(handle)
    await broker.start()
    for number in range(5):
        await broker.publish(str(number), topic, key=b"k")

    await until(lambda: seen[-1:] == ["4"])
    await until(committed(broker, topic, 5))

    assert TABLE[policy] == seen


async def test_a_record_that_always_fails_blocks_its_partition_only(
    backend: Any, make: Any, until: Until
) -> None:
    topic, broker, seen = await backend.topic(2), backend.raw(), list[str]()

    async def handle(body: str) -> None:
        seen.append(body)
        if body == "bad":
            await asyncio.sleep(0.001)
            raise RuntimeError

    make.listen(broker, topic)(handle)
    await broker.start()
    await broker.publish("good", topic, partition=0)
    await broker.publish("bad", topic, partition=0)
    await broker.publish("never", topic, partition=0)
    for number in range(4):
        await broker.publish(str(number), topic, partition=1)

    await until(lambda: set(seen) >= {"0", "1", "2", "3"} and seen.count("bad") > 3)
    await until(committed(broker, topic, 1))

    assert "never" not in seen


async def test_a_nack_rereads_the_record_and_keeps_the_order(backend: Any, make: Any, until: Until) -> None:
    topic, broker, seen = await backend.topic(), backend.raw(), list[str]()

    async def handle(body: str, message: KafkaMessage) -> None:
        seen.append(body)
        if seen.count("1") == 1 and body == "1":
            await message.nack()

    make.listen(broker, topic)(handle)
    await broker.start()
    for number in range(3):
        await broker.publish(str(number), topic, key=b"k")

    await until(lambda: seen[-1:] == ["2"])

    assert ["0", "1", "1", "2"] == seen


async def test_what_was_acknowledged_does_not_come_back_after_a_restart(
    backend: Any, make: Any, until: Until
) -> None:
    topic, seen = await backend.topic(), list[str]()

    async def handle(body: str) -> None:
        seen.append(body)

    for round_of in ("a", "b"):
        broker = backend.raw()
        make.listen(broker, topic)(handle)
        await broker.start()
        await broker.publish(round_of, topic, key=b"k")
        await until(lambda last=round_of: seen[-1:] == [last])
        await until(committed(broker, topic, len(seen)))
        await backend.restart()

    assert ["a", "b"] == seen


async def test_a_batch_is_one_delivery_and_a_nack_repeats_it(backend: Any, make: Any, until: Until) -> None:
    topic, broker, seen = await backend.topic(), backend.raw(), list[list[str]]()

    async def handle(bodies: list[str]) -> None:
        seen.append(bodies)
        if len(seen) == 1:
            raise RuntimeError

    make.listen(broker, topic, batch=True, batch_timeout_ms=100, max_records=3)(handle)
    await broker.connect()
    await broker.publish_batch("0", "1", "2", "3", topic=topic, partition=0)
    await broker.start()

    await until(lambda: seen[-1:] == [["3"]])

    assert [["0", "1", "2"], ["0", "1", "2"], ["3"]] == seen
