"""Requests for storage commitment: durable, leased to one replica, fenced; and where instances are."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from isocenter.common.errors import IndexUnavailable
from isocenter.common.index.commitments import Commitment, CommitmentState, Reference, Step
from isocenter.common.index.ports import Index
from isocenter.common.index.testing import CT_IMAGE_STORAGE, KEYS, arrival, at, instance, silent

Reopen = Callable[[], Awaitable[Index]]
REFERENCES = (Reference(CT_IMAGE_STORAGE, "1.2.3.4"), Reference(CT_IMAGE_STORAGE, "1.2.3.5", "1.2", "1.2.9"))


def request(
    name: str = "a", transaction: str = "2.25.1", *, requester: str = "PACS", now: float = 0
) -> Commitment:
    return Commitment(name, requester, transaction, REFERENCES, at(now))


async def claim(index: Index, now: float, lease: float = 30, limit: int = 10) -> list[Commitment]:
    return await index.claim_commitments(at(now), lease, limit)


def step(state: CommitmentState, due: float = 0) -> Step:
    return Step(state, at(due), 3, {1: 0x0112}, at(7))


async def test_a_request_is_kept_as_it_was_made_and_by_every_process(reopen: Reopen) -> None:
    index = await reopen()
    assert request() == await index.create_commitment(request())
    again = await reopen()
    assert request() == await again.get_commitment("PACS", "2.25.1")
    assert await again.get_commitment("PACS", "2.25.2") is None


async def test_the_first_request_of_a_transaction_is_the_one_that_is_kept(index: Index) -> None:
    await index.create_commitment(request("a"))
    other = replace(request("b"), references=REFERENCES[:1])
    assert "a" == (await index.create_commitment(other)).id
    assert "c" == (await index.create_commitment(request("c", requester="OTHER"))).id
    assert {"a", "c"} == {each.id for each in await index.commitments(10)}


async def test_of_two_replicas_one_gets_a_request_until_its_lease_runs_out(reopen: Reopen) -> None:
    index, other = await reopen(), await reopen()
    await index.create_commitment(request())
    assert ["a"] == [each.id for each in await claim(index, 0)]
    assert [] == await claim(other, 29)
    assert ["a"] == [each.id for each in await claim(other, 30)]


async def test_what_a_lapsed_claimant_found_out_is_not_written(index: Index) -> None:
    await index.create_commitment(request())
    (slow,) = await claim(index, 0)
    (quick,) = await claim(index, 31)
    assert not await index.advance_commitment(slow, step(CommitmentState.DONE))
    assert not await index.renew_commitment(slow, at(90))
    assert await index.advance_commitment(quick, step(CommitmentState.REPORTING, due=40))
    kept = await index.get_commitment("PACS", "2.25.1")
    assert kept is not None
    assert (CommitmentState.REPORTING, 3, {1: 0x0112}, at(7)) == (
        kept.state,
        kept.attempts,
        kept.failures,
        kept.checked_at,
    )


async def test_a_lease_can_be_prolonged(index: Index) -> None:
    await index.create_commitment(request())
    (held,) = await claim(index, 0)
    assert await index.renew_commitment(held, at(60))
    assert [] == await claim(index, 59)


async def test_requests_are_looked_at_when_they_are_due_longest_waiting_first(index: Index) -> None:
    await index.create_commitment(request("b", "2.25.2", now=2))
    await index.create_commitment(request("a", "2.25.1", now=1))
    (first,) = await claim(index, 5, limit=1)
    assert "a" == first.id
    await index.advance_commitment(first, step(CommitmentState.CHECKING, due=100))
    assert ["b"] == [each.id for each in await claim(index, 99)]
    assert {"a", "b"} == {each.id for each in await claim(index, 130)}


@pytest.mark.parametrize("end", [CommitmentState.DONE, CommitmentState.GIVEN_UP])
async def test_what_has_ended_is_not_claimed_may_be_repeated_and_is_forgotten_in_time(
    index: Index, end: CommitmentState
) -> None:
    await index.create_commitment(request())
    assert not await index.repeat_commitment(request(), at(1))
    (held,) = await claim(index, 0)
    await index.advance_commitment(held, step(end))
    assert [] == await claim(index, 1000)

    assert await index.repeat_commitment(held, at(2000))
    (again,) = await claim(index, 2000)
    assert (CommitmentState.CHECKING, {}, None) == (again.state, again.failures, again.checked_at)
    assert not await index.advance_commitment(held, step(end)), "the earlier claim is void"
    assert 0 == await index.purge_commitments(at(5000)), "an open request is never forgotten"
    await index.advance_commitment(again, step(end))
    assert 0 == await index.purge_commitments(at(2000))
    assert 1 == await index.purge_commitments(at(2001))
    assert [] == await index.commitments(10)


async def test_instances_are_located_in_every_study_with_their_conflicting_objects(index: Index) -> None:
    first, twin = instance("1.1", "1.1.1", "9.1"), instance("1.2", "1.2.1", "9.1")
    other = instance("1.1", "1.1.1", "9.1", content="changed", received=5)
    for record in (first, twin, other, instance("1.1", "1.1.1", "9.2")):
        await index.apply([record], arrival(), silent)

    found = await index.locate(["9.1", "9.3"])

    assert {
        ("1.1", first.object_key, CT_IMAGE_STORAGE, first.content_digest),
        ("1.2", twin.object_key, CT_IMAGE_STORAGE, twin.content_digest),
        ("1.1", other.object_key, "", ""),
    } == {(e.study_instance_uid, e.object_key, e.sop_class_uid, e.content_digest) for e in found}
    assert {
        (KEYS.study_key("1.1"), KEYS.instance_key("9.1")),
        (KEYS.study_key("1.2"), KEYS.instance_key("9.1")),
    } == {(each.study_key, each.instance_key) for each in found}


async def test_a_rebuild_keeps_requests_and_answers_none_before_it_is_whole(reopen: Reopen) -> None:
    index, other = await reopen(), await reopen()
    await index.create_commitment(request())
    await other.clear()
    for call in (
        index.locate(["9.1"]),
        claim(index, 0),
        index.create_commitment(request("b", "2.25.2")),
    ):
        with pytest.raises(IndexUnavailable):
            await call
    await other.rebuilt()
    assert ["a"] == [each.id for each in await claim(index, 0)]


async def test_a_hundred_thousand_references_come_back(index: Index) -> None:
    many = tuple(Reference(CT_IMAGE_STORAGE, f"1.2.826.0.1.{number}") for number in range(100_000))
    await index.create_commitment(replace(request(), references=many))
    (held,) = await claim(index, 0)
    assert many == held.references
    failures = dict.fromkeys(range(100_000), 0x0112)
    await index.advance_commitment(held, replace(step(CommitmentState.DONE), failures=failures))
    kept = await index.get_commitment("PACS", "2.25.1")
    assert kept is not None
    assert failures == kept.failures
