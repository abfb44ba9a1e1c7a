"""The Kafka transport without a cluster: its settings, and an honest answer when nobody is there."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.telemetry import noop


@pytest.fixture
def nobody() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


async def test_the_settings_are_the_safe_ones(nobody: str) -> None:
    bus = KafkaTransport(nobody).bus("svc", noop("svc"))
    bus.subscribe("h", "t", {})
    connection: dict[str, Any] = bus.broker._connection_kwargs
    subscribers: list[Any] = list(bus.broker.subscribers)
    source, retry = sorted(subscribers, key=lambda one: str(one.group_id))

    assert (True, "all") == (connection["enable_idempotence"], connection["acks"])
    assert not bus.broker.config.broker_config.allow_auto_create_topics
    assert ("svc.h", "svc.h.retry") == (source.group_id, retry.group_id)
    for subscriber in (source, retry):
        assert "nack_on_error" == subscriber.ack_policy.value
        arguments = subscriber._connection_args
        assert ("earliest", "read_committed", False) == (
            arguments["auto_offset_reset"],
            arguments["isolation_level"],
            arguments["enable_auto_commit"],
        )


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # FastStream drops its producer
async def test_a_cluster_that_is_not_there_is_said_to_be_not_there(nobody: str) -> None:
    bus = KafkaTransport(nobody).bus("svc", noop("svc"))

    with pytest.raises(BusUnavailable):
        await bus.start()
    assert [False] == [check.ok for check in await bus.health()]
    await bus.stop()


async def test_reading_a_clusters_topics_is_refused_clearly(nobody: str) -> None:
    with pytest.raises(Misconfigured):
        KafkaTransport(nobody).inspector()
