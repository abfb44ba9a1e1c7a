"""What only a server can do to an index: several writers, a rebuild beside them, wrong databases."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bson import BSON
from pydantic import SecretStr
from pymongo import MongoClient
from testbed.mongo import MongoServer

from isocenter.common.errors import IndexUnavailable, Misconfigured, Permanent
from isocenter.common.events.models import CloudEvent, SettleReason, StudyUpdated
from isocenter.common.index.mongo import MongoIndex, driver, manifests, schema
from isocenter.common.index.ports import Applied, DueStudy, Index, RestoredRevision, Settlement
from isocenter.common.index.query import Exact, Level, Query, Wildcard
from isocenter.common.index.records import InstanceRecord, OutboxEntry, SettleState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.index.testing import KEYS, arrival, at, element, entry, instance, silent
from isocenter.common.settings import MongoSettings

from .conftest import DRIVERS, Databases

STUDY = "1.2.3"


@pytest.fixture
async def pair(mongo_settings: MongoSettings) -> AsyncIterator[tuple[MongoIndex, MongoIndex]]:
    """Two processes' worth of the same index."""
    first = await MongoIndex.open(mongo_settings, default_issuer="SITE")
    second = await MongoIndex.open(mongo_settings, default_issuer="SITE")
    yield first, second
    await first.close()
    await second.close()


async def lines(index: Index) -> list[str]:
    return [line async for line in index.dump()]


def everything() -> list[InstanceRecord]:
    """Series that come and go, conflicts won and lost, filled attributes, sequences."""
    return [
        instance(
            STUDY,
            f"1.2.3.{n % 3}",
            f"1.9.{n % 11}",
            received=n * 7 % 13,
            content=str(n // 11),
            attributes={
                "00100010": element("PN", f"Doe^Jane{n % 2}"),
                "00100020": element("LO", f"P{n % 4}") if n % 3 else element("LO"),
                "00080060": element("CS", ("CT", "MR", "SR")[n % 3]),
                "00200013": element("IS", n % 5),
                "00400275": {"vr": "SQ", "Value": [{"00400009": element("SH", f"S{n % 2}")}]},
            },
        )
        for n in range(30)
    ]


def settlement(due: DueStudy) -> Settlement:
    version = due.version + 1
    event = CloudEvent(
        id=f"settled-{version}",
        source="/isocenter/indexer",
        time=at(100),
        data=StudyUpdated(study_key=due.study_key, version=version, updated_at=at(100)),
    )
    return Settlement(
        version, due.reason, at(100), {"k": f"manifests/{version}"}, event, entry(event.id, due.study_key)
    )


async def test_both_engines_end_with_the_same_bytes(
    mongo_settings: MongoSettings, tmp_path: Path, pair: tuple[MongoIndex, MongoIndex]
) -> None:
    sqlite = await SqliteIndex.open(tmp_path / "index.sqlite", default_issuer="SITE")
    try:
        for index in (sqlite, pair[0]):
            records = [*everything(), instance("1.7", "1.7.1", "1.7.1.1", received=3)]
            for record in records:
                await index.apply([record], arrival(), silent)
            (due, other) = await index.claim_due(at(60), 30, 10)
            assert await index.settle(due, settlement(due))
            assert other.study_key != due.study_key
        assert await lines(sqlite) == await lines(pair[0])
        assert "conflict" in "".join(await lines(sqlite))
    finally:
        await sqlite.close()


async def test_two_indexers_with_one_study_end_as_one_would(pair: tuple[MongoIndex, MongoIndex]) -> None:
    """After a rebalance both hold the same batches for a while."""
    records = everything()
    for record in records:
        await pair[0].apply([record], arrival(), silent)
    alone = await lines(pair[0])
    await pair[0].clear()
    await pair[0].rebuilt()

    def report(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        return [entry(f"new-{uid}", study_key) for uid in applied.new] + [
            entry(f"conflict-{each.conflicting_object_key}", study_key) for each in applied.conflicts
        ]

    async def work(index: MongoIndex, seed: int) -> list[Applied]:
        order = records.copy()
        random.Random(seed).shuffle(order)
        return [await index.apply(order[at : at + 3], arrival(), report) for at in range(0, len(order), 3)]

    outcomes = await asyncio.gather(work(pair[0], 1), work(pair[1], 2), work(pair[1], 3))

    assert alone == await lines(pair[0])
    told = [applied for several in outcomes for applied in several]
    assert 11 == sum(len(applied.new) for applied in told)
    conflicts = [each.conflicting_object_key for applied in told for each in applied.conflicts]
    assert 19 == len(conflicts) == len(set(conflicts))
    assert 30 == len(await pair[0].pending_outbox(100))


async def test_a_settler_and_an_indexer_never_both_win(pair: tuple[MongoIndex, MongoIndex]) -> None:
    """Either the settled version has the late instance, or the study is receiving again."""
    for round_ in range(8):
        study = f"1.5.{round_}"
        await pair[0].apply([instance(study, f"{study}.1", f"{study}.1.1")], arrival(), silent)
        (due,) = await pair[1].claim_due(at(60), 30, 10)
        late = [instance(study, f"{study}.1", f"{study}.1.2", received=1)]
        settled, applied = await asyncio.gather(
            pair[1].settle(due, settlement(due)), pair[0].apply(late, arrival(61), silent)
        )
        found = await pair[0].get_study(study)
        assert found is not None
        assert 2 == found.instances
        assert SettleState.RECEIVING == found.state
        assert ((1, 1) if settled else (0, None)) == (found.version, applied.reopened_version)
        (again,) = await pair[0].claim_due(at(1000), 30, 10)
        assert await pair[0].settle(again, settlement(again))
        await pair[0].outbox_published([each.event_id for each in await pair[0].pending_outbox(10)])


async def test_of_two_settlers_each_study_goes_to_one(pair: tuple[MongoIndex, MongoIndex]) -> None:
    for number in range(12):
        await pair[0].apply([instance(f"1.{number}", f"1.{number}.1", "1")], arrival(), silent)
    claims = await asyncio.gather(*(index.claim_due(at(60), 30, 12) for index in (*pair, *pair)))
    claimed = [due.study_key for several in claims for due in several]
    assert 12 == len(claimed) == len(set(claimed))


async def test_two_ends_of_transfers_at_once_leave_none_open(pair: tuple[MongoIndex, MongoIndex]) -> None:
    """Each sees the other's still open unless both meet at the study."""
    for round_ in range(8):
        study = f"1.6.{round_}"
        for name in ("a", "b"):
            record = instance(study, f"{study}.1", f"{study}.1.{name == 'a':d}")
            await pair[0].apply([record], arrival(transfer=name), silent)
        key = KEYS.study_key(study)
        closed = await asyncio.gather(
            pair[0].close_transfer(key, at(2), "a"), pair[1].close_transfer(key, at(2), "b")
        )
        assert [False, True] == sorted(closed)


async def test_events_of_a_study_keep_their_order_when_clocks_differ(
    pair: tuple[MongoIndex, MongoIndex],
) -> None:
    for number, now in enumerate((500, 100, 300)):
        record = instance(STUDY, "1.2.3.1", str(number))
        await pair[number % 2].apply(
            [record], arrival(now), lambda key, _, number=number: [entry(f"e{number}", key)]
        )
    assert ["e0", "e1", "e2"] == [each.event_id for each in await pair[0].pending_outbox(10)]


async def test_half_a_rebuilt_index_is_closed_to_every_other_process(
    mongo_settings: MongoSettings, pair: tuple[MongoIndex, MongoIndex]
) -> None:
    rebuilding, other = pair
    batch = [instance("1.1", "1.1.1", "1")]
    await other.apply([instance("1.9", "1.9.1", "1")], arrival(), lambda key, _: [entry("waits", key)])
    await rebuilding.clear()
    assert [] == await lines(other)
    await rebuilding.apply(batch, arrival(), silent)
    for refused in (
        other.check(),
        other.apply(batch, arrival(), silent),
        other.claim_due(at(999), 9, 9),
        other.close_transfer("k", at(1)),
        other.outbox_published(["waits"]),
    ):
        with pytest.raises(IndexUnavailable, match="rebuild"):
            await refused
    assert ["waits"] == [each.event_id for each in await other.pending_outbox(10)]
    await other.clear()
    with pytest.raises(IndexUnavailable, match="rebuild"):  # the one that began last goes on
        await rebuilding.apply(batch, arrival(), silent)
    await other.rebuilt()
    await rebuilding.check()


async def test_what_was_begun_before_a_rebuild_leaves_nothing_half(
    pair: tuple[MongoIndex, MongoIndex],
) -> None:
    """Applying goes on while another process empties the index: no instance without its study, no study
    without its instances.
    """
    rebuilding, other = pair

    async def keep_applying(lane: int) -> None:
        for number in range(200):
            study = f"1.{lane}.{number}"
            batch = [instance(study, f"{study}.1", f"{study}.1.{n}") for n in range(5)]
            await other.apply(batch, arrival(), silent)
            if number == 5:
                under_way.set()

    under_way = asyncio.Event()
    lanes = [asyncio.create_task(keep_applying(lane)) for lane in range(4)]
    await under_way.wait()
    await rebuilding.clear()
    outcomes = await asyncio.gather(*lanes, return_exceptions=True)
    assert [IndexUnavailable] * 4 == [type(outcome) for outcome in outcomes]
    assert [] == await lines(rebuilding)
    counts = {name: await rebuilding._database.collection(name).count_documents({}) for name in ALL_RECORDS}
    assert dict.fromkeys(ALL_RECORDS, 0) == counts


ALL_RECORDS = (schema.STUDIES, schema.SERIES, schema.INSTANCES, schema.CONFLICTS, schema.TRANSFERS)


async def test_no_document_grows_with_the_number_of_what_belongs_to_it(
    monkeypatch: pytest.MonkeyPatch, mongo_settings: MongoSettings, pair: tuple[MongoIndex, MongoIndex]
) -> None:
    """Instances, transfers, conflicts, events and series ten times over: the study stays as large as it was,
    and everything else stays as large as one of it.
    """
    monkeypatch.setattr(manifests, "PART", 4)
    index = pair[0]
    largest: dict[int, dict[str, int]] = {}
    for count in (20, 200):
        batch = [
            instance(STUDY, f"1.2.3.{n % (count // 4)}", f"1.4.{n}", content=content, received=len(content))
            for n in range(count // 2)
            for content in ("", "x")
        ]
        for n, record in enumerate(batch):
            await index.apply([record], arrival(transfer=f"t{n}"), lambda key, _, n=n: [entry(f"e{n}", key)])
        (due,) = await index.claim_due(at(60), 1, 10)
        names = {KEYS.series_key(f"1.2.3.{n}"): f"manifests/{n}" for n in range(count // 4)}
        event = settlement(due)
        settled = Settlement(
            event.version, event.reason, event.settled_at, names, event.event, event.entry, confirmation="c"
        )
        assert await index.settle(due, settled)
        study = await index.get_study(STUDY)
        assert study is not None
        assert names == study.manifests
        largest[count] = await sizes_of(index)
        await index.apply([instance(STUDY, "1.2.3.0", f"late-{count}", received=9)], arrival(), silent)
    for name, size in largest[200].items():
        assert size <= largest[20][name] + 24, name


async def sizes_of(index: MongoIndex) -> dict[str, int]:
    return {
        name: max([len(BSON.encode(each)) async for each in index._database.collection(name).find({})] or [0])
        for name in schema.INDEXES
    }


async def test_manifests_in_parts_survive_the_next_version(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[MongoIndex, MongoIndex]
) -> None:
    monkeypatch.setattr(manifests, "PART", 2)
    await pair[0].apply([instance(STUDY, "1", "1")], arrival(), silent)
    for version in (1, 2, 3):
        names = {f"k{n}": f"manifests/{version}/{n}" for n in range(5 * version)}
        restored = RestoredRevision(version, SettleReason.QUIET, at(0), names)
        await pair[0].restore_revision(STUDY, restored, settled=True)
        study = await pair[1].get_study(STUDY)
        assert study is not None
        assert names == study.manifests
        assert names == next(iter([each async for each in pair[1].studies()])).manifests


async def test_indexes_are_made_once_and_are_those_of_the_code(
    mongo_settings: MongoSettings, pair: tuple[MongoIndex, MongoIndex]
) -> None:
    await schema.ensure_indexes(pair[0]._database)
    for name, indexes in schema.INDEXES.items():
        found = await pair[0]._database.collection(name).index_information()
        assert {"_id_", *(index.document["name"] for index in indexes)} == set(found)


@pytest.mark.parametrize("name", sorted(DRIVERS))
async def test_only_building_indexes_may_take_its_time(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(driver, "OPERATION_SECONDS", 0.5)
    index = await MongoIndex.open(databases.empty(DRIVERS[name]), default_issuer="")
    try:
        slow = index._database.collection(schema.MARKS).find({"$where": "sleep(900) || true"})
        with driver.unhurried():
            assert 1 == len(await slow.to_list(None))
        with pytest.raises(IndexUnavailable):
            async with driver.translated():
                await slow.clone().to_list(None)
    finally:
        await index.close()


async def test_a_server_without_a_replica_set_is_refused(tmp_path: Path, mongo_server: MongoServer) -> None:
    alone = type(mongo_server)(tmp_path)
    try:
        alone.start_alone()
        uri = f"mongodb://127.0.0.1:{alone.port}/"
        with pytest.raises(Misconfigured, match="replica set"):
            await MongoIndex.open(MongoSettings(uri=SecretStr(uri)), default_issuer="")
    finally:
        alone.discard()


@pytest.mark.parametrize(
    "uri",
    [
        "mysql://x",
        "mongodb://",
        "mongodb://somebody:hunter2@127.0.0.1:port/",
        "mongodb://somebody:hun?ter2=x@127.0.0.1:1/",
        "mongodb://127.0.0.1:1/?nosuchoption=hunter2",
        "mongodb://127.0.0.1:1/?tls=true&tlsCAFile=/no/hunter2.pem",
    ],
)
async def test_a_uri_that_is_none_is_a_wrong_setting_and_is_not_quoted(uri: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        await MongoIndex.open(MongoSettings(uri=SecretStr(uri)), default_issuer="")
    assert uri not in str(caught.value)
    assert "ter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "document"),
    [("marks", {"_id": "schema", "version": schema.VERSION + 1}), ("studies", {"_id": "somebody's"})],
)
async def test_a_foreign_or_newer_database_is_not_touched(
    mongo_server: MongoServer, name: str, document: dict[str, Any]
) -> None:
    settings = MongoSettings(uri=SecretStr(mongo_server.uri), database="test-foreign")
    with MongoClient[dict[str, Any]](mongo_server.uri) as client:
        try:
            client["test-foreign"][name].insert_one(document)
            with pytest.raises(Misconfigured):
                await MongoIndex.open(settings, default_issuer="")
            assert [name] == client["test-foreign"].list_collection_names()
        finally:
            client.drop_database("test-foreign")


async def test_neither_errors_nor_the_drivers_own_log_quote_values(
    pair: tuple[MongoIndex, MongoIndex], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    attributes = {"00100010": element("PN", "DOE^JANE")}
    await pair[0].apply([instance(STUDY, "1", "1", attributes=attributes)], arrival(), silent)
    await pair[0].search(Query(Level.STUDY, where=Exact(("00100010",), "DOE^JANE")))

    async def refused(session: Any) -> tuple[bool, None]:
        studies = pair[0]._database.collection(schema.STUDIES)
        await studies.update_one({"_id": STUDY}, {"$set": {"_id": "DOE^JANE"}}, session=session)
        return True, None

    with pytest.raises(IndexUnavailable) as caught:
        await pair[0]._database.transaction(refused)
    assert "DOE" not in str(caught.value).upper()
    assert caught.value.__suppress_context__
    assert "DOE" not in caplog.text.upper()


async def test_a_record_that_no_document_holds_goes_to_the_dead_letters(
    pair: tuple[MongoIndex, MongoIndex],
) -> None:
    big = instance(STUDY, "1", "1")
    big = InstanceRecord(**{**{f: getattr(big, f) for f in big.__slots__}, "metadata": bytes(17 << 20)})
    with pytest.raises(Permanent, match="larger"):
        await pair[0].apply([big], arrival(), silent)
    assert await pair[0].get_study(STUDY) is None


async def test_a_wildcard_beyond_what_the_server_takes_is_refused(
    pair: tuple[MongoIndex, MongoIndex],
) -> None:
    with pytest.raises(Permanent, match="pattern"):
        await pair[0].search(Query(Level.STUDY, where=Wildcard(("00100010",), "[*" * 10_000)))
