"""STOW-RS through the ASGI routes, over a real object store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydicom.uid import generate_uid

from isocenter.common.errors import RejectReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

BOUNDARY = "----boundary.of+this/test"
MULTIPART = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'


def multipart(*files: bytes, content_type: str = "application/dicom") -> bytes:
    parts = [f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode() + file for file in files]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


@pytest.fixture
async def client(service: IngestService) -> AsyncIterator[httpx.AsyncClient]:
    assert service.asgi is not None
    transport = httpx.ASGITransport(app=service.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://pacs.example") as client:
        yield client


async def post(client: httpx.AsyncClient, body: bytes, path: str = "", **headers: str) -> httpx.Response:
    fields = {"Content-Type": MULTIPART, "Accept": "application/dicom+json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return await client.post(f"/dicom-web/studies{path}", content=body, headers=fields)


def items(response: httpx.Response, tag: str) -> list[dict[str, Any]]:
    return list(response.json().get(tag, {}).get("Value", []))


async def test_all_instances_of_a_request_are_kept_as_they_came(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    study = generate_uid()
    files = [dicom.file(dicom.instance(study=study, pixels=size)) for size in (64, 300_000, 2_500_000)]

    response = await post(client, multipart(*files))

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    assert sorted(files) == sorted((await world.objects()).values())
    assert len(items(response, "00081199")) == 3
    assert response.json()["00081190"]["Value"] == [f"http://pacs.example/dicom-web/studies/{study}"]
    assert sum(len(event.instances) for event in world.bus.stored) == 3
    [closed] = world.bus.closed
    assert (closed.instances, closed.aborted) == (3, False)


async def test_one_instance_without_multipart_is_taken(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    file = dicom.file(dicom.instance())
    response = await post(client, file, Content_Type="application/dicom")
    assert response.status_code == 200
    assert [file] == list((await world.objects()).values())


async def test_some_refused_is_202_and_says_which_and_why(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    good = dicom.instance()
    mismatched = dicom.instance(sop="1.2.3.4")
    # The first place where the UID stands is the file meta information.
    file = dicom.file(mismatched).replace(b"1.2.3.4\0", b"1.2.3.5\0", 1)

    response = await post(client, multipart(dicom.file(good), file, b"no DICOM at all"))

    assert response.status_code == 202
    [kept] = items(response, "00081199")
    assert kept["00081155"]["Value"] == [good.SOPInstanceUID]
    [failed] = items(response, "00081198")
    assert failed["00081155"]["Value"] == [mismatched.SOPInstanceUID]
    assert failed["00081197"] == {"vr": "US", "Value": [0xA900]}
    [other] = items(response, "0008119A")
    assert other == {"00081197": {"vr": "US", "Value": [0xC000]}}
    assert {event.reason for event in world.bus.rejected} == {
        RejectReason.SOP_MISMATCH,
        RejectReason.NOT_DICOM,
    }


async def test_none_stored_is_409(client: httpx.AsyncClient, world: World) -> None:
    response = await post(client, multipart(b"no DICOM at all"))
    assert response.status_code == 409
    assert await world.objects() == {}


async def test_an_instance_of_another_study_is_refused(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    study = generate_uid()
    files = dicom.file(dicom.instance(study=study)), dicom.file(dicom.instance())
    response = await post(client, multipart(*files), f"/{study}")
    assert response.status_code == 202
    [failed] = items(response, "00081198")
    assert failed["00081197"]["Value"] == [0xA901]
    assert [event.reason for event in world.bus.rejected] == [RejectReason.STUDY_MISMATCH]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (multipart(), {}, 400),
        (b"no boundary here", {}, 400),
        (b"x", {"Content_Type": "multipart/related"}, 400),
        (b"x", {"Content_Type": "multipart/related; boundary=" + "x" * 201}, 400),
        (b"x", {"Content_Type": "text/plain"}, 415),
        (b"x", {"Content_Type": 'multipart/related; type="application/dicom+xml"; boundary=x'}, 415),
        (b"x", {"Content_Encoding": "gzip"}, 415),
        (b"x", {"Accept": "application/dicom+xml"}, 406),
        (b"x", {"Accept": "application/dicom+json;q=0, application/dicom+xml"}, 406),
    ],
)
async def test_a_request_that_cannot_be_read_is_a_problem_document(
    client: httpx.AsyncClient, world: World, body: bytes, headers: dict[str, str], status: int
) -> None:
    response = await post(client, body, **headers)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert await world.objects() == {}


async def test_a_path_that_is_no_uid_is_refused(client: httpx.AsyncClient) -> None:
    assert (await post(client, multipart(b"x"), "/../../etc")).status_code in {400, 404, 405}
    assert (await post(client, multipart(b"x"), "/1.02.3")).status_code == 400


async def test_a_body_that_ends_early_keeps_what_was_complete(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    whole, half = (dicom.file(dicom.instance(pixels=100_000)) for _ in range(2))
    body = multipart(whole, half)[: len(whole) + 50_000]

    response = await post(client, body)

    assert response.status_code == 400
    assert [whole] == list((await world.objects()).values())
    assert [event.aborted for event in world.bus.closed] == [True]
    assert world.staged() == []


async def test_a_client_that_goes_away_leaves_what_was_complete(
    service: IngestService, world: World, dicom: Dicom
) -> None:
    whole, half = (dicom.file(dicom.instance(pixels=100_000)) for _ in range(2))
    body = multipart(whole, half)[: len(whole) + 50_000]
    messages: Iterator[dict[str, Any]] = iter(
        [
            {"type": "http.request", "body": body[:70_000], "more_body": True},
            {"type": "http.request", "body": body[70_000:], "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/dicom-web/studies",
        "raw_path": b"/dicom-web/studies",
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "server": ("pacs.example", 80),
        "headers": [(b"content-type", MULTIPART.encode()), (b"host", b"pacs.example")],
    }
    assert service.asgi is not None
    await service.asgi(scope, receive, send)

    assert [whole] == list((await world.objects()).values())
    assert [(event.instances, event.aborted) for event in world.bus.closed] == [(1, True)]
    assert world.staged() == []


async def test_a_bus_that_is_down_is_503_with_a_time_to_retry(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    world.bus.fail = lambda _: True
    response = await post(client, multipart(dicom.file(dicom.instance())))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_same_instance_over_stow_and_again_is_one_object_and_one_fact(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    file = dicom.file(dicom.instance())
    for _ in range(2):
        assert (await post(client, multipart(file))).status_code == 200
        world.clock.advance(60)
    assert len(await world.objects()) == 1
    first, second = world.bus.stored
    assert first.instances == second.instances
    assert first.transfer_id != second.transfer_id


async def test_no_uid_of_the_patient_leaves_in_events_or_keys(
    client: httpx.AsyncClient, world: World, dicom: Dicom
) -> None:
    instance = dicom.instance()
    await post(client, multipart(dicom.file(instance), dicom.file(dicom.instance(sop="1.2.3")) + b"x"))
    told = json.dumps([event.model_dump(mode="json") for event in world.bus.events])
    told += json.dumps([(i.key, dict(i.metadata)) async for i in world.store.list()])
    for secret in (
        instance.StudyInstanceUID,
        instance.SeriesInstanceUID,
        instance.SOPInstanceUID,
        "DOE",
    ):
        assert secret not in told
