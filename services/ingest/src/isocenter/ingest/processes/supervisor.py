"""`ISOCENTER_INGEST_PROCESSES=N`: one supervisor, and N processes that take connections from the same ports.

An event loop uses one core. The kernel gives each connection to one of those who listen (SO_REUSEPORT); an
association stays where it began. The processes share nothing but the engines, as replicas on several machines
would; hence only with engines that replicas can share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import httpx

from isocenter.common.clock import SystemClock
from isocenter.common.engines import Engines
from isocenter.common.errors import Misconfigured
from isocenter.common.runtime import EXIT_FAILED, EXIT_MISCONFIGURED, process_log
from isocenter.common.serving import serve_http, stop_on_signals
from isocenter.common.settings import KafkaSettings, PlatformSettings, S3Settings
from isocenter.common.telemetry import LogEvent
from isocenter.ingest.listening import plain_address, tls_files
from isocenter.ingest.processes.health import GroupHealth
from isocenter.ingest.processes.reservation import Reservation
from isocenter.ingest.processes.worker import Worker
from isocenter.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from isocenter.common.telemetry.log import Log

MARGIN_SECONDS: Final = 10.0
"""Beyond both drain periods of a process, until it is killed."""
LOOPBACK: Final = "127.0.0.1"


def supervise() -> int:
    """Runs until SIGTERM or SIGINT, or until a process says that it is misconfigured; the exit status."""
    try:
        platform, settings = PlatformSettings.load(), IngestSettings.load()
        require_shared_engines(settings, Engines.load(platform))
    except Misconfigured as error:
        print(f"isocenter ingest: {error}", file=sys.stderr)  # noqa: T201 - no log without settings
        return EXIT_MISCONFIGURED
    log = process_log(platform, SystemClock(), "ingest")
    try:
        return asyncio.run(_supervise(settings, log, reloads=platform.peers_file is not None))
    except Misconfigured as error:
        log.error(LogEvent.SERVICE_FAILED, error=error, exit_code=EXIT_MISCONFIGURED)  # noqa: TRY400 - not stdlib's
        return EXIT_MISCONFIGURED
    except (OSError, asyncio.CancelledError) as error:
        log.error(LogEvent.SERVICE_FAILED, error=error, exit_code=EXIT_FAILED)  # noqa: TRY400 - not stdlib's
        return EXIT_FAILED


def require_shared_engines(settings: IngestSettings, engines: Engines) -> None:
    """Raises Misconfigured: an engine is embedded, which belongs to one process."""
    if settings.processes == 1:
        return
    missing = [
        variable
        for variable, value in (
            (KafkaSettings.variable("bootstrap"), engines.kafka.bootstrap),
            (S3Settings.variable("endpoint"), engines.s3.endpoint),
        )
        if value is None
    ]
    if missing:
        raise Misconfigured(
            f"{settings.variable('processes')}={settings.processes} needs {' and '.join(missing)}: embedded "
            "engines belong to one process"
        )


async def _supervise(settings: IngestSettings, log: Log, *, reloads: bool) -> int:
    """Args: reloads: SIGHUP is for the processes, which read certificates and peers again."""
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        workers = _workers(settings, stack.enter_context(Reservation()), log)
        if reloads:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, _hang_up, workers)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
        health = GroupHealth(workers, client)
        port = await stack.enter_async_context(
            serve_http(health.asgi, settings.health_host, settings.health_port, drain_seconds=1)
        )
        log.info(LogEvent.LISTENING, port=port, host=settings.health_host, protocol="health")
        running = [asyncio.create_task(worker.run(client), name=worker.name) for worker in workers]
        stopping = asyncio.create_task(stop.wait())
        try:
            # None of them ends by itself, but for a fault that a new process would have too.
            await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            log.info(LogEvent.SERVICE_STOPPING)
        finally:
            health.drain()
            stopping.cancel()
            await asyncio.gather(*(worker.stop() for worker in workers))
            await asyncio.gather(*running, return_exceptions=True)
        log.info(LogEvent.SERVICE_STOPPED)
        if any(worker.misconfigured for worker in workers):
            return EXIT_MISCONFIGURED
        return 0 if stop.is_set() else EXIT_FAILED


def _hang_up(workers: list[Worker]) -> None:
    for worker in workers:
        worker.hang_up()


def _workers(settings: IngestSettings, ports: Reservation, log: Log) -> list[Worker]:
    """Raises Misconfigured: a port is taken, or the settings leave none."""
    shared = {"http_port": ports.take(settings.host, settings.http_port)}
    if (plain := plain_address(settings)) is not None:
        shared["dicom_port"] = ports.take(*plain)
    if tls_files(settings) is not None:
        shared["dicom_tls_port"] = ports.take(settings.dicom_tls_host, settings.dicom_tls_port)
    found = []
    for number in range(1, settings.processes + 1):
        health_port = ports.take(LOOPBACK, 0)
        mine = shared | {
            "processes": 1,
            "shared_ports": True,
            "health_host": LOOPBACK,
            "health_port": health_port,
        }
        environment = dict(os.environ) | {settings.variable(name): str(each) for name, each in mine.items()}
        if number > 1:
            # The file of spans has one writer; sites that want those of all processes have a trace store.
            environment[PlatformSettings.variable("spans_kept")] = "0"
        if given := environment.get("OTEL_RESOURCE_ATTRIBUTES"):
            environment["OTEL_RESOURCE_ATTRIBUTES"] = _told_apart(given, number)
        found.append(
            Worker(
                number,
                health_port=health_port,
                environment=environment,
                stop_seconds=2 * settings.drain_seconds + MARGIN_SECONDS,
                log=log,
            )
        )
    return found


def _told_apart(attributes: str, number: int) -> str:
    """A name given to the instance is that of the group."""
    parts = attributes.split(",")
    return ",".join(
        f"{each}/{number}" if each.strip().startswith("service.instance.id=") else each for each in parts
    )
