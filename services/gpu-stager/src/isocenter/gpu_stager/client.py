"""Staged volumes for the programs that use them.

    from isocenter.gpu_stager.client import Stager

    with Stager() as stager, stager.open(study) as volume:
        array = volume.array          # cupy on a GPU node, numpy elsewhere; (slices, rows, columns)
        affine = volume.geometry.affine

`torch.from_dlpack(volume.array)` and `torch.as_tensor(volume.array, device="cuda")` take it without a copy.
While a volume is open it is leased: it stays on the node. `AsyncStager` is the same for asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, StoreUnavailable
from isocenter.gpu_stager.agent.protocol import (
    AgentError,
    ProtocolError,
    decode,
    encode,
    require_own,
    socket_path,
)
from isocenter.gpu_stager.manifest import MANIFEST, Entry, Geometry, Rescale, Stack
from isocenter.gpu_stager.modes.loading import Loaded, Loader
from isocenter.gpu_stager.modes.verdict import Mode, Verdict

DATA_DIR = Path(".data/isocenter")
_LINE_SECONDS = 3600.0
"""A study that has to be staged first may take long."""


class StagerUnavailable(StoreUnavailable):
    """No stager answers on this node."""

    code = "stager-unavailable"


class Volume:
    """One stack of a staged series under a lease. Leave the `with` block, or call `close`, to give it back.

    Attributes:
        entry: the manifest of the series.
        stack: what is in the array.
    """

    def __init__(self, series: Series, stack: Stack) -> None:
        self.entry = series.entry
        self.stack = stack
        self._series = series
        self._loaded: Loaded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def shape(self) -> tuple[int, ...]:
        """(slices, rows, columns), or (slices, rows, columns, 3)."""
        return self.stack.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored values."""
        return np.dtype(self.stack.dtype)

    @property
    def geometry(self) -> Geometry:
        return self.stack.geometry

    @property
    def rescale(self) -> Rescale:
        """From stored values to the modality's units."""
        return self.stack.rescale

    @property
    def loaded(self) -> Loaded:
        """The array, and the way its bytes took. Loads at the first use.

        Raises:
            NotFound: the lease ran out.
            IntegrityError: the bytes are not what was staged.
        """
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    @property
    def array(self) -> Any:
        """Stored values, exactly those of the instances: cupy's where there is a GPU, else numpy's."""
        return self.loaded.array

    @property
    def mode(self) -> Mode:
        return self.loaded.mode

    def load(
        self, *, start: int = 0, stop: int | None = None, out: Any = None, verify: bool = False
    ) -> Loaded:
        """Slices [start, stop) into `out`, or into a new array. See `modes.loading.Loader.load`."""
        return self._series.load(self.stack, start=start, stop=stop, out=out, verify=verify)

    def rescaled(self, dtype: Any = np.float32) -> Any:
        """The array in the modality's units (HU, for one), on the same device."""
        array, line = self.array, self.stack.rescale
        slope = np.asarray(line.slope, dtype=dtype)
        intercept = np.asarray(line.intercept, dtype=dtype)
        if slope.size == 1:
            return array.astype(dtype) * dtype(slope[0]) + dtype(intercept[0])
        shape = (-1,) + (1,) * (array.ndim - 1)
        module = np if isinstance(array, np.ndarray) else _module_of(array)
        return array.astype(dtype) * module.asarray(slope.reshape(shape)) + module.asarray(
            intercept.reshape(shape)
        )

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.array.get() if hasattr(self.array, "get") else self.array
        return np.asarray(array, dtype=dtype)

    def close(self) -> None:
        """Gives the lease back. The array stays: it is the caller's."""
        self._series.close()


class Series:
    """One staged series under a lease: its stacks, the largest first."""

    def __init__(self, stager: Stager, lease: str, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._stager = stager
        self._lease: str | None = lease
        try:
            self.entry = Entry.from_json((path / MANIFEST).read_bytes())
        except OSError:
            raise NotFound("the staged series is gone", entry=name) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def volume(self, number: int = 0) -> Volume:
        return Volume(self, self.entry.stacks[number])

    def load(self, stack: Stack, **options: Any) -> Loaded:
        try:
            loaded = self._stager.loader.load(self.path, stack, **options)
        except IntegrityError:
            if self._lease is not None:
                self._stager.call("damaged", lease=self._lease)
            raise
        if self._lease is not None:
            self._stager.call(
                "loaded",
                lease=self._lease,
                mode=loaded.mode,
                bytes=loaded.bytes,
                seconds=loaded.seconds,
                device=loaded.device,
            )
        return loaded

    def close(self) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self._stager.call("release", lease=lease)


@dataclass(frozen=True, slots=True)
class Study:
    """All staged series of a study."""

    series: tuple[Series, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self.series:
            each.close()

    def __iter__(self) -> Iterator[Series]:
        return iter(self.series)


class Stager:
    """A connection to the stager of this node. Not for several threads at once.

    Args:
        socket: its socket; None: `ISOCENTER_GPU_STAGER_SOCKET`, else that of the data directory.
        data_dir: of an embedded platform; None: `ISOCENTER_DATA_DIR`, else `.data/isocenter`.
        device: index of the GPU to load to.
        loader: for tests.

    Raises:
        StagerUnavailable
        Misconfigured: others can write the socket's folder.
    """

    def __init__(
        self,
        socket: Path | str | None = None,
        *,
        data_dir: Path | None = None,
        device: int = 0,
        loader: Loader | None = None,
    ) -> None:
        self._path = _where(socket, data_dir)
        self._connection = _connected(self._path)
        self._lines = self._connection.makefile("rb")
        self._numbers = itertools.count(1)
        hello = self.call("hello")
        self.node = str(hello["node"])
        self.verdict = Verdict.from_json(hello["verdict"])
        self.loader = loader or Loader(self.verdict, device=device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; what it leased is given back."""
        self._lines.close()
        self._connection.close()

    def open(self, target: str, *, stage: bool = True, priority: str = "inference") -> Volume:
        """The largest volume of a series; of a study, of its largest series.

        Args:
            target: Study Instance UID, study key, or either with `/` and the series.
            stage: bring it here first if it is not; False: NotFound then.
            priority: `stat`, `inference`, `prior` or `bulk`.

        Raises:
            AgentError: `code` says why: `not-found`, `not-stageable`, `overloaded`, ...
            StagerUnavailable
        """
        study = self.open_study(target, stage=stage, priority=priority)
        largest = max(study.series, key=lambda series: series.entry.stacks[0].volume_bytes)
        for series in study.series:
            if series is not largest:
                series.close()
        return largest.volume()

    def open_study(self, target: str, *, stage: bool = True, priority: str = "inference") -> Study:
        """Every series of a study that has pixels. Raises as `open`."""
        answer = self.call("open", target=target, stage=stage, priority=priority)
        return Study(
            tuple(Series(self, one["lease"], one["name"], Path(one["path"])) for one in answer["leases"])
        )

    def stage(
        self, target: str, *, priority: str = "inference", pin: str = "none", forced: bool = False
    ) -> Sequence[dict[str, Any]]:
        """Brings series here and returns when they are ready: name, bytes, hit and seconds of each."""
        answer = self.call("stage", target=target, priority=priority, pin=pin, forced=forced)
        return list(answer["staged"])

    def evict(self, target: str) -> list[str]:
        """Removes what nobody holds; the names that are gone."""
        return list(self.call("evict", target=target)["evicted"])

    def status(self) -> dict[str, Any]:
        """Entries, limits, counters, verdict."""
        return self.call("status")

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        number = next(self._numbers)
        try:
            self._connection.sendall(encode({"id": number, "op": op, **fields}))
            line = self._lines.readline()
        except OSError as error:
            raise StagerUnavailable(f"the stager went away: {error.strerror or 'no answer'}") from None
        if not line:
            raise StagerUnavailable("the stager went away")
        answer = decode(line)
        if answer.get("id") != number:
            raise ProtocolError("an answer to another question")
        if "error" in answer:
            raise AgentError(str(answer["error"]["code"]), str(answer["error"]["message"]))
        return dict(answer["ok"])


class AsyncStager:
    """`Stager` for asyncio: each call runs in a thread, one at a time.

    `async with await stager.open(study) as volume: array = await volume.array()`.
    """

    def __init__(self, socket: Path | str | None = None, **options: Any) -> None:
        self._options = (socket, options)
        self._stager: Stager | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        socket, options = self._options
        self._stager = await asyncio.to_thread(Stager, socket, **options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stager is not None:
            await asyncio.to_thread(self._stager.close)

    async def open(self, target: str, *, stage: bool = True, priority: str = "inference") -> AsyncVolume:
        async with self._turn:
            volume = await asyncio.to_thread(self._require().open, target, stage=stage, priority=priority)
        return AsyncVolume(volume, self._turn)

    async def stage(self, target: str, **options: Any) -> Sequence[dict[str, Any]]:
        async with self._turn:
            return await asyncio.to_thread(self._require().stage, target, **options)

    async def status(self) -> dict[str, Any]:
        async with self._turn:
            return await asyncio.to_thread(self._require().status)

    def _require(self) -> Stager:
        if self._stager is None:
            raise StagerUnavailable("use `async with AsyncStager() as stager`")
        return self._stager


class AsyncVolume:
    """A `Volume` whose array is awaited."""

    def __init__(self, volume: Volume, turn: asyncio.Lock) -> None:
        self.volume = volume
        self._turn = turn

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._turn:
            await asyncio.to_thread(self.volume.close)

    async def array(self) -> Any:
        async with self._turn:
            return await asyncio.to_thread(lambda: self.volume.array)


def _where(socket: Path | str | None, data_dir: Path | None) -> Path:
    named = socket or os.environ.get("ISOCENTER_GPU_STAGER_SOCKET")
    if named:
        return Path(named)
    return socket_path(data_dir or Path(os.environ.get("ISOCENTER_DATA_DIR") or DATA_DIR))


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        require_own(path)
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise StagerUnavailable(f"no stager answers on this node: {error.strerror}") from None
    except Misconfigured:
        connection.close()
        raise
    connection.settimeout(_LINE_SECONDS)
    return connection


def _module_of(array: Any) -> Any:
    import importlib  # noqa: PLC0415 - cupy, where arrays are its own

    return importlib.import_module(type(array).__module__.partition(".")[0])
