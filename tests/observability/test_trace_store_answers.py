"""What a trace store may answer instead of traces: each is one clear error, in bounded time and memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from isocenter.cli import tracestore
from isocenter.cli.tracestore import TraceStoreUnavailable, read_traces

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CANARY = "DOE^JANE"

Answer = Callable[[str], tuple[int, bytes]]


@contextmanager
def answering(
    answer: Answer, asked: list[str] | None = None, late: threading.Event | None = None
) -> Iterator[str]:
    """A server that answers so; with `late`, not before that is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if late is not None:
                late.wait(30)
            if asked is not None:
                asked.append(self.path)
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if status == 302:
                self.send_header("location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/jaeger"
    finally:
        if late is not None:
            late.set()
        server.shutdown()
        server.server_close()
        thread.join()


def services(*names: str, traces: Any = None) -> Answer:
    def answer(path: str) -> tuple[int, bytes]:
        data = list(names) if path.startswith("/jaeger/api/services") else traces
        return 200, json.dumps({"data": data}).encode()

    return answer


async def read(url: str, **options: Any) -> list[Any]:
    return await read_traces(url, "k", since=NOW, until=NOW, **options)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda path: (500, CANARY.encode()), "answered 500"),
        (lambda path: (404, b""), "is it Jaeger's query API"),
        (lambda path: (302, b""), "answered 302"),
        (lambda path: (200, b"<html>" + CANARY.encode()), "did not answer as"),
        (lambda path: (200, b"[]"), "did not answer as"),
        (services("a", traces=[{"spans": [{}], "processes": {}}]), "not of the form"),
        (services("a", traces=[CANARY]), "not of the form"),
        (
            services("a", traces=[{"spans": CANARY, "processes": {"p1": {"serviceName": "a"}}}]),
            "not of the form",
        ),
    ],
)
async def test_what_is_not_the_api_is_said_to_be(answer: Answer, says: str) -> None:
    with answering(answer) as url, pytest.raises(TraceStoreUnavailable, match=says) as raised:
        await read(url)

    assert CANARY not in str(raised.value)


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracestore, "MAX_BYTES", 1 << 20)

    with (
        answering(lambda path: (200, b" " * (2 << 20))) as url,
        pytest.raises(TraceStoreUnavailable, match="more than 1 MiB"),
    ):
        await read(url)


async def test_a_store_that_says_nothing_is_waited_for_no_longer_than_said() -> None:
    with (
        answering(services(), late=threading.Event()) as url,
        pytest.raises(TraceStoreUnavailable, match=r"no answer within 0.2 s|ReadTimeout"),
    ):
        await read(url, seconds=0.2)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::", "http://no such host/"])
async def test_an_address_where_nothing_is(url: str) -> None:
    with pytest.raises(TraceStoreUnavailable):
        await read(url)


async def test_no_data_is_no_error() -> None:
    with answering(lambda path: (200, b'{"data":null,"errors":null}')) as url:
        assert [] == await read(url)


async def test_a_shared_store_is_asked_for_a_bounded_number_of_services() -> None:
    asked: list[str] = []

    with answering(services(*(f"s{n:04}" for n in range(500)), traces=[]), asked) as url:
        await read(url)

    assert 1 + tracestore.MAX_SERVICES == len(asked)


async def test_short_ids_and_text_numbers_are_taken_as_meant() -> None:
    span = {
        "traceID": "ab",
        "spanID": "cd",
        "operationName": "store",
        "processID": "p1",
        "startTime": 5,
        "duration": 2,
        "tags": [{"key": "isocenter.size_bytes", "type": "int64", "value": "7"}],
        "references": [
            {"refType": "FOLLOWS_FROM", "traceID": "ee", "spanID": "ff"},
            {"refType": "CHILD_OF", "traceID": "ab", "spanID": "aa"},
        ],
    }
    trace = {"processes": {"p1": {"serviceName": "ingest"}}, "spans": [span]}

    with answering(services("ingest", "indexer", traces=[trace])) as url:
        (one,) = await read(url)

    assert ("ab".zfill(32), "cd".zfill(16), "aa".zfill(16)) == (one.trace_id, one.span_id, one.parent_id)
    assert (("ee".zfill(32), "ff".zfill(16)),) == one.links
    assert (5_000, 7_000, {"isocenter.size_bytes": 7}) == (one.start_ns, one.end_ns, one.attributes)
