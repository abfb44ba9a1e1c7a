"""A producer that gives up in time and mends itself.

aiokafka's idempotent producer tries for ever: bounded here, so that whoever waits for a publication hears
that nobody knows. The record may still arrive; to publish it again under the same id is what all do.

It also counts a record that the broker refused, or that expired without a leader, in the partition's
sequence. The broker did not, so from then on it refuses all that this producer sends there. A producer that
has seen such an error is replaced by a new one, whose sequences begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from faststream.kafka.publisher.producer import AioKafkaFastProducerImpl

from isocenter.common.bus.kafka import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)
from isocenter.common.errors import BusUnavailable

PUBLISH_SECONDS = 15.0
STOP_SECONDS = 3.0
_BEFORE_NUMBERING = (KafkaConnectionError, KafkaTimeoutError, ProducerClosed, UnknownTopicOrPartitionError)


class SteadyProducer(AioKafkaFastProducerImpl):
    """FastStream's producer over aiokafka's.

    Attributes:
        make: makes one that is not started.
    """

    def __init__(self, make: Callable[[], Any], *, parser: Any, decoder: Any) -> None:
        super().__init__(parser=parser, decoder=decoder)
        self.make = make
        self._renewing: asyncio.Task[None] | None = None

    async def open(self, serializer: Any, codec: Any) -> None:
        """Raises KafkaError: nobody answers."""
        producer = self.make()
        try:
            await self.connect(producer, serializer, codec)
        except BaseException:
            await stop_producer(producer)
            raise

    async def publish(self, cmd: Any) -> Any:
        """Returns when every replica in sync has the record.

        Raises:
            BusUnavailable: nobody knows, after `PUBLISH_SECONDS`.
            KafkaError: the broker says no.
        """
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                return await super().publish(cmd)
        except TimeoutError:
            pass
        except KafkaError as error:
            if not isinstance(error, _BEFORE_NUMBERING):
                self._renew()
            raise
        raise BusUnavailable("the broker did not confirm the record in time", topic=cmd.destination)

    async def disconnect(self) -> None:
        """What is still unconfirmed after `STOP_SECONDS` is let go: nobody was told that it is durable."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self:
            await stop_producer(self._producer.producer)
        await super().disconnect()

    def _renew(self) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        old = self._producer.producer
        with contextlib.suppress(KafkaError, OSError):  # then the next error tries again
            await self.open(self.serializer, self.codec)
            await stop_producer(old)


async def stop_producer(producer: Any) -> None:
    """Stops it although it has records that it cannot get rid of."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
            return
    sending = producer._sender.sender_task  # noqa: SLF001 - aiokafka knows no stop without a flush
    if sending is not None:
        sending.cancel()
        await asyncio.wait([sending], timeout=STOP_SECONDS)
    # Whoever still waits for a confirmation hears that there will be none, the flush of the stop among them.
    producer._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001 - as above
    await producer.client.close()
