"""What the index on MongoDB promises while its server is killed, or stands still."""

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest
from testbed.mongo import MongoServer

from isocenter.common.errors import IndexUnavailable
from isocenter.common.index.mongo import MongoIndex, driver
from isocenter.common.index.testing import KEYS, arrival, at, entry, instance, silent
from isocenter.common.settings import MongoSettings

from .conftest import DRIVERS, Databases

STUDIES = 3

# A driver drops a connection that its server left without closing the socket first: nothing is lost by it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def server(mongo_server: MongoServer) -> Iterator[MongoServer]:
    """Well again afterwards, whatever a test did to it."""
    yield mongo_server
    if not mongo_server.alive:
        mongo_server.start()
    gc.collect()  # what `pytestmark` speaks of is met here and not in another file


@pytest.fixture(autouse=True)
def _in_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "OPERATION_SECONDS", 3.0)
    monkeypatch.setattr(driver, "SELECTION_SECONDS", 1.5)
    monkeypatch.setattr(driver, "TRANSACTION_SECONDS", 5.0)


@pytest.fixture(params=sorted(DRIVERS))
def settings(request: pytest.FixtureRequest, databases: Databases, server: MongoServer) -> MongoSettings:
    return databases.empty(DRIVERS[request.param])


async def write(index: MongoIndex, batch: int) -> None:
    """One batch, as often as it takes: what the delivery of events does."""
    study = f"1.{batch % STUDIES}"
    records = [
        instance(study, f"{study}.{n % 4}", f"1.{batch}.{n}", received=batch, content=content)
        for n in range(10)
        for content in (("", "x") if n == 0 else ("",))
    ]
    while True:
        try:
            await index.apply(
                records,
                arrival(batch),
                lambda key, applied: [
                    entry(f"{each.instance_key}-{batch}", key) for each in applied.conflicts
                ],
            )
        except IndexUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def test_a_killed_server_loses_nothing_that_was_acknowledged(
    settings: MongoSettings, server: MongoServer
) -> None:
    index = await MongoIndex.open(settings, default_issuer="SITE")
    written: list[int] = []
    enough = asyncio.Event()

    async def lane(first: int) -> None:
        for batch in range(first, 60, STUDIES):
            await write(index, batch)
            written.append(batch)
            if len(written) in {12, 36}:
                enough.set()

    try:
        lanes = [asyncio.create_task(lane(first)) for first in range(STUDIES)]
        for _ in range(2):
            await enough.wait()
            enough.clear()
            server.kill()
            server.start()
        await asyncio.gather(*lanes)
        studies = [study async for study in index.studies()]
        assert STUDIES == len(studies)
        for study in studies:
            uid = study.study_instance_uid
            held = [record async for record in index.instances(uid)]
            series = await index.list_series(uid)
            assert 200 == len(held) == study.instances == sum(one.instances for one in series)
            assert 200_000 == study.size_bytes
            assert 20 == study.conflicts == len(await index.conflicts(uid))
        events = [each.event_id for each in await index.pending_outbox(1000)]
        assert 60 == len(events) == len(set(events))
    finally:
        await index.close()


async def test_a_server_that_stands_still_is_unavailable_in_time_and_then_is_not(
    settings: MongoSettings, server: MongoServer
) -> None:
    index = await MongoIndex.open(settings, default_issuer="SITE")
    batch = [instance("1.1", "1.1.1", "1")]
    try:
        await index.apply(batch, arrival(), silent)
        server.pause()
        began = time.monotonic()
        try:
            outcomes = await asyncio.gather(
                index.get_study("1.1"),
                index.check(),
                index.claim_due(at(60), 30, 10),
                index.apply([instance("1.1", "1.1.1", "2")], arrival(), silent),
                return_exceptions=True,
            )
        finally:
            server.resume()
        assert [IndexUnavailable] * 4 == [type(outcome) for outcome in outcomes]
        assert time.monotonic() - began < driver.TRANSACTION_SECONDS + 2 * driver.OPERATION_SECONDS
        applied = await index.apply([instance("1.1", "1.1.1", "2")], arrival(), silent)
        assert 1 == len(applied.new) + applied.duplicates
        await index.check()
        found = await index.find_study(KEYS.study_key("1.1"))
        assert found is not None
        assert 2 == found.instances
    finally:
        await index.close()


async def test_no_server_at_all_is_unavailable(settings: MongoSettings, server: MongoServer) -> None:
    server.kill()
    began = time.monotonic()
    with pytest.raises(IndexUnavailable):
        await MongoIndex.open(settings, default_issuer="SITE")
    assert time.monotonic() - began < 2 * driver.OPERATION_SECONDS
