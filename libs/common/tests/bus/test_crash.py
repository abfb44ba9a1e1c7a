"""`kill -9` of a process: nothing that was acknowledged is lost, nothing is skipped or reordered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.bus.inspect import EmbeddedInspector

Until = Callable[..., Awaitable[None]]

CONSUMER = """
import asyncio, sys
from pathlib import Path
from isocenter.common.bus.delivery import DeliveryPolicy
from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.errors import StoreUnavailable
from isocenter.common.events.models import TransferClosed
from isocenter.common.telemetry import noop

path, topic, out, mode = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]

async def main():
    policy = DeliveryPolicy(
        tries=2, backoff=0.001, retry_delay=0.01, retry_backoff_max=0.02, move_backoff=0.01
    )
    transport = EmbeddedTransport(path, policy=policy)
    log, failures, ready = transport.open().log, {}, asyncio.Event()
    await log.create_topic(topic, 2)

    async def handle(event):
        name = event.data.transfer_id
        if mode == "hang" and name == "n.3":
            await ready.wait()
            print("in hand", flush=True)
            await asyncio.Event().wait()
        if mode == "flaky" and name.endswith("0") and failures.setdefault(name, 3):
            failures[name] -= 1
            raise StoreUnavailable
        with out.open("a") as file:
            file.write(name + "\\n")

    bus = transport.bus("svc", noop("svc"))
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    print("ready", flush=True)
    ready.set()
    await asyncio.Event().wait()

asyncio.run(main())
"""


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    """A test that fails half-way must not leave a consumer behind."""
    yield
    while RUNNING:
        process = RUNNING.pop()
        if process.poll() is None:
            kill(process)


def spawn(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    RUNNING.append(process)
    return process


def consume(path: Path, topic: str, out: Path, mode: str) -> subprocess.Popen[str]:
    """Returns when it has started; with `hang`, when it has record 3 in hand."""
    process = spawn(CONSUMER, str(path), topic, str(out), mode)
    assert process.stdout is not None
    lines = {process.stdout.readline() for _ in range(2 if mode == "hang" else 1)}
    assert ({"ready\n", "in hand\n"} if mode == "hang" else {"ready\n"}) == lines
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def names(out: Path) -> list[str]:
    return out.read_text().split() if out.exists() else []


async def publish(embedded: Any, make: Any, topic: str, keys: int, count: int) -> None:
    log = embedded.transport.open().log
    await log.create_topic(topic, 2)
    bus = embedded.bus("pub")
    await bus.start()
    for number in range(count):
        await bus.publish_entry(make.entry(topic, number % keys, f"{'nmopq'[number % keys]}.{number}"))
    await embedded.close()


async def test_the_record_in_hand_is_delivered_again(
    embedded: Any, make: Any, until: Until, tmp_path: Path
) -> None:
    topic, out = "crash.v1", tmp_path / "out"
    await publish(embedded, make, topic, 1, 6)

    kill(consume(embedded.path, topic, out, "hang"))
    assert ["n.0", "n.1", "n.2"] == names(out)

    process = consume(embedded.path, topic, out, "works")
    await until(lambda: len(set(names(out))) == 6)
    kill(process)

    assert [f"n.{number}" for number in range(6)] == list(dict.fromkeys(names(out)))
    assert names(out).count("n.3") == 1


@pytest.mark.slow
async def test_kills_at_any_moment_lose_and_reorder_nothing(
    embedded: Any, make: Any, until: Until, tmp_path: Path
) -> None:
    """Handlers fail now and then, so the kills also hit the steps of parking, retrying and un-parking."""
    topic, out = "crash.v1", tmp_path / "out"
    await publish(embedded, make, topic, 3, 150)

    for number in range(6):
        process = consume(embedded.path, topic, out, "flaky")
        await asyncio.sleep(0.02 * (number + 1))
        kill(process)
    process = consume(embedded.path, topic, out, "flaky")
    await until(lambda: len(set(names(out))) == 150, 60)
    kill(process)

    first_time = list(dict.fromkeys(names(out)))
    for key in range(3):
        expected = [f"{'nmopq'[key]}.{number}" for number in range(key, 150, 3)]
        assert expected == [name for name in first_time if name[0] == "nmopq"[key]]


async def test_a_publisher_killed_at_any_moment_keeps_what_it_reported(embedded: Any, tmp_path: Path) -> None:
    publisher = """
import asyncio, sys
from pathlib import Path
from isocenter.common.bus.embedded import EmbeddedLog
from isocenter.common.bus.embedded.producer import EmbeddedProducer

async def main():
    log = EmbeddedLog(Path(sys.argv[1]))
    await log.create_topic("t", 1)
    producer = EmbeddedProducer(log)
    async def one(number):
        await (await producer.send("t", value=str(number).encode(), key=b"k"))
        print(number, flush=True)
    for start in range(0, 1_000_000, 20):
        await asyncio.gather(*(one(start + n) for n in range(20)))

asyncio.run(main())
"""
    await embedded.close()
    process = spawn(publisher, str(embedded.path))
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    reported += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()

    inspector = EmbeddedInspector(embedded.path)
    kept = [(record.offset, int(record.value or b"")) async for record in inspector.read("t")]
    await inspector.close()

    assert set(reported) <= {value for _, value in kept}
    assert list(range(len(kept))) == [offset for offset, _ in kept] == [value for _, value in kept]
