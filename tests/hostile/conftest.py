"""A running ingest for the attacks, looked over after each of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.hostile.site import Serve, Site

from isocenter.common.clock import ManualClock
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.serving import serve_http
from isocenter.ingest.testing import FakeBus, World, make_ports


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(idle_timeout_seconds=1) as site`: with settings of ingest."""

    @contextlib.asynccontextmanager
    async def serving(**settings: object) -> AsyncIterator[Site]:
        root = tmp_path / "site" / "objects"
        store, bus, clock, keys = LocalObjectStore(root), FakeBus(), ManualClock(), SiteKeys(bytes(32))
        world = World(bus, clock, store, keys, make_ports(store, bus, keys, clock), root)
        service = world.service(**settings)
        await service.start()
        try:
            assert service.asgi is not None
            async with serve_http(service.asgi, "127.0.0.1", 0, drain_seconds=2) as port:
                site = Site(service.dicom_port, port, world)
                yield site
                await site.assert_unharmed()
                assert not site.outside()
        finally:
            await service.stop()
            await store.close()
        assert not world.staged()

    return serving


@pytest.fixture
async def site(serve: Serve) -> AsyncIterator[Site]:
    """After the test it must still store, hold what it should, and have written nowhere else."""
    async with serve() as running:
        yield running
