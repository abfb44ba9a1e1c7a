"""A subscription of the bus: what is handled, what waits, what is given up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isocenter.common.bus.inspect import DeadLetter
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.errors import (
    BusUnavailable,
    InvalidInstance,
    Misconfigured,
    RejectReason,
    StoreUnavailable,
)
from isocenter.common.events.models import CloudEvent, StudyUpdated, TransferClosed
from isocenter.common.telemetry import Counter, noop

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)


class Seen(list[str]):
    """Names of the events that were handled to the end, in that order; it fails those it was told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []
        self._plan: dict[str, tuple[BaseException, int]] = {}

    def fail(self, name: str, error: BaseException, times: int = 1_000_000) -> None:
        self._plan[name] = (error, times)

    async def __call__(self, event: CloudEvent) -> None:
        assert isinstance(event.data, TransferClosed)
        name = event.data.transfer_id
        self.tried.append(name)
        if name in self._plan:
            error, times = self._plan.pop(name)
            if times > 1:
                self._plan[name] = (error, times - 1)
            raise error
        self.append(name)


async def started(backend: Any, topic: str, handler: Any, **options: Any) -> Any:
    bus = backend.bus("svc", **options)
    bus.subscribe("h", topic, {TransferClosed: handler})
    await bus.start()
    return bus


async def dead(backend: Any) -> list[DeadLetter]:
    """Of this test's topics: others may be on the same cluster."""
    inspector = backend.transport.inspector()
    try:
        return [one async for one in inspector.dead_letters() if one.origin_topic in backend.topics]
    finally:
        await inspector.close()


async def test_events_reach_the_handler_of_their_type_in_order(backend: Any, make: Any, until: Until) -> None:
    topic, seen = await backend.topic(3, GROUPS), Seen()
    bus = await started(backend, topic, seen)

    for number in range(30):
        await bus.publish_entry(make.entry(topic, number % 3, f"{number % 3}.{number}"))
    await until(lambda: len(seen) == 30)

    for key in range(3):
        assert [f"{key}.{n}" for n in range(key, 30, 3)] == [name for name in seen if name[0] == str(key)]


async def test_a_passing_error_is_tried_again_in_place(backend: Any, make: Any, until: Until) -> None:
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("a", StoreUnavailable(), times=1)
    bus = await started(backend, topic, seen)

    for name in "ab":
        await bus.publish_entry(make.entry(topic, 0, name))
    await until(lambda: len(seen) == 2)

    assert ["a", "a", "b"] == seen.tried


async def test_a_failing_study_waits_in_order_while_another_flows(
    backend: Any, make: Any, until: Until
) -> None:
    """Both studies are on one partition. The first of study 0 fails longer than the tries in place."""
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("0.0", StoreUnavailable(), times=7)
    bus = await started(backend, topic, seen)

    for number in range(10):
        await bus.publish_entry(make.entry(topic, 0, f"0.{number}"))
        await bus.publish_entry(make.entry(topic, 1, f"1.{number}"))
    await until(lambda: len(seen) == 20)

    mine = [name for name in seen if name.startswith("0.")]
    others = [name for name in seen if name.startswith("1.")]
    assert [f"0.{n}" for n in range(10)] == mine
    assert [f"1.{n}" for n in range(10)] == others
    assert seen.index("1.0") < seen.index("0.0")


async def test_when_the_study_is_through_it_is_handled_directly_again(
    backend: Any, make: Any, until: Until
) -> None:
    telemetry = noop("svc")
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("a", StoreUnavailable(), times=2)
    bus = await started(backend, topic, seen, telemetry=telemetry)
    for name in "ab":
        await bus.publish_entry(make.entry(topic, 0, name))
    await until(lambda: len(seen) == 2)
    await asyncio.sleep(0.1)
    moved = telemetry.metrics.value(Counter.EVENTS_CONSUMED, outcome="parked")

    await bus.publish_entry(make.entry(topic, 0, "c"))
    await until(lambda: len(seen) == 3)

    assert ["a", "b", "c"] == seen
    assert moved == telemetry.metrics.value(Counter.EVENTS_CONSUMED, outcome="parked")


async def test_a_permanent_error_goes_to_the_dead_letters_at_once(
    backend: Any, make: Any, until: Until
) -> None:
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("bad", InvalidInstance(RejectReason.MALFORMED))
    bus = await started(backend, topic, seen)
    one = make.entry(topic, 0, "bad")

    await bus.publish_entry(one)
    await bus.publish_entry(make.entry(topic, 0, "good"))
    await until(lambda: seen == ["good"])

    [letter] = await dead(backend)
    assert ["bad", "good"] == seen.tried
    assert (one.body, one.key.encode()) == (letter.record.value, letter.record.key)
    assert (topic, 0, 0) == (letter.origin_topic, letter.origin_partition, letter.origin_offset)
    assert ("svc.h", "permanent", "InvalidInstance") == (letter.group, letter.reason, letter.error)


async def test_a_dependency_that_refuses_us_is_waited_for(backend: Any, make: Any, until: Until) -> None:
    """Keys that an operator rotates say nothing about the record."""
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("0.0", Misconfigured("the object store does not know these credentials"), times=6)
    bus = await started(backend, topic, seen)

    for name in ("0.0", "0.1"):
        await bus.publish_entry(make.entry(topic, 0, name))
    await until(lambda: len(seen) == 2)

    assert ["0.0", "0.1"] == seen
    assert [] == await dead(backend)


async def test_an_unknown_error_is_given_up_after_the_retry_rounds(
    backend: Any, make: Any, until: Until
) -> None:
    """2 tries in place, then 3 rounds of 2 on the retry topic; what waited behind it follows."""
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("bad", RuntimeError("DOE^JANE"))
    bus = await started(backend, topic, seen)

    for name in ("bad", "next"):
        await bus.publish_entry(make.entry(topic, 0, name))
    await until(lambda: seen == ["next"])

    [letter] = await dead(backend)
    assert 8 == seen.tried.count("bad")
    assert ("exhausted", "RuntimeError") == (letter.reason, letter.error)
    assert b"DOE" not in repr(letter.record).encode()


async def test_an_outage_is_waited_for_however_many_rounds_it_takes(
    backend: Any, make: Any, until: Until
) -> None:
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("a", StoreUnavailable(), times=15)
    bus = await started(backend, topic, seen)
    await bus.publish_entry(make.entry(topic, 0, "a"))

    await until(lambda: seen == ["a"])

    assert [] == await dead(backend)


async def test_an_outage_beyond_patience_is_given_up(backend: Any, make: Any, until: Until) -> None:
    backend.policy = dataclasses.replace(backend.policy, transient_patience=0.1)
    await backend.restart()
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("a", StoreUnavailable())
    bus = await started(backend, topic, seen)
    for name in "ab":
        await bus.publish_entry(make.entry(topic, 0, name))

    await until(lambda: seen == ["b"])

    assert ["exhausted"] == [letter.reason for letter in await dead(backend)]


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"study_key": "x"}', b"", b"\xff\xfe", b"null", b'"DOE^JANE"'],
    ids=["bad-json", "schema", "empty", "not-utf8", "null", "string"],
)
async def test_a_body_that_cannot_be_read_is_a_dead_letter_with_the_same_bytes(
    backend: Any, make: Any, until: Until, body: bytes
) -> None:
    topic, seen = await backend.topic(1, GROUPS), Seen()
    bus = await started(backend, topic, seen)

    await bus.publish_entry(dataclasses.replace(make.entry(topic), body=body))
    await bus.publish_entry(make.entry(topic, 0, "good"))
    await until(lambda: seen == ["good"])

    [letter] = await dead(backend)
    assert (body, "InvalidEvent") == (letter.record.value, letter.error)
    assert b"DOE" not in repr(letter.record.headers).encode()


async def send_raw(backend: Any, topic: str, entry: Any, headers: list[tuple[str, bytes | None]]) -> None:
    """As a foreign publisher would: straight through the client."""
    broker = backend.raw()
    await broker.connect()
    own = [(name, value.encode()) for name, value in entry.headers.items()]
    client = broker.config.producer._producer.producer
    await (await client.send(topic, value=entry.body, key=entry.key.encode(), headers=[*own, *headers]))


@pytest.mark.parametrize(
    "headers", [[("x-foreign", None)], [("x-foreign", b"\xff\xfe\x00")], [("ce_sequence", None)]]
)
async def test_foreign_headers_do_not_skip_the_record(
    backend: Any, make: Any, until: Until, headers: list[tuple[str, bytes | None]]
) -> None:
    """FastStream's own parser would acknowledge the record without calling the handler."""
    topic, seen = await backend.topic(1, GROUPS), Seen()
    await started(backend, topic, seen)

    await send_raw(backend, topic, make.entry(topic, 0, "foreign"), headers)

    await until(lambda: seen == ["foreign"])


async def test_a_foreign_record_that_is_bad_too_keeps_its_bytes(
    backend: Any, make: Any, until: Until
) -> None:
    topic = await backend.topic(1, GROUPS)
    await started(backend, topic, Seen())
    bad = dataclasses.replace(make.entry(topic), body=b"\x00\xff")
    await send_raw(backend, topic, bad, [("x", b"\xff"), ("y", None)])

    await until(lambda: dead(backend))

    assert [b"\x00\xff"] == [letter.record.value for letter in await dead(backend)]


async def test_a_leaked_cancellation_is_an_error_of_the_handler(
    backend: Any, make: Any, until: Until
) -> None:
    """FastStream's loop would end without a word and the ping would still say healthy."""
    topic, seen = await backend.topic(1, GROUPS), Seen()
    seen.fail("leak", asyncio.CancelledError())
    bus = await started(backend, topic, seen)

    await bus.publish_entry(make.entry(topic, 0, "leak"))
    await bus.publish_entry(make.entry(topic, 0, "next"))
    await until(lambda: seen == ["next"])

    assert ["CancelledError"] == [letter.error for letter in await dead(backend)]
    assert all(check.ok for check in await bus.health())


async def test_a_task_group_is_judged_by_what_is_inside(backend: Any, make: Any, until: Until) -> None:
    topic, seen = await backend.topic(1, GROUPS), Seen()
    inner = ExceptionGroup("", [InvalidInstance(RejectReason.MALFORMED)])
    seen.fail("bad", ExceptionGroup("", [inner]))
    bus = await started(backend, topic, seen)
    await bus.publish_entry(make.entry(topic, 0, "bad"))
    await bus.publish_entry(make.entry(topic, 0, "next"))

    await until(lambda: seen == ["next"])

    assert [("permanent", "InvalidInstance")] == [(one.reason, one.error) for one in await dead(backend)]


async def test_an_unknown_type_is_acknowledged_and_counted(backend: Any, make: Any, until: Until) -> None:
    telemetry = noop("svc")
    topic, seen = await backend.topic(1, GROUPS), Seen()
    bus = await started(backend, topic, seen, telemetry=telemetry)

    future = {"ce_type": "org.isocenter.imaging.study.teleported.v1"}
    await bus.publish_entry(make.entry(topic, 0, "x", future))
    await bus.publish_entry(make.entry(topic, 0, "known"))
    await until(lambda: seen == ["known"])

    assert [] == await dead(backend)
    assert 1 == telemetry.metrics.value(Counter.EVENTS_CONSUMED, outcome="unknown-type", group="svc.h")


async def test_a_type_that_nobody_here_waits_for_is_acknowledged(
    backend: Any, make: Any, until: Until
) -> None:
    telemetry = noop("svc")
    topic = await backend.topic(1, GROUPS)
    bus = backend.bus("svc", telemetry)
    bus.subscribe("h", topic, {StudyUpdated: Seen()})
    await bus.start()

    await bus.publish_entry(make.entry(topic))

    await until(lambda: telemetry.metrics.value(Counter.EVENTS_CONSUMED, outcome="ignored") == 1)
    assert [] == await dead(backend)


async def test_too_many_dead_letters_stop_the_consumer_and_say_so(
    backend: Any, make: Any, until: Until
) -> None:
    backend.limit = lambda: DlqLimit(max_consecutive=3)
    await backend.restart()
    topic, seen = await backend.topic(1, GROUPS), Seen()
    bus = await started(backend, topic, seen)
    for number in range(6):
        seen.fail(f"bad{number}", InvalidInstance(RejectReason.MALFORMED))
        await bus.publish_entry(make.entry(topic, 0, f"bad{number}"))

    async def unready() -> bool:
        return not all(check.ok for check in await bus.health())

    await until(unready)
    details = [check.detail for check in await bus.health() if not check.ok]

    assert 3 == len(await dead(backend))
    assert "3 dead letters in a row, last error InvalidInstance" in details[0]

    # The record that was one too many is still there for the next start.
    await backend.restart()
    again = Seen()
    await started(backend, topic, again)
    await until(lambda: again == ["bad3", "bad4", "bad5"])


async def test_one_group_one_subscription(backend: Any) -> None:
    topic, bus = await backend.topic(1, GROUPS), backend.bus("svc")
    bus.subscribe("h", topic, {})

    with pytest.raises(Misconfigured):
        bus.subscribe("h", await backend.topic(1, GROUPS), {})


async def test_a_subscriber_past_the_factory_is_refused(backend: Any, make: Any) -> None:
    topic, bus = await backend.topic(1, GROUPS), backend.bus("svc")

    async def handle(body: bytes) -> None: ...

    make.listen(bus.broker, topic, group="svc.wild", max_workers=2)(handle)

    with pytest.raises(Misconfigured, match=r"past Bus\.subscribe"):
        await bus.start()


async def test_a_subscription_to_a_topic_that_does_not_exist_is_refused(backend: Any) -> None:
    bus = backend.bus("svc")
    bus.subscribe("h", "no.such.topic", {})

    with pytest.raises(Misconfigured, match="no such topic"):
        await bus.start()


async def test_publishing_never_creates_a_topic(backend: Any, make: Any) -> None:
    bus = backend.bus("svc")
    await bus.start()

    with pytest.raises(BusUnavailable):
        await bus.publish_entry(make.entry("no.such.topic"))


async def test_publishing_before_the_start_is_refused(backend: Any, make: Any) -> None:
    bus = backend.bus("svc")

    with pytest.raises(BusUnavailable):
        await bus.publish(make.event())
    assert [False] == [check.ok for check in await bus.health()]
