"""A site moves from one folder to another: everything that does not depend on the kind of engine."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from tests.migrate.building import (
    QUICK,
    RECEIVING,
    SLOW,
    STUDIES,
    dump,
    embedded,
    history,
    index_all,
    payloads,
    sending,
    unread,
)

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration import events
from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.report import is_signed, sign, write
from isocenter.cli.migration.sides import Side, opened
from isocenter.common.bus.embedded.log import Entry
from isocenter.common.bus.kafka import TopicPartition
from isocenter.common.clock import SystemClock
from isocenter.common.errors import StoreUnavailable
from isocenter.common.events.topics import all_topics
from isocenter.common.index.records import SettleState
from isocenter.common.keys import SiteKeys
from isocenter.indexer.settings import IndexerSettings
from isocenter.indexer.testing import dataset

STUDY_TOPIC = "imaging.study.v1"
DLQ = "imaging.instance.v1.indexer.instances.dlq"


def folder(side: Side) -> Path:
    return side.engines.platform.data_dir


def object_file(side: Side, key: str) -> Path:
    (path,) = folder(side).glob(f"objects/**/{key.rpartition('/')[2]}@1")
    return path


async def first_instance(side: Side) -> str:
    async with opened(side) as site:
        async for info in site.store.list("instances/"):
            return info.key
    raise AssertionError


async def test_a_whole_site_moves(source: Side, target: Side) -> None:
    report = await Migration(source, target).run()

    assert report.equal, report.as_json()
    assert await payloads(source) == await payloads(target)
    assert await dump(source) == await dump(target)
    assert await history(source) == await history(target)
    assert len(await dump(source)) == report.index.target.lines > 20
    assert source.key_file.read_bytes() == target.key_file.read_bytes()
    assert 0o600 == stat.S_IMODE(target.key_file.stat().st_mode)


async def test_life_goes_on_at_the_target(source: Side, target: Side) -> None:
    """What was handled is not handled again, and what was receiving settles, with the version it would have
    had.
    """
    await Migration(source, target).run()
    assert {"ingest.announced": 0, "indexer.instances": 0} == await unread(target)
    async with sending(target) as sender:
        await sender.send(RECEIVING, numbers=range(7, 8))
    await index_all(target, QUICK, receiving=0)

    async with opened(target) as site:
        study = await site.index.get_study(RECEIVING)
    assert study is not None
    assert (SettleState.SETTLED, 1, 3) == (study.state, study.version, study.instances)


async def test_a_second_run_finds_nothing_to_do(source: Side, target: Side) -> None:
    await Migration(source, target).run()

    again = await Migration(source, target).run()

    assert again.equal
    assert again.copied is not None
    assert (0, 0, False) == (again.copied.objects, again.events_copied, again.index_rebuilt)


async def test_back_again_is_the_original(source: Side, target: Side, tmp_path: Path) -> None:
    back = embedded(tmp_path / "back")
    await Migration(source, target).run()
    await Migration(target, back).run()

    assert await payloads(source) == await payloads(back)
    assert await dump(source) == await dump(back)
    assert await history(source) == await history(back)


async def test_back_to_where_it_came_from_brings_what_is_new(source: Side, target: Side) -> None:
    await Migration(source, target).run()
    async with sending(target) as sender:
        await sender.send(RECEIVING, numbers=range(7, 9))
    await index_all(target, QUICK, receiving=0)

    report = await Migration(target, source).run()

    assert report.equal, report.as_json()
    assert report.copied is not None
    # Two instances; one study settled: a manifest, a revision, and its confirmation.
    assert 2 + 3 == report.copied.objects
    assert await dump(source) == await dump(target)


async def test_a_plan_says_what_a_run_will_do(source: Side, target: Side) -> None:
    plan = await Migration(source, target).plan()

    report = await Migration(source, target).run()
    assert (plan.objects, plan.missing) == (report.objects.source.objects, report.objects.source.objects)
    assert (4, 1) == (plan.studies, plan.waiting.receiving)
    assert plan.instances == plan.indexed
    assert plan.free_bytes


async def test_work_in_hand_is_finished_first(source: Side, target: Side) -> None:
    """An event that was not indexed, and an object that was not announced."""
    async with sending(source) as sender:
        await sender.send(RECEIVING, numbers=range(11, 14))
        await sender.put_unannounced(RECEIVING, 20)
    plan = await Migration(source, target).plan()
    assert (True, 1) == (plan.waiting.in_the_way, plan.waiting.unannounced)

    report = await Migration(source, target).run()

    assert report.equal, report.as_json()
    async with opened(target) as site:
        study = await site.index.get_study(RECEIVING)
        assert [] == [info async for info in site.store.pending()]
    assert study is not None
    assert 6 == study.instances


async def test_work_that_cannot_be_finished_stops_the_move(source: Side, target: Side) -> None:
    async with sending(source) as sender:
        await sender.send(RECEIVING, numbers=range(11, 12))

    with pytest.raises(CommandError, match=r"indexer\.instances has 1 events to read"):
        await Migration(source, target, drain_seconds=0).run()

    assert {} == await payloads(target)


async def test_a_study_whose_settling_was_overtaken_settles_before_it_moves(
    source: Side, target: Side
) -> None:
    """Its version was written and not given, which no object says: a rebuild would take it as used."""
    brief = IndexerSettings(quiet_seconds=0.5, quiet_after_close_seconds=0.5, settle_poll_seconds=3600)
    async with sending(source) as sender:
        (due,) = await sender.site.index.claim_due(SystemClock().now() + timedelta(hours=2), 0.1, 1)
        assert RECEIVING == due.study_instance_uid
        settler = sender.site.settler
        await settler._record(await settler._draft(due))
        await sender.send(RECEIVING, numbers=range(40, 41))
    await index_all(source, brief, receiving=1, overtaken=1)

    report = await Migration(source, target).run()

    assert report.equal, report.as_json()
    async with opened(target) as site:
        study = await site.index.get_study(RECEIVING)
    assert study is not None
    assert (SettleState.SETTLED, 1, 3) == (study.state, study.version, study.instances)


async def test_an_object_that_nobody_can_announce_stays_so(source: Side, target: Side) -> None:
    async with opened(source) as site, site.store.stage() as staging:
        await staging.write(b"?")
        await staging.commit("other/thing", {}, pending=True)

    report = await Migration(source, target).run()

    assert report.equal
    async with opened(target) as site:
        assert ["other/thing"] == [info.key async for info in site.store.pending()]


async def test_a_damaged_object_is_named_and_holds_nobody_up(source: Side, target: Side) -> None:
    key = await first_instance(source)
    path = object_file(source, key)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)

    report = await Migration(source, target).run()

    assert not report.equal
    assert [key] == report.as_json()["objects"]["named"]["damaged"]
    assert report.copied is not None
    assert report.objects.source.objects - 1 == report.copied.objects == report.objects.target.objects
    assert 1 == report.index.differing
    data[200] ^= 1
    path.write_bytes(data)
    assert (await Migration(source, target).run()).equal


async def test_an_object_whose_trailer_is_damaged_is_counted(source: Side, target: Side) -> None:
    key = await first_instance(source)
    path = object_file(source, key)
    path.write_bytes(path.read_bytes()[:-4] + b"1234")

    report = await Migration(source, target).run()

    assert not report.equal
    assert [key] == report.as_json()["objects"]["named"]["damaged"]


async def test_an_instance_that_does_not_say_when_it_came_keeps_its_place_in_time(
    source: Side, target: Side
) -> None:
    async with sending(source) as sender:
        stored = await sender.site.put(dataset(study=RECEIVING, number=30))
        info = await sender.site.store.head(stored.object_key)
        data = await sender.site.store.get(stored.object_key)
        await sender.site.store.delete(stored.object_key)
        metadata = {name: value for name, value in info.metadata.items() if name != "received_at"}
        await sender.site.store.put(stored.object_key, data, metadata)
        await sender.announce(RECEIVING, [stored])
    await index_all(source, SLOW, receiving=1)

    assert (await Migration(source, target).run()).equal
    assert await dump(source) == await dump(target)


async def test_dead_letters_move_and_expired_records_do_not(source: Side, target: Side) -> None:
    now = SystemClock().now()
    fresh = int(now.timestamp() * 1000)
    expired = int((now - all_topics()[STUDY_TOPIC].retention - timedelta(hours=1)).timestamp() * 1000)
    headers = (("x-reason", b"\xff odd"), ("x-none", None))
    async with opened(source) as site:
        log = site.events._log  # type: ignore[attr-defined] # an embedded one
        for place, stamp in ((TopicPartition(DLQ, 0), fresh), (TopicPartition(STUDY_TOPIC, 0), expired)):
            await log.append_with(Entry(place, stamp, None, b"dead", headers), lambda _: None)

    report = await Migration(source, target).run()

    assert report.equal
    moved = await history(target)
    assert [(None, b"dead", headers)] == [(one.key, one.value, one.headers) for one in moved[DLQ, 0]]
    assert (await history(source))[STUDY_TOPIC, 0][-1].timestamp_ms == expired
    assert all(one.timestamp_ms > expired for one in moved[STUDY_TOPIC, 0])


async def test_a_dead_letter_that_was_replayed_is_known_to_be(source: Side, target: Side) -> None:
    """Although its offset is another one: the first letter has expired."""
    now = SystemClock().now()
    fresh = int(now.timestamp() * 1000)
    expired = int((now - all_topics()[DLQ].retention - timedelta(hours=1)).timestamp() * 1000)
    place = TopicPartition(DLQ, 0)
    async with opened(source) as site:
        log = site.events._log  # type: ignore[attr-defined] # an embedded one
        for stamp, body in ((expired, b"0"), (fresh, b"1"), (fresh, b"2")):
            await log.append_with(Entry(place, stamp, b"k", body, ()), lambda _: None)
        await site.events.mark_replayed(place, 1)

    await Migration(source, target).run()

    async with opened(target) as site:
        assert (0, 2) == await site.events.bounds(place)
        assert {0} == await site.events.replayed(place)


async def test_a_group_that_lags_goes_on_where_it_was(source: Side, target: Side) -> None:
    """At the target, its lag is what it was at the source."""
    topic, group = "imaging.instance.v1", "indexer.instances"
    async with opened(source) as one, opened(target) as other:
        place = max(
            [TopicPartition(topic, part) for part in range(12)],
            key=one.events._log.end_offset,  # type: ignore[attr-defined] # as above
        )
        _, end = await one.events.bounds(place)
        await one.events.start_group(group, topic, {place.partition: end - 2})
        await events.copy(one.events, other.events, SystemClock().now(), lambda _: None)

        await events.place_groups(one.events, other.events)

        assert 2 == await events.lag(other.events, group, topic)


async def test_another_sites_secret_is_refused(source: Side, target: Side) -> None:
    SiteKeys.load_or_create(target.key_file)

    with pytest.raises(CommandError, match="another site's secret") as refused:
        await Migration(source, target).run()
    assert refused.value.code == Exit.MISCONFIGURED


async def test_a_wrong_secret_for_the_source_is_refused(source: Side, target: Side) -> None:
    source.key_file.unlink()
    SiteKeys.load_or_create(source.key_file)

    with pytest.raises(CommandError, match="the source's index was not made with this site secret"):
        await Migration(source, target).run()


async def test_a_target_that_another_site_has_claimed_is_refused(source: Side, target: Side) -> None:
    async with opened(target) as site:
        await site.store.put("site/" + SiteKeys(bytes(32)).fingerprint(), b"")

    with pytest.raises(CommandError, match="another site's data"):
        await Migration(source, target).run()


async def test_a_target_with_other_objects_is_refused(source: Side, target: Side) -> None:
    async with opened(target) as site:
        await site.store.put("instances/a/other", b"theirs")

    with pytest.raises(
        CommandError, match=r"objects that the source lacks: 1, the first is instances/a/other"
    ):
        await Migration(source, target).run()


async def test_a_target_with_other_events_is_refused(source: Side, target: Side) -> None:
    async with opened(target) as site:
        topic = all_topics()[STUDY_TOPIC]
        await site.events.prepare(topic, topic.partitions)
        now = int(SystemClock().now().timestamp() * 1000)
        log = site.events._log  # type: ignore[attr-defined] # as above
        await log.append_with(Entry(TopicPartition(STUDY_TOPIC, 3), now, b"k", b"v", ()), lambda _: None)

    with pytest.raises(CommandError, match="records that the source lacks"):
        await Migration(source, target).run()


async def test_a_run_that_fails_leaves_the_index_closed(
    source: Side, target: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("down")

    monkeypatch.setattr("isocenter.cli.migration.events.copy", down)
    with pytest.raises(StoreUnavailable):
        await Migration(source, target).run()
    monkeypatch.undo()

    async with opened(target) as site:
        with pytest.raises(Exception, match="a rebuild has not finished"):
            await site.index.settle_now("k", SystemClock().now())
    assert (await Migration(source, target).run()).equal


async def test_a_comparison_finds_what_was_lost_since(source: Side, target: Side) -> None:
    await Migration(source, target).run()
    key = await first_instance(target)
    async with opened(target) as site:
        await site.store.delete(key)
        place = TopicPartition(STUDY_TOPIC, 5)
        log = site.events._log  # type: ignore[attr-defined] # as above
        now = int(SystemClock().now().timestamp() * 1000)
        await log.append_with(Entry(place, now, b"k", b"v", ()), lambda _: None)
        study = await site.index.get_study(STUDIES[1])
        assert study is not None
        await site.index.settle_now(study.study_key, now=SystemClock().now())

    report = await Migration(source, target).verify()

    assert not report.equal
    assert {"missing": [key]} == report.objects.faults.named
    assert [STUDY_TOPIC] == [topic.topic for topic in report.events if not topic.equal]


async def test_only_reading_back_finds_rotten_bytes(source: Side, target: Side) -> None:
    await Migration(source, target).run()
    key = await first_instance(target)
    path = object_file(target, key)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)

    assert (await Migration(source, target).verify()).equal
    report = await Migration(source, target, read_back=True).verify()
    assert {"damaged-copy": [key]} == report.objects.faults.named


async def test_a_difference_in_the_index_names_the_study_by_its_key(source: Side, target: Side) -> None:
    await Migration(source, target).run()
    async with sending(target) as sender:
        await sender.send(STUDIES[1], numbers=range(50, 51))
    await index_all(target, SLOW, receiving=2)

    report = await Migration(source, target).verify()

    assert [SiteKeys.load(source.key_file).study_key(STUDIES[1])] == report.index.named
    assert STUDIES[1] not in str(report.as_json())


async def test_a_report_cannot_be_changed(source: Side, target: Side, tmp_path: Path) -> None:
    keys = SiteKeys.load(source.key_file)
    report = await Migration(source, target).run()
    document = sign(report.as_json(), keys)

    path = write(document, tmp_path, report.finished_at)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert is_signed(document, keys)
    assert not is_signed({**document, "equal": False}, keys)
    assert not is_signed(document, SiteKeys(bytes(32)))


async def test_too_little_room_is_said_before_anything_is_copied(
    source: Side, target: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isocenter.cli.migration.engine.HEADROOM_BYTES", 1 << 60)

    with pytest.raises(CommandError, match="free and needs"):
        await Migration(source, target).run()
    assert {} == await payloads(target)
