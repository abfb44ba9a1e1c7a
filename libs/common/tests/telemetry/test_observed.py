"""Calls of a port are timed and counted, whatever implements it, and behave as before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from isocenter.common.errors import IndexUnavailable, NotFound, StoreFull
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.telemetry import Counter, Histogram, Telemetry, noop
from isocenter.common.telemetry.observed import Reporting, observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Port:
    """Every kind of call a port has."""

    def __init__(self) -> None:
        self.closed = False

    async def answer(self, value: int) -> int:
        return value

    async def fail(self, error: Exception) -> None:
        raise error

    async def listed(self) -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            self.closed = True

    async def broken(self) -> AsyncIterator[int]:
        yield 1
        raise IndexUnavailable("gone")

    def plain(self) -> str:
        return "as it is"


def watched() -> tuple[Port, Port, Telemetry]:
    telemetry, port = noop(), Port()
    return observed(port, telemetry.metrics, Histogram.INDEX, Counter.INDEX_ERRORS), port, telemetry


async def test_a_call_is_timed_under_its_name_and_answers_as_before() -> None:
    port, _, telemetry = watched()

    assert 7 == await port.answer(7)
    assert 8 == await port.answer(value=8)

    assert 2 == telemetry.metrics.value(Histogram.INDEX, operation="answer")
    assert 0 == telemetry.metrics.value(Counter.INDEX_ERRORS)


async def test_a_failure_is_counted_by_its_code_and_raised() -> None:
    port, _, telemetry = watched()

    with pytest.raises(IndexUnavailable):
        await port.fail(IndexUnavailable("gone"))
    with pytest.raises(ValueError):
        await port.fail(ValueError("a defect"))

    assert 1 == telemetry.metrics.value(
        Counter.INDEX_ERRORS, operation="fail", error_type=IndexUnavailable.code
    )
    assert 1 == telemetry.metrics.value(Counter.INDEX_ERRORS, operation="fail", error_type="ValueError")
    assert 2 == telemetry.metrics.value(Histogram.INDEX, operation="fail")


async def test_what_is_not_found_is_an_answer() -> None:
    port, _, telemetry = watched()

    with pytest.raises(NotFound):
        await port.fail(NotFound("no such study"))

    assert 0 == telemetry.metrics.value(Counter.INDEX_ERRORS)
    assert 1 == telemetry.metrics.value(Histogram.INDEX)


async def test_a_list_counts_once_and_lets_go_when_its_reader_does() -> None:
    port, inner, telemetry = watched()

    assert [0, 1, 2] == [number async for number in port.listed()]
    reading = port.listed()
    assert 0 == await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]

    assert inner.closed
    assert 2 == telemetry.metrics.value(Histogram.INDEX, operation="listed")


async def test_a_list_that_breaks_off_is_an_error() -> None:
    port, _, telemetry = watched()

    with pytest.raises(IndexUnavailable):
        assert [] == [number async for number in port.broken()]

    assert 1 == telemetry.metrics.value(Counter.INDEX_ERRORS, operation="broken")


async def test_what_is_no_call_passes_through() -> None:
    port, _, telemetry = watched()

    assert "as it is" == port.plain()
    assert not port.closed
    assert not hasattr(port, "absent")
    assert 0 == telemetry.metrics.value(Histogram.INDEX)


async def test_an_object_that_is_staged_counts_when_it_is_committed(tmp_path: Path) -> None:
    telemetry = noop()
    store: ObjectStore = observed(
        LocalObjectStore(tmp_path), telemetry.metrics, Histogram.STORE, Counter.STORE_ERRORS
    )

    async with store.stage() as staging:
        await staging.write(b"bytes")
        await staging.commit("a/key", {})
    async with store.stage() as abandoned:
        await abandoned.write(b"bytes")

    assert b"bytes" == await store.get("a/key")
    assert ["a/key"] == [info.key async for info in store.list()]
    assert 1 == telemetry.metrics.value(Histogram.STORE, operation="commit")
    assert 1 == telemetry.metrics.value(Histogram.STORE, operation="get")
    assert 1 == telemetry.metrics.value(Histogram.STORE, operation="list")
    await store.close()


async def test_a_write_that_fails_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry, inner = noop(), LocalObjectStore(tmp_path)
    store: ObjectStore = observed(inner, telemetry.metrics, Histogram.STORE, Counter.STORE_ERRORS)
    async with store.stage() as staging:

        async def full(data: bytes) -> None:
            raise StoreFull("no space")

        monkeypatch.setattr(staging._staging, "write", full)  # type: ignore[attr-defined]
        with pytest.raises(StoreFull):
            await staging.write(b"bytes")

    assert 1 == telemetry.metrics.value(Counter.STORE_ERRORS, operation="write", error_type=StoreFull.code)
    await store.close()


def test_what_counts_its_requests_itself_says_so(tmp_path: Path) -> None:
    class Counting:
        def report_to(self, metrics: object) -> None: ...

    assert isinstance(Counting(), Reporting)
    assert not isinstance(LocalObjectStore(tmp_path), Reporting)
