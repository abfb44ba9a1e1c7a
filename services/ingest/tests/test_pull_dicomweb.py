"""Announced studies over DICOMweb: from an honest server, and from servers that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from isocenter.common.events.models import Protocol
from isocenter.ingest.pull.domain import PullFailed, PullRefused
from isocenter.ingest.pull.sources import DicomwebSource, Secret
from isocenter.ingest.pull.testing import (
    BOUNDARY,
    DicomwebServer,
    Known,
    Study,
    announcement,
    multipart,
    puller,
    send,
)
from isocenter.ingest.testing import Dicom, World

RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture
async def server(dicom: Dicom) -> AsyncIterator[DicomwebServer]:
    async with DicomwebServer(Study.make(dicom)).running() as running:
        yield running


def source(server: DicomwebServer, **more: object) -> DicomwebSource:
    return DicomwebSource.model_validate(
        {"kind": "dicomweb", "name": "east", "ref": server.url, "idle_seconds": 5, **more}
    )


async def test_a_study_comes_byte_for_byte_and_is_announced(world: World, server: DicomwebServer) -> None:
    study = server.study

    await puller(world, source(server)).study_announced(announcement(study.uid, server.url, 6))

    assert sorted(study.files.values()) == sorted((await world.objects()).values())
    assert {(Protocol.PULL, "east")} == {(event.protocol, event.sender) for event in world.bus.stored}
    assert [(6, False)] == [(event.instances, event.aborted) for event in world.bus.closed]
    assert [f"/studies/{study.uid}"] == server.requests
    assert "transfer-syntax=*" in server.headers[0]
    assert "gzip" not in server.headers[0]


async def test_the_reference_is_a_name_and_the_endpoint_is_where_it_is(
    world: World, server: DicomwebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAST_PASSWORD", "s3cret")
    there = source(
        server,
        ref="https://pacs.east.example/dicom-web",
        endpoint=server.url,
        username="us",
        password=Secret(env="EAST_PASSWORD"),
    )

    event = announcement(server.study.uid, "https://pacs.east.example/dicom-web/a/b", 6)
    await puller(world, there).study_announced(event)

    assert [f"/a/b/studies/{server.study.uid}"] == server.requests
    assert "authorization: Basic dXM6czNjcmV0" in server.headers[0].replace("Authorization", "authorization")


async def test_what_is_here_is_not_fetched_again(world: World, server: DicomwebServer) -> None:
    study = server.study
    first = next(iter(study.files))
    other_series = {uid for uid in study.files if study.series[uid] != study.series[first]}

    known = Known(other_series | {first})
    await puller(world, source(server), known=known).study_announced(announcement(study.uid, server.url, 6))
    missing = set(study.files) - known.uids
    assert {f"/studies/{study.uid}/series/{study.series[uid]}/instances/{uid}" for uid in missing} == {
        path for path in server.requests if "?" not in path
    }
    assert len(missing) == len(await world.objects())

    server.requests.clear()
    known.uids = set(study.files)
    await puller(world, source(server), known=known).study_announced(announcement(study.uid, server.url, 6))
    assert all("?" in path for path in server.requests)

    server.requests.clear()
    known.uids = other_series
    await puller(world, source(server), known=known).study_announced(announcement(study.uid, server.url, 6))
    assert [f"/studies/{study.uid}/series/{study.series[first]}"] == [
        path for path in server.requests if "?" not in path
    ]


async def test_announced_twice_without_an_index_is_stored_once(world: World, server: DicomwebServer) -> None:
    for _ in range(2):
        await puller(world, source(server)).study_announced(announcement(server.study.uid, server.url, 6))

    assert 6 == len(await world.objects())


async def refusal(world: World, server: DicomwebServer, count: int | None = 6, **more: object) -> str:
    """Kind and reason code of the pull's end."""
    with pytest.raises((PullFailed, PullRefused)) as ended:
        await puller(world, source(server, **more)).study_announced(
            announcement(server.study.uid, server.url, count)
        )
    assert [] == world.staged()
    return f"{type(ended.value).__name__}/{ended.value.reason_code}"


async def test_fewer_than_announced_fails_and_keeps_what_came(world: World, server: DicomwebServer) -> None:
    assert "PullFailed/count-mismatch" == await refusal(world, server, 7)
    assert 6 == len(await world.objects())


async def test_an_instance_of_another_study_is_refused_and_the_others_stay(
    world: World, server: DicomwebServer, dicom: Dicom
) -> None:
    server.study.files["x"] = dicom.file(dicom.instance())
    server.study.series["x"] = "1.2"

    assert "PullRefused/study-mismatch" == await refusal(world, server, None)
    assert 6 == len(await world.objects())
    assert ["study-mismatch"] == [event.reason for event in world.bus.rejected]


async def test_a_redirect_is_not_followed(world: World, server: DicomwebServer, dicom: Dicom) -> None:
    async with DicomwebServer(server.study).running() as inner:

        async def redirect(_: str, writer: asyncio.StreamWriter) -> None:
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {inner.url}\r\n\r\n".encode())

        server.answer = redirect

        assert "PullRefused/redirected" == await refusal(world, server)
        assert [] == inner.requests


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        ("500 Oops", "PullFailed/source-unavailable"),
        ("404 No", "PullFailed/study-not-found"),
        ("401 No", "PullFailed/access-denied"),
        ("206 Partial", "PullFailed/source-unavailable"),
    ],
)
async def test_a_status_is_a_reason(world: World, server: DicomwebServer, status: str, ending: str) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        send(writer, b"<html>", "text/html", status)

    server.answer = answer

    assert ending == await refusal(world, server)


async def test_a_login_page_is_no_study(world: World, server: DicomwebServer) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        send(writer, b"<html>", "text/html")

    server.answer = answer

    assert "PullRefused/malformed-answer" == await refusal(world, server)


async def test_a_body_that_breaks_off_keeps_whole_instances_and_goes_on_later(
    world: World, server: DicomwebServer
) -> None:
    body = multipart(server.study.files.values())

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        if "/instances" in path:
            await server.honest(path, writer)
        else:
            send(writer, body[: len(body) // 2], RELATED, length=len(body))

    server.answer = answer
    assert "PullFailed/source-unavailable" == await refusal(world, server)
    kept = await world.objects()
    assert 2 <= len(kept) < 6
    here = {uid for uid, data in server.study.files.items() if data in kept.values()}

    server.answer, server.requests = None, []
    await puller(world, source(server), known=Known(here)).study_announced(
        announcement(server.study.uid, server.url, 6)
    )
    assert sorted(server.study.files.values()) == sorted((await world.objects()).values())
    assert f"/studies/{server.study.uid}" not in server.requests


async def test_a_chunked_body_without_its_last_boundary_is_not_believed(
    world: World, server: DicomwebServer
) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        body = multipart(server.study.files.values()).removesuffix(b"--\r\n")
        send(writer, body, RELATED)

    server.answer = answer

    assert "PullFailed/source-unavailable" == await refusal(world, server)


async def test_an_endless_body_ends_at_the_limit_of_the_source(world: World, server: DicomwebServer) -> None:
    first = next(iter(server.study.files.values()))

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {RELATED}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + b"--%s\r\n\r\n%s" % (BOUNDARY.encode(), first))
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    server.answer = answer

    assert "PullRefused/too-large" == await refusal(world, server, max_bytes=8 << 20)
    assert {} == await world.objects()


async def test_more_instances_than_the_source_may_bring(world: World, server: DicomwebServer) -> None:
    assert "PullRefused/too-large" == await refusal(world, server, max_instances=4)


async def test_a_source_that_says_nothing_is_given_up_for_now(world: World, server: DicomwebServer) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        body = multipart(server.study.files.values())
        send(writer, body[:5000], RELATED, length=len(body))
        await writer.drain()
        await asyncio.sleep(30)

    server.answer = answer

    assert "PullFailed/too-slow" == await refusal(world, server, idle_seconds=0.2)


async def test_one_that_drips_is_given_up_at_the_limit(world: World, server: DicomwebServer) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        send(writer, b"", RELATED, length=1 << 20)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    server.answer = answer

    with pytest.raises(PullFailed, match="too-slow"):
        await puller(world, source(server), limit=0.5).study_announced(
            announcement(server.study.uid, server.url)
        )


async def test_a_listing_full_of_paths_makes_no_request_of_them(world: World, server: DicomwebServer) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        if "?" in path:
            listing = server.listing().replace(b'"Value": ["', b'"Value": ["../../admin/')
            send(writer, listing, "application/dicom+json")
        else:
            await server.honest(path, writer)

    server.answer = answer

    known = Known(["1.2.3"])
    await puller(world, source(server), known=known).study_announced(
        announcement(server.study.uid, server.url, 6)
    )

    assert all("admin" not in path for path in server.requests)
    assert 6 == len(await world.objects())


async def test_a_stop_breaks_the_pull_off_and_leaves_nothing_half(
    world: World, server: DicomwebServer
) -> None:
    began = asyncio.Event()

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        body = multipart(server.study.files.values())
        send(writer, body[: len(body) // 2], RELATED, length=len(body))
        await writer.drain()
        began.set()
        await asyncio.sleep(30)

    server.answer = answer
    pulling = puller(world, source(server))
    running = asyncio.create_task(pulling.study_announced(announcement(server.study.uid, server.url)))
    await began.wait()
    pulling.halt()

    with pytest.raises(PullFailed):
        await asyncio.wait_for(running, 5)
    assert [] == world.staged()


async def test_a_store_that_is_full_is_our_fault_and_tried_again(
    world: World, server: DicomwebServer
) -> None:
    world.bus.fail = lambda _: True

    assert "PullFailed/store-unavailable" == await refusal(world, server)
