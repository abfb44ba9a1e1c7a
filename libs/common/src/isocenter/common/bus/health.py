"""What the bus says about itself, and what it tidies while it looks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from faststream.kafka import KafkaBroker

from isocenter.common.bus.delivery import Channel
from isocenter.common.bus.kafka import KafkaError, TopicPartition
from isocenter.common.events.topics import DLQ_PARTITIONS
from isocenter.common.service import Health

PING_SECONDS = 2.0
REBALANCE_SECONDS = 30.0
"""A member that has just started or lost its partitions gets this long before it counts as forgotten."""


async def broker_health(broker: KafkaBroker, *, started: bool) -> Health:
    if not started:
        return Health("bus", ok=False, detail="not started")
    if await broker.ping(timeout=PING_SECONDS):
        return Health("bus", ok=True)
    return Health("bus", ok=False, detail="no answer: check the broker, or the disk under the data directory")


async def channel_health(channel: Channel, subscriber: Any, stuck: str = "") -> Health:
    """A dead consume loop looks healthy to a ping: so look at the loop, its assignment and its progress.

    Args:
        channel: the policy for this consumer.
        subscriber: FastStream's.
        stuck: why the watchdog is starting it anew, empty while it is not.
    """
    name = f"bus.{subscriber.group_id}"
    reason = channel.subscription.halt_reason
    if reason is not None:
        return Health(name, ok=False, detail=f"stopped: {reason}; see `isocenter dlq ls`, then restart")
    if stuck:
        return Health(name, ok=False, detail=f"{stuck}: it is being started anew")
    consumer = subscriber.consumer
    if consumer is None or not subscriber.running:
        return Health(name, ok=False, detail="not running")
    if not subscriber.tasks or all(task.done() for task in subscriber.tasks):
        return Health(name, ok=False, detail="its consume loop has ended: restart the service")
    idle = time.monotonic() - channel.progress.last_finished
    if not consumer.assignment() and idle > REBALANCE_SECONDS and not is_spare(consumer):
        return Health(name, ok=False, detail="no partition is assigned to it")
    lag = await lag_of(consumer)
    busy = channel.progress.busy_since
    if channel.retrying:
        # Waiting for a dependency is this consumer's work: it says so and stays ready.
        return Health(name, ok=True, detail=f"{lag} events wait for a retry" if lag or busy else "")
    since = max(channel.progress.last_finished, busy or 0.0)
    if (lag or busy) and time.monotonic() - since > channel.subscription.policy.stall:
        return Health(name, ok=False, detail=f"{lag} events wait and none was finished lately")
    return Health(name, ok=True, detail=f"lag {lag}" if lag else "")


async def lag_of(consumer: Any) -> int:
    """Records that are there and were not handed out yet."""
    if consumer is None:
        return 0
    lag = 0
    for partition in consumer.assignment():
        end = consumer.highwater(partition)
        if end is not None:
            lag += max(0, end - await consumer.position(partition))
    return lag


async def dead_letters_of(consumer: Any, topic: str) -> int | None:
    """Records on a dead-letter topic; None while nobody can say."""
    if consumer is None:
        return None
    partitions = [TopicPartition(topic, number) for number in range(DLQ_PARTITIONS)]
    try:
        async with asyncio.timeout(PING_SECONDS):
            first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    except (KafkaError, OSError, TimeoutError):
        return None
    return sum(int(end[one] - first[one]) for one in partitions)


def is_spare(consumer: Any) -> bool:
    """Whether having no partition is right: it is a member, and the group has others for all of them."""
    ask = getattr(consumer, "is_spare", None)
    if ask is not None:
        return bool(ask())
    member, subscription = consumer._coordinator, consumer._subscription  # noqa: SLF001 - aiokafka tells nobody else
    return (
        member.generation > 0
        and not subscription.reassignment_in_progress
        and subscription.subscription is not None
        and subscription.subscription.assignment is not None
        and not subscription.assigned_partitions()
    )


async def sweep(consumers: list[tuple[Channel, Any]]) -> int:
    """Frees studies that are parked behind nothing. Order matters: see `Channel.sweep`."""
    source = next(subscriber.consumer for channel, subscriber in consumers if not channel.retrying)
    retrying, retry = next((c, subscriber.consumer) for c, subscriber in consumers if c.retrying)
    if source is None or retry is None:
        return 0
    one = retrying.subscription
    # Looked at in this order: an event committed past at the origin has its copy in the retry topic by then.
    committed = {
        partition: await source.committed(partition)
        for partition in (TopicPartition(one.topic, p) for p in source.partitions_for_topic(one.topic) or ())
    }
    partitions = [
        TopicPartition(one.retry_topic, p) for p in retry.partitions_for_topic(one.retry_topic) or ()
    ]
    ends = await retry.end_offsets(partitions)
    drained = all([(await retry.committed(p) or 0) >= ends[p] for p in partitions])

    async def committed_at(topic: str, partition: int) -> int | None:
        return committed.get(TopicPartition(topic, partition))

    return int(await retrying.sweep(committed_at, drained=drained))
