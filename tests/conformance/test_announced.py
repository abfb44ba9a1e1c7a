"""Announced studies that lie in an Orthanc: over C-MOVE to our DICOM port, C-GET and DICOMweb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks import retrieve
from benchmarks.embedded import free_port
from benchmarks.peers import Orthanc

from isocenter.common.clock import ManualClock
from isocenter.common.events.models import Protocol
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.ingest.pull.domain import PullFailed, PullRefused
from isocenter.ingest.pull.sources import DicomwebSource, DimseSource
from isocenter.ingest.pull.testing import Known, Study, announcement, puller
from isocenter.ingest.testing import Dicom, FakeBus, World, make_ports

pytestmark = pytest.mark.peer

RETRIEVALS = ("move", "get")


@dataclass
class Pacs:
    """An Orthanc that knows our DICOM port, and which port that must be."""

    orthanc: Orthanc
    our_port: int

    def holding(self, study: Study) -> Study:
        for file in study.files.values():
            self.orthanc.upload(file)
        return study

    def dimse(self, retrieve: str, **more: Any) -> DimseSource:
        peer = {"host": "127.0.0.1", "port": self.orthanc.dicom_port, "idle_seconds": 5}
        return DimseSource.model_validate(
            {"kind": "dimse", "name": "pacs", "ref": "dimse://ORTHANC", "retrieve": retrieve, **peer, **more}
        )


@pytest.fixture(scope="module")
def pacs(need: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    need("orthanc")
    need("orthanc-dicomweb")
    port = free_port()
    configuration = {
        "DicomModalities": {
            "isocenter": {"AET": "ISOCENTER", "Host": "127.0.0.1", "Port": port, "AllowGet": True}
        },
        "DicomWeb": {"Enable": True},
        "AuthenticationEnabled": False,
    }
    with Orthanc(tmp_path_factory.mktemp("pacs"), configuration) as orthanc:
        yield Pacs(orthanc, port)


@pytest.fixture
async def world(tmp_path: Path, pacs: Pacs) -> AsyncIterator[World]:
    """A running ingest where the Orthanc expects it."""
    store, bus = LocalObjectStore(tmp_path / "objects"), FakeBus()
    clock, keys = ManualClock(), SiteKeys(bytes(32))
    made = World(bus, clock, store, keys, make_ports(store, bus, keys, clock), tmp_path / "objects")
    service = made.service(dicom_port=pacs.our_port)
    await service.start()
    yield made
    await service.stop()
    await store.close()


async def data_sets(world: World) -> list[bytes]:
    return sorted(retrieve.data_set(each) for each in (await world.objects()).values())


def expected(study: Study) -> list[bytes]:
    return sorted(retrieve.data_set(each) for each in study.files.values())


@pytest.mark.parametrize("way", RETRIEVALS)
async def test_a_study_comes_over_dimse(world: World, pacs: Pacs, way: str) -> None:
    study = pacs.holding(await asyncio.to_thread(Study.make, Dicom(), 6))

    await puller(world, pacs.dimse(way)).study_announced(announcement(study.uid, "dimse://ORTHANC", 6))

    assert expected(study) == await data_sets(world)
    protocol = {"move": Protocol.DIMSE, "get": Protocol.PULL}[way]
    assert {protocol} == {event.protocol for event in world.bus.stored}
    assert 6 == sum(len(event.instances) for event in world.bus.stored)


@pytest.mark.parametrize("way", RETRIEVALS)
async def test_only_what_is_missing_is_asked_for(world: World, pacs: Pacs, way: str) -> None:
    study = pacs.holding(Study.make(Dicom(), 6))
    here = set(sorted(study.files)[:4])

    pulling = puller(world, pacs.dimse(way), known=Known(here))
    await pulling.study_announced(announcement(study.uid, "dimse://ORTHANC", 6))

    wanted = sorted(retrieve.data_set(file) for uid, file in study.files.items() if uid not in here)
    assert wanted == await data_sets(world)


@pytest.mark.parametrize("way", RETRIEVALS)
async def test_fewer_than_announced_is_a_count_mismatch(world: World, pacs: Pacs, way: str) -> None:
    study = pacs.holding(Study.make(Dicom(), 2))

    with pytest.raises(PullFailed, match="count-mismatch"):
        await puller(world, pacs.dimse(way)).study_announced(announcement(study.uid, "dimse://ORTHANC", 3))

    assert expected(study) == await data_sets(world)


async def test_a_study_that_is_not_there(world: World, pacs: Pacs) -> None:
    with pytest.raises(PullFailed, match="study-not-found"):
        await puller(world, pacs.dimse("get")).study_announced(announcement("1.2.3.4", "dimse://ORTHANC", 3))


async def test_a_destination_that_the_peer_does_not_know(world: World, pacs: Pacs) -> None:
    study = pacs.holding(Study.make(Dicom(), 1))
    stranger = pacs.dimse("move", calling_ae_title="STRANGER")

    with pytest.raises(PullFailed) as failed:
        await puller(world, stranger).study_announced(announcement(study.uid, "dimse://ORTHANC", 1))

    assert failed.value.reason_code in {"access-denied", "source-unavailable"}
    assert {} == await world.objects()


async def test_an_instance_larger_than_the_source_may_bring(world: World, pacs: Pacs) -> None:
    study = pacs.holding(Study.make(Dicom(), 1, pixels=3 << 20))
    small = pacs.dimse("get", max_instance_bytes=1 << 20)

    with pytest.raises(PullRefused, match="too-large"):
        await puller(world, small).study_announced(announcement(study.uid, "dimse://ORTHANC", 1))

    assert {} == await world.objects()


# pynetdicom leaves a socket that could not connect to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_peer_that_is_gone(world: World, pacs: Pacs) -> None:
    nobody = pacs.dimse("move", port=free_port())

    with pytest.raises(PullFailed, match="source-unavailable"):
        await puller(world, nobody).study_announced(announcement("1.2.3.4", "dimse://ORTHANC"))


async def test_a_study_comes_over_dicomweb(world: World, pacs: Pacs) -> None:
    study = pacs.holding(Study.make(Dicom(), 6))
    root = f"http://127.0.0.1:{pacs.orthanc.http_port}/dicom-web"
    there = DicomwebSource.model_validate({"kind": "dicomweb", "name": "pacs", "ref": root})

    await puller(world, there).study_announced(announcement(study.uid, root, 6))

    assert expected(study) == await data_sets(world)


async def test_over_dicomweb_only_what_is_missing_comes(world: World, pacs: Pacs) -> None:
    study = pacs.holding(Study.make(Dicom(), 6))
    here = set(sorted(study.files)[:5])
    root = f"http://127.0.0.1:{pacs.orthanc.http_port}/dicom-web"
    there = DicomwebSource.model_validate({"kind": "dicomweb", "name": "pacs", "ref": root})

    await puller(world, there, known=Known(here)).study_announced(announcement(study.uid, root, 6))

    wanted = sorted(retrieve.data_set(file) for uid, file in study.files.items() if uid not in here)
    assert wanted == await data_sets(world)


async def test_a_pull_that_is_stopped_leaves_its_association_at_once(world: World, pacs: Pacs) -> None:
    study = pacs.holding(Study.make(Dicom(), 6))
    pulling = puller(world, pacs.dimse("get", idle_seconds=60))
    world.bus.gate = asyncio.Event()  # no instance is acknowledged, so no next one comes
    running = asyncio.create_task(pulling.study_announced(announcement(study.uid, "dimse://ORTHANC", 6)))
    while world.bus.attempts == 0:  # noqa: ASYNC110 - the bus tells nobody of an attempt
        await asyncio.sleep(0.01)
    pulling.halt()
    world.bus.gate.set()

    with pytest.raises(PullFailed):
        await asyncio.wait_for(running, 10)
    assert [] == world.staged()
