"""Study revisions: timers as data, leases, and one fenced write."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from isocenter.common.events.codec import format_time
from isocenter.common.events.models import CloudEvent, SettleReason, StudyUpdated
from isocenter.common.index.ports import Applied, Backlog, DueStudy, Index, RestoredRevision, Settlement
from isocenter.common.index.records import OutboxEntry, SettleState, StudyRecord
from isocenter.common.index.testing import KEYS, START, arrival, at, entry, instance, silent

STUDY = "1.2.3"
KEY = KEYS.study_key(STUDY)


async def study_of(index: Index) -> StudyRecord:
    study = await index.get_study(STUDY)
    assert study is not None
    return study


async def receive(index: Index, sop: str = "1", now: float = 0, **options: float | str) -> Applied:
    quiet, wait = float(options.get("quiet", 60)), float(options.get("wait", 5400))
    transfer = str(options["transfer"]) if "transfer" in options else None
    record = instance(STUDY, "1.2.3.1", sop, received=now)
    return await index.apply([record], arrival(now, quiet=quiet, wait=wait, transfer=transfer), report_update)


def report_update(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    if applied.reopened_version is None:
        return []
    return [entry(f"updated-{applied.reopened_version}", study_key)]


def settlement(due: DueStudy, now: float = 100) -> Settlement:
    version = due.version + 1
    event = CloudEvent(
        id=f"settled-{version}",
        source="/isocenter/indexer",
        time=at(now),
        data=StudyUpdated(study_key=due.study_key, version=version, updated_at=at(now)),
    )
    manifests = {KEYS.series_key("1.2.3.1"): f"manifests/{version}"}
    return Settlement(version, due.reason, at(now), manifests, event, entry(event.id, due.study_key))


async def claim(index: Index, now: float, lease: float = 30, limit: int = 10) -> list[DueStudy]:
    return await index.claim_due(at(now), lease, limit)


async def settle(index: Index, now: float = 100) -> None:
    (due,) = await claim(index, now)
    assert await index.settle(due, settlement(due, now))


async def test_a_study_is_due_when_its_quiet_period_is_over_and_not_before(index: Index) -> None:
    await receive(index, quiet=60)
    assert [] == await claim(index, 59.9)
    (due,) = await claim(index, 60)
    assert (STUDY, KEY, 0, SettleReason.QUIET, at(60)) == (
        due.study_instance_uid,
        due.study_key,
        due.version,
        due.reason,
        due.due_at,
    )


async def test_each_arrival_begins_the_quiet_period_anew(index: Index) -> None:
    await receive(index, "1", 0)
    await receive(index, "2", 50)
    assert [] == await claim(index, 100)
    assert 1 == len(await claim(index, 110))


async def test_the_maximum_wait_counts_from_the_first_arrival(index: Index) -> None:
    for number in range(10):
        await receive(index, str(number), number * 50, wait=300)
    study = await study_of(index)
    assert at(300) == study.settle_at
    (due,) = await claim(index, 300)
    assert SettleReason.MAX_WAIT == due.reason


async def test_the_maximum_wait_begins_again_after_settling(index: Index) -> None:
    await receive(index, "1", 0, wait=300)
    await settle(index, 60)
    await receive(index, "2", 1000, wait=300)
    await receive(index, "3", 1290, wait=300)
    assert at(1300) == (await study_of(index)).settle_at


async def test_settling_writes_version_and_event_together(index: Index) -> None:
    await receive(index)
    await settle(index, 100)
    study = await study_of(index)
    assert (SettleState.SETTLED, 1, None) == (study.state, study.version, study.settle_at)
    assert (at(100), "quiet") == (study.settled_at, study.settled_reason)
    assert {KEYS.series_key("1.2.3.1"): "manifests/1"} == study.manifests
    assert ["settled-1"] == [one.event_id for one in await index.pending_outbox(10)]
    assert [] == await claim(index, 10_000)


async def test_late_instances_reopen_the_study_and_say_so_once(index: Index) -> None:
    await receive(index)
    await settle(index, 100)

    applied = await receive(index, "2", 200)

    assert 1 == applied.reopened_version
    assert (await receive(index, "3", 201)).reopened_version is None
    study = await study_of(index)
    assert (SettleState.RECEIVING, 1, at(261)) == (study.state, study.version, study.settle_at)
    assert ["settled-1", "updated-1"] == [one.event_id for one in await index.pending_outbox(10)]
    await settle(index, 300)
    assert 2 == (await study_of(index)).version


async def test_a_settler_that_an_arrival_overtook_writes_nothing(index: Index) -> None:
    await receive(index, "1", 0)
    (due,) = await claim(index, 60)
    await receive(index, "2", 61)

    assert not await index.settle(due, settlement(due))

    study = await study_of(index)
    assert (SettleState.RECEIVING, 0, {}) == (study.state, study.version, study.manifests)
    assert [] == await index.pending_outbox(10)


async def test_a_lease_keeps_others_away_until_it_runs_out(index: Index) -> None:
    await receive(index)
    assert 1 == len(await claim(index, 60, lease=30))
    assert [] == await claim(index, 89.9)
    assert 1 == len(await claim(index, 90))


async def test_of_two_settlers_after_a_lease_ran_out_one_wins(index: Index) -> None:
    await receive(index)
    (slow,) = await claim(index, 60, lease=10)
    (quick,) = await claim(index, 70, lease=10)
    assert await index.settle(quick, settlement(quick))
    assert not await index.settle(slow, settlement(slow))
    assert 1 == len(await index.pending_outbox(10))


async def test_an_old_settler_does_not_settle_a_later_version(index: Index) -> None:
    await receive(index, "1", 0)
    (stale,) = await claim(index, 60, lease=1)
    await settle(index, 70)
    await receive(index, "2", 100)
    assert not await index.settle(stale, settlement(stale))
    with pytest.raises(ValueError):
        await index.settle(stale, replace(settlement(stale), version=7))


async def test_due_studies_are_claimed_oldest_first_up_to_the_limit(index: Index) -> None:
    for number in range(5):
        study = f"1.{number}"
        record = instance(study, f"{study}.1", f"{study}.2")
        await index.apply([record], arrival(10 - number, quiet=10), silent)
    first = await claim(index, 100, limit=3)
    rest = await claim(index, 100, limit=3)
    assert ["1.4", "1.3", "1.2"] == [due.study_instance_uid for due in first]
    assert ["1.1", "1.0"] == [due.study_instance_uid for due in rest]


async def test_a_closed_transfer_brings_settling_forward(index: Index) -> None:
    await receive(index, transfer="a", quiet=60)
    assert await index.close_transfer(KEY, at(2), "a")
    (due,) = await claim(index, 2)
    assert SettleReason.TRANSFER_CLOSED == due.reason


async def test_a_transfer_that_closes_while_another_is_open_changes_nothing(index: Index) -> None:
    await receive(index, "1", transfer="a")
    await receive(index, "2", transfer="b")
    assert not await index.close_transfer(KEY, at(2), "a")
    assert at(60) == (await study_of(index)).settle_at
    assert await index.close_transfer(KEY, at(3), "b")
    assert at(3) == (await study_of(index)).settle_at


async def test_a_closed_transfer_never_moves_settling_back(index: Index) -> None:
    await receive(index, transfer="a", quiet=10)
    assert not await index.close_transfer(KEY, at(11), "a")
    assert at(10) == (await study_of(index)).settle_at


async def test_a_closed_transfer_of_an_unknown_or_settled_study_changes_nothing(index: Index) -> None:
    assert not await index.close_transfer(KEY, at(2), "a")
    await receive(index)
    await settle(index, 100)
    before = await study_of(index)
    assert not await index.close_transfer(KEY, at(102), "a")
    assert before == await study_of(index)


async def test_transfers_of_an_earlier_version_do_not_hold_up_the_next(index: Index) -> None:
    """The process that held transfer `lost` died: its end is never reported."""
    await receive(index, "1", 0, transfer="lost")
    await settle(index, 60)
    await receive(index, "2", 100, transfer="b")
    assert await index.close_transfer(KEY, at(102), "b")


async def test_a_study_can_be_settled_by_hand(index: Index) -> None:
    assert not await index.settle_now(KEY, at(1))
    await receive(index)
    assert await index.settle_now(KEY, at(1))
    (due,) = await claim(index, 1)
    assert SettleReason.MANUAL == due.reason
    assert await index.settle(due, settlement(due))
    assert not await index.settle_now(KEY, at(2))


async def test_the_trace_of_the_last_arrival_goes_with_the_claim(index: Index) -> None:
    first = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    last = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01"
    for number, traceparent in enumerate((first, last, None)):
        record = instance(STUDY, "1.2.3.1", str(number))
        await index.apply([record], replace(arrival(), traceparent=traceparent), silent)
    (due,) = await claim(index, 60)
    assert last == due.traceparent


async def test_timers_and_leases_survive_a_restart(
    index: Index, reopen: Callable[[], Awaitable[Index]]
) -> None:
    await receive(index, "1", 0, transfer="a")
    await index.close()
    again = await reopen()
    assert not await again.close_transfer(KEY, at(2), "b")  # `a` is still open
    assert 1 == len(await claim(again, 60, lease=30))
    await again.close()
    third = await reopen()
    assert [] == await claim(third, 89)
    (due,) = await claim(third, 90)
    assert await third.settle(due, settlement(due))


async def test_the_outbox_keeps_order_and_forgets_what_is_published(index: Index) -> None:
    def three(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        return [entry(name, study_key) for name in ("c", "a", "b")]

    await index.apply([instance(STUDY, "1.2.3.1", "1")], arrival(), three)
    assert ["c", "a"] == [one.event_id for one in await index.pending_outbox(2)]
    await index.outbox_published(["c", "b", "unknown"])
    await index.outbox_published([])
    assert ["a"] == [one.event_id for one in await index.pending_outbox(10)]
    backlog = await index.backlog()
    assert (1, 1) == (backlog.receiving, backlog.outbox)


async def test_the_backlog_says_since_when(index: Index) -> None:
    def reported(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        return [
            OutboxEntry(name, "imaging.study.v1", study_key, {"ce_time": format_time(when)}, b"{}")
            for name, when in (("first", at(7)), ("second", at(8)))
        ]

    assert Backlog(receiving=0, outbox=0) == await index.backlog()
    await index.apply([instance(STUDY, "1.2.3.1", "1")], arrival(10, wait=300), reported)
    await index.apply([instance(STUDY, "1.2.3.1", "2")], arrival(20, wait=300), silent)
    await index.apply([instance("1.2.9", "1.2.9.1", "1")], arrival(15, wait=300), silent)
    assert (
        Backlog(2, 2, settle_at=at(75), latest_settle_at=at(310), outbox_since=at(7)) == await index.backlog()
    )

    await index.outbox_published(["first"])
    for due in await claim(index, 75):
        assert await index.settle(due, settlement(due))
    await index.outbox_published(["second"])
    backlog = await index.backlog()
    assert (1, at(80), at(310)) == (backlog.receiving, backlog.settle_at, backlog.latest_settle_at)


@pytest.mark.parametrize("settled", [True, False])
async def test_a_rebuild_restores_versions_without_an_event(index: Index, settled: bool) -> None:
    await index.clear()
    await receive(index)
    restored = RestoredRevision(3, SettleReason.MAX_WAIT, START, {"k": "manifests/k"})
    await index.restore_revision(STUDY, restored, settled=settled)
    await index.rebuilt()
    study = await study_of(index)
    assert (3, "max-wait", START, {"k": "manifests/k"}) == (
        study.version,
        study.settled_reason,
        study.settled_at,
        study.manifests,
    )
    assert (SettleState.SETTLED if settled else SettleState.RECEIVING) == study.state
    assert [] == await index.pending_outbox(10)
    assert ([] if settled else [3]) == [due.version for due in await claim(index, 60)]
