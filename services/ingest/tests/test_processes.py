"""Several processes behind the same ports: what needs no cluster to be seen. The rest is in tests/cluster."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from isocenter.common.errors import Misconfigured
from isocenter.common.runtime import EXIT_MISCONFIGURED
from isocenter.ingest.__main__ import main
from isocenter.ingest.processes.health import GroupHealth
from isocenter.ingest.processes.pages import Page
from isocenter.ingest.processes.reservation import Reservation

if TYPE_CHECKING:
    from isocenter.ingest.testing import World

ONE = """\
# HELP isocenter_ingest_instances_total Instances.
# TYPE isocenter_ingest_instances_total counter
isocenter_ingest_instances_total{isocenter_outcome="stored",service="ingest"} 5.0
# HELP isocenter_ingest_store_duration_seconds Time.
# TYPE isocenter_ingest_store_duration_seconds histogram
isocenter_ingest_store_duration_seconds_bucket{le="0.1",service="ingest"} 2.0
isocenter_ingest_store_duration_seconds_bucket{le="+Inf",service="ingest"} 5.0
isocenter_ingest_store_duration_seconds_count{service="ingest"} 5.0
isocenter_ingest_store_duration_seconds_sum{service="ingest"} 1.5
# HELP isocenter_ingest_associations Open.
# TYPE isocenter_ingest_associations gauge
isocenter_ingest_associations{service="ingest"} 3.0
# HELP isocenter_ready Ready.
# TYPE isocenter_ready gauge
isocenter_ready{service="ingest"} 1.0
# HELP isocenter_disk_free_bytes Free.
# TYPE isocenter_disk_free_bytes gauge
isocenter_disk_free_bytes{service="ingest"} 100.0
"""
OTHER = ONE.replace('isocenter_ready{service="ingest"} 1.0', 'isocenter_ready{service="ingest"} 0.0')


def values(page: Page) -> dict[str, float]:
    lines = [line for line in page.text().splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_pages_add_up_and_the_worst_of_each_check_counts() -> None:
    page = Page()
    page.add(ONE)
    page.add(OTHER)
    found = values(page)
    assert found["isocenter_ingest_instances_total"] == 10
    assert found["isocenter_ingest_store_duration_seconds_count"] == 10
    assert found["isocenter_ingest_associations"] == 6
    assert found["isocenter_ready"] == 0
    assert found["isocenter_disk_free_bytes"] == 100


def test_of_a_process_that_is_gone_only_counts_stay() -> None:
    page = Page()
    page.add(ONE, gone=True)
    page.add(ONE)
    found = values(page)
    assert found["isocenter_ingest_instances_total"] == 10
    assert found["isocenter_ingest_associations"] == 3


class FakeWorker:
    """Answers what a test says."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"process-{number}"
        self.pid: int | None = 100 + number
        self.served = False
        self.answers: dict[str, tuple[int, str]] = {}

    async def get(self, client: httpx.AsyncClient, path: str) -> httpx.Response | None:
        if path not in self.answers:
            return None
        status, text = self.answers[path]
        return httpx.Response(status, text=text)


async def look(health: GroupHealth, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=health.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://health") as client:
        return await client.get(path)


READY = 200, '{"ready": true, "checks": [{"name": "bus", "ok": true, "detail": ""}]}'
NOT_READY = 503, '{"ready": false, "checks": [{"name": "bus", "ok": false, "detail": "gone"}]}'


async def test_who_starts_is_no_reason_to_turn_senders_away_and_who_fails_is() -> None:
    one, two = FakeWorker(1), FakeWorker(2)
    async with httpx.AsyncClient() as client:
        health = GroupHealth([one, two], client)  # type: ignore[list-item]  # what is asked of a worker
        assert (await look(health, "/readyz")).status_code == 503
        one.answers["/readyz"] = READY
        assert (await look(health, "/readyz")).status_code == 200
        two.answers["/readyz"] = READY
        assert (await look(health, "/readyz")).status_code == 200
        two.answers["/readyz"] = NOT_READY
        answer = await look(health, "/readyz")
        assert answer.status_code == 503
        assert {"service": "process-2", "name": "bus", "ok": False, "detail": "gone"} in answer.json()[
            "checks"
        ]
        two.answers.clear()
        assert (await look(health, "/readyz")).status_code == 503
        two.pid, two.served = None, False
        assert (await look(health, "/readyz")).status_code == 200
        assert (await look(health, "/livez")).status_code == 200
        health.drain()
        assert (await look(health, "/readyz")).status_code == 503


async def test_what_a_lost_process_counted_stays_counted() -> None:
    worker = FakeWorker(1)
    counted = "isocenter_ingest_instances_total"
    async with httpx.AsyncClient() as client:
        health = GroupHealth([worker], client)  # type: ignore[list-item]
        worker.answers["/metrics"] = 200, ONE
        for _ in range(2):
            assert (
                f'{counted}{{isocenter_outcome="stored",service="ingest"}} 5.0'
                in (await look(health, "/metrics")).text
            )
        for pid, total in ((201, 10), (202, 15)):
            worker.pid = pid
            assert f"}} {total}.0" in (await look(health, "/metrics")).text.split(counted)[-1]


def test_a_port_is_kept_and_only_listeners_get_its_connections() -> None:
    with Reservation() as ports:
        port = ports.take("127.0.0.1", 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with (
            socket.create_server(("127.0.0.1", port), reuse_port=True) as listener,
            socket.create_connection(("127.0.0.1", port), timeout=5),
        ):
            listener.accept()[0].close()


def test_a_port_of_others_is_not_shared_with_them() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as others, Reservation() as ports:
        port = others.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}"):
            ports.take("127.0.0.1", port)


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        ("2", "ISOCENTER_INGEST_PROCESSES=2 needs ISOCENTER_KAFKA_BOOTSTRAP and ISOCENTER_S3_ENDPOINT"),
        ("none", "ISOCENTER_INGEST_PROCESSES: int_parsing"),
        ("1000", "ISOCENTER_INGEST_PROCESSES: less_than_equal"),
    ],
)
def test_embedded_engines_belong_to_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], processes: str, says: str
) -> None:
    for name in os.environ:
        if name.startswith("ISOCENTER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ISOCENTER_INGEST_PROCESSES", processes)
    assert main([]) == EXIT_MISCONFIGURED
    assert says in capsys.readouterr().err


def test_nor_does_isocenter_up_take_more_than_one(world: World) -> None:
    world.ports = replace(world.ports, bus_embedded=True)
    with pytest.raises(Misconfigured, match="ISOCENTER_INGEST_PROCESSES=2"):
        world.service(processes=2)
