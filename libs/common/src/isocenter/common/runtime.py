"""Opens what is outside a service, hands it in as `Ports`, and runs services as processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import stat
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.engines import ENGINE_SETTINGS, SPANS_FILE, Engines
from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.common.health import HealthApp, Watched
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.adopted import with_archives
from isocenter.common.objects.archives import Archives
from isocenter.common.objects.sealed import Sealed
from isocenter.common.service import Ports, Service
from isocenter.common.serving import loop_factory, serve_http, stop_on_signals
from isocenter.common.settings import PlatformSettings, ServiceSettings, unknown_variables
from isocenter.common.telemetry import Counter, Histogram, LogEvent, SpanStore, Telemetry, setup
from isocenter.common.telemetry.log import LibraryHandler, Log, LogLevel
from isocenter.common.telemetry.observed import Reporting, observed
from isocenter.common.telemetry.process import ProcessMetrics

if TYPE_CHECKING:
    from isocenter.common.bus.factory import Transport
    from isocenter.common.index.ports import Index
    from isocenter.common.objects.ports import ObjectStore
    from isocenter.common.objects.sealing import Sealing

EXIT_MISCONFIGURED = 78
"""EX_CONFIG of sysexits.h: restarting will not help."""
EXIT_FAILED = 1
DEPTH = 12
"""Calls of a stack that the log tells."""

S = TypeVar("S", bound=ServiceSettings)


@dataclass
class Platform:
    """What one process holds open. `ports` may be asked for several services."""

    settings: PlatformSettings
    keys: SiteKeys
    sealing: Sealing
    store: ObjectStore
    index: Index
    transport: Transport
    spans: SpanStore | None
    """None: a trace store has them."""
    clock: Clock
    disks: tuple[Path, ...] = ()
    """See `Ports`."""
    _telemetry: dict[str, Telemetry] = field(default_factory=dict)
    _process: ProcessMetrics | None = None

    def telemetry(self, service: str) -> Telemetry:
        if service not in self._telemetry:
            telemetry = setup(service, self.settings, self.spans, clock=self.clock)
            if self._process is None:  # one process for all services: the first of them tells
                self._process = ProcessMetrics(telemetry.metrics, self.settings.data_dir, self.spans)
            self._telemetry[service] = telemetry
        return self._telemetry[service]

    def ports(self, service: str) -> Ports:
        telemetry = self.telemetry(service)
        return Ports(
            bus=self.transport.bus(service, telemetry),
            store=self._observed_store(telemetry),
            sealing=self.sealing,
            keys=self.keys,
            telemetry=telemetry,
            clock=self.clock,
            index=observed(self.index, telemetry.metrics, Histogram.INDEX, Counter.INDEX_ERRORS),
            peers_file=self.settings.peers_file,
            disks=self.disks,
            data_dir=self.settings.data_dir,
            bus_embedded=isinstance(self.transport, EmbeddedTransport),
        )

    def _observed_store(self, telemetry: Telemetry) -> ObjectStore:
        """One that sends requests counts these itself; of another the calls are counted, per service."""
        if isinstance(self.store, Reporting):
            self.store.report_to(telemetry.metrics)
            return self.store
        return observed(self.store, telemetry.metrics, Histogram.STORE, Counter.STORE_ERRORS)

    async def close_telemetry(self) -> None:
        """Exports what is queued; an unreachable collector cannot hold the stop up for long."""
        if self._process is not None:
            await self._process.close()
        await asyncio.gather(*(asyncio.to_thread(each.shutdown) for each in self._telemetry.values()))


@contextlib.asynccontextmanager
async def open_platform(
    settings: PlatformSettings,
    *,
    engines: Engines | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Platform]:
    """Opens keys, objects, index, bus and spans; closes them in reverse, each even if another fails.

    Args:
        settings: of the site.
        engines: None: those that the environment names.
        clock: None: the system's.

    Raises:
        Misconfigured: the data directory, key file, an engine's settings or a store in it cannot be used.
        IndexUnavailable, StoreUnavailable: an engine does not answer.
    """
    clock = clock or SystemClock()
    engines = engines or Engines.load(settings)
    data_dir = settings.data_dir
    if engines.needs_data_dir:
        await asyncio.to_thread(prepare_data_dir, data_dir)
    log = process_log(settings, clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_library_logs(log))
        keys = await engines.open_keys()
        spans = None
        if settings.spans_kept:
            spans = SpanStore(data_dir / SPANS_FILE, clock, max_spans=settings.spans_kept)
            stack.callback(spans.close)
            if spans.restarted:
                log.warning(LogEvent.SPANS_DISCARDED, path=str(spans.path))
        study_keys = await engines.open_study_keys(clock)
        stack.push_async_callback(study_keys.close)
        archives = await asyncio.to_thread(Archives, data_dir)
        store = with_archives(await engines.open_store(), archives, keys)
        stack.push_async_callback(store.close)
        index = await engines.open_index()
        stack.push_async_callback(index.close)
        transport = engines.open_transport()
        sealing = Sealed(study_keys, read_unsealed=settings.read_unsealed)
        platform = Platform(settings, keys, sealing, store, index, transport, spans, clock, engines.disks)
        stack.push_async_callback(platform.close_telemetry)
        stack.push_async_callback(transport.close)
        yield platform


def prepare_data_dir(path: Path) -> None:
    """Creates the data directory with mode 0700, or closes one of ours to others.

    Raises:
        Misconfigured: it cannot be created or written, or it holds other things and is open to others.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            ours = (path / "keys").exists() or not any(path.iterdir())
            if not ours:
                raise Misconfigured(
                    f"data directory {path} holds other files and has mode {mode:04o}: chmod 700, or another"
                )
            path.chmod(0o700)
    except OSError as error:
        raise Misconfigured(f"data directory {path} cannot be used: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise Misconfigured(f"data directory {path} cannot be written")


def run_service(name: str, build: Callable[[S, Ports], Service], settings_cls: type[S]) -> int:
    """`python -m isocenter.<name>`: runs one service until SIGTERM or SIGINT; returns the exit status.

    The first signal drains, a second one stops at once.
    """
    try:
        platform_settings, settings = PlatformSettings.load(), settings_cls.load()
    except Misconfigured as error:
        print(f"isocenter {name}: {error}", file=sys.stderr)  # noqa: T201 - no log without settings
        return EXIT_MISCONFIGURED
    log = process_log(platform_settings, SystemClock(), name)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(name, build, platform_settings, settings))
    except Misconfigured as error:
        log.error(LogEvent.SERVICE_FAILED, error=error, exit_code=EXIT_MISCONFIGURED)  # noqa: TRY400 - not stdlib's
        return EXIT_MISCONFIGURED
    except (IsocenterError, OSError) as error:
        log.error(LogEvent.SERVICE_FAILED, error=error, exit_code=EXIT_FAILED)  # noqa: TRY400 - not stdlib's
        return EXIT_FAILED
    except asyncio.CancelledError:
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - a defect; the text of a library's error may quote anything
        log.error(LogEvent.SERVICE_FAILED, error=error, where=_where(error), exit_code=EXIT_FAILED)  # noqa: TRY400
        return EXIT_FAILED
    return 0


def spare_collector() -> None:
    """What was imported and opened until now stays: the collector of cycles need not look at it each time."""
    gc.collect()
    gc.freeze()


def _where(error: Exception) -> str:
    """The calls that led to it, innermost last, without what they were called with."""
    calls = traceback.extract_tb(error.__traceback__)[-DEPTH:]
    return " > ".join(f"{'/'.join(Path(call.filename).parts[-2:])}:{call.lineno}" for call in calls)


def process_log(settings: PlatformSettings, clock: Clock, service: str = "platform") -> Log:
    return Log(service, style=settings.log_format, level=LogLevel[settings.log_level.upper()], clock=clock)


@contextlib.contextmanager
def _library_logs(log: Log) -> Iterator[None]:
    """Routes the logs of libraries through ours, which drops their values."""
    handler = LibraryHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


async def _run(
    name: str, build: Callable[[S, Ports], Service], platform_settings: PlatformSettings, settings: S
) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            engines = Engines.load(platform_settings)
            platform = await stack.enter_async_context(open_platform(platform_settings, engines=engines))
            log = platform.telemetry(name).log
            described = platform_settings.describe() | engines.describe() | settings.describe()
            log.info(LogEvent.SETTINGS_LOADED, settings=" ".join(f"{k}={v}" for k, v in described.items()))
            unknown = unknown_variables(*ENGINE_SETTINGS, type(settings))
            mistyped = [each for each in unknown if each.upper().startswith(_prefixes(type(settings)))]
            if mistyped:
                log.warning(LogEvent.SETTINGS_LOADED, detail=f"nothing reads {', '.join(mistyped)}")
            ports = platform.ports(name)
            service = build(settings, ports)
            health = HealthApp([Watched(service, platform.telemetry(name), ports.bus.alive)])
            # Health answers before the service starts: a slow start is then "not ready", not dead.
            port = await stack.enter_async_context(
                serve_http(
                    health,
                    settings.health_host,
                    settings.health_port,
                    drain_seconds=1,
                    shared=settings.shared_ports,
                )
            )
            log.info(LogEvent.LISTENING, port=port, host=settings.health_host, protocol="health")
            log.info(LogEvent.SERVICE_STARTING)
            await start_service(service)
            spare_collector()
            stack.push_async_callback(stop_service, service, settings.drain_seconds, log)
            if service.asgi is not None:
                port = await stack.enter_async_context(
                    serve_http(
                        service.asgi,
                        settings.host,
                        settings.http_port,
                        drain_seconds=settings.drain_seconds,
                        shared=settings.shared_ports,
                    )
                )
                log.info(LogEvent.LISTENING, port=port, host=settings.host, protocol="http")
            log.info(LogEvent.SERVICE_STARTED)
            await stop.wait()
            health.drain()
            log.info(LogEvent.SERVICE_STOPPING)


def _prefixes(settings: type[ServiceSettings]) -> tuple[str, ...]:
    """Of the variables that only this service and the engines read; others may be those of other services."""
    return tuple(str(each.model_config.get("env_prefix")) for each in (*ENGINE_SETTINGS, settings))


async def start_service(service: Service) -> None:
    """Starts a service; one that cannot is stopped again, and its first error is the one that counts."""
    try:
        await service.start()
    except BaseException:
        with contextlib.suppress(Exception):
            await service.stop()
        raise


async def stop_service(service: Service, drain_seconds: float, log: Log) -> None:
    """Drains a service, bounded in time: what is cut off was not acknowledged and comes again."""
    try:
        async with asyncio.timeout(drain_seconds):
            await service.stop()
    except TimeoutError:
        log.warning(LogEvent.DRAIN_TIMEOUT, seconds=drain_seconds)
    log.info(LogEvent.SERVICE_STOPPED)
