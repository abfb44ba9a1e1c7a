"""Settling: manifests, revision, index and event; and every moment at which the process may die."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from isocenter.common.errors import StoreUnavailable
from isocenter.common.events.models import MAX_MANIFESTS, SettleReason, StudySettled, StudyUpdated
from isocenter.common.index import manifest
from isocenter.common.index.ports import DueStudy, Settlement
from isocenter.common.index.records import SettleState, StudyRecord
from isocenter.common.objects.ports import PutResult
from isocenter.common.objects.sealing import SealContext
from isocenter.common.telemetry import STUDY_KEY, Counter, Histogram, recording
from isocenter.indexer import revision
from isocenter.indexer.settler import _listed
from isocenter.indexer.testing import STUDY, Site, dataset


async def study_of(site: Site) -> StudyRecord:
    study = await site.index.get_study(STUDY)
    assert study is not None
    return study


async def settled_events(site: Site) -> list[StudySettled]:
    await site.relay.run_once()
    return [
        StudySettled.model_validate_json(entry.body)
        for kind, entry in zip(site.bus.types, site.bus.entries, strict=True)
        if kind == "study.settled"
    ]


async def test_a_settled_study_has_manifests_a_revision_and_an_event(site: Site) -> None:
    await site.receive(
        dataset(series=1, number=1), dataset(series=1, number=2), dataset(series=2, number=1, Modality="SR")
    )
    assert 1 == await site.pass_quiet_period()

    study = await study_of(site)
    (event,) = await settled_events(site)
    assert event.revision in [key async for key in all_keys(site)]
    assert (SettleState.SETTLED, 1) == (study.state, study.version)
    assert (1, SettleReason.QUIET, 2, 3, ["CT", "SR"]) == (
        event.version,
        event.reason,
        event.series,
        event.instances,
        event.modalities,
    )
    assert study.size_bytes == event.size_bytes
    assert [study.manifests[key] for key in sorted(study.manifests)] == event.manifests
    assert study.settled_at == event.settled_at
    assert "00000000000000000001" == site.bus.entries[0].headers["ce_sequence"]
    for series in await site.index.list_series(STUDY):
        key = study.manifests[series.series_key]
        data = await site.vault.get(key, SealContext(study.study_key, key))
        read = manifest.parse(data)
        held = [r async for r in site.index.instances(STUDY, series.series_instance_uid)]
        assert [r.object_key for r in held] == [entry.object_key for entry in read.instances]
        assert [r.frames for r in held] == [entry.frames for entry in read.instances]
        assert ["Doe^Jane"] == [
            value["Alphabetic"] for value in read.instances[0].metadata["00100010"]["Value"]
        ]
    assert 1 == site.telemetry.metrics.value(Counter.STUDIES_SETTLED, reason="quiet")
    assert 1 == site.telemetry.metrics.value(Histogram.SETTLE_LATENESS)


@pytest.mark.parametrize(
    ("series", "listed"), [(0, 0), (3, 3), (MAX_MANIFESTS, MAX_MANIFESTS), (MAX_MANIFESTS + 1, 0)]
)
def test_an_event_lists_all_manifests_or_none(series: int, listed: int) -> None:
    """A study with more series than fit a record settles all the same: the revision has the list."""
    keys = _listed({f"series-{number:06d}": f"manifests/{number}" for number in range(series)})

    assert listed == len(keys)
    assert [f"manifests/{number}" for number in range(listed)] == keys


async def test_late_instances_make_the_next_version(site: Site) -> None:
    await site.receive(dataset(series=1), dataset(series=2))
    await site.pass_quiet_period()
    first = await study_of(site)

    await site.receive(dataset(series=2, number=2))
    await site.pass_quiet_period()

    second = await study_of(site)
    await site.relay.run_once()
    assert ["study.settled", "study.updated", "study.settled"] == site.bus.types
    assert 1 == StudyUpdated.model_validate_json(site.bus.entries[1].body).version
    assert (2, 3) == (second.version, second.instances)
    untouched, changed = site.keys.series_key(f"{STUDY}.1"), site.keys.series_key(f"{STUDY}.2")
    assert first.manifests[untouched] == second.manifests[untouched]
    assert first.manifests[changed] != second.manifests[changed]


async def test_a_restart_loses_no_timer(site: Site) -> None:
    await site.receive(dataset())
    await site.restart()
    site.clock.advance(59)
    assert 0 == await site.settler.run_once()
    await site.restart()
    site.clock.advance(1)
    assert 1 == await site.settler.run_once()
    assert 1 == (await study_of(site)).version


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """A port that dies before or after one call of one method."""

    def __init__(self, port: Any, method: str, *, after: bool = False, nth: int = 1) -> None:
        self._port, self._method, self._after, self._left = port, method, after, nth

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name != self._method:
            return found

        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await found(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return result

        return call if self._after else found


async def die(site: Site, port: str, method: str, *, after: bool = False, nth: int = 1) -> None:
    """Settles, dies at that point, and starts again."""
    site.clock.advance(60)
    real = getattr(site, port)
    setattr(site, port, Dying(real, method, after=after, nth=nth))
    with pytest.raises(Killed):
        await site.settler.run_once()
    setattr(site, port, real)
    await site.restart()


POINTS = [
    ("index", "list_series", False, 1),
    ("index", "get_study", False, 1),
    ("index", "settle", False, 1),
    ("index", "settle", True, 1),
    ("store", "stage", False, 1),  # the first manifest
    ("store", "stage", False, 2),  # the second
    ("store", "stage", False, 3),  # the revision
]


@pytest.mark.parametrize(("port", "method", "after", "nth"), POINTS)
async def test_dying_anywhere_settles_once_and_reports_the_same_event(
    site: Site, port: str, method: str, after: bool, nth: int
) -> None:
    await site.receive(dataset(series=1), dataset(series=2))
    await die(site, port, method, after=after, nth=nth)
    written = await site.keys_under(revision.PREFIX)

    site.clock.advance(30)  # the lease of the dead settler
    await site.settler.run_once()

    study = await study_of(site)
    events = await settled_events(site)
    assert (SettleState.SETTLED, 1) == (study.state, study.version)
    assert [1] == [event.version for event in events]
    assert study.settled_at == events[0].settled_at
    if written:
        kept = revision.parse(await site.vault.get(written[0], SealContext(study.study_key, written[0])))
        assert (kept.event_id, kept.settled_at, kept.manifests) == (
            site.bus.entries[0].event_id,
            study.settled_at,
            study.manifests,
        )


async def test_dying_before_the_index_settles_and_more_instances_then_is_one_version_with_all(
    site: Site,
) -> None:
    await site.receive(dataset(number=1))
    await die(site, "index", "settle")
    await site.receive(dataset(number=2))
    await site.pass_quiet_period()

    study = await study_of(site)
    (event,) = await settled_events(site)
    assert (1, 2) == (event.version, event.instances)
    assert 2 == len([k for k in await site.keys_under(revision.PREFIX) if not k.endswith(revision.SETTLED)])
    assert (1, 2) == (study.version, study.instances)


async def test_a_settled_version_is_confirmed_even_if_the_process_died_before(site: Site) -> None:
    await site.receive(dataset())
    await die(site, "index", "settle", after=True)
    await site.settler.run_once()
    assert 1 == len(await site.keys_under(revision.PREFIX))  # the event is not out yet

    await site.relay.run_once()
    await site.restart()
    await site.settler.run_once()

    (recorded, confirmed) = await site.keys_under(revision.PREFIX)
    assert recorded + revision.SETTLED == confirmed
    assert [] == await site.index.pending_confirmations(10)


async def test_a_store_that_is_down_delays_the_confirmation_only(site: Site) -> None:
    await site.receive(dataset())
    site.clock.advance(60)
    (due,) = await site.index.claim_due(site.clock.now(), 30, 1)
    assert await site.settler.settle(due)
    await site.relay.run_once()
    real, site.store = site.store, Failing(site.store)
    with pytest.raises(StoreUnavailable):
        await site.settler.run_once()
    site.store = real
    await site.settler.run_once()
    assert 2 == len(await site.keys_under(revision.PREFIX))


class Failing:
    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult:
        raise StoreUnavailable("down")


async def test_arrivals_while_a_study_is_settled_win(site: Site) -> None:
    await site.receive(dataset(number=1))
    site.clock.advance(60)
    (due,) = await site.index.claim_due(site.clock.now(), 30, 1)
    await site.receive(dataset(number=2))

    assert not await site.settler.settle(due)

    assert (SettleState.RECEIVING, 0) == ((await study_of(site)).state, (await study_of(site)).version)
    assert [] == await settled_events(site)


async def test_two_settlers_at_the_same_study_settle_it_once(site: Site) -> None:
    await site.receive(dataset(number=1))
    site.clock.advance(60)
    (slow,) = await site.index.claim_due(site.clock.now(), 1, 1)
    site.clock.advance(2)
    (quick,) = await site.index.claim_due(site.clock.now(), 1, 1)
    outcomes = await asyncio.gather(site.settler.settle(slow), site.settler.settle(quick))
    assert [False, True] == sorted(outcomes)
    assert 1 == len(await settled_events(site))


async def test_one_study_that_fails_does_not_hold_up_the_others(site: Site) -> None:
    await site.receive(dataset(study="1.2.1"))
    await site.receive(dataset(study="1.2.2"))
    real = site.index

    class Refusing(Dying):
        async def settle(self, due: DueStudy, settlement: Settlement) -> bool:
            if due.study_instance_uid == "1.2.1":
                raise StoreUnavailable("down")
            return await real.settle(due, settlement)

    site.index = Refusing(real, "none")
    assert 2 == await site.pass_quiet_period()
    site.index = real
    versions = {s.study_instance_uid: s.version async for s in site.index.studies()}
    assert {"1.2.1": 0, "1.2.2": 1} == versions
    site.clock.advance(30)
    await site.settler.run_once()
    assert {1} == {s.version async for s in site.index.studies()}


async def test_the_settle_span_is_a_child_of_the_last_arrival(site: Site) -> None:
    exporter = InMemorySpanExporter()
    site.telemetry = recording("indexer", exporter)
    with site.telemetry.tracer.start_as_current_span("process") as arrival:
        await site.receive(dataset())
    await site.pass_quiet_period()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    settle = spans["settle study"]
    assert settle.parent is not None
    assert arrival.get_span_context().span_id == settle.parent.span_id
    assert site.keys.study_key(STUDY) == (settle.attributes or {})[STUDY_KEY]
    await site.relay.run_once()
    assert settle.context is not None
    assert trace.format_span_id(settle.context.span_id) in site.bus.entries[0].headers["traceparent"]


async def test_nothing_of_a_patient_is_in_a_key_or_an_event(site: Site) -> None:
    await site.receive(dataset(Modality="DOE^JANE"))
    await site.pass_quiet_period()
    await site.relay.run_once()
    told = [key async for key in all_keys(site)]
    told += [f"{entry.headers}{entry.body!r}{entry.key}" for entry in site.bus.entries]
    for secret in (STUDY, "Doe", "DOE", "MRN", "20240229"):
        assert not any(secret in text for text in told)


async def all_keys(site: Site) -> AsyncIterator[str]:
    async for info in site.store.list():
        yield info.key
