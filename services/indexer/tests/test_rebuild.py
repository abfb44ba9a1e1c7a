"""The index from objects alone equals the index that was lost."""

from dataclasses import replace

import pytest

from isocenter.common.errors import IndexUnavailable, IntegrityError, Misconfigured, StoreUnavailable
from isocenter.common.index.records import SettleState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.indexer import revision
from isocenter.indexer.rebuild import RebuildReport, rebuild
from isocenter.indexer.testing import STUDY, Site, dataset

OTHER = "1.2.826.0.1.3680043.8.498.2"


async def rebuild_elsewhere(site: Site) -> RebuildReport:
    """The index is lost: a new one, from the same objects."""
    await site.index.close()
    for path in site.folder.glob("index.sqlite*"):
        path.unlink()
    site.index = await SqliteIndex.open(site.folder / "index.sqlite")
    return await rebuild(site.ports)


async def fill(site: Site) -> None:
    """Two series, three versions, conflicts in both directions, a study that has not settled."""
    await site.receive(dataset(series=1, number=1), dataset(series=1, number=2, StudyDescription="Head"))
    await site.pass_quiet_period()
    await site.receive(dataset(series=2, number=1, Modality="MR", PatientID="OTHER"))
    site.clock.advance(1)
    await site.receive(dataset(series=1, number=1, PatientName="Changed^Name"))
    await site.pass_quiet_period()
    early = await site.put(dataset(series=2, number=7, PatientName="Early^Name"))
    site.clock.advance(1)
    late = await site.put(dataset(series=1, number=7, SOPInstanceUID=f"{STUDY}.2.7"))
    await site.deliver(site.stored_event([late]))
    await site.deliver(site.stored_event([early]))
    await site.pass_quiet_period()
    await site.receive(dataset(study=OTHER))


async def test_a_rebuilt_index_equals_the_original(site: Site) -> None:
    await fill(site)
    before = await site.dump()
    progress: list[tuple[str, int]] = []

    report = await rebuild(site.ports, lambda phase, done: progress.append((phase, done)))

    assert before == await site.dump()
    assert (7, 5, 2, 2, 3) == (
        report.objects,
        report.instances,
        report.conflicts,
        report.studies,
        report.revisions,
    )
    assert (1, 1, []) == (report.settled, report.to_settle, report.unreadable)
    assert ("instances", 7) in progress
    assert ("revisions", 3) == progress[-1]


async def test_a_rebuild_of_a_lost_index_and_a_second_rebuild_agree(site: Site) -> None:
    await fill(site)
    before = await site.dump()
    await rebuild_elsewhere(site)
    assert before == await site.dump()
    await rebuild_elsewhere(site)
    assert before == await site.dump()


async def test_a_rebuild_sends_no_events(site: Site) -> None:
    await fill(site)
    await site.relay.run_once()
    site.bus.entries.clear()
    await rebuild_elsewhere(site)
    await site.relay.run_once()
    assert [] == site.bus.entries


async def test_a_rebuild_in_place_keeps_the_events_that_wait(site: Site) -> None:
    await site.receive(dataset())
    site.bus.down = True
    await site.pass_quiet_period()
    await rebuild(site.ports)
    site.bus.down = False
    await site.pass_quiet_period()
    assert ["study.settled"] == site.bus.types
    study = await site.index.get_study(STUDY)
    assert study is not None
    assert (SettleState.SETTLED, 1) == (study.state, study.version)


async def test_an_event_that_was_lost_with_the_index_goes_out_after_the_rebuild(site: Site) -> None:
    await site.receive(dataset())
    site.bus.down = True
    await site.pass_quiet_period()
    before = await site.dump()
    await rebuild_elsewhere(site)
    site.bus.down = False
    await site.pass_quiet_period()
    assert ["study.settled"] == site.bus.types
    assert before == await site.dump()


async def test_life_goes_on_after_a_rebuild(site: Site) -> None:
    await fill(site)
    await rebuild_elsewhere(site)
    await site.replay()
    await site.receive(dataset(series=3))
    await site.pass_quiet_period()
    study = await site.index.get_study(STUDY)
    assert study is not None
    assert (SettleState.SETTLED, 4, 3) == (study.state, study.version, study.series)


async def test_a_study_reopened_before_the_loss_is_still_open_after_it(site: Site) -> None:
    await site.receive(dataset(number=1))
    await site.pass_quiet_period()
    await site.receive(dataset(number=2))
    before = await site.dump()
    await rebuild_elsewhere(site)
    assert before == await site.dump()
    await site.pass_quiet_period()
    study = await site.index.get_study(STUDY)
    assert study is not None
    assert 2 == study.version


@pytest.mark.parametrize("settled_in_index", [True, False])
async def test_a_crash_while_settling_and_then_a_lost_index_converge(
    site: Site, settled_in_index: bool
) -> None:
    """Revision written, not confirmed. Whether the index had settled is lost with it: the settler settles
    with the same revision, and the event goes out with the same id.
    """
    await site.receive(dataset(number=1))
    site.clock.advance(60)
    (due,) = await site.index.claim_due(site.clock.now(), 30, 1)
    recorded = await site.settler._record(await site.settler._draft(due))
    if settled_in_index:
        assert await site.index.settle(due, site.settler._settlement(recorded))
    else:
        site.clock.advance(31)
        await site.settler.run_once()
    before = await site.dump()
    await site.relay.run_once()
    first = list(site.bus.entries)
    for key in await site.keys_under(revision.PREFIX):
        if key.endswith(revision.SETTLED):
            await site.store.delete(key)

    report = await rebuild_elsewhere(site)
    assert (0, 1) == (report.settled, report.to_settle)
    await site.pass_quiet_period()
    await site.relay.run_once()

    assert before == await site.dump()
    assert [first[0].event_id] * 2 == [entry.event_id for entry in site.bus.entries]
    assert first[0].body == site.bus.entries[1].body


async def test_whatever_a_crash_leaves_one_more_run_makes_index_and_objects_equal(site: Site) -> None:
    """Settled in the index, not confirmed in the store: the next run of the settler mends it."""
    await site.receive(dataset(number=1))
    site.clock.advance(60)
    (due,) = await site.index.claim_due(site.clock.now(), 30, 1)
    assert await site.settler.settle(due)
    await site.restart()
    await site.relay.run_once()
    await site.restart()
    await site.settler.run_once()
    before = await site.dump()
    await rebuild_elsewhere(site)
    assert before == await site.dump()


async def test_a_version_that_may_have_been_told_is_not_given_twice(site: Site) -> None:
    """Crash after the revision, more instances, then the index is lost."""
    await site.receive(dataset(number=1))
    site.clock.advance(60)
    (due,) = await site.index.claim_due(site.clock.now(), 30, 1)
    recorded = await site.settler._record(await site.settler._draft(due))
    assert await site.index.settle(due, site.settler._settlement(recorded))
    await site.receive(dataset(number=2))

    await rebuild_elsewhere(site)
    await site.pass_quiet_period()

    study = await site.index.get_study(STUDY)
    assert study is not None
    assert (2, 2) == (study.version, study.instances)


async def test_what_cannot_be_read_is_named_and_the_rest_is_rebuilt(site: Site) -> None:
    await site.receive(dataset(number=1))
    junk = await site.put(dataset(number=2), data=b"no DICOM" * 100)
    await site.store.put("instances/zz/foreign", b"nobody's", {})
    report = await rebuild_elsewhere(site)
    assert {junk.object_key, "instances/zz/foreign"} == {one.object_key for one in report.unreadable}
    assert 1 == report.instances


async def test_a_damaged_revision_is_named_and_its_study_settles_anew(site: Site) -> None:
    await site.receive(dataset(number=1))
    await site.pass_quiet_period()
    key = next(k for k in await site.keys_under(revision.PREFIX) if not k.endswith(revision.SETTLED))
    await site.store.delete(key)
    await site.store.put(key, b"{}", {})
    report = await rebuild_elsewhere(site)
    assert [key] == [one.object_key for one in report.unreadable]
    assert (0, 1) == (report.settled, report.to_settle)


async def test_a_rebuild_that_stops_half_way_leaves_the_index_closed(site: Site) -> None:
    await fill(site)
    before = await site.dump()

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(site.store, name)

        async def head(self, key: str) -> object:
            if key.endswith("a"):
                raise StoreUnavailable("down")
            return await site.store.head(key)

    ports = replace(site.ports, store=Failing())  # type: ignore[arg-type]  # a proxy of the real store
    await site.store.put("instances/zz/a", b"", {"study_key": "k"})
    with pytest.raises(StoreUnavailable):
        await rebuild(ports)
    await site.store.delete("instances/zz/a")
    await site.restart()
    with pytest.raises(IndexUnavailable):
        await site.replay()
    await rebuild(site.ports)
    await site.index.check()
    after = await site.dump()
    assert before == after


async def test_a_rebuild_without_an_index_is_refused(site: Site) -> None:
    with pytest.raises(Misconfigured):
        await rebuild(replace(site.ports, index=None))


async def test_objects_that_live_indexing_reads_and_a_rebuild_reads_are_read_alike(site: Site) -> None:
    """Without metadata of ingest's own, both fall back to the same values."""
    stored = await site.put(dataset())
    data = await site.store.get(stored.object_key)
    await site.store.delete(stored.object_key)
    await site.store.put(stored.object_key, data, {"study_key": site.keys.study_key(STUDY)})
    await site.deliver(site.stored_event([stored]))
    before = await site.dump()
    await rebuild_elsewhere(site)
    assert before == await site.dump()


def damage(site: Site, prefix: str, suffix: str = "") -> int:
    """Bytes of the trailers go bad. Returns how many objects that hit."""
    paths = list((site.folder / "objects" / "objects" / prefix).rglob(f"*{suffix}@1"))
    for path in paths:
        with path.open("r+b") as file:
            file.seek(-40, 2)
            file.write(b"\xff" * 20)
    return len(paths)


async def test_a_damaged_object_is_reported_and_hides_no_other_one(site: Site) -> None:
    await site.receive(dataset(series=1, number=1))
    assert 1 == damage(site, "instances")
    await site.receive(dataset(series=1, number=2))

    report = await rebuild(site.ports)

    assert 1 == report.instances
    assert [IntegrityError] == [type(one.error) for one in report.unreadable]
    await site.index.check()
    assert 1 == await site.pass_quiet_period()


async def test_a_version_whose_revision_cannot_be_read_is_not_given_again(site: Site) -> None:
    await site.receive(dataset(series=1, number=1))
    await site.pass_quiet_period()
    (settled,) = [key for key in await site.keys_under(revision.PREFIX) if key.endswith(revision.SETTLED)]
    name = settled.removesuffix(revision.SETTLED).rpartition("/")[2]
    assert 1 == damage(site, revision.PREFIX, name)
    await site.receive(dataset(series=1, number=2))

    report = await rebuild_elsewhere(site)
    await site.pass_quiet_period()

    study = await site.index.get_study(STUDY)
    assert study is not None
    assert (2, SettleState.SETTLED) == (study.version, study.state)
    assert 1 == len(report.unreadable)


async def test_events_that_were_decided_and_not_sent_survive_a_rebuild(site: Site) -> None:
    """Nothing in the objects would make them again. The same event is not sent twice for it."""
    await site.receive(dataset(series=1, number=1))
    site.clock.advance(site.policy.quiet.total_seconds())
    await site.settler.run_once()
    site.clock.advance(1)
    await site.receive(dataset(series=1, number=1, PatientName="Changed^Name"))
    before = [entry.event_id for entry in await site.index.pending_outbox(10)]

    await rebuild(site.ports)
    await site.pass_quiet_period()

    assert ["study.settled", "instance.conflicted"] == site.bus.types
    assert before == [entry.event_id for entry in site.bus.entries]
