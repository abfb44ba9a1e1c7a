"""`KafkaTransport`: buses on a cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from isocenter.common.bus.client import GRACEFUL_SECONDS, WATCH_SECONDS, Bus, build_options
from isocenter.common.bus.delivery import DeliveryMiddleware, DeliveryPolicy, Subscription
from isocenter.common.bus.kafka import AIOKafkaAdminClient
from isocenter.common.bus.kafka_broker import ClusterBroker
from isocenter.common.bus.kafka_inspect import KafkaInspector
from isocenter.common.bus.kafka_options import bootstrap_of, client_options, subscription_options
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.bus.parking import MemoryParking, Parking
from isocenter.common.bus.provision import require, written_by
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.settings import KafkaSettings

if TYPE_CHECKING:
    from isocenter.common.telemetry import Telemetry


class KafkaTransport:
    """A Kafka cluster. Topics are provisioned there, never created from here.

    Waiting sets of parked studies are kept in `parking`; all replicas must share them. The one in memory,
    the default, is for a single process, and forgets them in a restart, after which a study that was waiting
    may be handled out of order once.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        parking: Parking | None = None,
        clock: Clock | None = None,
        policy: DeliveryPolicy | None = None,
        limit: Callable[[], DlqLimit] = DlqLimit,
        graceful_seconds: float = GRACEFUL_SECONDS,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        """Raises Misconfigured: no address."""
        bootstrap_of(settings)
        self._settings = settings
        self._parking = parking or MemoryParking()
        self._clock = clock or SystemClock()
        self._policy = policy or DeliveryPolicy()
        self._limit = limit
        self._graceful_seconds = graceful_seconds
        self._watch_seconds = watch_seconds

    def bus(self, service: str, telemetry: Telemetry) -> Bus:
        """Raises Misconfigured: TLS or the sign-in cannot be used as they are set."""
        delivery = DeliveryMiddleware()
        options = build_options(service, telemetry, delivery, self._graceful_seconds)
        # The host tells replicas apart in the broker's lists of members.
        options["client_id"] = f"{service}-{socket.gethostname()}"
        return Bus(
            service,
            ClusterBroker(self._settings, **options),
            telemetry,
            delivery=delivery,
            parking=self._parking,
            clock=self._clock,
            policy=self._policy,
            limit=self._limit,
            graceful_seconds=self._graceful_seconds,
            subscription_options=subscription_options(self._settings),
            watch_seconds=self._watch_seconds,
            prepare=partial(self.prepare, service),
        )

    def inspector(self) -> KafkaInspector:
        return KafkaInspector(self._settings)

    async def prepare(self, service: str, subscriptions: list[Subscription]) -> None:
        """Looks whether the topics are there that the service reads and writes: a consumer of a missing one
        would wait without a word, and a producer would find out with the first study.

        Raises:
            Misconfigured: some are not; it says which.
            KafkaError, BusUnavailable: the cluster, or the parking, does not answer.
        """
        needed = written_by(service)
        needed |= {name for one in subscriptions for name in (one.topic, one.retry_topic, one.dlq_topic)}
        if subscriptions:
            await self._parking.prepare()
        if not needed:
            return
        admin = AIOKafkaAdminClient(**client_options(self._settings, "isocenter-prepare"))
        try:
            await admin.start()
            existing = set(await admin.list_topics())
        finally:
            await admin.close()
        require(needed, existing)

    async def close(self) -> None:
        await self._parking.close()
