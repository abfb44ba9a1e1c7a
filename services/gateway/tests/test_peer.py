"""A client that nobody here wrote, over a real socket: dicomweb-client against uvicorn."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from isocenter.common.serving import serve_http
from isocenter.gateway.testing import Site, studies

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"
INSTANCE = f"{SERIES}.1"

pytestmark = pytest.mark.peer


@pytest.fixture
async def peer(site: Site) -> AsyncIterator[DICOMwebClient]:
    await site.keep(*studies(2, 2, 2))
    asgi = site.gateway().asgi
    assert asgi is not None
    async with serve_http(asgi, "127.0.0.1", 0, drain_seconds=1) as port:
        client = DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web")
        yield client
        client._session.close()


async def ask(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The client blocks: it runs in a thread."""

    def call() -> Any:
        result = function(*args, **kwargs)
        return list(result) if hasattr(result, "__next__") else result

    return await asyncio.to_thread(call)


def raw(dataset: Dataset) -> bytes:
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


async def test_searches(peer: DICOMwebClient) -> None:
    found = await ask(peer.search_for_studies, search_filters={"PatientID": "MRN1"})
    assert [STUDY] == [study["0020000D"]["Value"][0] for study in found]
    assert await ask(peer.search_for_studies, search_filters={"PatientID": "nobody"}) == []
    assert len(await ask(peer.search_for_series, STUDY)) == 2
    assert len(await ask(peer.search_for_series)) == 4
    assert len(await ask(peer.search_for_instances, STUDY)) == 4
    assert len(await ask(peer.search_for_instances, STUDY, SERIES)) == 2
    assert len(await ask(peer.search_for_instances)) == 8
    paged = partial(peer.search_for_instances, limit=3, get_remaining=True)
    assert len(await ask(paged)) == 8


async def test_whole_objects(site: Site, peer: DICOMwebClient) -> None:
    for found, count in (
        (await ask(peer.retrieve_study, STUDY), 4),
        (await ask(peer.retrieve_series, STUDY, SERIES), 2),
        ([await ask(peer.retrieve_instance, STUDY, SERIES, INSTANCE)], 1),
    ):
        assert count == len(found)
        for dataset in found:
            assert site.sent[str(dataset.SOPInstanceUID)] == raw(dataset)
    streamed = await ask(peer.iter_series, STUDY, SERIES)
    assert len(streamed) == 2


async def test_metadata_frames_and_bulk_data(site: Site, peer: DICOMwebClient) -> None:
    sent = dcmread(io.BytesIO(site.sent[INSTANCE]))
    assert len(await ask(peer.retrieve_study_metadata, STUDY)) == 4
    assert len(await ask(peer.retrieve_series_metadata, STUDY, SERIES)) == 2
    document = await ask(peer.retrieve_instance_metadata, STUDY, SERIES, INSTANCE)
    assert document["00080018"]["Value"] == [INSTANCE]
    (frame,) = await ask(peer.retrieve_instance_frames, STUDY, SERIES, INSTANCE, [1])
    assert sent.PixelData == frame
    (bulk,) = await ask(peer.retrieve_bulkdata, document["7FE00010"]["BulkDataURI"])
    assert sent.PixelData == bulk
    (part,) = await ask(
        peer.retrieve_bulkdata,
        document["7FE00010"]["BulkDataURI"],
        media_types=("application/octet-stream",),
    )
    assert sent.PixelData == part


async def test_frames_of_a_compressed_multi_frame_image(site: Site, peer: DICOMwebClient) -> None:
    with open(str(get_testdata_file("SC_rgb_rle_2frame.dcm")), "rb") as file:  # noqa: ASYNC230, PTH123 - a test
        data = file.read()
    await site.keep(data)
    dataset = dcmread(io.BytesIO(data))
    frames = await ask(
        peer.retrieve_instance_frames,
        dataset.StudyInstanceUID,
        dataset.SeriesInstanceUID,
        dataset.SOPInstanceUID,
        [2, 1],
        media_types=(("image/dicom-rle", "1.2.840.10008.1.2.5"),),
    )
    first, second = generate_frames(dataset.PixelData, number_of_frames=2)
    assert [second, first] == frames
