"""A broker that restarts, dies or hangs; a consumer that lives and reads nothing; a refused record."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from isocenter.common.bus import client, kafka_producer, watchdog
from isocenter.common.bus.kafka import AIOKafkaProducer
from isocenter.common.errors import BusUnavailable, InvalidEvent
from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.events.topics import MAX_MESSAGE_BYTES
from isocenter.common.telemetry import Counter, Gauge, noop

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)
SOURCE = "bus.svc.h"


class Seen(list[str]):
    async def __call__(self, event: CloudEvent) -> None:
        assert isinstance(event.data, TransferClosed)
        self.append(event.data.transfer_id)


class Broker:
    """The server, told what to do without holding up the event loop."""

    def __init__(self, server: Any, hands: ThreadPoolExecutor) -> None:
        self.server = server
        self._hands = hands

    async def do(self, *commands: Callable[[], None]) -> None:
        for command in commands:
            await asyncio.get_running_loop().run_in_executor(self._hands, command)

    def mend(self) -> None:
        self.server.resume()
        if not self.server.alive:
            self._hands.submit(self.server.start).result()


@pytest.fixture(scope="session")
def hands(kafka_server: Any) -> Iterator[ThreadPoolExecutor]:
    """A server ends with the thread that started it, so this one lasts as long as the tests."""
    with ThreadPoolExecutor(1) as made:
        yield made
        kafka_server.kill()


@pytest.fixture
def broker(kafka_server: Any, hands: ThreadPoolExecutor) -> Iterator[Broker]:
    made = Broker(kafka_server, hands)
    yield made
    made.mend()


async def checks(bus: Any) -> dict[str, bool]:
    return {check.name: check.ok for check in await bus.health()}


async def announce(bus: Any, entry: Any) -> None:
    """As every sender does: the same event again until it is known to be durable."""
    while True:
        with contextlib.suppress(BusUnavailable):
            await bus.publish_entry(entry)
            return
        await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["restart", "kill"])
async def test_a_broker_that_goes_away_under_load(
    broker: Broker, kafka: Any, make: Any, until: Until, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Producers and consumers come back by themselves; what was confirmed is there, in its order."""
    monkeypatch.setattr(kafka_producer, "PUBLISH_SECONDS", 2.0)
    topic, seen, telemetry = await kafka.topic(4, GROUPS), Seen(), noop("svc")
    bus = kafka.bus("svc", telemetry)
    bus.subscribe("h", topic, {TransferClosed: seen})
    await bus.start()
    sent, enough = 0, asyncio.Event()

    async def load() -> None:
        nonlocal sent
        while not enough.is_set():
            await announce(bus, make.entry(topic, sent % 5, f"{sent % 5}.{sent:06}"))
            sent += 1
            await asyncio.sleep(0.005)

    loading = asyncio.create_task(load())
    await until(lambda: len(seen) > 50)
    server = broker.server
    await broker.do(server.stop if fault == "restart" else server.kill, server.start)
    before = sent
    await until(lambda: sent > before + 50, 60)
    enough.set()
    await loading
    await until(lambda: len(set(seen)) == sent, 60)

    for key in range(5):
        mine = [name for name in dict.fromkeys(seen) if name[0] == str(key)]
        assert sorted(mine) == mine
    assert all((await checks(bus)).values())
    assert 0 == telemetry.metrics.value(Counter.CONSUMER_RESTARTS)


async def test_a_broker_that_hangs_is_said_to_be_away_in_time_and_the_event_may_be_sent_again(
    broker: Broker, kafka: Any, make: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "PUBLISH_SECONDS", 1.0)
    topic, seen = await kafka.topic(1, GROUPS), Seen()
    bus = kafka.bus()
    bus.subscribe("h", topic, {TransferClosed: seen})
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "before"))
    await until(lambda: seen == ["before"])
    entry = make.entry(topic, 0, "during")

    await broker.do(broker.server.pause)
    try:
        started = time.monotonic()
        with pytest.raises(BusUnavailable):
            await bus.publish_entry(entry)
        assert time.monotonic() - started < 5
    finally:
        await broker.do(broker.server.resume)
    await announce(bus, entry)
    await announce(bus, make.entry(topic, 0, "after"))

    await until(lambda: seen[-1:] == ["after"])
    assert ["before", "during", "after"] == list(dict.fromkeys(seen))


async def test_a_stop_does_not_wait_for_a_broker_that_is_gone(
    broker: Broker, kafka: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "PUBLISH_SECONDS", 0.5)
    monkeypatch.setattr(kafka_producer, "STOP_SECONDS", 0.5)
    topic, bus = await kafka.topic(1, GROUPS), kafka.bus()
    bus.subscribe("h", topic, {TransferClosed: Seen()})
    await bus.start()
    await bus.publish_entry(make.entry(topic))

    await broker.do(broker.server.kill)
    with pytest.raises(BusUnavailable):
        await bus.publish_entry(make.entry(topic))
    started = time.monotonic()
    await bus.stop()

    assert time.monotonic() - started < kafka.graceful + 6  # its drain period


async def test_a_record_that_the_broker_refuses_does_not_spoil_its_partition(kafka: Any, make: Any) -> None:
    """The client counted it in its sequence and the broker did not: a new producer begins anew."""
    topic, bus = await kafka.topic(1), kafka.bus()
    await bus.start()
    await bus.publish_entry(make.entry(topic))

    # Within what the client lets pass, a copy may be so large, and beyond what this topic takes.
    with pytest.raises(InvalidEvent):
        await bus.publish_entry(dataclasses.replace(make.entry(topic), body=bytes(MAX_MESSAGE_BYTES)))

    async with asyncio.timeout(20):
        await announce(bus, make.entry(topic))
        await announce(bus, make.entry(topic))


@pytest.fixture
def watched(kafka: Any, make: Any) -> Callable[..., Awaitable[Any]]:
    """A bus with a quick watchdog."""

    async def start(handle: Any, telemetry: Any, fetch_stall: float = 0.6) -> tuple[Any, str, Any]:
        kafka.policy = dataclasses.replace(make.quick, fetch_stall=fetch_stall)
        kafka.watch = 0.2
        await kafka.restart()
        topic, bus = await kafka.topic(1, GROUPS), kafka.bus("svc", telemetry)
        bus.subscribe("h", topic, {TransferClosed: handle})
        await bus.start()
        return bus, topic, bus._routes[0].consumers[0][1]

    return start


def silence(consumer: Any) -> None:
    """It stays a member and sends its heartbeats, and never fetches again."""
    consumer._fetcher._fetch_task.cancel()


async def test_a_consumer_that_stops_fetching_is_started_anew(watched: Any, make: Any, until: Until) -> None:
    seen, telemetry = Seen(), noop("svc")
    bus, topic, subscriber = await watched(seen, telemetry)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: seen == ["a"])
    restarted = watchdog.Watchdog._restart
    unready: list[bool] = []

    async def look_meanwhile(self: Any, reason: str) -> None:
        task = asyncio.create_task(restarted(self, reason))
        await asyncio.sleep(0)
        unready.append(not (await checks(bus))[SOURCE])
        await task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog.Watchdog, "_restart", look_meanwhile)
        silence(subscriber.consumer)
        await bus.publish_entry(make.entry(topic, 0, "b"))
        await until(lambda: seen == ["a", "b"])

    assert [True] == unready
    assert 1 == telemetry.metrics.value(Counter.CONSUMER_RESTARTS, topic=topic, group="svc.h")
    await until(lambda: telemetry.metrics.value(Gauge.CONSUMER_LAG, topic=topic, group="svc.h") == 0)
    assert bus.alive()
    assert (await checks(bus))[SOURCE]


async def test_the_lag_of_a_silent_consumer_is_seen(watched: Any, make: Any, until: Until) -> None:
    """Its own high watermark comes with the records that it does not fetch."""
    seen, telemetry = Seen(), noop("svc")
    bus, topic, subscriber = await watched(seen, telemetry, fetch_stall=60)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: seen == ["a"])
    silence(subscriber.consumer)

    for _ in range(3):
        await bus.publish_entry(make.entry(topic))

    await until(lambda: telemetry.metrics.value(Gauge.CONSUMER_LAG, topic=topic, group="svc.h") == 3)


async def test_a_consumer_with_a_handler_in_hand_is_left_alone(watched: Any, make: Any, until: Until) -> None:
    telemetry, go_on, began = noop("svc"), asyncio.Event(), list[str]()

    async def handle(event: CloudEvent) -> None:
        began.append(event.id)
        await go_on.wait()

    bus, topic, _ = await watched(handle, telemetry)
    for _ in range(2):
        await bus.publish_entry(make.entry(topic))
    await until(lambda: len(began) == 1)
    await asyncio.sleep(1.5)  # twice the limit
    go_on.set()

    await until(lambda: len(began) == 2)
    assert 0 == telemetry.metrics.value(Counter.CONSUMER_RESTARTS)


async def test_one_that_stays_silent_makes_the_process_give_up(
    watched: Any, make: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then liveness fails: a new process is the last thing to try."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.3)
    bus, topic, subscriber = await watched(Seen(), noop("svc"))
    await until(subscriber.consumer.assignment)
    start = type(subscriber).start

    async def mute(self: Any) -> None:
        await start(self)
        if self is subscriber:
            silence(self.consumer)

    monkeypatch.setattr(type(subscriber), "start", mute)
    silence(subscriber.consumer)
    await bus.publish_entry(make.entry(topic))
    assert bus.alive()

    await until(lambda: not bus.alive())


async def test_transactions_of_others_do_not_look_like_silence(
    kafka: Any, watched: Any, make: Any, until: Until
) -> None:
    """Their markers and aborted records are in the log and never reach a handler."""
    seen, telemetry = Seen(), noop("svc")
    bus, topic, _ = await watched(seen, telemetry)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: seen == ["a"])
    foreign = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"foreign-{topic}")
    await foreign.start()
    with contextlib.suppress(RuntimeError):
        async with foreign.transaction():
            await foreign.send_and_wait(topic, b"x", b"k")
            raise RuntimeError
    await foreign.stop()
    await until(lambda: telemetry.metrics.value(Gauge.CONSUMER_LAG, topic=topic, group="svc.h") == 0)

    await asyncio.sleep(1.5)  # twice the limit

    assert 0 == telemetry.metrics.value(Counter.CONSUMER_RESTARTS)
    assert ["a"] == seen


@pytest.mark.parametrize("number", [0, 1], ids=["topic", "retry"])
async def test_the_watch_goes_on_when_a_consumer_is_closed_under_it(
    kafka: Any, make: Any, until: Until, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Asked for its offsets while it is being started anew, a consumer asks a closed client for ever."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(client, "SWEEP_SECONDS", 1.0)
    kafka.watch = 0.1
    kafka.open()
    topic, seen, telemetry = await kafka.topic(1, GROUPS), Seen(), noop("svc")
    bus = kafka.bus("svc", telemetry)
    bus.subscribe("h", topic, {TransferClosed: seen})
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: seen == ["a"])

    def parked(studies: int) -> bool:
        return telemetry.metrics.value(Gauge.PARKED) == studies

    parking = kafka.waiting_sets()
    await parking.add("svc.h", make.study(1).encode(), f"{topic}/0/1000")
    await until(lambda: parked(1))
    closed = bus._routes[0].consumers[number][1].consumer
    await closed.stop()
    await asyncio.sleep(1.0)  # several looks

    await parking.add("svc.h", make.study(2).encode(), f"{topic}/0/1001")
    await until(lambda: parked(2), 15)
    await bus.stop()
    await closed._client.close()  # it was asked, and connected again
