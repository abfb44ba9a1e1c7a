"""QIDO-RS over a real index (PS3.18 section 10.6)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from email import message_from_bytes
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset

from isocenter.gateway.testing import Site, ct, part10, studies

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"
BASE = "http://localhost/dicom-web"
Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

RESOURCES = [
    ("/studies", 2),
    (f"/studies/{STUDY}/series", 2),
    (f"/studies/{STUDY}/instances", 4),
    ("/series", 4),
    (f"/studies/{STUDY}/series/{SERIES}/instances", 2),
    ("/instances", 8),
]


@pytest.fixture
async def filled(site: Site) -> Site:
    """Two studies of two series of two instances."""
    await site.keep(*studies(2, 2, 2))
    return site


def value(result: dict[str, Any], tag: str) -> Any:
    return result[tag]["Value"][0]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/dicom+json"),
        ("application/dicom+json", "application/dicom+json"),
        ("application/json", "application/json"),
        ("*/*", "application/dicom+json"),
    ],
)
@pytest.mark.parametrize(("path", "count"), RESOURCES)
@pytest.mark.usefixtures("filled")
async def test_every_resource_in_json(
    client: httpx.AsyncClient, path: str, count: int, accept: str | None, content_type: str
) -> None:
    answer = await client.get(f"/dicom-web{path}", headers={"accept": accept} if accept else {"accept": ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == content_type
    results = answer.json()
    assert count == len(results)
    for result in results:
        assert list(result) == sorted(result)
        assert value(result, "00080056") == "ONLINE"
        assert value(result, "00080005") == "ISO_IR 192"
        assert value(result, "00081190").startswith(f"{BASE}/studies/{value(result, '0020000D')}")


@pytest.mark.parametrize(("path", "count"), RESOURCES)
@pytest.mark.usefixtures("filled")
async def test_every_resource_in_xml(client: httpx.AsyncClient, path: str, count: int) -> None:
    wanted = 'multipart/related; type="application/dicom+xml"'
    answer = await client.get(f"/dicom-web{path}", headers={"accept": wanted})
    assert answer.status_code == 200
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + answer.content).get_payload()
    assert isinstance(parts, list)
    assert count == len(parts)
    for part in parts:
        assert not isinstance(part, str)
        assert part.get_content_type() == "application/dicom+xml"
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        root = ET.fromstring(payload)  # noqa: S314 - our own output
        assert "StudyInstanceUID" in {element.get("keyword") for element in root}


@pytest.mark.usefixtures("filled")
async def test_retrieve_urls_name_the_level(client: httpx.AsyncClient) -> None:
    (study, *_), (series, *_), (instance, *_) = [
        (await client.get(f"/dicom-web/{path}?StudyInstanceUID={STUDY}")).json()
        for path in ("studies", "series", "instances")
    ]
    assert value(study, "00081190") == f"{BASE}/studies/{STUDY}"
    assert value(series, "00081190") == f"{BASE}/studies/{STUDY}/series/{SERIES}"
    assert value(instance, "00081190") == f"{BASE}/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"


@pytest.mark.usefixtures("filled")
async def test_a_study_has_the_required_attributes_and_counts(client: httpx.AsyncClient) -> None:
    (study,) = (await client.get(f"/dicom-web/studies?StudyInstanceUID={STUDY}")).json()
    required = (
        "00080005 00080020 00080030 00080050 00080056 00080061 00080090 00081190 00100010 00100020 00100030"
        " 00100040 0020000D 00200010 00201206 00201208"
    )
    assert set(required.split()) == set(study)
    assert (2, 4) == (int(value(study, "00201206")), int(value(study, "00201208")))
    assert study["00080061"]["Value"] == ["CT"]


@pytest.mark.usefixtures("filled")
async def test_series_and_instances_have_the_required_attributes(client: httpx.AsyncClient) -> None:
    (series, *_) = (await client.get(f"/dicom-web/studies/{STUDY}/series")).json()
    assert {"00080060", "0008103E", "0020000D", "0020000E", "00200011", "00201209"} <= set(series)
    assert "00100010" not in series
    (instance, *_) = (await client.get(f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances")).json()
    required = "00080016 00080018 0020000D 0020000E 00200013 00280010 00280011 00280100"
    assert set(required.split()) <= set(instance)
    assert (8, 16) == (value(instance, "00280010"), value(instance, "00280011"))
    assert "00080060" not in instance


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("PatientID=MRN1", 1),
        ("00100020=MRN2", 1),
        ("PatientID=MRN*", 2),
        ("PatientID=MRN%3F", 2),
        ("PatientName=*doe*", 2),
        ("PatientName=Doe^Jane", 2),
        ("StudyDate=20030101", 1),
        ("StudyDate=20030101-20031231", 2),
        ("StudyDate=20030102-", 1),
        ("StudyTime=10-11", 2),
        ("StudyTime=1030", 2),
        ("StudyTime=-0959", 0),
        ("ModalitiesInStudy=CT", 2),
        ("ModalitiesInStudy=MR", 0),
        ("ModalitiesInStudy=MR%5CCT", 2),
        (f"StudyInstanceUID={STUDY}", 1),
        (f"StudyInstanceUID={STUDY},1.2.826.0.1.99.2", 2),
        (f"StudyInstanceUID={STUDY}%5C1.2.826.0.1.99.2", 2),
        ("StudyInstanceUID=", 2),
        ("AccessionNumber=A1", 1),
        ("ReferringPhysicianName=Roe^Richard", 2),
        ("PatientID=MRN1&IssuerOfPatientID=local", 1),
        ("PatientID=MRN1&IssuerOfPatientID=other", 0),
    ],
)
async def test_matching(client: httpx.AsyncClient, query: str, count: int) -> None:
    answer = await client.get(f"/dicom-web/studies?{query}")
    assert answer.status_code == (200 if count else 204)
    assert "warning" not in answer.headers
    assert count == len(answer.json() if count else [])
    assert count or answer.content == b""


async def test_sequence_matching_finds_the_requested_procedure(site: Site, client: httpx.AsyncClient) -> None:
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "STEP7", "PROC7"
    await site.keep(part10(ct(1, RequestAttributesSequence=[request])), part10(ct(2)))
    for key in ("RequestAttributesSequence.ScheduledProcedureStepID", "00400275.00400009"):
        (found,) = (await client.get(f"/dicom-web/series?{key}=STEP7")).json()
        assert value(found, "0020000D") == STUDY
    assert (await client.get(f"/dicom-web/series?{key}=STEP8")).status_code == 204


@pytest.mark.usefixtures("filled")
async def test_paging_is_stable_and_says_what_is_left(client: httpx.AsyncClient) -> None:
    seen = []
    for offset in range(8):
        answer = await client.get(f"/dicom-web/instances?limit=1&offset={offset}")
        (result,) = answer.json()
        seen.append(value(result, "00080018"))
        left = 7 - offset
        expected = f"299 {BASE}: There are {left} additional results that can be requested" if left else None
        assert expected == answer.headers.get("warning")
    everything = (await client.get("/dicom-web/instances")).json()
    assert seen == [value(result, "00080018") for result in everything]
    assert (await client.get("/dicom-web/instances?offset=8")).status_code == 204


@pytest.mark.usefixtures("filled")
async def test_a_limit_of_zero_only_counts(client: httpx.AsyncClient) -> None:
    answer = await client.get("/dicom-web/instances?limit=0&offset=3")
    assert answer.status_code == 204
    assert answer.headers["warning"] == f"299 {BASE}: There are 5 additional results that can be requested"


@pytest.mark.usefixtures("filled")
async def test_a_server_side_maximum_is_announced_like_any_limit(connect: Connect) -> None:
    async with connect(default_results=2, max_results=3) as client:
        for query, count in (("", 2), ("?limit=100", 3)):
            answer = await client.get(f"/dicom-web/instances{query}")
            assert count == len(answer.json())
            assert f"There are {8 - count} additional" in answer.headers["warning"]


@pytest.mark.usefixtures("filled")
async def test_includefield_adds_attributes(client: httpx.AsyncClient) -> None:
    plain = (await client.get("/dicom-web/studies")).json()[0]
    for query in ("includefield=StudyDescription", "includefield=00081030,00080060", "includefield=all"):
        with_field = (await client.get(f"/dicom-web/studies?{query}")).json()[0]
        assert value(with_field, "00081030") == "Head"
        assert set(plain) <= set(with_field)
    assert "00081030" not in plain


@pytest.mark.usefixtures("filled")
async def test_warnings_of_what_is_not_supported(client: httpx.AsyncClient) -> None:
    answer = await client.get(
        "/dicom-web/studies?fuzzymatching=true&PixelSpacing=0.5&emptyvaluematching=true&limit=1"
    )
    assert answer.status_code == 200
    warnings = answer.headers.get_list("warning")
    assert len(warnings) == 4
    assert all(text.startswith(f"299 {BASE}: ") for text in warnings)
    assert "fuzzymatching parameter is not supported" in warnings[0]
    assert any("Matching on 00280030 is not supported" in text for text in warnings)
    assert not any("0.5" in text for text in warnings)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=x", "limit"),
        ("offset=-1", "offset"),
        ("NoSuchKey=1", "NoSuchKey"),
        ("StudyDate=Doe", "StudyDate"),
    ],
)
async def test_a_bad_parameter_is_a_problem_that_names_it(
    client: httpx.AsyncClient, query: str, parameter: str
) -> None:
    answer = await client.get(f"/dicom-web/studies?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (400, parameter) == (problem["status"], problem["parameter"])


async def test_bad_uids_in_the_path(client: httpx.AsyncClient) -> None:
    assert (await client.get("/dicom-web/studies/x/series")).status_code == 400
    assert (await client.get("/dicom-web/studies/1.2/series/1.02/instances")).status_code == 400


async def test_nothing_found_has_no_content(client: httpx.AsyncClient) -> None:
    for path, _ in RESOURCES:
        answer = await client.get(f"/dicom-web{path}")
        assert (204, b"") == (answer.status_code, answer.content)


@pytest.mark.parametrize(("path", "count"), RESOURCES)
async def test_unacceptable_representations(client: httpx.AsyncClient, path: str, count: int) -> None:
    answer = await client.get(f"/dicom-web{path}", headers={"accept": "image/png"})
    assert answer.status_code == 406
    assert "application/dicom+json" in answer.json()["detail"]


@pytest.mark.usefixtures("filled")
async def test_the_accept_parameter_outranks_the_header(client: httpx.AsyncClient) -> None:
    answer = await client.get(
        "/dicom-web/studies?accept=application/json", headers={"accept": "application/dicom+json"}
    )
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.usefixtures("filled")
async def test_head_has_the_headers_and_no_body(client: httpx.AsyncClient) -> None:
    got = await client.get("/dicom-web/studies")
    head = await client.head("/dicom-web/studies")
    assert (200, b"") == (head.status_code, head.content)
    assert head.headers["content-length"] == got.headers["content-length"]


# What OHIF 3.13 sends, from its study list, its series panel and its prior search.
OHIF = [
    (
        "studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030",
        2,
    ),
    ("studies?PatientName=*Doe*&limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060", 2),
    ("studies?00100020=*RN1*&limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060", 1),
    ("studies?AccessionNumber=*2*&limit=101&offset=0", 1),
    ("studies?StudyDescription=*Head**&limit=101&offset=0", 2),
    ("studies?ModalitiesInStudy=CT&limit=101&offset=0", 2),
    ("studies?StudyDate=20030101-20031231&limit=101&offset=0", 2),
    ("studies?StudyInstanceUID=&limit=101&offset=0", 2),
    (f"studies/{STUDY}/series?includefield=00080021%2C00080031%2C0008103E%2C00200011", 2),
    ("studies?00100020=MRN1", 1),
]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("request_line", "count"), OHIF)
async def test_requests_of_ohif(client: httpx.AsyncClient, request_line: str, count: int) -> None:
    answer = await client.get(f"/dicom-web/{request_line}", headers={"accept": "application/dicom+json"})
    assert answer.status_code == 200
    assert count == len(answer.json())
    assert "warning" not in answer.headers
