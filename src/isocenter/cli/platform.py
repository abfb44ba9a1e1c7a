"""The embedded platform: ingest, indexer, gateway and stager in one process, one event loop, one HTTP port.

Each service is the one that runs in a container; only settings differ. Nothing here knows what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isocenter.cli.state import DataDirLock, RunningPlatform
from isocenter.common.errors import Misconfigured
from isocenter.common.health import PATHS, HealthApp, Receive, Send, Watched
from isocenter.common.runtime import Platform, open_platform, spare_collector, start_service, stop_service
from isocenter.common.service import ASGIApp, Scope, Service
from isocenter.common.serving import serve_http, stop_on_signals
from isocenter.common.settings import PlatformSettings, ServiceSettings, Settings
from isocenter.common.telemetry import LogEvent
from isocenter.gateway import app as gateway
from isocenter.gateway.settings import GatewaySettings
from isocenter.indexer import app as indexer
from isocenter.indexer.settings import IndexerSettings
from isocenter.ingest import app as ingest
from isocenter.ingest.settings import IngestSettings

DICOM_WEB = "/dicom-web"
COMMITMENTS = f"{DICOM_WEB}/commitment-requests"
EMBEDDED_SETTLING = {"quiet_seconds": 10.0, "quiet_after_close_seconds": 1.0, "settle_poll_seconds": 0.2}
"""Shorter than the service's own defaults: whoever tries this wants to see a study settle. The environment
wins.
"""


EMBEDDED_STAGING = {"prefetch": "none", "scrub_seconds": 0.0, "quota_bytes": 20 << 30}
"""A laptop stages what is asked for, and no more. The environment wins."""


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """What `isocenter up` decides; everything else comes from the environment, as in a container."""

    data_dir: Path
    host: str
    dicom_port: int
    http_port: int
    ae_title: str


@dataclass(frozen=True, slots=True)
class Settling:
    """When a study is judged to have settled, for the banner."""

    quiet_seconds: float
    after_transfer_seconds: float


@dataclass(frozen=True, slots=True)
class Started:
    """A platform that takes work, and the event that ends it."""

    running: RunningPlatform
    settling: Settling
    stop: asyncio.Event


@contextlib.asynccontextmanager
async def running_platform(settings: EmbeddedSettings, lock: DataDirLock) -> AsyncIterator[Started]:
    """Starts everything, announces it in the state file, drains it on leaving.

    Signals set `stop`; a second signal cancels the drain. HTTP requests in hand finish first, then ingest,
    gateway and indexer drain in this order, so that what was acknowledged is also indexed when there is time.

    Raises:
        Misconfigured: a port, a setting or the data directory cannot be used.
    """
    platform_settings = PlatformSettings.load(data_dir=settings.data_dir)
    stop = asyncio.Event()
    with stop_on_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            platform = await stack.enter_async_context(open_platform(platform_settings))
            stack.callback(lock.withdraw)
            running, settling, health = await _start(platform, settings, stack)
            lock.announce(running)
            platform.telemetry("platform").log.info(LogEvent.SERVICE_STARTED)
            try:
                yield Started(running, settling, stop)
            finally:
                health.drain()
                platform.telemetry("platform").log.info(LogEvent.SERVICE_STOPPING)


async def _start(
    platform: Platform, settings: EmbeddedSettings, stack: contextlib.AsyncExitStack
) -> tuple[RunningPlatform, Settling, HealthApp]:
    indexer_settings = IndexerSettings.load(**_unless_named(EMBEDDED_SETTLING, IndexerSettings))
    ingest_settings = IngestSettings.load(
        host=settings.host,
        dicom_host=settings.host,
        dicom_port=settings.dicom_port,
        ae_title=settings.ae_title,
    )
    gateway_settings = GatewaySettings.load(host=settings.host, cors_localhost=True)
    judge = indexer.build(indexer_settings, platform.ports("indexer"))
    reader = gateway.build(gateway_settings, platform.ports("gateway"))
    writer = ingest.build(ingest_settings, platform.ports("ingest"))
    services: list[tuple[Service, ServiceSettings]] = [
        *_stager(platform),
        (judge, indexer_settings),
        (reader, gateway_settings),
        (writer, ingest_settings),
    ]
    for service, its in services:
        await _start_service(service)
        log = platform.telemetry(service.name).log
        stack.push_async_callback(stop_service, service, its.drain_seconds, log)
    spare_collector()
    health = HealthApp([Watched(service, platform.telemetry(service.name)) for service, _ in services])
    stow = gateway.guarded(writer.asgi, gateway_settings) if writer.asgi is not None else None
    app = compose(health, stow, reader.asgi)
    http_port = await stack.enter_async_context(
        serve_http(app, settings.host, settings.http_port, drain_seconds=ingest_settings.drain_seconds)
    )
    running = RunningPlatform(
        pid=os.getpid(),
        data_dir=str(settings.data_dir.absolute()),
        host=settings.host,
        dicom_port=writer.dicom_port,
        http_port=http_port,
        ae_title=settings.ae_title,
        started_at=platform.clock.now().isoformat(),
    )
    settling = Settling(indexer_settings.quiet_seconds, indexer_settings.quiet_after_close_seconds)
    return running, settling, health


def _stager(platform: Platform) -> list[tuple[Service, ServiceSettings]]:
    """Where it is installed: it and its codecs are an extra, `staging`."""
    if find_spec("isocenter.gpu_stager") is None:
        return []
    from isocenter.gpu_stager import app  # noqa: PLC0415 - see above
    from isocenter.gpu_stager.settings import GpuStagerSettings  # noqa: PLC0415

    settings = GpuStagerSettings.load(**_unless_named(EMBEDDED_STAGING, GpuStagerSettings))
    return [(app.build(settings, platform.ports(app.NAME)), settings)]


async def _start_service(service: Service) -> None:
    try:
        await start_service(service)
    except OSError as error:
        raise Misconfigured(f"{service.name} cannot listen: {error.strerror or error}") from None


def _unless_named(defaults: Mapping[str, Any], settings: type[Settings]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if settings.variable(name) not in os.environ}


def compose(health: HealthApp, writer: ASGIApp | None, reader: ASGIApp | None) -> ASGIApp:
    """One origin. Below /dicom-web POST goes to ingest, and whatever concerns storage commitment; health
    paths go to health, all else to the gateway.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http":
            raise RuntimeError("this platform answers HTTP only")
        if path in PATHS:
            await health(scope, receive, send)
        elif path == "/":
            await _index_page(send)
        elif writer is not None and (
            path.startswith(COMMITMENTS) or (scope["method"] == "POST" and path.startswith(DICOM_WEB))
        ):
            await writer(scope, receive, send)
        elif reader is not None:
            await reader(scope, receive, send)

    return route


async def _index_page(send: Send) -> None:
    """What is here, for a person who opens the address in a browser."""
    body = json.dumps(
        {
            "name": "isocenter",
            "version": version("isocenter"),
            "studies": f"{DICOM_WEB}/studies",
            "ready": "/readyz",
            "metrics": "/metrics",
        }
    ).encode()
    start: MutableMapping[str, Any] = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
