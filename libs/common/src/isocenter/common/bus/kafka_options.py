"""Settings of the cluster as the clients take them: addresses, TLS, sign-in, time-outs."""

from __future__ import annotations

import ssl
from typing import Any

from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from isocenter.common.errors import Misconfigured
from isocenter.common.events.topics import COPY_HEADER_BYTES, MAX_MESSAGE_BYTES
from isocenter.common.settings import KafkaSettings

MAX_REQUEST_BYTES = MAX_MESSAGE_BYTES + COPY_HEADER_BYTES
"""The largest record of any topic: a copy on a retry or dead-letter topic."""
PRODUCER_REQUEST_MS = 10_000
"""After so long a broker that accepts and does not answer is tried again, or its successor is."""
JOIN_MARGIN_MS = 10_000
HEARTBEATS_PER_SESSION = 6
_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


def bootstrap_of(settings: KafkaSettings) -> list[str]:
    """Addresses to begin with.

    Raises:
        Misconfigured: none is set.
    """
    servers = [one.strip() for one in (settings.bootstrap or "").split(",") if one.strip()]
    if not servers:
        raise Misconfigured(f"{KafkaSettings.variable('bootstrap')} is not set")
    return servers


def security_of(settings: KafkaSettings) -> BaseSecurity:
    """How to sign in and what to trust.

    Raises:
        Misconfigured: a user name without password, SASL without a user, or a CA file that cannot be read.
    """
    encrypted = settings.security_protocol.endswith("SSL")
    context = _tls(settings) if encrypted else None
    if not settings.security_protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=context, use_ssl=encrypted)
    if settings.username is None or settings.password is None:
        missing = "username" if settings.username is None else "password"
        raise Misconfigured(f"{settings.security_protocol} needs {KafkaSettings.variable(missing)}")
    return _SASL[settings.sasl_mechanism](
        settings.username, settings.password.get_secret_value(), ssl_context=context, use_ssl=encrypted
    )


def client_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """What every client of aiokafka is made with.

    A join may take as long as a member may be silent, so requests may take longer than that.
    """
    return {
        "bootstrap_servers": bootstrap_of(settings),
        "client_id": client_id,
        "request_timeout_ms": settings.session_timeout_ms + JOIN_MARGIN_MS,
        **parse_security(security_of(settings)),
    }


def producer_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Durable before it is confirmed, once in the log however often it was sent, one order per partition."""
    return client_options(settings, client_id) | {
        "acks": "all",
        "enable_idempotence": True,
        "max_request_size": MAX_REQUEST_BYTES,
        "request_timeout_ms": PRODUCER_REQUEST_MS,
    }


def subscription_options(settings: KafkaSettings) -> dict[str, Any]:
    """Group membership of a subscription."""
    return {
        "session_timeout_ms": settings.session_timeout_ms,
        "heartbeat_interval_ms": settings.session_timeout_ms // HEARTBEATS_PER_SESSION,
    }


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        name = KafkaSettings.variable("ca_file")
        raise Misconfigured(f"{name} cannot be used", cause=type(error).__name__) from None
