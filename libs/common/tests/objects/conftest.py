"""Stores of every kind, one bucket or directory for each test. The S3 server is one for the whole run."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.objects.s3 import S3Limits, S3ObjectStore, ensure_bucket
from isocenter.common.settings import S3Settings

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway

KINDS = ("local", "s3-plain", "s3-lock")

FAST = S3Limits(request=10.0, retry=5.0, beat=0.1, silent=2.0)
"""Limits of the tests: a process counts as gone after two seconds (the server's clock counts whole ones)."""

Opener = Callable[..., Awaitable[ObjectStore]]


def settings_of(server: RadosGateway, **more: object) -> S3Settings:
    own = {
        "endpoint": server.endpoint,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "bucket": f"test-{secrets.token_hex(6)}",
    }
    return S3Settings.load(**(own | more))


@pytest.fixture
def bucket(request: pytest.FixtureRequest, s3_server: RadosGateway, tmp_path: Path) -> S3Settings:
    """A new bucket; with Object Lock where the test's parameter says so."""
    settings = settings_of(s3_server, scratch_dir=tmp_path)
    ensure_bucket(settings, object_lock=getattr(request, "param", "s3-plain") == "s3-lock")
    return settings


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def opener(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens stores on the same directory or bucket, as several processes would."""
    settings = None
    if kind != "local":
        settings = settings_of(request.getfixturevalue("s3_server"), scratch_dir=tmp_path)
        ensure_bucket(settings, object_lock=kind == "s3-lock")
    async with AsyncExitStack() as stack:

        async def make(limits: S3Limits = FAST) -> ObjectStore:
            store: ObjectStore
            if settings is None:
                store = LocalObjectStore(tmp_path / "store")
            else:
                store = await S3ObjectStore.open(settings, limits=limits)
            stack.push_async_callback(store.close)
            return store

        yield make


@pytest.fixture
async def store(opener: Opener) -> ObjectStore:
    return await opener()
