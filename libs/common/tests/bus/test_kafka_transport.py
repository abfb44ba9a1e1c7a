"""The Kafka transport without a cluster: its settings, and an honest answer when nobody is there."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.bus.kafka_options import (
    MAX_REQUEST_BYTES,
    client_options,
    producer_options,
    subscription_options,
)
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.events.topics import all_topics
from isocenter.common.settings import KafkaSettings
from isocenter.common.telemetry import noop


@pytest.fixture
def nobody() -> KafkaSettings:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return KafkaSettings(bootstrap=f"127.0.0.1:{taken.getsockname()[1]}")


async def test_the_settings_are_the_safe_ones(nobody: KafkaSettings) -> None:
    bus = KafkaTransport(nobody).bus("svc", noop("svc"))
    bus.subscribe("h", "t", {})
    subscribers: list[Any] = list(bus.broker.subscribers)
    source, retry = sorted(subscribers, key=lambda one: str(one.group_id))

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


def test_a_producer_is_idempotent_and_takes_the_largest_record() -> None:
    options = producer_options(KafkaSettings(bootstrap="b:9092"), "svc")

    assert (True, "all") == (options["enable_idempotence"], options["acks"])
    assert max(topic.max_message_bytes for topic in all_topics().values()) == options["max_request_size"]
    assert MAX_REQUEST_BYTES == options["max_request_size"]


def test_a_session_sets_heartbeats_and_the_patience_of_requests() -> None:
    settings = KafkaSettings(bootstrap="a:9092, b:9092,", session_timeout_ms=6_000)

    assert {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 1_000} == subscription_options(settings)
    assert ["a:9092", "b:9092"] == client_options(settings, "svc")["bootstrap_servers"]
    assert client_options(settings, "svc")["request_timeout_ms"] > settings.session_timeout_ms


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_the_sign_in_reaches_the_client(protocol: Any, mechanism: Any) -> None:
    settings = KafkaSettings(
        bootstrap="b:9092",
        security_protocol=protocol,
        sasl_mechanism=mechanism,
        username="svc",
        password=SecretStr("p"),
    )
    options = client_options(settings, "svc")

    assert (protocol, mechanism) == (options["security_protocol"], options["sasl_mechanism"])
    assert ("svc", "p") == (options["sasl_plain_username"], options["sasl_plain_password"])
    assert isinstance(options["ssl_context"], ssl.SSLContext) is (protocol == "SASL_SSL")


def test_encryption_without_a_sign_in_checks_the_broker() -> None:
    options = client_options(KafkaSettings(bootstrap="b:9092", security_protocol="SSL"), "svc")

    assert "SSL" == options["security_protocol"]
    assert options["ssl_context"].check_hostname
    assert "sasl_mechanism" not in options


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, "ISOCENTER_KAFKA_BOOTSTRAP"),
        ({"bootstrap": "b:1", "security_protocol": "SASL_SSL"}, "ISOCENTER_KAFKA_USERNAME"),
        (
            {"bootstrap": "b:1", "security_protocol": "SASL_SSL", "username": "svc"},
            "ISOCENTER_KAFKA_PASSWORD",
        ),
        (
            {"bootstrap": "b:1", "security_protocol": "SSL", "ca_file": Path("/no/such.pem")},
            "ISOCENTER_KAFKA_CA_FILE",
        ),
    ],
)
def test_what_cannot_be_used_is_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(Misconfigured, match=names):
        client_options(KafkaSettings(**settings), "svc")


async def test_a_cluster_that_is_not_there_is_said_to_be_not_there(nobody: KafkaSettings) -> None:
    bus = KafkaTransport(nobody).bus("svc", noop("svc"))

    with pytest.raises(BusUnavailable):
        await bus.start()
    assert [False] == [check.ok for check in await bus.health()]
    await bus.stop()


async def test_an_inspector_says_so_too(nobody: KafkaSettings) -> None:
    inspector = KafkaTransport(nobody).inspector()

    with pytest.raises(BusUnavailable):
        await inspector.topics()
    await inspector.close()
