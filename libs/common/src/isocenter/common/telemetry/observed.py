"""Times and counts the calls of a port, whatever implements it, without the implementation knowing."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast, runtime_checkable

from isocenter.common.errors import IsocenterError, NotFound
from isocenter.common.telemetry.names import Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isocenter.common.telemetry.metrics import Metrics

T = TypeVar("T")


@runtime_checkable
class Reporting(Protocol):
    """What counts its own requests once it is told where: retries and pieces make these more than calls."""

    def report_to(self, metrics: Metrics) -> None: ...


def observed(port: T, metrics: Metrics, duration: Histogram, errors: Counter) -> T:
    """The same object to its users; each call of a public method is recorded under the method's name.

    A call that returns an async iterator counts until its reader has enough, without the reader's own time.
    A call that is cut off is not recorded. What was not found is an answer, not an error.
    """
    return cast("T", _Observed(port, _Recorder(metrics, duration, errors)))


class _Recorder:
    def __init__(self, metrics: Metrics, duration: Histogram, errors: Counter) -> None:
        self._metrics = metrics
        self._duration = duration
        self._errors = errors

    def done(self, operation: str, seconds: float) -> None:
        self._metrics.record(self._duration, seconds, operation=operation)

    @contextmanager
    def timing(self, operation: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.failed(operation, error)
            self.done(operation, time.perf_counter() - started)
            raise
        self.done(operation, time.perf_counter() - started)

    def failed(self, operation: str, error: Exception) -> None:
        if not isinstance(error, NotFound):
            code = error.code if isinstance(error, IsocenterError) else type(error).__name__
            self._metrics.add(self._errors, operation=operation, error_type=code)


class _Observed:
    """Wraps a method when it is first asked for, and keeps the wrapper."""

    def __init__(self, port: object, recorder: _Recorder) -> None:
        self._port = port
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name.startswith("_") or not callable(found):
            return found
        wrapped = self._coroutine(found) if inspect.iscoroutinefunction(found) else self._call(found)
        self.__dict__[name] = wrapped
        return wrapped

    def _coroutine(self, method: Callable[..., Any]) -> Callable[..., Any]:
        recorder, name = self._recorder, method.__name__

        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with recorder.timing(name):
                return await method(*args, **kwargs)

        return call

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        recorder, name = self._recorder, method.__name__

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if hasattr(result, "commit"):  # asked first: it is on the way of every instance
                return _Staged(result, recorder)
            return _iterated(result, recorder, name) if isinstance(result, AsyncIterator) else result

        return call


class _Staged:
    """A `Staging`: its `commit` is the call that counts, the writes before it count when they fail."""

    def __init__(self, staging: Any, recorder: _Recorder) -> None:
        self._staging = staging
        self._recorder = recorder

    async def __aenter__(self) -> Self:
        await self._staging.__aenter__()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._staging.__aexit__(*reason)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._staging.write(data)
        except Exception as error:
            self._recorder.failed("write", error)
            raise

    async def extend(self, make: Callable[[], Any]) -> None:
        try:
            await self._staging.extend(make)
        except Exception as error:
            self._recorder.failed("write", error)
            raise

    async def conclude(self, make: Callable[[], Any], *, pending: bool = False) -> Any:
        return await self._commit(self._staging.conclude(make, pending=pending))

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> Any:
        return await self._commit(self._staging.commit(key, metadata, pending=pending))

    async def _commit(self, committing: Awaitable[Any]) -> Any:
        # Not `timing`: this is on the way of every instance.
        started = time.perf_counter()
        try:
            return await committing
        except Exception as error:
            self._recorder.failed("commit", error)
            raise
        finally:
            self._recorder.done("commit", time.perf_counter() - started)


async def _iterated(source: AsyncIterator[T], recorder: _Recorder, name: str) -> AsyncIterator[T]:
    spent = 0.0
    try:
        while True:
            started = time.perf_counter()
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as error:
                recorder.failed(name, error)
                raise
            finally:
                spent += time.perf_counter() - started
            yield item
    finally:
        # Only a generator can be closed early; the others have nothing to let go.
        if (close := getattr(source, "aclose", None)) is not None:
            await close()
        recorder.done(name, spent)
