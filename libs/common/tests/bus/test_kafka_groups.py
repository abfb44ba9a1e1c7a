"""Replicas of a service on a cluster: who gets what, what happens when one comes, goes, or is frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter as Count
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.telemetry import Gauge, noop

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)
SESSION_MS = 3_000


def number_of(event: CloudEvent) -> tuple[str, int]:
    assert isinstance(event.data, TransferClosed)
    key, _, number = event.data.transfer_id.partition(".")
    return key, int(number)


class Ledger:
    """Effects as the index keeps them: the last one per study; what is not the next is refused."""

    def __init__(self) -> None:
        self.last: Count[str] = Count()
        self.duplicates = 0
        self.skipped: list[str] = []
        self.by: Count[str] = Count()

    def handler(self, replica: str, seconds: float = 0.0) -> Callable[[CloudEvent], Awaitable[None]]:
        async def handle(event: CloudEvent) -> None:
            key, number = number_of(event)
            await asyncio.sleep(seconds)
            if number <= self.last[key]:
                self.duplicates += 1
            elif number == self.last[key] + 1:
                self.last[key] = number
                self.by[replica] += 1
            else:
                self.skipped.append(f"{key}.{number}")

        return handle


async def replica(
    kafka: Any, topic: str, handle: Callable[[CloudEvent], Awaitable[None]], telemetry: Any = None
) -> Any:
    bus = kafka.bus("svc", telemetry)
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    return bus


async def publish(bus: Any, make: Any, topic: str, keys: int, count: int, first: int = 1) -> None:
    """Events `k.n` with n from `first`, for each key in turn."""
    for number in range(first, first + count):
        for key in range(keys):
            await bus.publish_entry(make.entry(topic, key, f"{key}.{number}"))


async def test_replicas_come_and_go_while_handlers_run(kafka: Any, make: Any, until: Until) -> None:
    """Nothing is lost or overtaken; what runs twice is what a duplicate of the same event may be."""
    kafka.session_ms = SESSION_MS
    await kafka.restart()
    topic, ledger = await kafka.topic(4, GROUPS), Ledger()
    publisher = kafka.bus("pub")
    await publisher.start()
    one = await replica(kafka, topic, ledger.handler("one", 0.02))
    publishing = asyncio.create_task(publish(publisher, make, topic, 6, 30))

    await until(lambda: ledger.by["one"] > 5)
    await replica(kafka, topic, ledger.handler("two", 0.02))
    await until(lambda: ledger.by["two"] > 5)
    await one.stop()
    await replica(kafka, topic, ledger.handler("three", 0.02))
    await publishing
    await until(lambda: all(ledger.last[str(key)] == 30 for key in range(6)), 60)

    assert [] == ledger.skipped


async def test_a_handler_that_outlives_its_partition_is_fenced(kafka: Any, make: Any, until: Until) -> None:
    """Its commit is refused, and the record is handled by the new owner, too."""
    kafka.session_ms = SESSION_MS
    await kafka.restart()
    topic, ledger, began, go_on = await kafka.topic(1, GROUPS), Ledger(), list[str](), asyncio.Event()

    def slow(name: str) -> Callable[[CloudEvent], Awaitable[None]]:
        effect = ledger.handler(name)

        async def handle(event: CloudEvent) -> None:
            began.append(name)
            if len(began) == 1:
                await go_on.wait()
            await effect(event)

        return handle

    first = await replica(kafka, topic, slow("first"))
    await publish(first, make, topic, 1, 3)
    await until(lambda: began == ["first"])
    others = [await replica(kafka, topic, slow(name)) for name in ("second", "third")]
    # With three members and one partition it need not move; the one that has it is made to leave.
    owner = first._routes[0].consumers[0][1].consumer

    async def taken_over() -> bool:
        # It joins again by itself, and may be given the partition back.
        if len(began) == 1 and owner.assignment():
            await owner._coordinator._maybe_leave_group()
        return len(began) > 1

    await until(taken_over)
    go_on.set()
    await until(lambda: ledger.last["0"] == 3)

    assert [] == ledger.skipped
    assert "first" != began[1]
    await until(lambda: ledger.duplicates >= 1)
    assert len(others) == 2


async def test_two_replicas_share_the_work_and_a_third_is_a_ready_spare(
    kafka: Any, make: Any, until: Until
) -> None:
    kafka.session_ms = SESSION_MS
    await kafka.restart()
    topic, ledger = await kafka.topic(2, GROUPS), Ledger()
    buses = [await replica(kafka, topic, ledger.handler(name)) for name in ("one", "two", "three")]

    def assigned() -> list[int]:
        return sorted(len(bus._routes[0].consumers[0][1].consumer.assignment()) for bus in buses)

    await until(lambda: assigned() == [0, 1, 1])
    await publish(buses[0], make, topic, 8, 5)
    await until(lambda: sum(ledger.last.values()) == 40)

    assert 2 == len(ledger.by)
    assert [] == ledger.skipped
    for bus in buses:
        for channel, _ in bus._routes[0].consumers:
            channel.progress.last_finished -= 3_600  # long past every grace
        assert all(check.ok for check in await bus.health())


async def test_the_lag_of_a_group_is_the_sum_of_what_its_replicas_say(
    kafka: Any, make: Any, until: Until
) -> None:
    kafka.session_ms, kafka.watch = SESSION_MS, 0.2
    await kafka.restart()
    topic, go_on = await kafka.topic(2, GROUPS), asyncio.Event()
    telemetry = [noop("one"), noop("two")]

    async def wait(_event: CloudEvent) -> None:
        await go_on.wait()

    buses = [await replica(kafka, topic, wait, each) for each in telemetry]
    consumers = [bus._routes[0].consumers[0][1].consumer for bus in buses]
    await until(lambda: all(len(one.assignment()) == 1 for one in consumers))
    await publish(buses[0], make, topic, 8, 3)

    def lags() -> list[float]:
        return [one.metrics.value(Gauge.CONSUMER_LAG, topic=topic, group="svc.h") for one in telemetry]

    # Each has one record in hand: these are not waiting any more.
    await until(lambda: sum(lags()) == 8 * 3 - 2)
    assert all(lag > 0 for lag in lags())
    go_on.set()
    await until(lambda: lags() == [0, 0])


REPLICA = """
import asyncio, sys
from pathlib import Path
from isocenter.common.bus.delivery import DeliveryPolicy
from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.events.models import TransferClosed
from isocenter.common.settings import KafkaSettings
from isocenter.common.telemetry import noop

bootstrap, topic, out, hang = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]

async def main():
    settings = KafkaSettings(bootstrap=bootstrap, session_timeout_ms=3000)
    async def handle(event):
        name = event.data.transfer_id
        if name == hang:
            print("in hand", flush=True)
            await asyncio.sleep(0.5)
        with out.open("a") as file:
            file.write("frozen " + name + "\\n")
    bus = KafkaTransport(settings).bus("svc", noop("svc"))
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def frozen(kafka: Any, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a replica that will be stopped with record `0.4` in hand."""
    running: list[subprocess.Popen[str]] = []

    def start(topic: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", REPLICA, kafka.bootstrap, topic, str(tmp_path / "out"), "0.4"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed", "frozen"])
async def test_a_replica_that_dies_or_is_frozen_past_its_session(
    kafka: Any,
    make: Any,
    until: Until,
    tmp_path: Path,
    frozen: Callable[[str], subprocess.Popen[str]],
    fate: str,
) -> None:
    """Another takes over what it had in hand. A frozen one that wakes up is refused and overtakes nothing."""
    kafka.session_ms, out = SESSION_MS, tmp_path / "out"
    await kafka.restart()
    topic, publisher = await kafka.topic(1, GROUPS), kafka.bus("pub")
    await publisher.start()
    process = frozen(topic)
    assert process.stdout is not None
    assert "ready\n" == await asyncio.to_thread(process.stdout.readline)
    await publish(publisher, make, topic, 1, 8)
    assert "in hand\n" == await asyncio.to_thread(process.stdout.readline)
    os.kill(process.pid, signal.SIGSTOP if fate == "frozen" else signal.SIGKILL)

    async def handle(event: CloudEvent) -> None:
        with out.open("a") as file:
            file.write(f"here {'.'.join(map(str, number_of(event)))}\n")

    def lines() -> list[str]:
        return out.read_text().splitlines() if out.exists() else []

    await replica(kafka, topic, handle)
    await until(lambda: "here 0.8" in lines())
    if fate == "frozen":
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: "frozen 0.4" in lines())
    await publish(publisher, make, topic, 1, 2, first=9)
    await until(lambda: any(line.endswith("0.10") for line in lines()))

    handled = [line.split()[1] for line in lines()]
    assert [f"0.{number}" for number in range(1, 11)] == list(dict.fromkeys(handled))
    assert [f"frozen 0.{number}" for number in range(1, 4)] == lines()[:3]
    assert [f"here 0.{number}" for number in range(4, 9)] == lines()[3:8]
