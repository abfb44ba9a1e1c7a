"""What operators do: read topics, give dead letters back, rewind a group; while the platform runs or not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from isocenter.common.bus import inspect as inspect_module
from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.bus.inspect import DeadLetter, EmbeddedInspector, TopicInspector
from isocenter.common.bus.kafka_inspect import KafkaInspector
from isocenter.common.errors import InvalidInstance, Misconfigured, NotFound, RejectReason, Transient
from isocenter.common.events.models import CloudEvent, TransferClosed

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h", "svc.watch")


class Service:
    """Two groups on one topic; `svc.h` refuses events until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.seen: list[str] = []
        self.other: list[str] = []

    async def handle(self, event: CloudEvent) -> None:
        if not self.mended:
            raise InvalidInstance(RejectReason.MALFORMED)
        self.seen.append(event.data.transfer_id)  # type: ignore[attr-defined]  # TransferClosed

    async def watch(self, event: CloudEvent) -> None:
        self.other.append(event.data.transfer_id)  # type: ignore[attr-defined]  # TransferClosed

    async def run(self, backend: Any, topic: str) -> Any:
        bus = backend.bus("svc")
        bus.subscribe("h", topic, {TransferClosed: self.handle})
        bus.subscribe("watch", topic, {TransferClosed: self.watch})
        await bus.start()
        return bus


@pytest.fixture
async def inspector(backend: Any) -> AsyncIterator[TopicInspector]:
    made: TopicInspector = backend.transport.inspector()
    yield made
    await made.close()


async def letters(inspector: TopicInspector, topic: str) -> list[DeadLetter]:
    """Those of the topic: a cluster holds those of other tests."""
    return [letter async for letter in inspector.dead_letters() if letter.origin_topic == topic]


async def with_dead_letters(
    backend: Any, make: Any, until: Until, inspector: TopicInspector, count: int = 1
) -> tuple[str, Service, Any]:
    topic, service = await backend.topic(2, GROUPS), Service()
    bus = await service.run(backend, topic)
    for number in range(count):
        await bus.publish_entry(make.entry(topic, number, f"n{number}"))

    async def dead() -> bool:
        return len(service.other) == count and len(await letters(inspector, topic)) == count

    await until(dead)
    return topic, service, bus


def of(letter: DeadLetter) -> tuple[str, int, int]:
    return letter.record.topic, letter.record.partition, letter.record.offset


async def test_a_dead_letter_goes_back_to_its_group_only(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, service, _ = await with_dead_letters(backend, make, until, inspector)
    [letter] = await letters(inspector, topic)
    service.mended = True

    await inspector.replay(*of(letter))
    await until(lambda: service.seen == ["n0"])

    assert ["n0"] == service.other
    assert [True] == [one.replayed for one in await letters(inspector, topic)]
    assert f"{topic}.svc.h.dlq" == letter.record.topic


async def test_a_dead_letter_that_fails_again_is_a_new_dead_letter(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, _, _ = await with_dead_letters(backend, make, until, inspector)
    [letter] = await letters(inspector, topic)

    await inspector.replay(*of(letter))

    async def twice() -> bool:
        return len(await letters(inspector, topic)) == 2

    await until(twice)
    first, second = await letters(inspector, topic)
    assert [True, False] == [first.replayed, second.replayed]
    assert (first.origin_topic, first.origin_partition, first.origin_offset, first.record.value) == (
        second.origin_topic,
        second.origin_partition,
        second.origin_offset,
        second.record.value,
    )


async def test_replaying_all_takes_each_once(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, service, _ = await with_dead_letters(backend, make, until, inspector, 5)
    dlq, service.mended = f"{topic}.svc.h.dlq", True

    assert 5 == await inspector.replay_all(dlq)
    assert 0 == await inspector.replay_all(dlq)
    await until(lambda: sorted(service.seen) == [f"n{n}" for n in range(5)])


@pytest.mark.parametrize(
    ("topic", "partition", "offset"),
    [
        ("no.such.svc.h.dlq", 0, 0),
        ("{topic}", 0, 0),
        ("{topic}.svc.h.dlq", 0, 7),
        ("{topic}.svc.h.dlq", 3, 0),
    ],
)
async def test_there_is_no_such_dead_letter(
    backend: Any, make: Any, until: Until, inspector: TopicInspector, topic: str, partition: int, offset: int
) -> None:
    name, _, _ = await with_dead_letters(backend, make, until, inspector)

    with pytest.raises(NotFound):
        await inspector.replay(topic.format(topic=name), partition, offset)


async def test_a_whole_topic_is_delivered_again_in_order(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, service = await backend.topic(2, GROUPS), Service()
    service.mended = True
    bus = await service.run(backend, topic)
    for number in range(20):
        await bus.publish_entry(make.entry(topic, number % 2, f"{number % 2}-{number}"))
    await until(lambda: len(service.seen) == len(service.other) == 20)
    before = list(service.seen)
    service.seen.clear()

    if isinstance(inspector, KafkaInspector):
        with pytest.raises(Transient, match="stop the service first"):
            await inspector.rewind("svc.h", topic)
        await bus.stop()
        await inspector.rewind("svc.h", topic)
        await service.run(backend, topic)
    else:
        await inspector.rewind("svc.h", topic)
    await until(lambda: len(service.seen) == 20)

    for key in "01":
        assert [n for n in before if n[0] == key] == [n for n in service.seen if n[0] == key]
    assert 20 == len(service.other)


async def test_groups_are_told_with_what_they_have_not_read(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, service = await backend.topic(2, GROUPS), Service()
    service.mended = True
    bus = await service.run(backend, topic)
    for number in range(3):
        await bus.publish_entry(make.entry(topic, number, f"n{number}"))

    async def lags() -> dict[tuple[str, str], int]:
        return {(one.group, one.topic): one.lag for one in await inspector.groups() if topic in one.topic}

    async def read() -> bool:
        found = await lags()
        return found.get(("svc.h", topic)) == found.get(("svc.watch", topic)) == 0

    await until(read)
    await bus.stop()
    publisher = backend.bus("pub")
    await publisher.start()
    for number in range(4):
        await publisher.publish_entry(make.entry(topic, number))

    assert (4, 4) == ((await lags())["svc.h", topic], (await lags())["svc.watch", topic])


async def test_rewinding_a_group_that_never_read_the_topic_is_refused(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, _, _ = await with_dead_letters(backend, make, until, inspector)

    with pytest.raises(NotFound):
        await inspector.rewind("svc.else", topic)


async def test_reading_begins_at_the_offset_and_ends_at_the_end(
    backend: Any, make: Any, until: Until, inspector: TopicInspector
) -> None:
    topic, _, _ = await with_dead_letters(backend, make, until, inspector, 3)

    every = [record async for record in inspector.read(topic)]
    later = [record async for record in inspector.read(topic, start_offset=1)]

    assert 3 == len(every)
    assert [record for record in every if record.offset >= 1] == later
    with pytest.raises(NotFound):
        [record async for record in inspector.read("no.such.topic")]
    topics = await inspector.topics()
    assert (3, 3) == (topics[topic], topics[f"{topic}.svc.h.dlq"])


ELSEWHERE = """
import asyncio, sys
from pathlib import Path
from isocenter.common.bus.factory import EmbeddedTransport

async def main():
    transport = EmbeddedTransport(Path(sys.argv[1]))
    inspector = transport.inspector()
    print([letter.record.topic async for letter in inspector.dead_letters()])
    print(await inspector.replay_all())
    await inspector.close()
    await transport.close()

asyncio.run(main())
"""


async def elsewhere(embedded: Any) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ELSEWHERE, str(embedded.path), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode
    return output.decode().splitlines()


async def test_another_process_replays_while_the_platform_runs(
    embedded: Any, make: Any, until: Until
) -> None:
    topic, service, _ = await with_dead_letters(embedded, make, until, embedded.transport.inspector(), 2)
    service.mended = True

    assert [str([f"{topic}.svc.h.dlq"] * 2), "2"] == await elsewhere(embedded)
    await until(lambda: sorted(service.seen) == ["n0", "n1"])


async def test_another_process_replays_while_the_platform_is_down(
    embedded: Any, make: Any, until: Until
) -> None:
    topic, service, _ = await with_dead_letters(embedded, make, until, embedded.transport.inspector(), 2)
    await embedded.close()

    assert [str([f"{topic}.svc.h.dlq"] * 2), "2"] == await elsewhere(embedded)

    embedded.open()
    service.mended = True
    await service.run(embedded, topic)
    await until(lambda: sorted(service.seen) == ["n0", "n1"])


async def test_the_owner_tells_another_process_why_not(embedded: Any, make: Any, until: Until) -> None:
    await with_dead_letters(embedded, make, until, embedded.transport.inspector())
    outside = EmbeddedInspector(embedded.path)

    with pytest.raises(NotFound):
        await outside.replay("no.such.svc.h.dlq", 0, 0)
    await outside.close()


async def test_a_request_that_nobody_answers_is_withdrawn(
    embedded: Any, make: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not happen an hour after the operator was told that it did not."""
    topic, _, _ = await with_dead_letters(embedded, make, until, embedded.transport.inspector())
    for task in embedded.transport._tasks:
        task.cancel()
    monkeypatch.setattr(inspect_module, "ANSWER_SECONDS", 0.2)
    outside = EmbeddedInspector(embedded.path)

    with pytest.raises(Transient):
        await outside.replay(f"{topic}.svc.h.dlq", 0, 0)
    await outside.close()

    open_requests = await embedded.transport.open().log.query(
        lambda c: c.execute("SELECT count(*) FROM requests").fetchone()[0]
    )
    assert 0 == open_requests


async def test_a_second_platform_on_the_same_log_is_refused(embedded: Any) -> None:
    second = EmbeddedTransport(embedded.path)

    with pytest.raises(Misconfigured, match="in use by process"):
        second.open()
    await second.close()
