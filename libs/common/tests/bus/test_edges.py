"""Where two things go wrong at once: a move that fails, a rewind under a record, a record of full size."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isocenter.common.bus.embedded.consumer import EmbeddedConsumer
from isocenter.common.bus.embedded.log import COPY_HEADROOM, MAX_RECORD_BYTES, Entry, max_record_bytes
from isocenter.common.bus.kafka import ConsumerRecord, TopicPartition
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.errors import BusUnavailable, InvalidEvent, NotFound, StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed

Until = Callable[..., Awaitable[None]]


def name_of(event: CloudEvent) -> str:
    assert isinstance(event.data, TransferClosed)
    return event.data.transfer_id


async def test_a_rewind_counts_although_the_record_in_hand_is_given_back(
    embedded: Any, make: Any, until: Until
) -> None:
    """Giving back seeks to the record: that must not undo the rewind that came in between."""
    topic, bus, seen = await embedded.topic(), embedded.bus(), list[str]()
    in_hand, go_on = asyncio.Event(), asyncio.Event()

    async def handle(event: CloudEvent) -> None:
        seen.append(name_of(event))
        if seen[-1] == "n3" and not go_on.is_set():
            in_hand.set()
            await go_on.wait()
            bus._stopping.set()  # the quickest reason to give a record back
            raise StoreUnavailable

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for number in range(4):
        await bus.publish_entry(make.entry(topic, name=f"n{number}"))
    await in_hand.wait()

    await embedded.transport.inspector().rewind("svc.h", topic)
    go_on.set()
    await asyncio.sleep(0.02)
    bus._stopping.clear()
    await until(lambda: seen.count("n3") == 2)

    assert ["n0", "n1", "n2", "n3"] * 2 == seen


async def test_a_record_of_full_size_can_be_moved(embedded: Any, make: Any, until: Until) -> None:
    """Its copy has more headers than it: refused as too large, it would hold its partition for ever."""
    topic, bus, seen = await embedded.topic(), embedded.bus(), list[str]()

    async def handle(event: CloudEvent) -> None:
        if name_of(event) == "big":
            raise NotFound
        seen.append(name_of(event))

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    big = make.entry(topic, name="big")
    for spare in range(400, 4_000, 50):
        padding = {"x-padding": "." * (MAX_RECORD_BYTES - spare)}
        try:
            await bus.publish_entry(dataclasses.replace(big, headers=big.headers | padding))
        except InvalidEvent:
            continue
        break
    await bus.publish_entry(make.entry(topic, 1, "after"))

    await until(lambda: seen == ["after"])
    log = embedded.transport.open().log
    assert 1 == log.end_offset(TopicPartition(f"{topic}.svc.h.dlq", 0))
    assert MAX_RECORD_BYTES == max_record_bytes(topic)
    assert MAX_RECORD_BYTES + COPY_HEADROOM == max_record_bytes(f"{topic}.svc.h.retry")


async def test_a_closed_log_refuses_every_record(embedded: Any) -> None:
    topic, log = await embedded.topic(), embedded.transport.open().log
    log.close()

    for _ in range(3):
        with pytest.raises(BusUnavailable):
            await log.append(Entry(TopicPartition(topic, 0), 0, b"k", b"v", ()))


async def test_a_study_stays_parked_until_its_dead_letter_is_durable(
    embedded: Any, make: Any, until: Until
) -> None:
    """Freed before that, its next event would be handled while the failed one is still to be tried again."""
    topic, bus, seen = await embedded.topic(), embedded.bus(), list[str]()
    kinds = [StoreUnavailable, StoreUnavailable]
    refused, dlq_works = asyncio.Event(), asyncio.Event()

    async def handle(event: CloudEvent) -> None:
        if name_of(event) == "bad":
            raise kinds.pop() if kinds else NotFound
        seen.append(name_of(event))

    bus.subscribe("h", topic, {TransferClosed: handle})
    one = bus._routes[0].subscription
    publish = one.publish

    async def without_dlq(**record: Any) -> None:
        if record["topic"] == one.dlq_topic and not dlq_works.is_set():
            refused.set()
            raise BusUnavailable
        await publish(**record)

    one.publish = without_dlq
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "bad"))
    await refused.wait()
    await bus.publish_entry(make.entry(topic, 0, "next"))
    await bus.publish_entry(make.entry(topic, 1, "other"))
    await until(lambda: "other" in seen)

    assert ["other"] == seen
    assert 2 == len(await one.parking.entries("svc.h"))
    dlq_works.set()
    await until(lambda: seen == ["other", "next"])


async def test_who_waits_is_on_the_disk_and_gone_from_it_when_through(
    embedded: Any, make: Any, until: Until
) -> None:
    topic, bus, seen, works = await embedded.topic(), embedded.bus(), list[str](), asyncio.Event()

    async def handle(event: CloudEvent) -> None:
        if not works.is_set():
            raise StoreUnavailable
        seen.append(name_of(event))

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for number in range(3):
        await bus.publish_entry(make.entry(topic, name=f"n{number}"))
    log = embedded.transport.open().log

    await until(lambda: len(log.parked()) == 3)
    key = make.study(0).encode()
    assert {("svc.h", key, f"{topic}/0/{offset}") for offset in range(3)} == set(log.parked())
    works.set()
    await until(lambda: seen == ["n0", "n1", "n2"])
    await bus.stop()

    assert [] == log.parked()


async def test_an_event_that_no_record_can_hold_is_refused_for_good(embedded: Any, make: Any) -> None:
    """Tried again for ever it would hold up whatever waits behind it in an outbox."""
    topic, bus = await embedded.topic(), embedded.bus()
    await bus.start()

    with pytest.raises(InvalidEvent):
        await bus.publish_entry(dataclasses.replace(make.entry(topic), body=bytes(MAX_RECORD_BYTES)))
    await bus.publish_entry(make.entry(topic))


async def test_a_failed_record_is_not_tried_again_before_its_delay(
    embedded: Any, make: Any, until: Until
) -> None:
    embedded.policy = dataclasses.replace(make.quick, retry_delay=0.3)
    await embedded.restart()
    topic, bus, tried = await embedded.topic(), embedded.bus(), list[float]()

    async def handle(_event: CloudEvent) -> None:
        tried.append(time.monotonic())
        if len(tried) <= make.quick.tries:
            raise StoreUnavailable

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: len(tried) > make.quick.tries)

    assert tried[-1] - tried[-2] >= 0.25


async def test_a_fetch_that_a_seek_overtook_is_thrown_away(embedded: Any, make: Any) -> None:
    topic, bus, owned = await embedded.topic(), embedded.bus(), embedded.transport.open()
    await bus.start()
    for number in range(4):
        await bus.publish_entry(make.entry(topic, name=f"n{number}"))
    partition, reading, go_on = TopicPartition(topic, 0), asyncio.Event(), asyncio.Event()
    consumer = EmbeddedConsumer(owned.log, owned.coordinator, auto_offset_reset="earliest")
    consumer.assign([partition])
    await consumer.start()
    consumer.seek(partition, 2)
    read = owned.log.read

    async def slow(*place: Any) -> list[ConsumerRecord]:
        found: list[ConsumerRecord] = await read(*place)
        reading.set()
        await go_on.wait()
        return found

    owned.log.read = slow
    asking = asyncio.create_task(consumer.getone())
    await reading.wait()
    consumer.seek(partition, 0)
    go_on.set()
    async with asyncio.timeout(10):
        offsets = [(await asking).offset, *[(await consumer.getone()).offset for _ in range(3)]]
    await consumer.stop()

    assert [0, 1, 2, 3] == offsets


async def test_a_dead_letter_names_the_place_where_its_event_was_published(
    embedded: Any, make: Any, until: Until
) -> None:
    """Not that of its copy on the retry topic."""
    topic, bus = await embedded.topic(), embedded.bus()

    async def handle(event: CloudEvent) -> None:
        if name_of(event) == "bad":
            raise RuntimeError

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for name in ("good", "good", "bad"):
        await bus.publish_entry(make.entry(topic, name=name))
    log = embedded.transport.open().log
    await until(lambda: log.end_offset(TopicPartition(f"{topic}.svc.h.dlq", 0)) == 1)

    [letter] = [one async for one in embedded.transport.inspector().dead_letters()]
    assert (topic, 0, 2, "exhausted") == (
        letter.origin_topic,
        letter.origin_partition,
        letter.origin_offset,
        letter.reason,
    )


async def test_a_halt_stops_both_consumers(embedded: Any, make: Any, until: Until) -> None:
    embedded.limit = lambda: DlqLimit(max_consecutive=1)
    await embedded.restart()
    topic, bus = await embedded.topic(), embedded.bus()

    async def handle(_event: CloudEvent) -> None:
        raise NotFound

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for _ in range(2):
        await bus.publish_entry(make.entry(topic))

    await until(lambda: not any(one.running for one in bus.broker.subscribers))


async def test_a_record_that_is_handled_ends_the_row_of_dead_letters(
    embedded: Any, make: Any, until: Until
) -> None:
    embedded.limit = lambda: DlqLimit(max_consecutive=2, max_ratio=1.0)
    await embedded.restart()
    topic, bus, seen = await embedded.topic(), embedded.bus(), list[str]()

    async def handle(event: CloudEvent) -> None:
        seen.append(name_of(event))
        if seen[-1] == "bad":
            raise NotFound

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for name in ("bad", "good", "bad", "good", "bad", "last"):
        await bus.publish_entry(make.entry(topic, name=name))

    await until(lambda: seen[-1:] == ["last"])


async def test_a_record_that_is_not_committed_keeps_its_study_parked(embedded: Any, make: Any) -> None:
    """Committed is the next offset to read: equal to the record's own, it is still to come."""
    bus, topic, key = embedded.bus(), await embedded.topic(), make.study(0).encode()
    bus.subscribe("h", topic, {})
    channel, _ = bus._routes[0].consumers[1]
    await channel.subscription.parking.add("svc.h", key, f"{topic}/0/7")

    async def committed(_topic: str, _partition: int) -> int:
        return 7

    assert 0 == await channel.sweep(committed, drained=True)
    assert [(key, f"{topic}/0/7")] == await channel.subscription.parking.entries("svc.h")
