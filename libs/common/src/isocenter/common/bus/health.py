"""What the bus says about itself, and what it tidies while it looks."""

from __future__ import annotations

import time
from typing import Any

from faststream.kafka import KafkaBroker

from isocenter.common.bus.delivery import Channel
from isocenter.common.bus.kafka import TopicPartition
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


async def channel_health(channel: Channel, subscriber: Any) -> Health:
    """A dead consume loop looks healthy to a ping: so look at the loop, its assignment and its progress."""
    name = f"bus.{subscriber.group_id}"
    reason = channel.subscription.halt_reason
    if reason is not None:
        return Health(name, ok=False, detail=f"stopped: {reason}; see `isocenter dlq ls`, then restart")
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


def is_spare(consumer: Any) -> bool:
    """Whether having no partition is right. Only the embedded log knows its group; for Kafka nobody does."""
    ask = getattr(consumer, "is_spare", None)
    return bool(ask()) if ask is not None else False


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
