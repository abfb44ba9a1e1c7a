"""The gateway as a service: origins, hosts, addresses, health, failures, and what telemetry may know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.events.models import SettleReason
from isocenter.common.index.ports import RestoredRevision
from isocenter.common.objects.sealing import Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.common.telemetry import Counter, Histogram
from isocenter.gateway.app import build, check_address
from isocenter.gateway.domain import BrokenOff, Request
from isocenter.gateway.ports import Context, Limits
from isocenter.gateway.retrieve import retrieve
from isocenter.gateway.settings import GatewaySettings
from isocenter.gateway.testing import TRACEPARENT, Site, ct, part10, studies

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"
INSTANCE = f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"
TRACE_ID = int(TRACEPARENT.split("-")[1], 16)
OTHER_TRACE = "00-11111111111111111111111111111111-2222222222222222-01"
Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


async def test_no_origin_may_read_by_default(client: httpx.AsyncClient) -> None:
    answer = await client.get("/dicom-web/studies", headers={"origin": "https://viewer.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://viewer.example", True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:5173", True),
        ("http://localhost.evil.example", False),
        ("http://localhost:3000.evil.example", False),
        ("https://other.example", False),
    ],
)
async def test_allowed_origins_may_read(connect: Connect, origin: str, *, allowed: bool) -> None:
    async with connect(cors_origins=("https://viewer.example",), cors_localhost=True) as client:
        answer = await client.get("/dicom-web/studies", headers={"origin": origin})
        assert (origin if allowed else None) == answer.headers.get("access-control-allow-origin")
        preflight = await client.options(
            INSTANCE,
            headers={
                "origin": origin,
                "access-control-request-method": "GET",
                "access-control-request-headers": "accept,range",
            },
        )
        assert (200 if allowed else 400) == preflight.status_code
        if allowed:
            exposed = answer.headers["access-control-expose-headers"]
            assert {"etag", "content-range", "warning"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    "path", ["/dicom-web/studies", "/dicom-web/nothing", "/dicom-web/studies?limit=x", INSTANCE]
)
async def test_security_headers_are_on_every_answer(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 204),
        ("127.0.0.1:8080", 204),
        ("[::1]:8080", 204),
        ("pacs.example", 204),
        ("gateway.example:443", 204),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost:999999", 204),
        ("localhost:1:2", 421),
        ("localhost:x", 421),
        ("", 421),
    ],
)
async def test_a_foreign_host_name_is_not_answered(connect: Connect, host: str, status: int) -> None:
    async with connect(
        allowed_hosts="pacs.example", public_url="https://gateway.example/dicom-web"
    ) as client:
        answer = await client.get("/dicom-web/studies", headers={"host": host})
        assert status == answer.status_code


async def test_the_public_url_is_in_every_address(site: Site, connect: Connect) -> None:
    await site.keep(*studies(1))
    async with connect(public_url="https://pacs.example/x/dicom-web/") as client:
        (study,) = (await client.get("/dicom-web/studies")).json()
        assert study["00081190"]["Value"] == [f"https://pacs.example/x/dicom-web/studies/{STUDY}"]
        (document,) = (await client.get(f"{INSTANCE}/metadata")).json()
        assert document["7FE00010"]["BulkDataURI"].startswith("https://pacs.example/x/dicom-web/studies/")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "pacs.example", ""])  # noqa: S104 - refused
def test_an_address_that_others_reach_is_refused_until_the_risk_is_named(site: Site, host: str) -> None:
    with pytest.raises(Misconfigured, match="SERVE_EVERYONE_WITHOUT_SIGN_IN"):
        site.gateway(host=host)
    check_address(host, GatewaySettings.load(host=host, serve_everyone_without_sign_in=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_served(site: Site, host: str) -> None:
    assert site.gateway(host=host).name == "gateway"


def test_the_gateway_needs_an_index(site: Site) -> None:
    with pytest.raises(Misconfigured):
        build(GatewaySettings.load(), replace(site.ports, index=None))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_GATEWAY_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("ISOCENTER_GATEWAY_TRACE_WINDOW_SECONDS", "60")
    loaded = GatewaySettings.load()
    assert loaded.cors_origins == ("https://a.example", "https://b.example")
    assert loaded.trace_window == timedelta(minutes=1)


async def test_start_says_that_there_is_no_sign_in(site: Site) -> None:
    gateway = site.gateway()
    await gateway.start()
    assert '"event":"gateway.no_sign_in"' in site.log.getvalue()
    assert '"level":"warning"' in site.log.getvalue()
    await gateway.stop()


async def test_health_tells_the_truth(site: Site) -> None:
    gateway = site.gateway()
    assert [("index", True), ("store", True)] == [(check.name, check.ok) for check in await gateway.health()]
    await site.index.close()
    index, store = await gateway.health()
    assert (False, True) == (index.ok, store.ok)
    assert index.detail


@pytest.mark.parametrize(
    "path",
    ["/dicom-web/studies", f"/dicom-web/studies/{STUDY}", f"{INSTANCE}/metadata", f"{INSTANCE}/frames/1"],
)
async def test_an_index_that_is_away_is_503(site: Site, client: httpx.AsyncClient, path: str) -> None:
    await site.keep(*studies(1))
    await site.index.close()
    answer = await client.get(path)
    assert (503, IndexUnavailable.code) == (answer.status_code, answer.json()["title"].replace(" ", "-"))
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", [INSTANCE, f"{INSTANCE}/frames/1", f"{INSTANCE}/bulkdata/7FE00010"])
async def test_a_lost_object_is_an_error_and_never_404(
    site: Site, client: httpx.AsyncClient, path: str
) -> None:
    (record,) = await site.keep(*studies(1))
    await site.store.delete(record.object_key)
    answer = await client.get(path)
    assert (500, "urn:isocenter:problem:integrity") == (answer.status_code, answer.json()["type"])
    assert "request.failed" in site.log.getvalue()
    assert STUDY not in site.log.getvalue()
    assert site.telemetry.metrics.value(Histogram.HTTP_SERVER, status_code="500") == 1


async def test_an_answer_that_breaks_half_way_is_cut_and_not_shortened(site: Site, connect: Connect) -> None:
    first, second = await site.keep(*studies(1, 1, 2))
    await site.store.delete(second.object_key)
    async with connect() as client:
        with pytest.raises(BrokenOff):
            await client.get(f"/dicom-web/studies/{STUDY}")
    assert first.size_bytes < site.telemetry.metrics.value(Counter.GATEWAY_BYTES)
    (span,) = site.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_a_client_that_goes_away_ends_the_work(site: Site) -> None:
    await site.keep(
        *(part10(ct(1, 1, n, PixelData=bytes(3 << 20), Rows=1024, Columns=1536)) for n in range(1, 5))
    )
    sent = 0

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        await asyncio.sleep(0)

    scope = {
        "type": "http", "method": "GET", "path": f"/dicom-web/studies/{STUDY}", "query_string": b"",
        "headers": [(b"host", b"localhost")], "scheme": "http", "server": ("localhost", 80), "root_path": "",
        "http_version": "1.1",
    }  # fmt: skip
    asgi = site.gateway().asgi
    assert asgi is not None
    await asgi(scope, receive, send)
    assert sent < 3 << 20
    assert "retrieve.aborted" in site.log.getvalue()


async def test_a_study_is_streamed_in_pieces_of_bounded_size(site: Site) -> None:
    await site.keep(part10(ct(1, PixelData=bytes(8 << 20), Rows=2048, Columns=2048)))
    context = Context(site.index, Vault(site.store, Unsealed()), site.clock, Limits())
    reply = await retrieve(Request("http://localhost/dicom-web", {"study": STUDY}), context)
    assert not isinstance(reply.body, bytes)
    assert max([len(piece) async for piece in reply.body]) <= 1 << 20


async def settle(site: Site) -> None:
    revision = RestoredRevision(1, SettleReason.QUIET, site.clock.now(), {})
    await site.index.restore_revision(STUDY, revision, settled=True)


async def server_span(site: Site, client: httpx.AsyncClient, path: str, **headers: str) -> ReadableSpan:
    site.spans.clear()
    await client.get(path, headers=headers)
    (span,) = site.spans.get_finished_spans()
    return span


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.trace_id for link in span.links]


async def test_a_retrieval_joins_the_trace_of_a_study_that_settled_lately(
    site: Site, client: httpx.AsyncClient
) -> None:
    (record,) = await site.keep(*studies(1))
    for _ in ("receiving", "settled"):
        span = await server_span(site, client, INSTANCE)
        assert span.kind is SpanKind.SERVER
        assert span.parent is not None
        assert (TRACE_ID, TRACE_ID) == (span.parent.trace_id, span.context.trace_id)
        assert links_of(span) == []
        assert span.attributes is not None
        assert span.attributes["isocenter.study_key"] == record.study_key
        await settle(site)


async def test_later_it_starts_its_own_trace_with_a_link(site: Site, client: httpx.AsyncClient) -> None:
    await site.keep(*studies(1))
    await settle(site)
    site.clock.advance(899)
    assert (await server_span(site, client, INSTANCE)).parent is not None
    site.clock.advance(2)
    span = await server_span(site, client, INSTANCE)
    assert span.parent is None
    assert [TRACE_ID] == links_of(span)


async def test_a_request_keeps_the_trace_it_brings(site: Site, client: httpx.AsyncClient) -> None:
    await site.keep(*studies(1))
    span = await server_span(site, client, INSTANCE, traceparent=OTHER_TRACE)
    assert span.parent is not None
    assert span.parent.trace_id == int("1" * 32, 16)
    assert [TRACE_ID] == links_of(span)
    broken = await server_span(site, client, INSTANCE, traceparent="00-zz")
    assert broken.context.trace_id == TRACE_ID


async def test_a_search_does_not_join(site: Site, client: httpx.AsyncClient) -> None:
    await site.keep(*studies(1))
    for path in ("/dicom-web/studies", f"/dicom-web/studies/{STUDY}/series"):
        span = await server_span(site, client, path)
        assert span.parent is None


async def test_spans_metrics_and_logs_hold_the_route_and_no_patient(
    site: Site, client: httpx.AsyncClient
) -> None:
    await site.keep(*studies(1))
    paths = [
        "/dicom-web/studies?PatientName=Doe^Jane&PatientID=MRN1",
        "/dicom-web/studies?Doe^Jane=1",
        "/dicom-web/studies?StudyDate=MRN1",
        f"/dicom-web/studies/{STUDY}/series",
        INSTANCE,
        f"{INSTANCE}/metadata",
        f"{INSTANCE}/frames/1",
        f"{INSTANCE}/frames/99",
        f"{INSTANCE}/bulkdata/MRN1",
        f"/dicom-web/patients/MRN1/{STUDY}",
    ]
    for path in paths:
        await client.get(path)
    await client.request("MRN1", "/dicom-web/studies")
    spans = "".join(span.to_json() for span in site.spans.get_finished_spans())
    metrics = str(site.telemetry.metrics.collect())
    for text in (spans, metrics, site.log.getvalue()):
        assert "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frames}" in text
        for secret in (STUDY, "MRN1", "Doe", "Jane", "19700101"):
            assert secret not in text


async def test_metrics_count_requests_by_route_and_status_and_bytes(
    site: Site, client: httpx.AsyncClient
) -> None:
    (record,) = await site.keep(*studies(1))
    route = "/dicom-web/studies/{study}/series/{series}/instances/{instance}"
    for _ in range(3):
        await client.get(INSTANCE, headers={"accept": "application/dicom"})
    await client.get(INSTANCE + "9")
    metrics = site.telemetry.metrics
    assert metrics.value(Histogram.HTTP_SERVER, route=route, status_code="200", method="GET") == 3
    assert metrics.value(Histogram.HTTP_SERVER, route=route, status_code="404") == 1
    assert metrics.value(Counter.GATEWAY_BYTES, route=route) >= 3 * record.size_bytes


NAMES = st.sampled_from(
    ["limit", "offset", "includefield", "fuzzymatching", "PatientName", "StudyDate", "StudyTime", "PatientID",
     "StudyInstanceUID", "ModalitiesInStudy", "00100020", "00400275.00400009", "SeriesNumber", "Rows",
     "AcquisitionDateTime", "PixelSpacing", "accept", "IssuerOfPatientID", "InstanceNumber", "PatientAge"]
) | st.text(max_size=12)  # fmt: skip
VALUES = st.text(max_size=30) | st.from_regex(r"[0-9*?.,\\^-]{0,20}", fullmatch=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/studies", "/series", "/instances", f"/studies/{STUDY}/instances"]),
    parameters=st.lists(st.tuples(NAMES, VALUES), max_size=5),
)
async def test_any_query_string_has_a_plain_answer(
    client: httpx.AsyncClient, path: str, parameters: list[tuple[str, str]]
) -> None:
    query = urlencode(parameters, errors="surrogatepass")
    answer = await client.get(f"/dicom-web{path}?{query}")
    assert answer.status_code in {200, 204, 400, 406}
    if answer.status_code == 406:
        assert any(name == "accept" for name, _ in parameters)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(accept=st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=60))
async def test_any_accept_header_has_a_plain_answer(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.get("/dicom-web/studies", headers={"accept": accept})
    assert answer.status_code in {204, 406}
