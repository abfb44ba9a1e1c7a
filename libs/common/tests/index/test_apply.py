"""Instances become records: idempotent, in any order, and the same in the end."""

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest

from isocenter.common.index.ports import Applied, Index
from isocenter.common.index.query import Exact, Level, Query
from isocenter.common.index.records import InstanceRecord, OutboxEntry, SettleState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.index.testing import KEYS, arrival, at, element, entry, instance, silent

STUDY = "1.2.3"


async def lines(index: Index) -> list[str]:
    return [line async for line in index.dump()]


async def held(index: Index, study: str = STUDY) -> list[InstanceRecord]:
    return [record async for record in index.instances(study)]


async def test_a_batch_is_counted_at_every_level(index: Index) -> None:
    batch = [instance(STUDY, f"1.2.3.{n % 2}", f"1.2.3.4.{n}", received=n) for n in range(5)]

    applied = await index.apply(batch, arrival(), silent)

    assert applied == Applied(tuple(r.sop_instance_uid for r in batch), 0, (), None)
    study = await index.get_study(STUDY)
    assert study is not None
    assert (study.series, study.instances, study.size_bytes, study.conflicts) == (2, 5, 5000, 0)
    assert (study.first_received_at, study.last_received_at) == (at(0), at(4))
    assert (study.state, study.version) == (SettleState.RECEIVING, 0)
    assert [(3, 3000), (2, 2000)] == [(s.instances, s.size_bytes) for s in await index.list_series(STUDY)]


async def test_a_record_comes_back_as_it_went_in(index: Index) -> None:
    given = instance(
        STUDY,
        "1.2.3.1",
        "1.2.3.4",
        attributes={
            "00080016": element("UI", "1.2.840.10008.5.1.4.1.1.2"),
            "00080018": element("UI", "1.2.3.4"),
            "00080060": element("CS", "CT"),
            "00100010": element("PN", "Doe^Jane"),
            "0020000D": element("UI", STUDY),
            "0020000E": element("UI", "1.2.3.1"),
            "00280010": element("US", 512),
        },
    )
    await index.apply([given], arrival(), silent)
    assert [given] == await held(index)


async def test_replaying_everything_changes_nothing_not_even_a_timer(index: Index) -> None:
    batch = [instance(STUDY, "1.2.3.1", f"1.2.3.4.{n}", received=n) for n in range(3)]
    batch.append(instance(STUDY, "1.2.3.1", "1.2.3.4.0", received=9, content="other"))
    await index.apply(batch, arrival(0, transfer="a"), silent)
    before, study = await lines(index), await index.get_study(STUDY)

    applied = await index.apply(batch, arrival(500, transfer="b"), refuse_to_report)

    assert applied == Applied((), 4, (), None)
    assert before == await lines(index)
    assert study == await index.get_study(STUDY)


def refuse_to_report(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    raise AssertionError("nothing happened, so nothing may be reported")


async def test_an_instance_twice_in_one_batch_counts_once(index: Index) -> None:
    one = instance(STUDY, "1.2.3.1", "1.2.3.4")
    applied = await index.apply([one, one], arrival(), silent)
    assert (1, 1) == (len(applied.new), applied.duplicates)
    assert [one.sop_instance_uid] == [record.sop_instance_uid for record in await held(index)]


async def test_other_content_under_a_known_uid_is_a_conflict_and_the_first_stays(index: Index) -> None:
    first = instance(STUDY, "1.2.3.1", "1.2.3.4", received=1)
    second = instance(STUDY, "1.2.3.1", "1.2.3.4", received=2, content="changed")
    await index.apply([first], arrival(1), silent)

    applied = await index.apply([second], arrival(2), silent)

    assert ((), 0) == (applied.new, applied.duplicates)
    assert [(first.object_key, second.object_key, at(2))] == [
        (c.current_object_key, c.conflicting_object_key, c.detected_at) for c in applied.conflicts
    ]
    assert list(applied.conflicts) == await index.conflicts(STUDY)
    assert [first.object_key] == [record.object_key for record in await held(index)]
    study = await index.get_study(STUDY)
    assert study is not None
    assert (1, 1, 1000) == (study.conflicts, study.instances, study.size_bytes)


async def test_a_conflict_does_not_move_the_quiet_period(index: Index) -> None:
    await index.apply([instance(STUDY, "1.2.3.1", "1.2.3.4")], arrival(0), silent)
    await index.apply([instance(STUDY, "1.2.3.1", "1.2.3.4", received=5, content="x")], arrival(50), silent)
    study = await index.get_study(STUDY)
    assert study is not None
    assert at(60) == study.settle_at


async def test_an_object_received_earlier_takes_the_place_of_the_current_one(index: Index) -> None:
    """Processed late, received first: the outcome must be the one of the other order."""
    late = instance(STUDY, "1.2.3.2", "1.2.3.4", received=2, content="late")
    early = instance(STUDY, "1.2.3.1", "1.2.3.4", received=1, content="early")
    await index.apply([late], arrival(2), silent)

    applied = await index.apply([early], arrival(3), silent)

    assert [(early.object_key, late.object_key)] == [
        (c.current_object_key, c.conflicting_object_key) for c in applied.conflicts
    ]
    assert ["1.2.3.1"] == [s.series_instance_uid for s in await index.list_series(STUDY)]
    assert Applied((), 1, (), None) == await index.apply([late], arrival(4), silent)


async def test_the_order_of_processing_does_not_matter(index: Index) -> None:
    records = [
        instance(STUDY, "1.2.3.1", "1.1", received=3, attributes={"00081030": element("LO", "third")}),
        instance(STUDY, "1.2.3.1", "1.2", received=1, attributes={"00100010": element("PN", "First^Name")}),
        instance(STUDY, "1.2.3.2", "1.3", received=2, attributes={"00100010": element("PN", "Later^Name")}),
        instance(
            STUDY, "1.2.3.2", "1.1", received=2, content="b", attributes={"00080060": element("CS", "MR")}
        ),
        instance(STUDY, "1.2.3.1", "1.1", received=4, content="c"),
    ]
    orders = list(itertools.permutations(records))
    if not isinstance(index, SqliteIndex):  # emptying a server's database takes a quarter of a second
        orders = random.Random(3).sample(orders, 12)
    outcomes = set()
    for order in orders:
        await index.clear()
        for record in order:
            await index.apply([record], arrival(), silent)
        outcomes.add("\n".join(await lines(index)))
    assert 1 == len(outcomes)


async def test_random_orders_and_batches_and_replays_end_alike(index: Index) -> None:
    shuffle = random.Random(7)
    records = [
        instance(
            STUDY,
            f"1.2.3.{n % 3}",
            f"1.9.{n % 11}",
            received=n * 7 % 13,
            content=str(n // 11),
            attributes={
                "00100020": element("LO", f"P{n % 4}") if n % 3 else element("LO"),
                "00100021": element("LO", f"I{n % 5}"),
                "00080060": element("CS", ("CT", "MR", "SR")[n % 3]),
                "00400275": {"vr": "SQ", "Value": [{"00400009": element("SH", f"S{n % 2}")}]},
            },
        )
        for n in range(30)
    ]
    outcomes = set()
    for _ in range(12 if isinstance(index, SqliteIndex) else 6):
        await index.clear()
        order = records + shuffle.sample(records, 10)
        shuffle.shuffle(order)
        while order:
            size = shuffle.randint(1, 7)
            await index.apply(order[:size], arrival(), silent)
            order = order[size:]
        outcomes.add("\n".join(await lines(index)))
    assert 1 == len(outcomes)


async def test_the_first_value_stays_and_missing_ones_are_filled(index: Index) -> None:
    await index.apply(
        [
            instance(STUDY, "1.2.3.1", "1", received=1, attributes={"00100010": element("PN", "A^A")}),
            instance(
                STUDY,
                "1.2.3.1",
                "2",
                received=2,
                attributes={"00100010": element("PN", "B^B"), "00081030": element("LO", "Head")},
            ),
        ],
        arrival(),
        silent,
    )
    study = await index.get_study(STUDY)
    assert study is not None
    assert element("PN", "A^A") == study.attributes["00100010"]
    assert element("LO", "Head") == study.attributes["00081030"]


async def test_an_issuer_is_never_taken_from_another_instance_than_its_identifier(index: Index) -> None:
    await index.apply(
        [
            instance(STUDY, "1.2.3.1", "1", received=1, attributes={"00100020": element("LO", "42")}),
            instance(
                STUDY,
                "1.2.3.1",
                "2",
                received=2,
                attributes={"00100020": element("LO", "77"), "00100021": element("LO", "ELSEWHERE")},
            ),
        ],
        arrival(),
        silent,
    )
    study = await index.get_study(STUDY)
    assert study is not None
    assert ("SITE", "42") == study.patient
    assert "00100021" not in study.attributes


async def test_identities_are_qualified_by_their_issuer(index: Index) -> None:
    attributes = {
        "00100020": element("LO", "42"),
        "00100024": {"vr": "SQ", "Value": [{"00400032": element("UT", "1.2.840.99")}]},
        "00080050": element("SH", "A1"),
        "00080051": {"vr": "SQ", "Value": [{"00400031": element("UT", "RIS")}]},
    }
    await index.apply([instance(STUDY, "1.2.3.1", "1", attributes=attributes)], arrival(), silent)
    study = await index.get_study(STUDY)
    assert study is not None
    assert (("1.2.840.99", "42"), ("RIS", "A1")) == (study.patient, study.accession)


async def test_the_same_uid_in_two_studies_is_two_instances(index: Index) -> None:
    await index.apply([instance("1.1", "1.1.1", "9.9")], arrival(), silent)
    applied = await index.apply([instance("1.2", "1.2.1", "9.9")], arrival(), silent)
    assert ("9.9",) == applied.new
    assert () == applied.conflicts


async def test_instances_come_in_order_of_series_number_and_uid(index: Index) -> None:
    numbers = {"1.5": 10, "1.4": 9, "1.3": None, "1.2": 10, "1.1": 2}
    batch = [
        instance(STUDY, "2.1", uid, attributes={"00200013": element("IS", *([n] if n is not None else []))})
        for uid, n in numbers.items()
    ]
    batch.append(instance(STUDY, "1.9", "9.9"))
    await index.apply(batch, arrival(), silent)
    assert ["9.9", "1.1", "1.4", "1.2", "1.5", "1.3"] == [r.sop_instance_uid for r in await held(index)]


async def test_iterating_does_not_depend_on_the_size_of_a_page(index: Index) -> None:
    """A series longer than what a backend fetches at once; another series follows."""
    batch = [
        instance(STUDY, "1.1", f"1.1.{n}", attributes={"00200013": element("IS", n % 50)}) for n in range(600)
    ]
    batch.append(instance(STUDY, "1.2", "1.2.1"))
    for start in range(0, len(batch), 200):
        await index.apply(batch[start : start + 200], arrival(), silent)
    found = await held(index)
    assert 601 == len({record.sop_instance_uid for record in found})
    assert "1.2.1" == found[-1].sop_instance_uid
    assert 600 == len([record async for record in index.instances(STUDY, "1.1")])
    assert ["1.2.1"] == [r.sop_instance_uid async for r in index.instances(STUDY, None, "1.2.1")]


async def test_a_study_is_found_by_uid_and_by_key(index: Index) -> None:
    await index.apply([instance(STUDY, "1.2.3.1", "1")], arrival(), silent)
    by_uid, by_key = await index.find_study(STUDY), await index.find_study(KEYS.study_key(STUDY))
    assert by_uid is not None
    assert by_uid == by_key
    assert await index.find_study("1.2.3.4.5") is None
    assert await index.get_study(KEYS.study_key(STUDY)) is None


async def test_studies_come_newest_arrival_first(index: Index) -> None:
    for number in range(300):
        await index.apply(
            [instance(f"1.{number}", f"1.{number}.1", f"1.{number}.2", received=number)], arrival(), silent
        )
    assert [f"1.{n}" for n in reversed(range(300))] == [s.study_instance_uid async for s in index.studies()]


async def test_concurrent_batches_of_one_study_lose_nothing(index: Index) -> None:
    batches = [
        [instance(STUDY, f"1.{b % 4}", f"1.{b % 4}.{b}.{n}", received=b) for n in range(10)]
        for b in range(20)
    ]
    outcomes = await asyncio.gather(*(index.apply(batch, arrival(), silent) for batch in batches + batches))
    assert 200 == sum(len(applied.new) for applied in outcomes)
    assert 200 == sum(applied.duplicates for applied in outcomes)
    study = await index.get_study(STUDY)
    assert study is not None
    assert (200, 4, 200_000) == (study.instances, study.series, study.size_bytes)
    assert 200 == sum(series.instances for series in await index.list_series(STUDY))


async def test_what_happened_is_reported_in_the_same_transaction(index: Index) -> None:
    def broken(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        raise RuntimeError("the report cannot be built")

    with pytest.raises(RuntimeError):
        await index.apply([instance(STUDY, "1.2.3.1", "1")], arrival(), broken)
    assert await index.get_study(STUDY) is None

    def report(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        return [entry("event-1", study_key)]

    await index.apply([instance(STUDY, "1.2.3.1", "1")], arrival(), report)
    assert [entry("event-1", KEYS.study_key(STUDY))] == await index.pending_outbox(10)


async def test_a_batch_of_two_studies_is_refused(index: Index) -> None:
    with pytest.raises(ValueError):
        await index.apply([instance("1.1", "1", "1"), instance("1.2", "2", "2")], arrival(), silent)
    with pytest.raises(ValueError):
        await index.apply([], arrival(), silent)


async def test_elements_of_odd_shapes_are_left_out_and_never_stop_a_batch(index: Index) -> None:
    odd = {
        "00100010": {"vr": "PN", "Value": ["Plain^Text", 7, None]},
        "00100020": {"vr": "LO", "Value": "not a list"},
        "00080050": {"vr": "SH", "Value": ["\ud800 lone", "nul\0inside"]},
        "00080051": {"vr": "SQ", "Value": ["no item", {"00400031": "no element"}]},
        "00080020": "no element",
        "00081030": {"vr": "LO", "Value": ["x" * 20_000]},
        "00200011": {"vr": "IS", "Value": ["9" * 500, 1e400, "²"]},
        "00200013": {"vr": "IS", "Value": ["not a number"]},
        "00280010": {"vr": "US", "Value": [{"a": "dict"}]},
    }
    applied = await index.apply([instance(STUDY, "1.2.3.1", "1", attributes=odd)], arrival(), silent)
    assert ("1",) == applied.new
    assert "00081030" not in (await held(index))[0].attributes
    found = await index.search(Query(Level.STUDY, where=Exact(("00100010",), "PLAIN^text")))
    assert 1 == len(found.matches)
