"""Storage commitment over HTTP (PS3.18 chapter 13): `/dicom-web/commitment-requests/{transaction}`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import httpx
import pytest
from pydicom.uid import CTImageStorage, MRImageStorage

from isocenter.common.clock import SystemClock
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.ingest.app import build
from isocenter.ingest.commitment import routes, worker
from isocenter.ingest.commitment.domain import FailureReason
from isocenter.ingest.commitment.testing import index_everything
from isocenter.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.common.index.commitments import Located
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World

JSON, XML = "application/dicom+json", "application/dicom+xml"
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
CT, MR = str(CTImageStorage), str(MRImageStorage)
REFERENCED, FAILED, BY_STUDY, FAILED_BY_STUDY = "00081199", "00081198", "00081110", "0008119B"
SOP_CLASS, SOP_INSTANCE, REASON = "00081150", "00081155", "00081197"
GONE, DAMAGED = FailureReason.NO_SUCH_OBJECT_INSTANCE, FailureReason.PROCESSING_FAILURE

Start = Callable[..., Awaitable["IngestService"]]


@dataclass
class Site:
    world: World
    index: SqliteIndex
    start: Start
    stored: list[tuple[str, str]]
    client: httpx.AsyncClient

    async def post(self, transaction: str, body: Any, **fields: str) -> httpx.Response:
        headers = {"Content-Type": JSON, "Accept": JSON} | {k.replace("_", "-"): v for k, v in fields.items()}
        path = f"/dicom-web/commitment-requests/{transaction}"
        if isinstance(body, bytes):
            return await self.client.post(path, content=body, headers=headers)
        return await self.client.post(path, json=body, headers=headers)

    async def get(self, transaction: str, accept: str = JSON) -> httpx.Response:
        path = f"/dicom-web/commitment-requests/{transaction}"
        return await self.client.get(path, headers={"Accept": accept})

    async def answer(self, transaction: str) -> httpx.Response:
        """Asked for until it is there."""
        async with asyncio.timeout(20):
            while (response := await self.get(transaction)).status_code == 202:  # noqa: ASYNC110 - as clients do
                await asyncio.sleep(0.05)
        return response

    async def located(self, number: int) -> Located:
        (found,) = await self.index.locate([self.stored[number][1]])
        return found


def client_of(service: IngestService) -> httpx.AsyncClient:
    assert service.asgi is not None
    transport = httpx.ASGITransport(app=service.asgi)
    return httpx.AsyncClient(transport=transport, base_url="http://pacs.example")


@pytest.fixture
async def site(
    world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    for name in ("POLL_SECONDS", "IDLE_POLL_SECONDS"):
        monkeypatch.setattr(worker, name, 0.05)
    index = await SqliteIndex.open(tmp_path / "index.sqlite")
    ports = replace(world.ports, index=index, clock=SystemClock())
    running: list[IngestService] = []

    async def start(**settings: Any) -> IngestService:
        given = {"dicom_port": 0, "commitment_unknown_seconds": 0.2} | settings
        running.append(build(IngestSettings(**given), ports))
        await running[-1].start()
        return running[-1]

    service = await start()
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(dicom.file(dicom.instance(pixels=64)))
    assert [0, 0, 0] == await scu(service.dicom_port).store(*files)
    stored = await index_everything(index, world.store)
    async with client_of(service) as client:
        yield Site(world, index, start, stored, client)
    for each in running:
        await each.stop()
    await index.close()


def ui(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}


def sq(*items: dict[str, Any]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": list(items)}


def by_instance(*references: tuple[str, str]) -> dict[str, Any]:
    return {
        REFERENCED: sq(*({SOP_CLASS: ui(kind), SOP_INSTANCE: ui(uid)} for kind, uid in references)),
    }


def of_study(study: str, series: str, sop_class: str, *instances: dict[str, Any]) -> dict[str, Any]:
    by_class = {SOP_CLASS: ui(sop_class), "0008114A": sq(*instances)}
    return {"00081115": sq({"00081112": sq(by_class), "0020000E": ui(series)}), "0020000D": ui(study)}


async def test_what_is_whole_is_committed_in_the_answer_to_the_request(site: Site) -> None:
    response = await site.post("2.25.100", by_instance(*site.stored))

    assert (200, JSON) == (response.status_code, response.headers["content-type"])
    assert by_instance(*site.stored) == response.json()
    again = await site.get("2.25.100")
    assert (200, response.json()) == (again.status_code, again.json())


async def test_each_failure_has_its_reason(site: Site) -> None:
    gone, wrong, whole = site.stored
    await site.world.store.delete((await site.located(0)).object_key)

    response = await site.post("2.25.101", by_instance(gone, (MR, wrong[1]), whole))

    failed = (
        {REASON: {"vr": "US", "Value": [0x0112]}, SOP_CLASS: ui(CT), SOP_INSTANCE: ui(gone[1])},
        {REASON: {"vr": "US", "Value": [0x0119]}, SOP_CLASS: ui(MR), SOP_INSTANCE: ui(wrong[1])},
    )
    assert {**by_instance(whole), FAILED: sq(*failed)} == response.json()


async def test_by_study_an_instance_counts_only_where_it_is(site: Site) -> None:
    here, there = await site.located(0), await site.located(1)
    series = "1.2.3.4"
    asked = of_study(
        here.study_instance_uid,
        series,
        CT,
        {SOP_INSTANCE: ui(here.sop_instance_uid)},
        {SOP_INSTANCE: ui(there.sop_instance_uid)},
    )

    response = await site.post("2.25.102", {BY_STUDY: sq(asked)})

    kept = of_study(here.study_instance_uid, series, CT, {SOP_INSTANCE: ui(here.sop_instance_uid)})
    missing = {REASON: {"vr": "US", "Value": [0x0112]}, SOP_INSTANCE: ui(there.sop_instance_uid)}
    lost = of_study(here.study_instance_uid, series, CT, missing)
    assert {BY_STUDY: sq(kept), FAILED_BY_STUDY: sq(lost)} == response.json()


async def test_xml_says_the_same(site: Site) -> None:
    await site.world.store.delete((await site.located(0)).object_key)
    items = "".join(
        f'<Item number="{number}">'
        f'<DicomAttribute tag="{SOP_CLASS}" vr="UI" keyword="ReferencedSOPClassUID">'
        f'<Value number="1">{kind}</Value></DicomAttribute>'
        f'<DicomAttribute tag="{SOP_INSTANCE}" vr="UI" keyword="ReferencedSOPInstanceUID">'
        f'<Value number="1">{uid}</Value></DicomAttribute></Item>'
        for number, (kind, uid) in enumerate(site.stored, 1)
    )
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<NativeDicomModel xmlns="{NATIVE[1:-1]}">'
        f'<DicomAttribute tag="{REFERENCED}" vr="SQ" keyword="ReferencedSOPSequence">{items}</DicomAttribute>'
        "</NativeDicomModel>"
    )

    response = await site.post("2.25.103", body.encode(), Content_Type=XML, Accept=XML)

    assert (200, XML) == (response.status_code, response.headers["content-type"])
    document = ET.fromstring(response.content)  # noqa: S314 - our own answer
    found = {
        sequence.get("tag"): [
            {each.get("tag"): each.findtext(f"{NATIVE}Value") for each in item}
            for item in sequence.iter(f"{NATIVE}Item")
        ]
        for sequence in document
    }
    (gone_class, gone), *whole = site.stored
    assert {
        REFERENCED: [{SOP_CLASS: kind, SOP_INSTANCE: uid} for kind, uid in whole],
        FAILED: [{REASON: str(0x0112), SOP_CLASS: gone_class, SOP_INSTANCE: gone}],
    } == found


async def test_what_takes_long_is_asked_for_and_a_restart_forgets_nothing(
    site: Site, dicom: Dicom, scu: type[Scu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that the index does not know yet."""
    monkeypatch.setattr(routes, "SYNCHRONOUS_SECONDS", 0.1)
    patient = await site.start(commitment_unknown_seconds=60)
    late = dicom.instance()
    path = tmp_path / "late.dcm"
    path.write_bytes(dicom.file(late))
    assert [0] == await scu(patient.dicom_port).store(path)
    reference = (str(late.SOPClassUID), str(late.SOPInstanceUID))
    async with client_of(patient) as client:
        first = await replace(site, client=client).post("2.25.104", by_instance(reference))
        pending = await replace(site, client=client).get("2.25.104")
    assert {(202, b"")} == {(each.status_code, each.content) for each in (first, pending)}
    assert all(int(each.headers["retry-after"]) > 0 for each in (first, pending))
    await patient.stop()

    await index_everything(site.index, site.world.store)
    async with client_of(await site.start()) as client:
        answer = await replace(site, client=client).answer("2.25.104")

    assert (200, by_instance(reference)) == (answer.status_code, answer.json())


async def test_a_transaction_is_used_once(site: Site) -> None:
    assert 200 == (await site.post("2.25.105", by_instance(*site.stored))).status_code
    again = await site.post("2.25.105", by_instance(*site.stored))
    assert (409, "application/problem+json") == (again.status_code, again.headers["content-type"])
    assert 404 == (await site.get("2.25.106")).status_code


MANY = b'{"00081199":{"vr":"SQ","Value":[' + b",".join([b"{}"] * 3) + b"]}}"
BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbb">]><NativeDicomModel>&b;</NativeDicomModel>'


@pytest.mark.parametrize(
    ("transaction", "body", "fields", "status"),
    [
        ("1.02.3", by_instance((CT, "1.2.3")), {}, 400),
        ("no-uid", by_instance((CT, "1.2.3")), {}, 400),
        ("2.25.110", b"", {}, 400),
        ("2.25.110", b"[]", {}, 400),
        ("2.25.110", b'{"00081199": 3}', {}, 400),
        ("2.25.110", b'{"00081199": {"Value": [1]}}', {}, 400),
        ("2.25.110", b"[" * 100_000, {}, 400),
        ("2.25.110", {}, {}, 400),
        ("2.25.110", by_instance(), {}, 400),
        ("2.25.110", by_instance((CT, "1.2.3 or so")), {}, 400),
        ("2.25.110", MANY, {}, 400),
        ("2.25.110", BOMB, {"Content_Type": XML}, 400),
        ("2.25.110", b"<NativeDicomModel>", {"Content_Type": XML}, 400),
        ("2.25.110", b"<Other/>", {"Content_Type": XML}, 400),
        ("2.25.110", b"<NativeDicomModel/>", {"Content_Type": XML}, 400),
        ("2.25.110", bytes(17 << 20), {}, 413),
        ("2.25.110", by_instance((CT, "1.2.3")), {"Content_Type": "text/plain"}, 415),
        ("2.25.110", by_instance((CT, "1.2.3")), {"Accept": "text/html"}, 406),
    ],
)
async def test_what_is_no_request_is_refused(
    site: Site, transaction: str, body: Any, fields: dict[str, str], status: int
) -> None:
    response = await site.post(transaction, body, **fields)

    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert [] == await site.index.commitments(10)


async def test_no_more_references_than_are_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isocenter.ingest.commitment.representation.MAX_REFERENCES", 2)
    assert 413 == (await site.post("2.25.111", by_instance(*site.stored))).status_code


async def test_without_the_index_clients_are_told_to_come_again(site: Site) -> None:
    await site.index.close()
    for response in (await site.post("2.25.112", by_instance(*site.stored)), await site.get("2.25.112")):
        assert 503 == response.status_code
        assert int(response.headers["retry-after"]) > 0
