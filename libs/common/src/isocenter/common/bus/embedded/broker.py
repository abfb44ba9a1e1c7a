"""A FastStream KafkaBroker that talks to the log instead of a cluster.

Routers, middlewares, acknowledgement and shutdown stay FastStream's: only the connect step is replaced.
What it leans on: `KafkaBroker._connect`, and `producer.connect`, `builder` and `admin.admin_client` of
`config.broker_config`.
The conformance suite fails when an upgrade moves one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from faststream._internal.parser import DefaultCodec
from faststream.kafka import KafkaBroker

from isocenter.common.bus.embedded.consumer import EmbeddedConsumer
from isocenter.common.bus.embedded.groups import Coordinator
from isocenter.common.bus.embedded.log import EmbeddedLog
from isocenter.common.bus.embedded.producer import EmbeddedProducer
from isocenter.common.errors import BusUnavailable

TOPIC_ALREADY_EXISTS = 36
"""Kafka's error code."""


class EmbeddedAdmin:
    """Ping and topic creation."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def describe_cluster(self) -> dict[str, Any]:
        """Answers while the log can be read and its last transaction succeeded.

        Raises:
            BusUnavailable: the log is closed, or its last write failed.
        """
        if self._log.closed or self._log.writer.fault is not None:
            raise BusUnavailable("the event log cannot be written", cause=self._log.writer.fault or "closed")
        await self._log.query(lambda connection: connection.execute("SELECT 1").fetchone())
        return {"brokers": [{"node_id": 0}], "topics": sorted(self._log.partitions)}

    async def create_topics(self, new_topics: list[Any], **_options: Any) -> Any:
        errors = []
        for topic in new_topics:
            created = await self._log.create_topic(topic.name, max(1, topic.num_partitions))
            code = 0 if created else TOPIC_ALREADY_EXISTS
            errors.append({"topic": topic.name, "error_code": code, "error_message": None})
        return SimpleNamespace(to_object=lambda: {"topic_errors": errors})


class EmbeddedKafkaBroker(KafkaBroker):
    """FastStream's broker on the embedded log."""

    def __init__(self, log: EmbeddedLog, coordinator: Coordinator, **options: Any) -> None:
        super().__init__("embedded", **options)
        self._log = log
        self._coordinator = coordinator

    async def _connect(self) -> Callable[..., Any]:
        config = self.config.broker_config
        await config.producer.connect(
            cast("Any", EmbeddedProducer(self._log)),
            serializer=config.fd_config._serializer,  # noqa: SLF001 - what FastStream's own connect passes
            codec=config.broker_codec or DefaultCodec(),
        )
        config.admin.admin_client = cast("Any", EmbeddedAdmin(self._log))
        config.builder = cast("Any", partial(EmbeddedConsumer, self._log, self._coordinator))
        return config.builder
