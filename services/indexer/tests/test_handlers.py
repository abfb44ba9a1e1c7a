"""Events become records: once, whole, and one bad object does not take the others with it."""

import pytest

from isocenter.common.dicom.frames import FrameIndex
from isocenter.common.dicom.metadata import decode
from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, Permanent, Transient
from isocenter.common.events.models import InstanceConflicted
from isocenter.common.index.query import Exact, Level, Query
from isocenter.common.telemetry import Counter
from isocenter.indexer.testing import STUDY, Site, dataset, part10


async def test_an_instance_is_indexed_with_metadata_and_frames(site: Site) -> None:
    ds = dataset()
    stored = await site.put(ds)
    await site.deliver(site.stored_event([stored]))

    (record,) = [r async for r in site.index.instances(STUDY)]
    assert (stored.object_key, stored.content_digest, stored.size_bytes, stored.received_at) == (
        record.object_key,
        record.content_digest,
        record.size_bytes,
        record.received_at,
    )
    assert "SCANNER" == record.sender
    assert ["MRN-4711"] == decode(record.metadata)["00100020"]["Value"]
    data = part10(ds)
    ranges = FrameIndex.unpack(record.frames).ranges(1)
    assert bytes(range(32)) == b"".join(data[start:end] for start, end in ranges)
    page = await site.index.search(Query(Level.STUDY, where=Exact(("00100010",), "doe^jane")))
    assert [STUDY] == [match.study_instance_uid for match in page.matches]


async def test_a_replay_of_everything_changes_nothing(site: Site) -> None:
    await site.receive(dataset(number=1), dataset(number=2))
    site.clock.advance(1)
    await site.receive(dataset(number=2, PatientName="Changed^Name"))
    await site.deliver(site.closed_event())
    site.clock.advance(5)
    assert 1 == await site.settler.run_once()
    await site.receive(dataset(number=3))
    await site.pass_quiet_period()
    await site.relay.run_once()
    before, published = await site.dump(), list(site.bus.entries)

    site.clock.advance(100_000)
    await site.replay()
    await site.settler.run_once()
    await site.relay.run_once()

    assert before == await site.dump()
    assert published == site.bus.entries


async def test_a_conflict_is_recorded_and_reported_once(site: Site) -> None:
    first = await site.put(dataset())
    site.clock.advance(1)
    second = await site.put(dataset(PatientName="Changed^Name"))
    for _ in range(3):
        await site.deliver(site.stored_event([first, second]))
    await site.relay.run_once()

    (conflict,) = await site.index.conflicts(STUDY)
    assert (first.object_key, second.object_key) == (
        conflict.current_object_key,
        conflict.conflicting_object_key,
    )
    assert ["instance.conflicted"] == site.bus.types
    reported = InstanceConflicted.model_validate_json(site.bus.entries[0].body)
    assert (conflict.conflicting_object_key, conflict.instance_key) == (
        reported.conflicting_object_key,
        reported.instance_key,
    )
    assert 1 == site.telemetry.metrics.value(Counter.INDEX_INSTANCES, outcome="conflict")
    assert 4 == site.telemetry.metrics.value(Counter.INDEX_INSTANCES, outcome="known")


async def test_an_object_that_is_not_there_yet_is_tried_again_and_the_others_are_indexed(site: Site) -> None:
    there, missing = await site.put(dataset(number=1)), await site.put(dataset(number=2))
    await site.store.delete(missing.object_key)
    event = site.stored_event([missing, there])

    with pytest.raises(Transient):
        await site.deliver(event)
    assert [there.object_key] == [r.object_key async for r in site.index.instances(STUDY)]

    await site.put(dataset(number=2))
    await site.deliver(event)
    assert 2 == len([r async for r in site.index.instances(STUDY)])


async def test_an_object_that_cannot_be_described_is_indexed_by_its_uids(site: Site) -> None:
    """Cut off in the middle of an element behind the UIDs: found and retrieved whole, if nothing else."""
    good, ds = await site.put(dataset(number=1)), dataset(number=2)
    whole = part10(ds)
    cut = await site.put(ds, data=whole[: whole.index(b"\x28\x00\x10\x00") + 3])
    await site.deliver(site.stored_event([cut, good]))

    found = {r.object_key: r async for r in site.index.instances(STUDY)}
    assert {good.object_key, cut.object_key} == set(found)
    assert ds.SOPInstanceUID == found[cut.object_key].sop_instance_uid


async def test_bytes_without_uids_are_dead_lettered_and_the_others_are_indexed(site: Site) -> None:
    good, junk = await site.put(dataset(number=1)), await site.put(dataset(number=2), data=b"no DICOM" * 100)
    with pytest.raises(Permanent):
        await site.deliver(site.stored_event([junk, good]))
    assert [good.object_key] == [r.object_key async for r in site.index.instances(STUDY)]


async def test_a_fault_that_may_pass_is_told_before_one_that_will_not(site: Site) -> None:
    junk, missing = (
        await site.put(dataset(number=2), data=b"no DICOM" * 100),
        await site.put(dataset(number=3)),
    )
    await site.store.delete(missing.object_key)
    with pytest.raises(Transient):
        await site.deliver(site.stored_event([junk, missing]))


async def test_an_object_of_another_study_is_refused(site: Site) -> None:
    stored = await site.put(dataset(study="1.2.3.4.5"))
    with pytest.raises(Permanent) as caught:
        await site.deliver(site.stored_event([stored], study=STUDY))
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert await site.index.get_study(STUDY) is None


async def test_errors_name_objects_by_their_keys_only(site: Site) -> None:
    stored = await site.put(dataset(study="1.2.3.4.5"))
    for event in (site.stored_event([stored], study=STUDY),):
        with pytest.raises(Permanent) as caught:
            await site.deliver(event)
    told = f"{caught.value} {caught.value.__cause__}"
    assert stored.object_key in told
    for secret in ("1.2.3.4.5", "Doe", "MRN"):
        assert secret not in told


async def test_the_object_and_not_the_event_says_when_it_came(site: Site) -> None:
    """A re-sent instance is announced again; the record keeps the first time of receipt."""
    stored = await site.put(dataset())
    later = stored.model_copy(update={"received_at": stored.received_at.replace(year=2030)})
    await site.deliver(site.stored_event([later]))
    (record,) = [r async for r in site.index.instances(STUDY)]
    assert stored.received_at == record.received_at


async def test_a_closed_transfer_shortens_the_wait(site: Site) -> None:
    await site.receive(dataset(), transfer="a")
    await site.deliver(site.closed_event(transfer="a"))
    assert 0 == await site.settler.run_once()
    site.clock.advance(2)
    assert 1 == await site.settler.run_once()
    study = await site.index.get_study(STUDY)
    assert study is not None
    assert "transfer-closed" == study.settled_reason


async def test_a_transfer_that_closes_before_anything_is_indexed_is_no_error(site: Site) -> None:
    await site.deliver(site.closed_event(study="9.9"))
    assert [] == await site.dump()


async def test_a_vanished_object_is_a_not_found_of_the_store(site: Site) -> None:
    """The reader tells missing from unreadable: only the handler turns it into a retry."""
    with pytest.raises(NotFound):
        await site.handlers.records.read(site.keys.study_key(STUDY), "instances/aa/none")


async def test_a_store_that_refuses_us_says_nothing_about_its_objects(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that were rotated are mended, and the event comes again: as what it is, not as a bad object."""
    stored = await site.put(dataset())

    async def refused(*_: object) -> None:
        raise Misconfigured("the object store does not know these credentials")

    monkeypatch.setattr(site.store, "head", refused)
    with pytest.raises(Misconfigured):
        await site.deliver(site.stored_event([stored]))
