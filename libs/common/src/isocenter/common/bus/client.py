"""The bus of a service: the one way to subscribe and to publish, over Kafka or over the embedded log.

It exists so that nobody chooses delivery settings: one record at a time per consumer, a group of its own for
each subscription, `NACK_ON_ERROR`, from the earliest record, `acks=all` with an idempotent producer, no topic
that comes into being by a typing error, no reply to an address that a publisher names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fast_depends import Provider
from faststream import ContextRepo
from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy
from opentelemetry import context as otel_context
from opentelemetry import trace

from isocenter.common.bus.delivery import (
    Channel,
    DeliveryMiddleware,
    DeliveryPolicy,
    Outcome,
    Subscription,
)
from isocenter.common.bus.health import broker_health, channel_health, dead_letters_of, sweep
from isocenter.common.bus.kafka import KafkaError, MessageSizeTooLargeError
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.bus.observing import ClientLog, TelemetryObserver
from isocenter.common.bus.records import tolerant_parser
from isocenter.common.bus.tracing import EVENT_ID, EVENT_TYPE, TracingMiddleware
from isocenter.common.bus.watchdog import Watchdog
from isocenter.common.errors import (
    BusUnavailable,
    InvalidEvent,
    IsocenterError,
    Misconfigured,
    UnknownEventType,
)
from isocenter.common.events.codec import TRACEPARENT, decode, encode
from isocenter.common.events.models import CloudEvent, Event
from isocenter.common.service import Health
from isocenter.common.telemetry import STUDY_KEY, Gauge, LogEvent, Telemetry, context_of

if TYPE_CHECKING:
    from faststream.message import StreamMessage

    from isocenter.common.bus.parking import Parking
    from isocenter.common.clock import Clock
    from isocenter.common.index.records import OutboxEntry

Handler = Callable[[CloudEvent], Awaitable[None]]
GRACEFUL_SECONDS = 15.0
"""For handlers in hand at a stop; the service's own drain period is longer."""
CLOSE_SECONDS = 5.0
WATCH_SECONDS = 5.0
FETCH_MS = 500
RETRY_FETCH_MS = 2_000
"""A fetch that waits longer for a first record costs less while there is none. Of the main topic it must not:
while it waits, so do the next records of another partition of the same broker.
"""
LOOK_SECONDS = 1.0
"""For a look in hand at a stop."""
SWEEP_SECONDS = 10.0
"""What was not tidied by then is the next look's: consumers that sleep must be found, too."""
RETRY_GROUP_SUFFIX = ".retry"


class _Unknown:
    """A CloudEvent of a type without a model here."""


class _Route:
    """A subscription with its two consumers."""

    def __init__(self, subscription: Subscription, handlers: Mapping[type[Event], Handler]) -> None:
        self.subscription = subscription
        self.handlers = dict(handlers)
        self.consumers: list[tuple[Channel, Any]] = []
        self.watchdogs: list[Watchdog] = []

    async def handle(self, event: CloudEvent | _Unknown) -> Outcome:
        """Calls the handler of the event's type. An event nobody here waits for is acknowledged."""
        if isinstance(event, _Unknown):
            return Outcome.UNKNOWN_TYPE
        span = trace.get_current_span()
        if event.subject:  # the id of another system's event may hold anything, a UID included
            span.set_attribute(STUDY_KEY, event.subject)
            span.set_attribute(EVENT_ID, event.id)
        span.set_attribute(EVENT_TYPE, event.type)
        handler = self.handlers.get(type(event.data))
        if handler is None:
            return Outcome.IGNORED
        await handler(event)
        return Outcome.OK


class Bus:
    """The bus of one service. Subscribe first, then start."""

    def __init__(
        self,
        service: str,
        broker: KafkaBroker,
        telemetry: Telemetry,
        *,
        delivery: DeliveryMiddleware,
        parking: Parking,
        clock: Clock,
        policy: DeliveryPolicy,
        prepare: Callable[[list[Subscription]], Awaitable[None]],
        limit: Callable[[], DlqLimit] = DlqLimit,
        graceful_seconds: float = GRACEFUL_SECONDS,
        subscription_options: Mapping[str, Any] | None = None,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        self.service = service
        self.broker = broker
        self.policy = policy
        self._telemetry = telemetry
        self._delivery = delivery
        self._parking = parking
        self._clock = clock
        self._prepare = prepare
        self._limit = limit
        self._drain_seconds = graceful_seconds + CLOSE_SECONDS
        self._subscription_options = dict(subscription_options or {})
        self._watch_seconds = watch_seconds
        self._routes: list[_Route] = []
        self._stopping = asyncio.Event()
        self._started = False
        self._watching: asyncio.Task[None] | None = None
        self._halting: set[asyncio.Task[None]] = set()

    def subscribe(
        self,
        handler: str,
        topic: str,
        handlers: Mapping[type[Event], Handler],
        *,
        max_poll_interval_ms: int = 300_000,
        policy: DeliveryPolicy | None = None,
    ) -> None:
        """Delivers the events of a topic, one at a time and in order per study, to the handler of their type.

        The group is `<service>.<handler>`; its retry topic gets a consumer of its own. A handler must finish
        within `max_poll_interval_ms`, or its partitions go to another member and the record comes again.
        `policy`: for this subscription, where that of the bus does not fit.

        Raises:
            Misconfigured: the bus has started, or the group exists already.
        """
        group = f"{self.service}.{handler}"
        if self._started:
            raise Misconfigured("subscribe before the bus starts", group=group)
        if group in self._delivery.channels:
            raise Misconfigured("one subscription, one group: this one is taken", group=group)
        subscription = Subscription(
            group=group,
            topic=topic,
            policy=policy or self.policy,
            parking=self._parking,
            limit=self._limit(),
            publish=self._publish_raw,
            observer=TelemetryObserver(self._telemetry, group),
            clock=self._clock,
            stopping=self._stopping,
        )
        route = _Route(subscription, handlers)
        subscription.on_halt = lambda: self._halt(route)
        for name, source, retrying in (
            (group, topic, False),
            (group + RETRY_GROUP_SUFFIX, subscription.retry_topic, True),
        ):
            channel = Channel(subscription, retrying=retrying, max_poll_seconds=max_poll_interval_ms / 1000)
            self._delivery.channels[name] = channel
            subscriber = self.broker.subscriber(
                source,
                group_id=name,
                ack_policy=AckPolicy.NACK_ON_ERROR,
                auto_offset_reset="earliest",
                no_reply=True,
                isolation_level="read_committed",
                max_poll_interval_ms=max_poll_interval_ms,
                title=name,
                fetch_max_wait_ms=RETRY_FETCH_MS if retrying else FETCH_MS,
                **self._subscription_options,
            )
            subscriber(_handler_of(route))
            route.consumers.append((channel, subscriber))
            route.watchdogs.append(Watchdog(channel, subscriber, self._telemetry))
        self._routes.append(route)

    async def publish(self, event: CloudEvent) -> None:
        """Returns when the event is durable.

        Raises:
            BusUnavailable: it is not, as far as anybody here knows. Publish it again under the same id.
            InvalidEvent: an attribute breaks the CloudEvents rules, or the event is larger than a record may
                be.
        """
        headers, body = encode(event)
        await self._send(
            event.data.topic,
            event.subject.encode(),
            {name: value.decode() for name, value in headers},
            body,
            correlation_id=event.correlation_id or event.id,
        )

    async def publish_entry(self, entry: OutboxEntry) -> None:
        """Publishes an event that was encoded when it was decided: same id, same bytes, its own trace.

        Raises:
            BusUnavailable, InvalidEvent: as for `publish`.
        """
        token = None
        if traceparent := entry.headers.get(TRACEPARENT):
            token = otel_context.attach(context_of(traceparent))
        try:
            await self._send(
                entry.topic,
                entry.key.encode(),
                dict(entry.headers),
                entry.body,
                correlation_id=entry.event_id,
            )
        finally:
            if token is not None:
                otel_context.detach(token)

    async def start(self) -> None:
        """Connects, and takes work if there are subscriptions.

        Raises:
            Misconfigured: somebody added a subscriber past `subscribe`, or a topic does not exist.
            BusUnavailable: the broker cannot be reached.
        """
        ours = {id(subscriber) for route in self._routes for _, subscriber in route.consumers}
        if any(id(subscriber) not in ours for subscriber in self.broker.subscribers):
            raise Misconfigured("a subscriber was added past Bus.subscribe: its delivery is not safe")
        self._stopping.clear()
        try:
            await self._prepare([route.subscription for route in self._routes])
            await self.broker.start()
        except IsocenterError:
            raise
        except (KafkaError, OSError) as error:
            raise BusUnavailable("the broker cannot be reached", cause=type(error).__name__) from None
        self._started = True
        self._telemetry.log.info(LogEvent.BUS_CONNECTED, count=len(self._routes))
        if self._routes:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Takes no new records, lets handlers in hand finish within the graceful period, then lets go.

        A handler that is cut off leaves its record uncommitted: it comes again.
        """
        self._stopping.set()
        if self._watching is not None:
            # A look that is cut off may leave a connection behind that was about to open.
            await asyncio.wait([self._watching], timeout=LOOK_SECONDS)
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        try:
            async with asyncio.timeout(self._drain_seconds):
                for watchdog in [one for route in self._routes for one in route.watchdogs]:
                    await watchdog.finish()
                await self.broker.stop()
        except TimeoutError:
            self._telemetry.log.warning(LogEvent.DRAIN_TIMEOUT, seconds=self._drain_seconds)
        if self._halting:
            await asyncio.wait(self._halting, timeout=CLOSE_SECONDS)
        self._started = False

    async def health(self) -> list[Health]:
        """The broker answers, every consume loop lives, has work assigned and gets on with it."""
        checks = [await broker_health(self.broker, started=self._started)]
        for route in self._routes:
            for (channel, subscriber), watchdog in zip(route.consumers, route.watchdogs, strict=True):
                checks.append(await channel_health(channel, subscriber, watchdog.stuck))
        return checks

    def alive(self) -> bool:
        """False when a consumer stays stuck however often it is started anew: then the process must be."""
        return not any(watchdog.given_up for route in self._routes for watchdog in route.watchdogs)

    async def _send(
        self, topic: str, key: bytes, headers: dict[str, str], body: bytes, *, correlation_id: str
    ) -> None:
        try:
            await self.broker.publish(
                body, topic, key=key, headers=headers, correlation_id=correlation_id, no_confirm=False
            )
        except BusUnavailable as error:
            self._telemetry.log.error(LogEvent.BUS_UNAVAILABLE, topic=topic, error=error)  # noqa: TRY400 - our own log
            raise
        except MessageSizeTooLargeError:
            # Said to be Transient it would be tried for ever, with everything that waits behind it.
            raise InvalidEvent("the event is larger than a record may be", topic=topic) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the event is not known to be durable
            cause = type(error).__name__
        else:
            return
        self._telemetry.log.error(LogEvent.BUS_UNAVAILABLE, topic=topic, error=cause)
        raise BusUnavailable("the event is not known to be durable", topic=topic, cause=cause)

    async def _publish_raw(
        self, *, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]
    ) -> None:
        await self.broker.publish(value, topic, key=key, headers=headers, no_confirm=False)

    def _halt(self, route: _Route) -> None:
        """Stops both consumers from outside: a consumer that stops itself would wait for its own handler."""
        for _, subscriber in route.consumers:
            task = asyncio.create_task(_stop_quietly(subscriber))
            self._halting.add(task)
            task.add_done_callback(self._halting.discard)

    async def _watch(self) -> None:
        """Keeps the gauges, frees studies that are parked behind nothing, and wakes consumers that sleep."""
        while not self._stopping.is_set():
            answers = (await broker_health(self.broker, started=True)).ok
            looks = (self._look(route, broker_answers=answers) for route in self._routes)
            for error in await asyncio.gather(*looks, return_exceptions=True):
                if isinstance(error, Exception):  # the next look must come whatever happened in this one
                    self._telemetry.log.error(LogEvent.TASK_FAILED, error=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._watch_seconds):
                    await self._stopping.wait()

    async def _look(self, route: _Route, *, broker_answers: bool) -> None:
        metrics, one = self._telemetry.metrics, route.subscription
        for (channel, _), watchdog in zip(route.consumers, route.watchdogs, strict=True):
            lag = await watchdog.look(broker_answers=broker_answers)
            if lag is not None:
                topic = one.retry_topic if channel.retrying else one.topic
                metrics.set(Gauge.CONSUMER_LAG, lag, topic=topic, group=one.group)
        studies = 0
        with contextlib.suppress(BusUnavailable):
            studies = await self._parking.studies(one.group)
            metrics.set(Gauge.PARKED, studies, topic=one.topic, group=one.group)
        if one.halt_reason is not None or any(watchdog.stuck for watchdog in route.watchdogs):
            return  # a consumer that is being closed must not be asked: it would open a connection again
        kept = await dead_letters_of(route.consumers[0][1].consumer, one.dlq_topic)
        if kept is not None:
            metrics.set(Gauge.DEAD_LETTERS_KEPT, kept, topic=one.topic, group=one.group)
        if studies:
            # A consumer that was closed meanwhile may never say where its group stands.
            with contextlib.suppress(KafkaError, BusUnavailable, TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await sweep(route.consumers)


def build_options(
    service: str, telemetry: Telemetry, delivery: DeliveryMiddleware, graceful_seconds: float
) -> dict[str, Any]:
    """Options of every broker, whatever it talks to."""
    return {
        "client_id": service,
        "enable_idempotence": True,
        "acks": "all",
        "allow_auto_create_topics": False,
        "graceful_timeout": graceful_seconds,
        "ack_policy": AckPolicy.NACK_ON_ERROR,
        "parser": tolerant_parser,
        "decoder": _decode,
        # Last is innermost: see isocenter.common.bus.delivery.DeliveryMiddleware.
        "middlewares": [TracingMiddleware(telemetry), delivery],
        # FastStream's defaults are global objects; several services share a process.
        "provider": Provider(),
        "context": ContextRepo(),
        # Handlers take one event that the codec has validated: nothing to inject, nothing to validate twice.
        "apply_types": False,
        "logger": ClientLog(telemetry),
        "log_level": logging.DEBUG,
    }


async def _decode(message: StreamMessage[Any]) -> CloudEvent | _Unknown:
    try:
        return decode(message.raw_message.headers, message.raw_message.value)
    except UnknownEventType:
        return _Unknown()


def _handler_of(route: _Route) -> Callable[[Any], Awaitable[Outcome]]:
    async def handle(event: Any) -> Outcome:
        return await route.handle(event)

    return handle


async def _stop_quietly(subscriber: Any) -> None:
    with contextlib.suppress(Exception):
        await subscriber.stop()
