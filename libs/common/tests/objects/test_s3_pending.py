"""Pending commits in a bucket: markers, signs of life, and what others find."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from isocenter.common.errors import StoreUnavailable
from isocenter.common.objects.s3 import S3Limits, S3ObjectStore
from isocenter.common.objects.s3.headers import PENDING
from isocenter.common.settings import S3Settings

from .conftest import FAST

both = pytest.mark.parametrize("bucket", ["s3-plain", "s3-lock"], indirect=True)


async def opened(bucket: S3Settings, limits: S3Limits = FAST) -> S3ObjectStore:
    return await S3ObjectStore.open(bucket, limits=limits)


async def commit(store: S3ObjectStore, key: str, *, pending: bool = True) -> None:
    async with store.stage() as staging:
        await staging.write(b"payload of " + key.encode())
        await staging.commit(key, {"study_key": "k"}, pending=pending)


async def pending(store: S3ObjectStore) -> list[str]:
    return sorted([info.key async for info in store.pending()])


async def names(store: S3ObjectStore) -> list[str]:
    versioned = store.capabilities.versioned
    return [each.name async for page in store.wire.walk(PENDING, versions=versioned) for each in page]


DIES = """
import asyncio, sys
from isocenter.common.objects.s3 import S3Limits, S3ObjectStore
from isocenter.common.settings import S3Settings

async def main():
    store = await S3ObjectStore.open(S3Settings.load(), limits=S3Limits(beat=0.1))
    async def commit(number):
        async with store.stage() as staging:
            await staging.write(b"x")
            await staging.commit(f"a/{number}", {}, pending=number % 2 == 0)
    await asyncio.gather(*(commit(number) for number in range(8)))
    await store.confirm(["a/0"])
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@both
async def test_a_killed_process_leaves_what_it_did_not_confirm(bucket: S3Settings) -> None:
    """While it lives its commits are its own; after it has been silent for long enough they are anybody's."""
    assert bucket.access_key is not None
    assert bucket.secret_key is not None
    environment = {
        **os.environ,
        "ISOCENTER_S3_ENDPOINT": str(bucket.endpoint),
        "ISOCENTER_S3_BUCKET": bucket.bucket,
        "ISOCENTER_S3_ACCESS_KEY": bucket.access_key.get_secret_value(),
        "ISOCENTER_S3_SECRET_KEY": bucket.secret_key.get_secret_value(),
    }
    later = await opened(bucket)
    with subprocess.Popen(  # noqa: ASYNC220 - it only prints a line
        [sys.executable, "-c", DIES], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "ready\n" == await asyncio.to_thread(process.stdout.readline)
        assert [] == await pending(later)
        process.send_signal(signal.SIGKILL)

    async with asyncio.timeout(30):
        while not (found := await pending(later)):  # noqa: ASYNC110 - another process, and the server's clock
            await asyncio.sleep(0.2)
    # a/0 was confirmed, but its marker was not removed yet: to announce it again says nothing new.
    assert {"a/2", "a/4", "a/6"} <= set(found) <= {"a/0", "a/2", "a/4", "a/6"}
    assert found == await pending(later), "until it is confirmed"

    await later.confirm(found)
    assert [] == await pending(later)
    await later.close()
    another = await opened(bucket)
    assert [] == await pending(another)
    assert [] == await names(another)
    await another.close()


@both
async def test_a_closed_store_leaves_its_own_to_others_at_once(bucket: S3Settings) -> None:
    store = await opened(bucket, S3Limits())
    await commit(store, "a/1")
    await commit(store, "a/2")
    await commit(store, "a/3", pending=False)
    await store.confirm(["a/2", "a/unknown"])
    other = await opened(bucket, S3Limits())
    assert [] == await pending(other)
    await store.close()

    assert ["a/1"] == await pending(other)
    await other.close()
    last = await opened(bucket, S3Limits())
    assert ["a/1"] == await pending(last), "handed on by who did not confirm it either"
    await last.confirm(["a/1"])
    await last.close()
    empty = await opened(bucket)
    assert [] == await names(empty)
    await empty.close()


async def test_what_is_there_already_or_deleted_since_is_not_pending(bucket: S3Settings) -> None:
    store = await opened(bucket)
    await commit(store, "a/1", pending=False)
    await commit(store, "a/1")
    await commit(store, "a/2")
    await store.delete("a/2")
    await store.close()

    other = await opened(bucket)
    assert [] == await pending(other)
    await other.close()


async def test_commits_at_the_same_time_share_markers(bucket: S3Settings) -> None:
    store = await opened(bucket, S3Limits())
    await asyncio.gather(*(commit(store, f"a/{number}") for number in range(200)))

    markers = [name for name in await names(store) if not name.endswith("/alive")]
    assert 1 <= len(markers) <= 60
    await store.confirm(f"a/{number}" for number in range(200))
    await store.close()
    other = await opened(bucket)
    assert [] == await names(other)
    await other.close()


async def test_a_commit_whose_marker_cannot_be_written_fails(
    bucket: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that it is there; it may be, and who sends it again hears so."""
    store = await opened(bucket)
    put = store.wire.put

    async def only_objects(name: str, *arguments: object, **more: object) -> str | None:
        if name.startswith(PENDING):
            raise StoreUnavailable("no")
        return await put(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store.wire, "put", only_objects)
    with pytest.raises(StoreUnavailable):
        await commit(store, "a/1")
    await commit(store, "a/1", pending=False)
    assert b"payload of a/1" == await store.get("a/1")
    await store.close()


@both
async def test_a_second_commit_of_a_pending_object_leaves_it_pending(bucket: S3Settings) -> None:
    """A sender that was refused because the bus is down sends again: the first commit is still to be told."""
    store = await opened(bucket, S3Limits())
    await commit(store, "a/1")
    await commit(store, "a/1")
    await asyncio.gather(commit(store, "a/2"), commit(store, "a/2"), commit(store, "a/2"))
    await asyncio.gather(commit(store, "a/3"), commit(store, "a/3"))
    await store.confirm(["a/3"])
    await store.close()

    other = await opened(bucket, S3Limits())
    assert ["a/1", "a/2"] == await pending(other)
    await other.confirm(["a/1", "a/2"])
    await commit(other, "a/1")
    await other.close()
    last = await opened(bucket)
    assert [] == await pending(last)
    assert [] == await names(last)
    await last.close()
