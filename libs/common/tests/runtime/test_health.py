"""Liveness and readiness that tell the truth, within a bound."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from isocenter.common.health import HealthApp, Watched
from isocenter.common.service import ASGIApp, Health
from isocenter.common.telemetry import Counter, Gauge, noop

UID = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"


@dataclass
class Part:
    """A service that is as healthy as it is told to be."""

    name: str = "ingest"
    asgi: ASGIApp | None = None
    checks: Callable[[], Awaitable[list[Health]]] | None = None
    found: list[Health] = field(default_factory=lambda: [Health("bus", ok=True)])

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def health(self) -> list[Health]:
        return await self.checks() if self.checks else self.found


async def get(app: HealthApp, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "path": path, "method": method}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"]


def watched(*parts: Part) -> list[Watched]:
    return [Watched(part, noop(part.name)) for part in parts]


async def test_ready_when_every_check_of_every_service_passes() -> None:
    app = HealthApp(watched(Part("ingest"), Part("indexer")))

    status, headers, body = await get(app, "/readyz")

    assert 200 == status
    assert "application/json" == headers["content-type"]
    assert "no-store" == headers["cache-control"]
    assert {
        "ready": True,
        "checks": [
            {"service": "ingest", "name": "bus", "ok": True, "detail": ""},
            {"service": "indexer", "name": "bus", "ok": True, "detail": ""},
        ],
    } == json.loads(body)


async def test_one_failed_check_of_one_service_is_enough() -> None:
    sick = Part("indexer", found=[Health("bus", ok=True), Health("index", ok=False, detail="disk full")])

    status, _, body = await get(HealthApp(watched(Part(), sick)), "/readyz")

    assert 503 == status
    assert {"service": "indexer", "name": "index", "ok": False, "detail": "disk full"} in json.loads(body)[
        "checks"
    ]


async def test_a_check_that_hangs_is_a_failed_check() -> None:
    async def hang() -> list[Health]:
        await asyncio.Event().wait()
        return []

    app = HealthApp(watched(Part("indexer", checks=hang), Part("ingest")), check_seconds=0.05)

    async with asyncio.timeout(5):
        status, _, body = await get(app, "/readyz")

    assert 503 == status
    assert {"indexer": False, "ingest": True} == {c["service"]: c["ok"] for c in json.loads(body)["checks"]}


async def test_a_check_that_raises_is_a_failed_check_and_its_text_is_not_shown() -> None:
    async def fail() -> list[Health]:
        raise ValueError("DOE^JANE")

    status, _, body = await get(HealthApp(watched(Part(checks=fail))), "/readyz")

    assert 503 == status
    assert b"ValueError" in body
    assert b"DOE" not in body


async def test_a_detail_cannot_carry_a_patients_uid() -> None:
    part = Part(found=[Health("store", ok=False, detail=f"cannot read {UID}")])

    _, _, body = await get(HealthApp(watched(part)), "/readyz")

    assert UID.encode() not in body


async def test_each_check_is_a_gauge_that_a_scrape_brings_up_to_date() -> None:
    part = Part(found=[Health("bus", ok=True), Health("index", ok=False, detail="down")])
    (one,) = watched(part)

    await get(HealthApp([one]), "/metrics")

    assert (1, 0) == (
        one.telemetry.metrics.value(Gauge.CHECK, check="bus"),
        one.telemetry.metrics.value(Gauge.CHECK, check="index"),
    )
    assert 0 == one.telemetry.metrics.value(Gauge.READY)


async def test_a_look_that_failed_as_a_whole_leaves_no_failed_check_behind() -> None:
    part = Part()
    (one,) = watched(part)
    app = HealthApp([one])

    async def fail() -> list[Health]:
        raise ValueError

    part.checks = fail
    await get(app, "/readyz")
    during = one.telemetry.metrics.value(Gauge.CHECK, check="ingest")
    part.checks = None
    await get(app, "/readyz")

    assert (0, 1) == (during, one.telemetry.metrics.value(Gauge.CHECK, check="ingest"))


async def test_alive_even_when_not_ready() -> None:
    app = HealthApp(watched(Part(found=[Health("bus", ok=False)])))

    assert 200 == (await get(app, "/livez"))[0]


async def test_draining_is_not_ready_and_alive() -> None:
    app = HealthApp(watched(Part()))
    app.drain()

    assert (503, 200) == ((await get(app, "/readyz"))[0], (await get(app, "/livez"))[0])


async def test_metrics_of_every_service_are_on_one_page() -> None:
    parts = watched(Part("ingest"), Part("indexer"))
    for part in parts:
        part.telemetry.metrics.add(Counter.INGEST_BYTES, 1, protocol="dimse")

    status, headers, body = await get(HealthApp(parts), "/metrics")

    assert 200 == status
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'service="ingest"' in body
    assert b'service="indexer"' in body


async def test_readiness_is_a_metric_and_only_its_changes_are_logged(recorded_health: Any) -> None:
    part, telemetry, lines = recorded_health(Part())
    app = HealthApp([Watched(part, telemetry)])

    for ok in (True, False, False, True, True):
        part.found = [Health("bus", ok=ok)]
        await app.report()

    assert ["service.not_ready", "service.ready_again"] == [line["event"] for line in lines()]
    assert 1 == telemetry.metrics.value(Gauge.READY)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "/", 404), ("GET", "/readyz/x", 404), ("POST", "/readyz", 405), ("HEAD", "/livez", 200)],
)
async def test_other_paths_and_methods(method: str, path: str, expected: int) -> None:
    status, headers, body = await get(HealthApp(watched(Part())), path, method)

    assert expected == status
    assert b"" == body
    assert expected != 405 or headers["allow"] == "GET, HEAD"


async def test_a_service_that_only_a_new_process_can_help_is_not_live() -> None:
    stuck = [False]
    part = Part("indexer")
    app = HealthApp([Watched(part, noop("indexer"), lambda: not stuck[0]), *watched(Part("ingest"))])

    assert (200, b'{"live":true}') == ((await get(app, "/livez"))[0], (await get(app, "/livez"))[2])
    stuck[0] = True

    assert (503, b'{"live":false,"restart":["indexer"]}') == (
        (await get(app, "/livez"))[0],
        (await get(app, "/livez"))[2],
    )
