"""Builds the service: the cache of this node, its agent, two consumer groups, and who looks after them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isocenter.common.errors import IntegrityError, IsocenterError, Misconfigured, StoreUnavailable
from isocenter.common.events.models import StageStudy, StudySettled, UnstageStudy
from isocenter.common.index.ports import Index
from isocenter.common.objects.vault import Vault
from isocenter.common.service import ASGIApp, Health, Ports
from isocenter.common.telemetry import LogEvent
from isocenter.gpu_stager.agent.protocol import socket_path
from isocenter.gpu_stager.agent.server import Agent
from isocenter.gpu_stager.building import Builder
from isocenter.gpu_stager.cache.directory import Directory
from isocenter.gpu_stager.cache.ledger import Row
from isocenter.gpu_stager.cache.staging import Cache
from isocenter.gpu_stager.fetching import Fetcher
from isocenter.gpu_stager.handlers import Handlers
from isocenter.gpu_stager.manifest import Stack
from isocenter.gpu_stager.modes import host
from isocenter.gpu_stager.modes.loading import verify_blocks
from isocenter.gpu_stager.modes.probe import known_or_probed
from isocenter.gpu_stager.modes.verdict import Mode, Verdict
from isocenter.gpu_stager.node import Node
from isocenter.gpu_stager.reports import Reports
from isocenter.gpu_stager.settings import GpuStagerSettings

NAME = "gpu-stager"
REAP_SECONDS = 5.0
DRAIN_SECONDS = 5.0


def _verify(path: Path, stack: Stack) -> None:
    """Raises IntegrityError, NotFound, StoreUnavailable."""
    memory = host.aligned(stack.volume_bytes)
    host.read_into(path, memory.data, threads=1)
    verify_blocks(memory.data, stack)


class GpuStager:
    """See `isocenter.common.service.Service`."""

    name = NAME
    asgi: ASGIApp | None = None

    def __init__(self, settings: GpuStagerSettings, ports: Ports, index: Index, data_dir: Path) -> None:
        self._settings = settings
        self._ports = ports
        self._folders = settings.folders(data_dir)
        self._directories = [Directory(folder) for folder in self._folders]
        self._stopping = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._decoders = ThreadPoolExecutor(
            settings.decoders or len(os.sched_getaffinity(0)), thread_name_prefix="decode"
        )
        fetcher = Fetcher(Vault(ports.store, ports.sealing), asyncio.Semaphore(settings.requests))
        self.node = Node(
            name=settings.node,
            cache=Cache(self._directories, settings.limits(0), told=self._told),
            builder=Builder(fetcher, self._decoders),
            index=index,
            keys=ports.keys,
            clock=ports.clock,
            telemetry=ports.telemetry,
            reports=Reports(ports.bus.publish, ports.clock, ports.telemetry, settings.node),
            verdict=Verdict(Mode.NUMPY, ("not probed yet",)),
        )
        self._agent = Agent(self.node, settings.socket or socket_path(data_dir))
        handlers = Handlers(self.node, settings.prefetched, settings.priors, ports.telemetry)
        ports.bus.subscribe("studies", StudySettled.topic, {StudySettled: handlers.study_settled})
        ports.bus.subscribe(
            "commands",
            StageStudy.topic,
            {StageStudy: handlers.stage_study, UnstageStudy: handlers.unstage_study},
        )

    @property
    def socket(self) -> Path:
        return self._agent.path

    async def start(self) -> None:
        """Raises Misconfigured: the node's socket cannot be made. StoreUnavailable: no disk can be used."""
        cache = self.node.cache
        await cache.start()
        cache.ledger.limits = self._settings.limits(await asyncio.to_thread(self._disk_bytes))
        self.node.verdict = await asyncio.to_thread(
            known_or_probed, self._folders[0], limit_seconds=self._settings.probe_seconds
        )
        await self._agent.start()
        await self._ports.bus.start()
        self._tasks = {
            "reaper": asyncio.create_task(self._repeat(self._reap, REAP_SECONDS)),
            "reports": asyncio.create_task(self.node.reports.run()),
        }
        if self._settings.scrub_seconds:
            self._tasks["scrubber"] = asyncio.create_task(
                self._repeat(self._scrub, self._settings.scrub_seconds)
            )
        verdict = self.node.verdict
        detail = " ".join((verdict.mode.value, *verdict.reasons))
        self._ports.telemetry.log.info(LogEvent.STAGER_READY, detail=detail)

    async def stop(self) -> None:
        """Processes that hold volumes keep what is open: files stay valid until they are closed."""
        self._stopping.set()
        await self._agent.stop()
        await self.node.cache.stop()
        if "reports" in self._tasks:
            await self.node.reports.drain(DRAIN_SECONDS)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._ports.bus.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> list[Health]:
        checks = await self._ports.bus.health()
        for name, task in self._tasks.items():
            checks.append(Health(name, not task.done(), "restart the service" if task.done() else ""))
        broken = self.node.cache.broken
        all_broken = len(broken) == len(self._directories)
        checks.append(Health("cache", not all_broken, "; ".join(broken.values())))
        return checks

    def _disk_bytes(self) -> int:
        """Of all disks: folders on the same one count once."""
        found: dict[int, int] = {}
        for directory in self._directories:
            with contextlib.suppress(IsocenterError, OSError):
                found[directory.root.stat().st_dev] = directory.space()[1]
        return sum(found.values())

    def _told(self, kind: str, row: Row, reason: str) -> None:
        self.node.told(kind, row, reason)

    async def _reap(self) -> None:
        before = set(self.node.cache.broken)
        await self.node.cache.reap()
        for number in set(self.node.cache.broken) - before:
            self._ports.telemetry.log.error(LogEvent.STAGER_DISK_LOST, reason=self.node.cache.broken[number])
        self.node.measure()

    async def _scrub(self) -> None:
        """Reads the entry that was verified longest ago, and compares it with its checksums."""
        cache = self.node.cache
        row = cache.to_verify()
        if row is None:
            return
        lease = cache.lease(row.name, look=True)
        if lease is None:
            return
        try:
            entry = await cache.entry(row.name)
            for stack in entry.stacks:
                await asyncio.to_thread(_verify, lease.path / stack.data, stack)
            row.verified = cache.now()
        except IntegrityError:
            await self.node.damaged(row.name)
        except StoreUnavailable as error:
            self._ports.telemetry.log.warning(LogEvent.STAGER_DISK_LOST, entry=row.name, error=error)
            row.verified = cache.now()  # the others get their turn
        finally:
            cache.release(lease)

    async def _repeat(self, step: Callable[[], Awaitable[None]], seconds: float) -> None:
        """A loop that ends only with the service."""
        while not self._stopping.is_set():
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - told, and tried again
                log = self._ports.telemetry.log
                log.error(LogEvent.TASK_FAILED, error=error)  # noqa: TRY400 - not stdlib's
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()


def build(settings: GpuStagerSettings, ports: Ports) -> GpuStager:
    """Raises Misconfigured without an index or a data directory."""
    if ports.index is None or ports.data_dir is None:
        raise Misconfigured("the stager needs an index, and a data directory on this machine")
    return GpuStager(settings, ports, ports.index, ports.data_dir)
