"""A running ingest over a real object store and a fake bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pynetdicom import _config

from isocenter.common.clock import ManualClock
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.ingest.app import IngestService
from isocenter.ingest.testing import Dicom, FakeBus, Scu, World, make_ports


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = LocalObjectStore(tmp_path / "objects")
    bus, clock, keys = FakeBus(), ManualClock(), SiteKeys(bytes(32))
    yield World(bus, clock, store, keys, make_ports(store, bus, keys, clock), tmp_path / "objects")
    await store.close()


@pytest.fixture
def dicom() -> Dicom:
    return Dicom()


@pytest.fixture
def scu() -> Iterator[type[Scu]]:
    before = _config.STORE_SEND_CHUNKED_DATASET
    _config.STORE_SEND_CHUNKED_DATASET = True
    yield Scu
    _config.STORE_SEND_CHUNKED_DATASET = before


@pytest.fixture
async def service(world: World) -> AsyncIterator[IngestService]:
    """Started, on a free port."""
    service = world.service()
    await service.start()
    yield service
    await service.stop()
