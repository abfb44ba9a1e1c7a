"""What happens to a record: the one place with delivery semantics.

    record -> [parked? join the queue] -> handler, a few tries -> acknowledged
                                            | permanent              | transient or unknown
                                            v                        v
                                  <topic>.<group>.dlq      <topic>.<group>.retry -> ... -> dlq

At least once, in order per key, nothing lost. Every step is durable before the one that depends on it, and a
crash between any two leaves the record uncommitted, so that it comes again:

* moving to the retry topic: the event joins the key's waiting set, the copy is published, the record is
  acknowledged. A crash after the first step: the record comes again, finds its key waiting, and publishes its
  copy now. A crash after the second: there are two copies; the second is a duplicate of a handled event.
* on the retry topic: the handler succeeds (or the dead letter is published), the event leaves the set, the
  copy is acknowledged. A crash in between: the copy comes again, a duplicate, and leaves the set then.
* what is left in a set although nothing waits any more (an operator moved offsets by hand) is found by
  `Channel.sweep`: the origin is committed past it and the retry topic is drained.

Duplicates are what handlers expect. Events of one key are handled for the first time in their order.

FastStream's part is to acknowledge when `consume_scope` returns or raises AckMessage, to seek back on
NackMessage, and to leave the record alone when the task is cancelled.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from faststream import BaseMiddleware
from faststream.exceptions import AckMessage, NackMessage
from pydantic import ValidationError

from isocenter.common.bus.kafka import ConsumerRecord
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.bus.parking import Parking, Place
from isocenter.common.bus.records import ERROR, ORIGIN_ID, ORIGIN_TOPIC, REASON, ident_of, parse_ident
from isocenter.common.clock import Clock
from isocenter.common.errors import IsocenterError, Misconfigured, Permanent, Transient
from isocenter.common.events.topics import dlq_topic, retry_topic

if TYPE_CHECKING:
    from faststream._internal.context.repository import ContextRepo
    from faststream.message import StreamMessage

Sleep = Callable[[float], Awaitable[None]]
STOPPING_PAUSE = 0.05


class Publish(Protocol):
    """Publishes a record as it is; returns when it is durable."""

    async def __call__(
        self, *, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """Numbers of the policy. Times in seconds.

    Attributes:
        tries: in place, blocking this consumer: keep their sum far below `max_poll_interval_ms`.
        retry_delay: a record that failed is not tried again before its copy is this old.
        retry_rounds: rounds of `tries` on the retry topic for an error nobody classified.
        transient_patience: how long a `Transient` error is retried there before the record is given up.
        stall: a consumer with work that finished nothing for so long is not ready.
        fetch_stall: a consumer that has records to read, none in hand, and took none for so long is started
            anew.
    """

    tries: int = 3
    backoff: float = 0.1
    backoff_max: float = 2.0
    retry_delay: float = 2.0
    retry_rounds: int = 5
    retry_backoff_max: float = 30.0
    transient_patience: float = 900.0
    move_backoff: float = 1.0
    stall: float = 120.0
    fetch_stall: float = 30.0


class Outcome(StrEnum):
    """How the delivery of a record ended."""

    OK = "ok"
    IGNORED = "ignored"
    UNKNOWN_TYPE = "unknown-type"
    RETRIED = "retried"
    PARKED = "parked"
    DEAD_LETTERED = "dead-lettered"
    NACKED = "nacked"


class Observer(Protocol):
    """Who counts and logs."""

    def attempted(self, record: ConsumerRecord, seconds: float, error: str | None) -> None: ...
    def finished(self, record: ConsumerRecord, outcome: Outcome, reason: str, error: str) -> None: ...
    def halted(self, record: ConsumerRecord, reason: str) -> None: ...


class Kind(Enum):
    PERMANENT = "permanent"
    TRANSIENT = "transient"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """All that is kept of an exception. The exception itself holds frames, and these hold patient data."""

    kind: Kind
    error: str


@dataclass(slots=True)
class Progress:
    """What readiness looks at. Monotonic seconds."""

    busy_since: float | None = None
    last_finished: float = field(default_factory=time.monotonic)


class Subscription:
    """What the two consumers of one subscription (its topic and its retry topic) share."""

    def __init__(
        self,
        *,
        group: str,
        topic: str,
        policy: DeliveryPolicy,
        parking: Parking,
        limit: DlqLimit,
        publish: Publish,
        observer: Observer,
        clock: Clock,
        stopping: asyncio.Event,
        sleep: Sleep = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self.group = group
        self.topic = topic
        self.retry_topic = retry_topic(topic, group)
        self.dlq_topic = dlq_topic(topic, group)
        self.policy = policy
        self.parking = parking
        self.limit = limit
        self.publish = publish
        self.observer = observer
        self.clock = clock
        self.stopping = stopping
        self.halt_reason: str | None = None
        self.on_halt: Callable[[], None] = lambda: None
        self._sleep = sleep
        self._chance = chance or random.Random()

    def jittered(self, seconds: float) -> float:
        """Between half of it and all of it: members that failed together must not come back together."""
        return seconds * self._chance.uniform(0.5, 1.0)

    async def pause(self, seconds: float) -> bool:
        """Sleeps. False when the bus stops meanwhile: a drain must not wait for a back-off."""
        if self.stopping.is_set():
            return False
        if seconds <= 0:
            return True
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopping.cancel()
        return not self.stopping.is_set()

    def halt(self, record: ConsumerRecord, reason: str) -> None:
        if self.halt_reason is None:
            self.halt_reason = reason
            self.observer.halted(record, reason)
            self.on_halt()


class Channel:
    """The policy for one consumer: that of the topic, or that of the retry topic."""

    def __init__(self, subscription: Subscription, *, retrying: bool, max_poll_seconds: float) -> None:
        self.subscription = subscription
        self.retrying = retrying
        self.progress = Progress()
        self._longest_pause = max_poll_seconds / 4
        self._rounds: dict[str, tuple[int, float]] = {}
        """Rounds and first failure of records that are being retried here; lost in a restart, which gives a
        record more tries, never fewer."""

    async def deliver(
        self, call_next: Callable[[Any], Awaitable[Any]], message: StreamMessage[Any]
    ) -> Outcome:
        """Handles the record. Every outcome but NACKED means: acknowledge it."""
        self.progress.busy_since = time.monotonic()
        try:
            outcome = await self._deliver(call_next, message)
            if outcome is Outcome.NACKED:
                # It is read again at once, so never without a pause: not even while the bus stops, when the
                # consume loop needs a moment to hear of it.
                backoff = self.subscription.jittered(self.subscription.policy.move_backoff)
                if not await self.subscription.pause(backoff):
                    await asyncio.sleep(STOPPING_PAUSE)
            else:
                self.progress.last_finished = time.monotonic()
            return outcome
        finally:
            self.progress.busy_since = None

    async def sweep(self, committed: Callable[[str, int], Awaitable[int | None]], *, drained: bool) -> int:
        """Removes events that wait for nothing: committed past at the origin, gone from the retry topic.

        Args:
            committed: the group's offset on a partition of the origin topic.
            drained: every record of the retry topic is acknowledged, looked at after `committed`.

        Returns:
            How many were removed.
        """
        one = self.subscription
        removed = 0
        if not drained:
            return removed
        for key, ident in await one.parking.entries(one.group):
            place = parse_ident(ident)
            if place is None or place[0] != one.topic:
                continue
            offset = await committed(place[0], place[1])
            if offset is not None and offset > place[2]:
                await one.parking.discard(one.group, key, ident)
                removed += 1
        return removed

    async def _deliver(
        self, call_next: Callable[[Any], Awaitable[Any]], message: StreamMessage[Any]
    ) -> Outcome:
        one, record = self.subscription, message.raw_message
        if one.halt_reason is not None or one.stopping.is_set():
            return Outcome.NACKED
        # Only our own copies say where they come from: a foreign publisher may send any header.
        ident = ident_of(record, message.headers if self.retrying else {})
        if self.retrying:
            if not await self._until_due(record, message.headers):
                return Outcome.NACKED
        elif record.key is not None:
            try:
                place = await one.parking.place(one.group, record.key, ident)
            except Exception as error:  # noqa: BLE001 - who waits is not known: the record stays uncommitted
                return self._not_moved(record, error)
            if place is not Place.FREE:
                # Its own id in the set: the process died between joining it and publishing the copy.
                outcome = Outcome.RETRIED if place is Place.WAITING else Outcome.PARKED
                return await self._to_retry(message, ident, outcome, None)
        result = await self._try(call_next, message)
        if isinstance(result, Outcome):
            return await self._handled(record, ident, result)
        failure = result
        if one.stopping.is_set() and failure.kind is not Kind.PERMANENT:
            return Outcome.NACKED
        if failure.kind is Kind.PERMANENT:
            return await self._to_dlq(message, ident, failure)
        if not self.retrying:
            return await self._to_retry(message, ident, Outcome.RETRIED, failure)
        return await self._next_round(message, ident, failure)

    async def _try(
        self, call_next: Callable[[Any], Awaitable[Any]], message: StreamMessage[Any]
    ) -> Outcome | Failure:
        one = self.subscription
        result: Outcome | Failure = Outcome.NACKED
        for attempt in range(one.policy.tries):
            if attempt:
                backoff = min(one.policy.backoff * 2 ** (attempt - 1), one.policy.backoff_max)
                if not await one.pause(one.jittered(backoff)):
                    break
            started = time.perf_counter()
            result = await _attempt(call_next, message)
            error = result.error if isinstance(result, Failure) else None
            one.observer.attempted(message.raw_message, time.perf_counter() - started, error)
            if isinstance(result, Outcome) or result.kind is Kind.PERMANENT:
                break
        return result

    async def _handled(self, record: ConsumerRecord, ident: str, outcome: Outcome) -> Outcome:
        if self.retrying and not await self._unpark(record, ident):
            return Outcome.NACKED
        self.subscription.limit.processed()
        self.subscription.observer.finished(record, outcome, "", "")
        return outcome

    async def _next_round(self, message: StreamMessage[Any], ident: str, failure: Failure) -> Outcome:
        """Another round later, in place: this partition keeps its order, and what is parked behind waits."""
        one = self.subscription
        now = time.monotonic()
        rounds, since = self._rounds.get(ident, (0, now))
        rounds += 1
        if failure.kind is Kind.TRANSIENT:
            given_up = now - since >= one.policy.transient_patience
        else:
            given_up = rounds >= one.policy.retry_rounds
        if given_up:
            return await self._to_dlq(message, ident, failure)
        self._rounds[ident] = (rounds, since)
        backoff = min(one.policy.retry_delay * 2 ** (rounds - 1), one.policy.retry_backoff_max)
        await one.pause(min(one.jittered(backoff), self._longest_pause))
        return Outcome.NACKED

    async def _until_due(self, record: ConsumerRecord, headers: Mapping[str, str]) -> bool:
        """Waits until a failed record's copy is old enough. False: not yet, read it again."""
        one = self.subscription
        if headers.get(REASON) != Outcome.RETRIED.value:
            return True
        age = one.clock.now().timestamp() - record.timestamp / 1000
        wait = min(max(0.0, one.policy.retry_delay - age), one.policy.retry_delay)
        if not await one.pause(min(wait, self._longest_pause)):
            return False
        return wait <= self._longest_pause

    async def _to_retry(
        self, message: StreamMessage[Any], ident: str, outcome: Outcome, failure: Failure | None
    ) -> Outcome:
        one, record = self.subscription, message.raw_message
        try:
            # Before the copy can be seen: the retry consumer may be faster than this line's successor.
            if record.key is not None:
                await one.parking.add(one.group, record.key, ident)
            await self._copy(message, one.retry_topic, ident, outcome.value, failure)
        except Exception as error:  # noqa: BLE001 - bus or parking is down: the record stays uncommitted
            return self._not_moved(record, error)
        one.observer.finished(record, outcome, outcome.value, "" if failure is None else failure.error)
        return outcome

    async def _to_dlq(self, message: StreamMessage[Any], ident: str, failure: Failure) -> Outcome:
        one, record = self.subscription, message.raw_message
        if (refusal := one.limit.refusal()) is not None:
            one.halt(record, f"{refusal}, last error {failure.error}")
            return Outcome.NACKED
        reason = "permanent" if failure.kind is Kind.PERMANENT else "exhausted"
        try:
            await self._copy(message, one.dlq_topic, ident, reason, failure)
        except Exception as error:  # noqa: BLE001 - as above
            return self._not_moved(record, error)
        if self.retrying and not await self._unpark(record, ident):
            return Outcome.NACKED
        one.limit.dead_lettered()
        one.observer.finished(record, Outcome.DEAD_LETTERED, reason, failure.error)
        return Outcome.DEAD_LETTERED

    async def _unpark(self, record: ConsumerRecord, ident: str) -> bool:
        one = self.subscription
        try:
            if record.key is not None:
                await one.parking.discard(one.group, record.key, ident)
        except Exception as error:  # noqa: BLE001 - as above: the handler runs again, which it expects
            self._not_moved(record, error)
            return False
        self._rounds.pop(ident, None)
        return True

    async def _copy(
        self, message: StreamMessage[Any], topic: str, ident: str, reason: str, failure: Failure | None
    ) -> None:
        record = message.raw_message
        origin = {
            ORIGIN_TOPIC: self.subscription.topic,
            ORIGIN_ID: ident,
            REASON: reason,
            ERROR: "" if failure is None else failure.error,
        }
        headers = {**message.headers, **origin}
        await self.subscription.publish(topic=topic, key=record.key, value=record.value, headers=headers)

    def _not_moved(self, record: ConsumerRecord, error: Exception) -> Outcome:
        self.subscription.observer.finished(record, Outcome.NACKED, "not-moved", type(error).__name__)
        return Outcome.NACKED


class DeliveryMiddleware:
    """Applies each subscription's policy. Registered last, which makes it the innermost: telemetry around it
    sees AckMessage or NackMessage, never the handler's error, whose text may quote a payload.
    """

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        """By consumer group id: each consumer has its own."""

    def __call__(self, msg: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
        return _Delivery(msg, context=context, channels=self.channels)


class _Delivery(BaseMiddleware[Any, Any]):
    def __init__(self, msg: Any, /, *, context: ContextRepo, channels: Mapping[str, Channel]) -> None:
        super().__init__(msg, context=context)
        self._channels = channels

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
        channel = self._channels.get(getattr(self.context.get_local("handler_"), "group_id", None) or "")
        if channel is None:
            return await call_next(msg)
        if await channel.deliver(call_next, msg) is Outcome.NACKED:
            raise NackMessage
        raise AckMessage


async def _attempt(
    call_next: Callable[[Any], Awaitable[Any]], message: StreamMessage[Any]
) -> Outcome | Failure:
    """One call of the handler. A real cancellation (shutdown) goes on; a leaked one is the handler's error,
    or FastStream's loop would end without a word.
    """
    try:
        returned = await call_next(message)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return Failure(Kind.UNKNOWN, "CancelledError")
    except Exception as error:  # noqa: BLE001 - what a handler raises is judged here and nowhere else
        return Failure(_kind(error), _name(error))
    return returned if isinstance(returned, Outcome) else Outcome.OK


def _kind(error: Exception) -> Kind:
    kinds = {_single(leaf) for leaf in _leaves(error)}
    if Kind.UNKNOWN in kinds:
        return Kind.UNKNOWN
    return Kind.TRANSIENT if Kind.TRANSIENT in kinds else Kind.PERMANENT


def _single(error: BaseException) -> Kind:
    if isinstance(error, Misconfigured):  # rotated keys, a right that is missing: no fault of the record
        return Kind.TRANSIENT
    if isinstance(error, Permanent | ValidationError):
        return Kind.PERMANENT
    return Kind.TRANSIENT if isinstance(error, Transient) else Kind.UNKNOWN


def _name(error: Exception) -> str:
    leaf = next(_leaves(error), error)
    reason = leaf.reason_code if isinstance(leaf, IsocenterError) else ""
    return f"{type(leaf).__name__}/{reason}" if reason else type(leaf).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a task group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
