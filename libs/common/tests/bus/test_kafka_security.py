"""TLS and sign-in, on a broker that insists on both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.settings import KafkaSettings
from isocenter.common.telemetry import noop

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from testbed.kafka_secure import SecureKafka  # noqa: PLC0415 - a service's suite alone needs no test bed
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    server = SecureKafka(tmp_path_factory.mktemp("secure"))
    try:
        server.start()
    except ServerUnavailable as error:
        pytest.skip(f"NOT RUN: {error}")
    yield server
    server.kill()


@pytest.fixture
def signed_in(secure: Any) -> Callable[..., KafkaSettings]:
    from testbed.kafka_secure import PASSWORD, USER  # noqa: PLC0415

    def settings(**changes: Any) -> KafkaSettings:
        given = {
            "bootstrap": secure.secure_bootstrap,
            "security_protocol": "SASL_SSL",
            "username": USER,
            "password": SecretStr(PASSWORD),
            "ca_file": secure.ca_file,
        }
        return KafkaSettings(**(given | changes))

    return settings


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
async def test_an_event_goes_round_signed_in_and_encrypted(
    secure: Any,
    kafka_of: Callable[[str], Any],
    signed_in: Callable[..., KafkaSettings],
    make: Any,
    until: Until,
    mechanism: str,
) -> None:
    """The producer, the consumers, the look at the topics and the inspector: each has connections."""
    topic, seen = await kafka_of(secure.bootstrap).topic(1, GROUPS), list[str]()
    transport = KafkaTransport(signed_in(sasl_mechanism=mechanism))

    async def handle(event: CloudEvent) -> None:
        seen.append(event.id)

    bus = transport.bus("svc", noop("svc"))
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: len(seen) == 1)
    inspector = transport.inspector()
    read = [record async for record in inspector.read(topic)]

    assert 1 == len(read)
    await inspector.close()
    await bus.stop()


@pytest.mark.parametrize(
    "change",
    [{"password": SecretStr("wrong")}, {"ca_file": None}, {"security_protocol": "SASL_PLAINTEXT"}],
    ids=["password", "certificate", "no-tls"],
)
async def test_who_is_not_let_in_hears_that_the_bus_is_away(
    signed_in: Callable[..., KafkaSettings], change: dict[str, Any]
) -> None:
    bus = KafkaTransport(signed_in(**change)).bus("svc", noop("svc"))

    with pytest.raises(BusUnavailable):
        await bus.start()
    await bus.stop()
