"""A series becomes an entry: fetched, decoded and written side by side, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from isocenter.common.errors import IntegrityError
from isocenter.common.index.manifest import ManifestEntry, SeriesManifest, parse
from isocenter.common.index.records import DicomJson
from isocenter.common.objects.sealing import SealContext
from isocenter.gpu_stager.cache.waiting import finished
from isocenter.gpu_stager.fetching import BIG_ENDIAN, Fetcher, InstanceReader
from isocenter.gpu_stager.layout import zarr3
from isocenter.gpu_stager.layout.writer import Array, VolumeWriter
from isocenter.gpu_stager.manifest import Entry, Stack
from isocenter.gpu_stager.pixels import attributes as a
from isocenter.gpu_stager.pixels import luts
from isocenter.gpu_stager.pixels.decoding import decode
from isocenter.gpu_stager.pixels.plan import Plan, PlannedFrame, PlannedStack, plan_series

JOB_BYTES: Final = 4 << 20
"""Decoded bytes that are fetched and decoded as one step."""
AHEAD: Final = 16
"""Steps in hand at a time: with `JOB_BYTES` it bounds the memory of one entry in the making to about 128 MiB,
or to some frames where frames are larger.
"""


class Progress(Protocol):
    """Where an entry in the making is, for whoever watches."""

    def fetching(self) -> None: ...
    def decoding(self) -> None: ...
    def writing(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds entries.

    Args:
        fetcher: of the site.
        decoders: threads that decode; codecs run without the GIL.
    """

    fetcher: Fetcher
    decoders: Executor

    async def series(self, study_key: str, manifest_key: str) -> SeriesManifest:
        """Raises NotFound, IntegrityError, StoreUnavailable."""
        plaintext = await self.fetcher.vault.get(manifest_key, SealContext(study_key, manifest_key))
        return await asyncio.to_thread(parse, plaintext)

    async def plan(self, study_key: str, manifest_key: str) -> Plan:
        """Raises NotStageable: the series has no pixels that make an array. NotFound, IntegrityError,
        StoreUnavailable.
        """
        series = await self.series(study_key, manifest_key)
        return await asyncio.to_thread(plan_series, series)

    async def build(self, plan: Plan, folder: Path, progress: Progress) -> Entry:
        """Writes everything of the entry but its manifest.

        Raises:
            IntegrityError: an instance is not what the index says. A volume with a slice missing is none.
            StoreFull, StoreUnavailable
        """
        progress.fetching()
        await asyncio.to_thread((folder / "zarr.json").write_bytes, zarr3.group_document())
        readers = _Readers(self.fetcher, plan)
        stacks = []
        for number, stack in enumerate(plan.stacks):
            stacks.append(await self._stack(str(number), stack, plan, readers, folder, progress))
        progress.writing()
        return Entry(
            name=plan.name,
            study_key=plan.study_key,
            series_key=plan.series_key,
            content=plan.content,
            modality=plan.modality,
            stacks=tuple(stacks),
            sources=plan.sources,
            left_out=plan.left_out,
            size_bytes=plan.size_bytes,
        )

    async def _stack(
        self,
        path: str,
        stack: PlannedStack,
        plan: Plan,
        readers: _Readers,
        folder: Path,
        progress: Progress,
    ) -> Stack:
        writer = await asyncio.to_thread(VolumeWriter, folder, path, stack.spec)
        try:
            async with aclosing(self._decoded(stack, plan, readers)) as jobs:
                async for frames in jobs:
                    progress.decoding()
                    await _to_the_end(_add_all, writer, frames)
            await _to_the_end(writer.finish)
        finally:
            writer.close()
        source = stack.frames[0].source
        entry = plan.entries[source]
        value = _value(entry, readers, source)
        indexed = stack.photometric_interpretation == "PALETTE COLOR"
        return Stack(
            path=path,
            data=writer.data,
            shape=stack.spec.shape,
            dtype=stack.spec.dtype,
            block_frames=stack.spec.block_frames,
            blocks=tuple(writer.blocks),
            bits_stored=stack.pixels.bits_stored,
            pixel_representation=stack.pixels.pixel_representation,
            photometric_interpretation=stack.photometric_interpretation,
            frames=tuple((frame.source, frame.facts.number) for frame in stack.frames),
            geometry=stack.geometry,
            rescale=stack.rescale,
            window=stack.frames[0].facts.window,
            pixel_padding=a.integer(entry.metadata, "00280120"),
            modality_lut=await luts.modality(entry.metadata, value),
            palette=await luts.palette(entry.metadata, value) if indexed else None,
            tiles=stack.tiles,
            lossy=stack.lossy,
        )

    async def _decoded(
        self, stack: PlannedStack, plan: Plan, readers: _Readers
    ) -> AsyncGenerator[list[Array]]:
        """Frames in order. Some steps ahead are in hand; leaving ends them."""
        running: deque[asyncio.Task[list[Array]]] = deque()
        try:
            for job in _jobs(stack):
                running.append(asyncio.create_task(self._job(job, stack, plan, readers)))
                if len(running) >= AHEAD:
                    yield await running.popleft()
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _job(
        self, job: list[PlannedFrame], stack: PlannedStack, plan: Plan, readers: _Readers
    ) -> list[Array]:
        source = job[0].source
        entry = plan.entries[source]
        reader = await readers.of(source)
        encoded = await reader.frames([frame.facts.number for frame in job], stack.pixels)
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.gather(
                *(
                    loop.run_in_executor(self.decoders, decode, entry.transfer_syntax_uid, stack.pixels, data)
                    for data in encoded
                )
            )
        except IntegrityError as error:
            error.ids["instance_key"] = entry.instance_key
            raise


async def _to_the_end(work: Callable[..., None], *arguments: object) -> None:
    """In a thread, which is waited for even when this is cancelled: the file is closed only after it.

    Raises what `work` raises.
    """
    _, cancelled = await finished(work, *arguments)
    if cancelled:
        raise asyncio.CancelledError


def _add_all(writer: VolumeWriter, frames: list[Array]) -> None:
    for frame in frames:
        writer.add(frame)


def _jobs(stack: PlannedStack) -> Iterator[list[PlannedFrame]]:
    """Consecutive frames of one source, about `JOB_BYTES` of them."""
    most = max(1, JOB_BYTES // stack.spec.frame_bytes)
    job: list[PlannedFrame] = []
    for frame in stack.frames:
        if job and (frame.source != job[0].source or len(job) >= most):
            yield job
            job = []
        job.append(frame)
    if job:
        yield job


class _Readers:
    """One reader for each source that is in use; the last few stay, for objects of many frames."""

    _KEPT: Final = 32

    def __init__(self, fetcher: Fetcher, plan: Plan) -> None:
        self._fetcher = fetcher
        self._plan = plan
        self._open: dict[int, asyncio.Task[InstanceReader]] = {}

    async def of(self, source: int) -> InstanceReader:
        task = self._open.pop(source, None)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._fetcher.open(self._plan.study_key, self._plan.entries[source]))
        self._open[source] = task
        while len(self._open) > self._KEPT:
            self._open.pop(next(iter(self._open)))
        return await asyncio.shield(task)


def _value(entry: ManifestEntry, readers: _Readers, source: int) -> luts.Value:
    """Binary values of an instance: in a document of its metadata, or in the object."""

    async def value(document: DicomJson, tag: str) -> bytes | None:
        data = a.inline(document, tag)
        if data is None and (path := a.bulk_path(document, tag)) is not None:
            data = await (await readers.of(source)).bulk(path)
            if entry.transfer_syntax_uid == BIG_ENDIAN:
                swapped = bytearray(data[: len(data) // 2 * 2])
                swapped[::2], swapped[1::2] = swapped[1::2], swapped[::2]
                data = bytes(swapped)
        return data

    return value
