"""WADO-RS over a real index and real objects (PS3.18 section 10.4)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from isocenter.gateway.testing import Site, ct, part10, studies

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"
INSTANCE = f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"
MULTIPART_DICOM = 'multipart/related; type="application/dicom"'
Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def parts(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Content-Type and bytes of every part, read by the standard library."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    found = message_from_bytes(head + answer.content).get_payload()
    assert isinstance(found, list)
    return [(str(part["Content-Type"]), payload(part)) for part in found if isinstance(part, Message)]


def payload(part: Message) -> bytes:
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    return data


def path_of(dataset: Dataset) -> str:
    return (
        f"/dicom-web/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
        f"/instances/{dataset.SOPInstanceUID}"
    )


def parsed(data: bytes) -> FileDataset:
    """pydicom's reading; its remarks about odd files are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(io.BytesIO(data))


def real_files() -> list[str]:
    """Names of pydicom's files that ingest would take: Part 10 with the four UIDs."""
    found = []
    for path in sorted(Path(str(get_testdata_file("CT_small.dcm"))).parent.glob("*.dcm")):
        try:
            dataset = parsed(path.read_bytes())
        except Exception:  # noqa: BLE001, S112 - broken on purpose: ingest's matter
            continue
        uids = [dataset.get(name) for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
        if all(uids) and {"TransferSyntaxUID", "MediaStorageSOPInstanceUID"} <= set(dataset.file_meta.dir()):
            found.append(path.name)
    return found


def read_file(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


@pytest.mark.parametrize(
    ("path", "count"),
    [(f"/dicom-web/studies/{STUDY}", 4), (f"/dicom-web/studies/{STUDY}/series/{SERIES}", 2), (INSTANCE, 1)],
)
@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        MULTIPART_DICOM,
        f"{MULTIPART_DICOM}; transfer-syntax=*",
        f"{MULTIPART_DICOM}; transfer-syntax=1.2.840.10008.1.2.1",
    ],
)
async def test_objects_come_back_byte_for_byte(
    site: Site, client: httpx.AsyncClient, path: str, count: int, accept: str
) -> None:
    await site.keep(*studies(2, 2, 2))
    answer = await client.get(path, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    found = parts(answer)
    assert count == len(found)
    for content_type, data in found:
        assert content_type == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        assert site.sent[str(parsed(data).SOPInstanceUID)] == data
    assert len({str(parsed(data).SOPInstanceUID) for _, data in found}) == count


async def test_one_instance_as_a_single_part(site: Site, client: httpx.AsyncClient) -> None:
    (data,) = studies(1)
    await site.keep(data)
    answer = await client.get(INSTANCE, headers={"accept": "application/dicom"})
    assert (200, data) == (answer.status_code, answer.content)
    assert answer.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert answer.headers["content-length"] == str(len(data))
    head = await client.head(INSTANCE, headers={"accept": "application/dicom"})
    assert (200, b"") == (head.status_code, head.content)
    assert head.headers["content-length"] == str(len(data))


@pytest.mark.parametrize("accept", ["application/dicom", MULTIPART_DICOM])
async def test_validators_of_an_instance(site: Site, client: httpx.AsyncClient, accept: str) -> None:
    (record,) = await site.keep(*studies(1))
    first = await client.get(INSTANCE, headers={"accept": accept})
    assert record.content_digest in first.headers["etag"]
    assert first.headers["last-modified"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    for tag in (first.headers["etag"], f'"x", {first.headers["etag"]}', "*"):
        again = await client.get(INSTANCE, headers={"accept": accept, "if-none-match": tag})
        assert (304, b"") == (again.status_code, again.content)
        assert again.headers["etag"] == first.headers["etag"]
    other = await client.get(INSTANCE, headers={"accept": accept, "if-none-match": '"x"'})
    assert other.status_code == 200


async def test_byte_ranges_of_an_instance(site: Site, client: httpx.AsyncClient) -> None:
    (data,) = studies(1)
    await site.keep(data)
    headers = {"accept": "application/dicom", "range": "bytes=100-199"}
    answer = await client.get(INSTANCE, headers=headers)
    assert (206, data[100:200]) == (answer.status_code, answer.content)
    assert answer.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert (await client.get(INSTANCE, headers=headers | {"range": "bytes=99999-"})).status_code == 416
    stale = await client.get(INSTANCE, headers=headers | {"if-range": '"other"'})
    assert (200, data) == (stale.status_code, stale.content)
    fresh = await client.get(INSTANCE, headers=headers | {"if-range": answer.headers["etag"]})
    assert fresh.status_code == 206


async def test_a_transfer_syntax_that_is_not_held_is_406_and_says_what_is(
    site: Site, client: httpx.AsyncClient
) -> None:
    await site.keep(*studies(1))
    wanted = f"{MULTIPART_DICOM}; transfer-syntax={JPEGBaseline8Bit}"
    for path in (INSTANCE, f"/dicom-web/studies/{STUDY}"):
        answer = await client.get(path, headers={"accept": wanted})
        assert answer.status_code == 406
        assert "1.2.840.10008.1.2.1" in answer.json()["detail"]


async def test_a_study_held_in_part_in_the_wanted_syntax_is_206_and_says_so(
    site: Site, client: httpx.AsyncClient
) -> None:
    encapsulated = ct(1, 1, 2, PixelData=encapsulate([b"\xff\xd8one\xff\xd9"]))
    encapsulated["PixelData"].VR = "OB"
    encapsulated["PixelData"].is_undefined_length = True
    plain = part10(ct(1, 1, 1))
    await site.keep(plain, part10(encapsulated, JPEGBaseline8Bit))
    wanted = f"{MULTIPART_DICOM}; transfer-syntax=1.2.840.10008.1.2.1"
    answer = await client.get(f"/dicom-web/studies/{STUDY}", headers={"accept": wanted})
    assert answer.status_code == 206
    assert "1 instances are held in other transfer syntaxes" in answer.headers["warning"]
    assert [plain] == [data for _, data in parts(answer)]


@pytest.mark.parametrize("suffix", ["", "/metadata", "/frames/1", "/bulkdata/7FE00010"])
async def test_what_is_unknown_is_404(site: Site, client: httpx.AsyncClient, suffix: str) -> None:
    await site.keep(*studies(1))
    for path in (
        "/dicom-web/studies/1.9",
        f"/dicom-web/studies/{STUDY}/series/1.9",
        f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/1.9",
        f"/dicom-web/studies/1.9/series/{SERIES}/instances/{SERIES}.1",
        f"/dicom-web/studies/{STUDY}/series/1.9/instances/{SERIES}.1",
    ):
        answer = await client.get(path + suffix)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["studies/x", "studies/1.02", "studies/1.2/series/a", "studies/1.2/series/1.3/instances/%00"]
)
@pytest.mark.parametrize("suffix", ["", "/metadata"])
async def test_what_is_no_uid_is_400(client: httpx.AsyncClient, path: str, suffix: str) -> None:
    assert (await client.get(f"/dicom-web/{path}{suffix}")).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        f"/dicom-web/studies/{STUDY}",
        f"/dicom-web/studies/{STUDY}/series/{SERIES}",
        INSTANCE,
        f"{INSTANCE}/frames/1",
    ],
)
@pytest.mark.parametrize("resource", ["rendered", "thumbnail"])
async def test_rendered_resources_are_not_in_this_release(
    client: httpx.AsyncClient, path: str, resource: str
) -> None:
    answer = await client.get(f"{path}/{resource}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:isocenter:problem:not-in-this-release"


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for path in ("/", "/dicom-web", "/dicom-web/patients", "/dicom-web/studies/", f"{INSTANCE}/bulkdata"):
        answer = await client.get(path)
        assert (404, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    for method in ("POST", "DELETE", "PUT"):
        answer = await client.request(method, "/dicom-web/studies")
        assert (405, "GET, HEAD") == (answer.status_code, answer.headers["allow"])


@pytest.mark.parametrize(
    ("path", "count"),
    [(f"/dicom-web/studies/{STUDY}", 4), (f"/dicom-web/studies/{STUDY}/series/{SERIES}", 2), (INSTANCE, 1)],
)
async def test_metadata_at_every_level(site: Site, client: httpx.AsyncClient, path: str, count: int) -> None:
    await site.keep(*studies(2, 2, 2))
    answer = await client.get(f"{path}/metadata", headers={"accept": "application/dicom+json"})
    assert (200, "application/dicom+json") == (answer.status_code, answer.headers["content-type"])
    documents = answer.json()
    assert count == len(documents)
    for document in documents:
        dataset = Dataset.from_json(document, lambda _tag, _vr, _uri: b"")
        original = dcmread(io.BytesIO(site.sent[str(dataset.SOPInstanceUID)]))
        assert original.PatientName == dataset.PatientName
        assert list(document) == sorted(document)
        uri = document["7FE00010"]["BulkDataURI"]
        assert uri == f"http://localhost{path_of(original)}/bulkdata/7FE00010"
        bulk = await client.get(uri)
        assert original.PixelData == bulk.content


async def test_metadata_in_xml(site: Site, client: httpx.AsyncClient) -> None:
    await site.keep(*studies(1, 1, 2))
    wanted = 'multipart/related; type="application/dicom+xml"'
    answer = await client.get(f"/dicom-web/studies/{STUDY}/metadata", headers={"accept": wanted})
    found = parts(answer)
    assert ["application/dicom+xml"] * 2 == [content_type for content_type, _ in found]
    assert all(b'keyword="PatientName"' in data and b"<BulkData uri=" in data for _, data in found)
    assert (await client.get(f"{INSTANCE}/metadata", headers={"accept": "image/png"})).status_code == 406


async def test_bulk_data_by_range_nested_and_as_multipart(site: Site, client: httpx.AsyncClient) -> None:
    item = Dataset()
    item.add_new(0x00091001, "OB", bytes(range(256)) * 8)
    item.add_new(0x00090010, "LO", "ACME")
    dataset = ct(1, RequestAttributesSequence=[Dataset(), item])
    await site.keep(part10(dataset))
    value = item[0x00091001].value
    document = (await client.get(f"{INSTANCE}/metadata")).json()[0]
    uri = document["00400275"]["Value"][1]["00091001"]["BulkDataURI"]
    plain = await client.get(uri, headers={"accept": "application/octet-stream"})
    assert (200, value) == (plain.status_code, plain.content)
    assert plain.headers["content-type"].startswith("application/octet-stream")
    part = await client.get(uri, headers={"range": "bytes=10-19"})
    assert (206, value[10:20]) == (part.status_code, part.content)
    assert part.headers["content-range"] == f"bytes 10-19/{len(value)}"
    past = await client.get(uri, headers={"range": f"bytes={len(value)}-"})
    assert (416, f"bytes */{len(value)}") == (past.status_code, past.headers["content-range"])
    wrapped = await client.get(uri, headers={"accept": 'multipart/related; type="*/*"'})
    assert [value] == [data for _, data in parts(wrapped)]
    assert (await client.get(uri + "9")).status_code == 404
    assert (await client.get(uri, headers={"accept": "image/png"})).status_code == 406


async def test_frames_of_a_native_multi_frame_image(site: Site, client: httpx.AsyncClient) -> None:
    dataset = ct(1, NumberOfFrames=3, PixelData=b"".join(bytes([n]) * 256 for n in (1, 2, 3)))
    await site.keep(part10(dataset))
    for wanted in (
        'multipart/related; type="application/octet-stream"; transfer-syntax="*"',
        'multipart/related; type="*/*"',
        "*/*",
    ):
        answer = await client.get(f"{INSTANCE}/frames/3,1", headers={"accept": wanted})
        assert answer.status_code == 200
        assert [
            ("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", bytes([n]) * 256)
            for n in (3, 1)
        ] == parts(answer)
    single = await client.get(f"{INSTANCE}/frames/2", headers={"accept": "application/octet-stream"})
    assert (bytes([2]) * 256, "256") == (single.content, single.headers["content-length"])
    two = await client.get(f"{INSTANCE}/frames/1,2", headers={"accept": "application/octet-stream"})
    assert two.status_code == 406


@pytest.mark.parametrize(
    ("frames", "status"), [("4", 404), ("1,4", 404), ("0", 400), ("x", 400), ("1,,2", 400), ("-1", 400)]
)
async def test_frame_numbers(site: Site, client: httpx.AsyncClient, frames: str, status: int) -> None:
    await site.keep(part10(ct(1, NumberOfFrames=3, PixelData=bytes(768))))
    assert (await client.get(f"{INSTANCE}/frames/{frames}")).status_code == status


async def test_an_object_without_pixels_has_no_frames(site: Site, client: httpx.AsyncClient) -> None:
    dataset = ct(1)
    del dataset.PixelData
    await site.keep(part10(dataset))
    assert (await client.get(f"{INSTANCE}/frames/1")).status_code == 404


async def test_frames_of_single_bit_images_begin_at_a_byte(site: Site, client: httpx.AsyncClient) -> None:
    packed = (0b1_101010101_010101010 << 1 | 0).to_bytes(3, "little")
    dataset = ct(
        1,
        NumberOfFrames=2,
        Rows=3,
        Columns=3,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelData=packed + b"\0",
    )
    await site.keep(part10(dataset))
    answer = await client.get(f"{INSTANCE}/frames/1,2")
    number = int.from_bytes(packed, "little")
    expected = [(number >> 9 * index & 0x1FF).to_bytes(2, "little") for index in (0, 1)]
    assert expected == [data for _, data in parts(answer)]


async def test_deflated_objects_give_inflated_frames_and_bulk_data(
    site: Site, client: httpx.AsyncClient
) -> None:
    frames = [bytes([n]) * 256 for n in (1, 2, 3)]
    data = part10(ct(1, NumberOfFrames=3, PixelData=b"".join(frames)), DeflatedExplicitVRLittleEndian)
    await site.keep(data)
    answer = await client.get(f"{INSTANCE}/frames/3,1,2")
    assert [
        ("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", frames[n]) for n in (2, 0, 1)
    ] == parts(answer)
    bulk = await client.get(f"{INSTANCE}/bulkdata/7FE00010", headers={"range": "bytes=256-511"})
    assert (206, frames[1]) == (bulk.status_code, bulk.content)
    whole = await client.get(INSTANCE, headers={"accept": "application/dicom"})
    assert data == whole.content


async def test_inflating_is_bounded(site: Site, connect: Connect) -> None:
    await site.keep(part10(ct(1, NumberOfFrames=3, PixelData=bytes(768)), DeflatedExplicitVRLittleEndian))
    async with connect(max_inflated_bytes=500) as client:
        assert (await client.get(f"{INSTANCE}/frames/3")).status_code == 413
        assert (await client.get(f"{INSTANCE}/bulkdata/7FE00010")).status_code == 413


@pytest.mark.parametrize("name", real_files())
async def test_real_files(site: Site, client: httpx.AsyncClient, name: str) -> None:
    """Every readable file of pydicom: the object, its metadata, and its frames as pydicom finds them."""
    data = read_file(name)
    await site.keep(data)
    dataset = parsed(data)
    path = path_of(dataset)
    whole = await client.get(path, headers={"accept": "application/dicom"})
    assert (200, data) == (whole.status_code, whole.content)
    metadata = await client.get(f"{path}/metadata")
    assert metadata.json()[0]["00080018"]["Value"] == [dataset.SOPInstanceUID]
    xml = await client.get(
        f"{path}/metadata", headers={"accept": 'multipart/related; type="application/dicom+xml"'}
    )
    assert xml.status_code == 200
    frames = await client.get(f"{path}/frames/1", headers={"accept": 'multipart/related; type="*/*"'})
    if frames.status_code == 404:
        assert "PixelData" not in dataset or name == "MR_truncated.dcm"
        return
    ((content_type, frame),) = parts(frames)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        count = int(dataset.get("NumberOfFrames", 1))
        assert next(generate_frames(dataset.PixelData, number_of_frames=count)) == frame
        assert syntax in content_type
    else:
        assert dataset.PixelData.startswith(frame)


MEDIA_TYPES: list[tuple[str, str]] = [
    ("SC_rgb_jpeg.dcm", "image/jpeg"),
    ("JPGExtended.dcm", "image/jpeg"),
    ("MR_small_jpeg_ls_lossless.dcm", "image/jls"),
    ("MR_small_jp2klossless.dcm", "image/jp2"),
    ("JPEG2000.dcm", "image/jp2"),
    ("MR_small_RLE.dcm", "image/dicom-rle"),
]


@pytest.mark.parametrize(("name", "media_type"), MEDIA_TYPES)
async def test_encapsulated_frames_come_under_their_own_media_type(
    site: Site, client: httpx.AsyncClient, name: str, media_type: str
) -> None:
    data = read_file(name)
    (record,) = await site.keep(data)
    dataset = parsed(data)
    expected = next(generate_frames(dataset.PixelData, number_of_frames=1))
    typed = f"{media_type}; transfer-syntax={record.transfer_syntax_uid}"
    path = f"{path_of(dataset)}/frames/1"
    for wanted in (
        'multipart/related; type="application/octet-stream"; transfer-syntax="*"',
        'multipart/related; type="*/*"',
        f'multipart/related; type="{media_type}"',
        f'multipart/related; type="{media_type}"; transfer-syntax={record.transfer_syntax_uid}',
    ):
        answer = await client.get(path, headers={"accept": wanted})
        assert answer.status_code == 200
        assert [(typed, expected)] == parts(answer)
        assert f'type="{media_type}"' in answer.headers["content-type"]
    single = await client.get(path, headers={"accept": media_type})
    assert (typed, expected) == (single.headers["content-type"], single.content)
    refused = await client.get(path, headers={"accept": 'multipart/related; type="application/octet-stream"'})
    assert refused.status_code == 406
    bulk = await client.get(f"{path_of(dataset)}/bulkdata/7FE00010")
    assert [(typed, expected)] == parts(bulk)


async def test_an_ecg_viewer_gets_its_waveform_as_one_part(site: Site, client: httpx.AsyncClient) -> None:
    data = read_file("waveform_ecg.dcm")
    await site.keep(data)
    dataset = parsed(data)
    document: dict[str, Any] = (await client.get(f"{path_of(dataset)}/metadata")).json()[0]
    item = document["54000100"]["Value"][0]["54001010"]
    answer = await client.get(item["BulkDataURI"], headers={"accept": "application/octet-stream"})
    assert dataset.WaveformSequence[0].WaveformData == answer.content
