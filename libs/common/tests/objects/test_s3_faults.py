"""The S3 store when the server dies, stalls or is full."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isocenter.common.errors import NotFound, StoreFull, StoreUnavailable
from isocenter.common.objects.s3 import S3Limits, S3ObjectStore, ensure_bucket
from isocenter.common.settings import S3Settings

from .conftest import FAST, settings_of

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway

KILLS = 3
both = pytest.mark.parametrize("bucket", ["s3-plain", "s3-lock"], indirect=True)


@pytest.fixture
def gateway(s3_server: RadosGateway) -> Iterator[RadosGateway]:
    """The shared server, in order again afterwards."""
    yield s3_server
    s3_server.resume()
    s3_server.start_gateway()


def content_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest() * (100 + len(key) * 700)


@both
async def test_nothing_acknowledged_is_lost_when_the_gateway_is_killed(
    bucket: S3Settings, gateway: RadosGateway
) -> None:
    """Puts go on all the time, objects of several parts among them; the gateway is killed in the middle."""
    limits = S3Limits(buffer=64 << 10, single=1 << 20, part=5 << 20, request=10.0, retry=8.0)
    store = await S3ObjectStore.open(bucket, limits=limits)
    acknowledged: list[str] = []
    refused = 0
    stop = asyncio.Event()

    async def sender(number: int) -> None:
        nonlocal refused
        count = 0
        while not stop.is_set():
            key = f"run/{number}/{count}"
            count += 1
            data = content_of(key) * (60 if number == 0 else 1)
            try:
                async with store.stage() as staging:
                    await staging.write(data)
                    await staging.commit(key, {"a": "b"}, pending=number == 1)
            except StoreUnavailable:
                refused += 1
            else:
                acknowledged.append(key)

    senders = [asyncio.create_task(sender(number)) for number in range(6)]
    for _ in range(KILLS):
        enough = len(acknowledged) + 30
        async with asyncio.timeout(60):
            while len(acknowledged) < enough:  # noqa: ASYNC110 - counts what the server did
                await asyncio.sleep(0.01)
        gateway.kill_gateway()
        gateway.start_gateway()  # not in a thread: it would die with it
    stop.set()
    await asyncio.gather(*senders)

    for key in acknowledged:
        assert content_of(key) * (60 if key.startswith("run/0/") else 1) == await store.get(key)
    listed = {info.key async for info in store.list()}
    assert set(acknowledged) <= listed
    assert len(listed) <= len(acknowledged) + refused
    await store.close()


async def test_what_was_acknowledged_survives_the_death_of_the_whole_server(tmp_path: Path) -> None:
    """Monitor, OSD and gateway killed at once, on a disk; the store goes on with the same client."""
    from testbed.radosgw import RadosGateway  # noqa: PLC0415 - collected without it

    with RadosGateway(tmp_path, objectstore="bluestore") as server:
        settings = settings_of(server)
        ensure_bucket(settings, object_lock=True)
        store = await S3ObjectStore.open(settings, limits=FAST)
        keys = [f"run/{number}" for number in range(50)]
        await asyncio.gather(*(store.put(key, content_of(key)) for key in keys))
        server.kill()
        server.start()
        assert [content_of(key) for key in keys] == [await store.get(key) for key in keys]
        await store.close()


async def test_short_interruptions_are_retried(bucket: S3Settings, gateway: RadosGateway) -> None:
    store = await S3ObjectStore.open(bucket, limits=FAST)
    gateway.kill_gateway()
    put = asyncio.create_task(store.put("a/1", b"payload"))
    await asyncio.sleep(0.1)  # refused at least once
    gateway.start_gateway()  # not in a thread: it would die with it
    result = await put
    assert (True, True) == (result.created, result.identical)
    assert b"payload" == await store.get("a/1")
    await store.close()


@both
async def test_a_server_that_stalls_is_unavailable_in_time(bucket: S3Settings, gateway: RadosGateway) -> None:
    """Connections open and nobody answers. Afterwards everything goes on."""
    limits = S3Limits(request=0.5, retry=1.0, check=1.0)
    store = await S3ObjectStore.open(bucket, limits=limits)
    await store.put("a/1", b"payload")
    gateway.pause()
    for call in (
        lambda: store.put("a/2", b"payload"),
        lambda: store.get("a/1"),
        lambda: store.head("a/1"),
        store.check,
    ):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await call()
        assert time.monotonic() - began < 10
    gateway.resume()
    async with asyncio.timeout(30):
        while True:
            try:
                await store.check()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.1)
    assert b"payload" == await store.get("a/1")
    await store.put("a/2", b"payload")
    assert b"payload" == await store.get("a/2")
    await store.close()


@both
async def test_a_full_store_is_store_full(bucket: S3Settings, gateway: RadosGateway) -> None:
    """A quota: what is there stays readable, and when there is room again, it goes on."""
    store = await S3ObjectStore.open(bucket, limits=FAST)
    await store.put("a/1", b"payload")
    quota = ("--quota-scope=bucket", f"--bucket={bucket.bucket}")
    gateway.admin("quota", "set", *quota, "--max-objects=1")
    gateway.admin("quota", "enable", *quota)

    async def fill() -> None:
        for number in range(1000):
            await store.put(f"a/{number}", b"payload")

    with pytest.raises(StoreFull) as raised:
        await fill()
    assert "QuotaExceeded" == raised.value.ids["cause"]
    with pytest.raises(StoreFull):
        await store.check()
    async with store.stage() as staging:
        await staging.write(b"payload")
        with pytest.raises(StoreFull):
            await staging.commit("b/1", {}, pending=True)
    assert b"payload" == await store.get("a/1")

    gateway.admin("quota", "disable", *quota)
    async with asyncio.timeout(30):
        while True:
            try:
                await store.put("b/1", b"payload")
                break
            except StoreFull:
                await asyncio.sleep(0.1)
    assert b"payload" == await store.get("b/1")
    await store.close()


async def test_a_listed_version_that_is_gone_is_asked_for_twice_at_most(
    s3_server: RadosGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server lists and a GET does not find: a stale entry in the index of the bucket."""
    settings = settings_of(s3_server, scratch_dir=tmp_path)
    ensure_bucket(settings, object_lock=True)
    store = await S3ObjectStore.open(settings, limits=FAST)
    await store.put("a/1", b"x")
    requests = 0

    async def missing(*_: object, **__: object) -> None:
        nonlocal requests
        requests += 1
        raise NotFound("no such object")

    monkeypatch.setattr(store.wire, "head", missing)
    monkeypatch.setattr(store.wire, "get", missing)
    with pytest.raises(NotFound):
        await store.head("a/1")
    with pytest.raises(NotFound):
        await store.get("a/1")
    assert requests <= 4
    monkeypatch.undo()
    assert b"x" == await store.get("a/1")
    await store.close()
