"""The S3 store where a directory has no counterpart: versions, locks, strangers, credentials, scratch."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from minio.commonconfig import ENABLED
from minio.error import S3Error
from minio.versioningconfig import SUSPENDED, VersioningConfig
from opentelemetry.sdk.resources import Resource
from testbed.server import free_port

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, StoreFull, StoreUnavailable
from isocenter.common.objects.ports import ObjectLocked
from isocenter.common.objects.s3 import S3Limits, S3ObjectStore, ensure_bucket
from isocenter.common.objects.s3.admin import Admin
from isocenter.common.objects.s3.content import Budget, Content
from isocenter.common.objects.s3.headers import CHECK, DAMAGED, OBJECTS
from isocenter.common.objects.s3.wire import Wire
from isocenter.common.settings import S3Settings
from isocenter.common.telemetry import Counter, Histogram
from isocenter.common.telemetry.metrics import Metrics

from .conftest import FAST, settings_of

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway

KEY = "instances/ab/abcdef"
NAME = OBJECTS + KEY

both = pytest.mark.parametrize("bucket", ["s3-plain", "s3-lock"], indirect=True)
locked = pytest.mark.parametrize("bucket", ["s3-lock"], indirect=True)


@pytest.fixture
async def store(bucket: S3Settings) -> AsyncIterator[S3ObjectStore]:
    made = await S3ObjectStore.open(bucket, limits=FAST)
    yield made
    await made.close()


@pytest.fixture
def stranger(bucket: S3Settings) -> Admin:
    """Somebody else with the same credentials."""
    return Admin.of(bucket)


def overwrite(stranger: Admin, bucket: S3Settings, data: bytes, *, like: str | None = None) -> None:
    """Other bytes, with the headers of what is there."""
    headers = stranger.stat_object(bucket.bucket, like).metadata if like else None
    metadata = {
        name: value for name, value in (headers or {}).items() if name.lower().startswith("x-amz-meta-")
    }
    stranger.put_object(bucket.bucket, NAME, BytesIO(data), len(data), metadata=dict(metadata))


@both
async def test_it_says_what_the_bucket_can_do(
    store: S3ObjectStore, bucket: S3Settings, request: pytest.FixtureRequest
) -> None:
    lock = "s3-lock" in request.node.name
    found = store.capabilities
    assert (lock, lock, not lock) == (found.versioned, found.object_lock, found.conditional_put)


async def test_a_damaged_object_is_found_and_healed(
    store: S3ObjectStore, bucket: S3Settings, stranger: Admin
) -> None:
    await store.put(KEY, b"payload", {"a": "b"})
    overwrite(stranger, bucket, b"pAyload", like=NAME)

    with pytest.raises(IntegrityError):
        await store.get(KEY)
    with pytest.raises(IntegrityError):
        [piece async for piece in store.stream(KEY)]

    result = await store.put(KEY, b"payload", {"a": "b"})
    assert (True, True, True) == (result.created, result.identical, result.healed)
    assert b"payload" == await store.get(KEY)
    (kept,) = stranger.list_objects(bucket.bucket, DAMAGED, recursive=True)
    assert b"pAyload" == stranger.get_object(bucket.bucket, str(kept.object_name)).data
    again = await store.put(KEY, b"payload", {"a": "b"})
    assert (False, True, False) == (again.created, again.identical, again.healed)


@locked
async def test_a_damaged_first_version_is_replaced_and_kept(
    store: S3ObjectStore, bucket: S3Settings, stranger: Admin
) -> None:
    """Several heal it at once, each as a process of its own; one of them decides for all."""
    await store.put("like/this", b"payload", {"a": "b"})
    headers = stranger.stat_object(bucket.bucket, f"{OBJECTS}like/this").metadata or {}
    metadata = {name: value for name, value in headers.items() if name.lower().startswith("x-amz-meta-")}
    stranger.put_object(bucket.bucket, NAME, BytesIO(b"pAyload"), 7, metadata=dict(metadata))
    with pytest.raises(IntegrityError):
        await store.get(KEY)

    others = [await S3ObjectStore.open(bucket, limits=FAST) for _ in range(3)]
    results = await asyncio.gather(*(each.put(KEY, b"payload", {"a": "b"}) for each in others))

    assert 1 == sum(result.created for result in results)
    assert {True} == {result.identical for result in results}
    assert {b"payload"} == {await each.get(KEY) for each in [store, *others]}
    assert [KEY, "like/this"] == [info.key async for info in store.list()]
    assert b"pAyload" == _oldest(stranger, bucket), "for an operator"
    for each in others:
        await each.close()


def _oldest(stranger: Admin, bucket: S3Settings) -> bytes:
    version = stranger.versions_of(bucket.bucket, NAME)[-1].id
    return stranger.get_object(bucket.bucket, NAME, version_id=version).data


@locked
async def test_what_strangers_add_changes_nothing(
    store: S3ObjectStore, bucket: S3Settings, stranger: Admin
) -> None:
    await store.put(KEY, b"payload")
    stranger.remove_object(bucket.bucket, NAME)  # a delete marker
    overwrite(stranger, bucket, b"something else")
    stranger.remove_object(bucket.bucket, NAME)

    fresh = await S3ObjectStore.open(bucket, limits=FAST)
    for each in (store, fresh):
        assert b"payload" == await each.get(KEY)
        assert [KEY] == [info.key async for info in each.list()]
        again = await each.put(KEY, b"payload")
        assert (False, True) == (again.created, again.identical)
    await fresh.close()
    await store.delete(KEY)
    assert [] == stranger.versions_of(bucket.bucket, NAME)


@both
async def test_an_object_of_a_stranger_is_none_of_ours_and_hides_no_other(
    store: S3ObjectStore, bucket: S3Settings, stranger: Admin
) -> None:
    await store.put("instances/1", b"one")
    overwrite(stranger, bucket, b"not by the store")

    with pytest.raises(IntegrityError):
        await store.get(KEY)
    listing = aiter(store.list())
    assert "instances/1" == (await anext(listing)).key
    with pytest.raises(IntegrityError, match=KEY):
        await anext(listing)


@locked
async def test_locked_and_held_objects_cannot_be_deleted(
    store: S3ObjectStore, bucket: S3Settings, stranger: Admin
) -> None:
    until = (stranger.server_time(bucket.bucket) + timedelta(seconds=6)).replace(microsecond=0)
    await store.put(KEY, b"payload")
    assert (None, None, False) == _plain(await store.locks.retention(KEY))

    await store.locks.lock(KEY, until, "COMPLIANCE")
    await store.locks.hold(KEY, on=True)
    assert ("COMPLIANCE", until, True) == _plain(await store.locks.retention(KEY))
    with pytest.raises(ObjectLocked):
        await store.locks.lock(KEY, until - timedelta(seconds=2), "COMPLIANCE")
    with pytest.raises(ObjectLocked):
        await store.delete(KEY)
    overwrite(stranger, bucket, b"a second version")
    with pytest.raises(ObjectLocked):
        await store.delete(KEY)
    assert 2 == len(stranger.versions_of(bucket.bucket, NAME)), "a refused deletion is not half done"
    assert b"payload" == await store.get(KEY)

    await store.locks.hold(KEY, on=False)
    with pytest.raises(ObjectLocked):
        await store.delete(KEY)
    async with asyncio.timeout(30):
        while stranger.server_time(bucket.bucket) <= until:  # noqa: ASYNC110 - the server's clock
            await asyncio.sleep(0.2)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.head(KEY)


def _plain(retention: object) -> tuple[object, object, object]:
    return getattr(retention, "mode"), getattr(retention, "until"), getattr(retention, "hold")  # noqa: B009


async def test_a_bucket_without_lock_says_so(store: S3ObjectStore) -> None:
    await store.put(KEY, b"payload")
    with pytest.raises(Misconfigured):
        await store.locks.lock(KEY, datetime(2100, 1, 1, tzinfo=UTC), "COMPLIANCE")


async def test_the_server_refuses_bytes_that_were_not_signed(bucket: S3Settings, stranger: Admin) -> None:
    """What stands in for a checksum of the upload: the store relies on it."""
    stranger.put_object(bucket.bucket, "a", BytesIO(b"x"), 1)
    sent = stranger._http.urlopen

    def changed(method: str, url: str, body: bytes | None = None, **more: object) -> object:
        return sent(method, url, body=body.replace(b"payload", b"pAyload") if body else body, **more)  # type: ignore[arg-type]

    stranger._http.urlopen = changed  # type: ignore[method-assign, assignment]
    with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
        stranger.put_object(bucket.bucket, "a", BytesIO(b"payload"), 7)


async def test_unfinished_uploads_of_long_ago_are_removed(bucket: S3Settings, stranger: Admin) -> None:
    for key in ("objects/a", "objects/b"):
        upload = stranger._create_multipart_upload(bucket.bucket, key, {})
        stranger._upload_part(bucket.bucket, key, b"x" * 100, {}, upload, 1)

    recent = await S3ObjectStore.open(bucket, limits=FAST)
    await recent.close()
    assert 2 == len(stranger._list_multipart_uploads(bucket.bucket).uploads)
    later = await S3ObjectStore.open(bucket, limits=S3Limits(upload_age=-60.0))
    await later.close()
    assert [] == stranger._list_multipart_uploads(bucket.bucket).uploads


@both
async def test_large_objects_go_up_in_parts(bucket: S3Settings) -> None:
    """The bounds are lowered, so that few bytes take each of the ways."""
    limits = S3Limits(buffer=64 << 10, single=1 << 20, part=5 << 20, beat=0.1)
    store = await S3ObjectStore.open(bucket, limits=limits)
    for size in ((64 << 10) - 1, (64 << 10) + 1, 1 << 20, (1 << 20) + 1, 12 << 20):
        data = hashlib.shake_128(str(size).encode()).digest(size)
        key = f"sizes/{size}"
        async with store.stage() as staging:
            for start in range(0, size, 50_000):
                await staging.write(data[start : start + 50_000])
            result = await staging.commit(key, {"a": "b"})
        assert result.created
        assert hashlib.sha256(data).hexdigest() == result.info.sha256
        assert data == await store.get(key)
        assert result.info == await store.head(key)
        assert not (await store.put(key, data)).created
        other = await store.put(key, data[:-1] + b"?")
        assert (False, False, result.info) == (other.created, other.identical, other.info)
    assert 0 == store.budget.held
    await store.close()


FLAT = """
import asyncio, re, sys
from isocenter.common.objects.s3 import S3ObjectStore
from isocenter.common.objects.s3.wire import Wire
from isocenter.common.settings import S3Settings

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

async def put(store, key, pieces):
    piece = memoryview(bytes(range(256)) * 4096)
    async with store.stage() as staging:
        for _ in range(pieces):
            await staging.write(piece)
        await staging.commit(key, {})

async def read(store, key):
    size = 0
    async for data in store.stream(key):
        size += len(data)
    return size

async def main():
    store = await S3ObjectStore.open(S3Settings.load())
    await put(store, "warm/up", 100)
    await read(store, "warm/up")
    before = peak()
    await put(store, "large/object", 400)
    print(await read(store, "large/object"), peak() - before)
    await store.close()

asyncio.run(main())
"""


def test_memory_stays_flat_for_a_large_object(bucket: S3Settings) -> None:
    """100 MiB first, which goes the same way; 300 more must cost no more than the parts in flight and
    what the allocator keeps of them, which is a matter of luck: one arena for all threads makes it less so.
    """
    result = subprocess.run(
        [sys.executable, "-c", FLAT],
        env=environment_of(bucket) | {"MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == result.returncode, result.stderr
    size, growth_kib = map(int, result.stdout.split())
    assert 400 << 20 == size
    assert growth_kib < 100 << 10


def environment_of(bucket: S3Settings) -> dict[str, str]:
    assert bucket.access_key is not None
    assert bucket.secret_key is not None
    return {
        **os.environ,
        "ISOCENTER_S3_ENDPOINT": str(bucket.endpoint),
        "ISOCENTER_S3_BUCKET": bucket.bucket,
        "ISOCENTER_S3_ACCESS_KEY": bucket.access_key.get_secret_value(),
        "ISOCENTER_S3_SECRET_KEY": bucket.secret_key.get_secret_value(),
    }


async def test_memory_of_all_uploads_together_is_bounded(tmp_path: Path) -> None:
    """Beyond the budget bytes wait in files; what is in memory never exceeds it."""
    budget = Budget(10_000)
    contents = [Content(tmp_path, 4_000, budget) for _ in range(10)]
    for _ in range(3):
        for content in contents:
            await content.append(b"x" * 1_000)
            assert budget.held <= 10_000
    for content in contents:
        assert hashlib.sha256(b"x" * 3_000).hexdigest() == await content.finish()
        assert b"x" * 3_000 == bytes(content.whole())
        assert b"x" * 3_000 == b"".join([piece async for piece in content.pieces()])
        await content.drop()
        await content.drop()
    assert 0 == budget.held
    assert [] == os.listdir(tmp_path)  # noqa: PTH208 - nothing else runs


async def test_a_full_scratch_directory_is_store_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr("isocenter.common.objects.s3.content.write_all", full)
    content = Content(tmp_path, 10, Budget(1_000))
    with pytest.raises(StoreFull):
        await content.append(b"x" * 11)
    await content.drop()


async def test_requests_and_failures_are_counted(store: S3ObjectStore, s3_server: RadosGateway) -> None:
    metrics = Metrics("test", Resource({}))
    store.report_to(metrics)
    await store.put(KEY, b"payload")
    await store.get(KEY)
    with pytest.raises(NotFound):
        await store.get("instances/none")
    assert 1 == metrics.value(Histogram.STORE, operation="put")
    assert 2 == metrics.value(Histogram.STORE, operation="get")
    assert 0 == metrics.value(Counter.STORE_ERRORS)

    s3_server.kill_gateway()
    try:
        with pytest.raises(StoreUnavailable):
            await store.get(KEY)
    finally:
        s3_server.start_gateway()
    assert 1 == metrics.value(Counter.STORE_ERRORS, operation="get", error_type="store-unavailable")
    metrics.shutdown()


async def test_what_is_wrong_with_the_settings_is_said(s3_server: RadosGateway, bucket: S3Settings) -> None:
    wrong = {
        "does not know these credentials": settings_of(
            s3_server,
            bucket=bucket.bucket,
            secret_key="mistaken",  # noqa: S106 - it is none
        ),
        "bucket apply": settings_of(s3_server),
        "ISOCENTER_S3_ACCESS_KEY": settings_of(s3_server, access_key=None),
        "no path behind": settings_of(s3_server, endpoint=f"{s3_server.endpoint}/store"),
    }
    for text, settings in wrong.items():
        with pytest.raises(Misconfigured, match=text) as raised:
            await S3ObjectStore.open(settings, limits=FAST)
        assert "mistaken" not in str(raised.value)


@locked
async def test_a_bucket_that_stopped_keeping_versions_is_refused(
    s3_server: RadosGateway, bucket: S3Settings
) -> None:
    settings = settings_of(s3_server)
    ensure_bucket(settings, object_lock=False)
    admin = Admin.of(settings)
    admin.set_bucket_versioning(settings.bucket, VersioningConfig(ENABLED))
    admin.set_bucket_versioning(settings.bucket, VersioningConfig(SUSPENDED))
    with pytest.raises(Misconfigured, match="suspended"):
        await S3ObjectStore.open(settings, limits=FAST)


async def test_nobody_there_is_unavailable(bucket: S3Settings) -> None:
    gone = bucket.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(StoreUnavailable):
        await S3ObjectStore.open(gone, limits=S3Limits(request=2.0, retry=1.0))


async def test_a_closed_store_says_so(bucket: S3Settings) -> None:
    store = await S3ObjectStore.open(bucket, limits=FAST)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.put(KEY, b"x")


@both
async def test_checks_leave_nothing(store: S3ObjectStore, bucket: S3Settings, stranger: Admin) -> None:
    for _ in range(3):
        await store.check()
    pages = stranger.walk(bucket.bucket, CHECK, versions=store.capabilities.versioned)
    assert [] == [each for page in pages for each in page]


async def test_every_upload_is_signed_over_its_digest() -> None:
    """Together with a server that refuses other bytes this is the checksum of the way in."""
    signed: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        await reader.readexactly(int(fields["content-length"]))
        signed.append(fields["x-amz-content-sha256"])
        writer.write(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        settings = S3Settings.load(endpoint=f"http://127.0.0.1:{port}", access_key="a", secret_key="b")  # noqa: S106
        wire = Wire(settings, FAST)
        await wire.put("objects/a", b"payload")
        await wire.close()
    assert [hashlib.sha256(b"payload").hexdigest()] == signed


async def test_without_keys_the_surroundings_say_who_we_are(
    s3_server: RadosGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    settings = S3Settings.load(endpoint=s3_server.endpoint, bucket=f"test-{secrets.token_hex(6)}")
    ensure_bucket(settings, object_lock=True)
    store = await S3ObjectStore.open(settings, limits=FAST)
    await store.put("objects/a", b"payload")
    assert b"payload" == await store.get("objects/a")
    await store.close()


def test_without_any_keys_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    # The address of a container's role: nobody listens, so none of a real machine is asked.
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{free_port()}/")

    with pytest.raises(StoreUnavailable, match="ISOCENTER_S3_ACCESS_KEY"):
        ensure_bucket(S3Settings.load(endpoint="http://127.0.0.1:9"), object_lock=True)


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_a_wrong_setting(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    settings = S3Settings.load(endpoint="https://127.0.0.1:9", access_key="a", secret_key="b", ca_file=file)  # noqa: S106

    with pytest.raises(Misconfigured, match="ISOCENTER_S3_CA_FILE"):
        Wire(settings, FAST)


def test_one_key_without_the_other_is_refused() -> None:
    with pytest.raises(Misconfigured, match="ISOCENTER_S3_SECRET_KEY"):
        Admin.of(S3Settings.load(endpoint="http://127.0.0.1:9", access_key="a"))
