"""The state table is complete, and the index does what it says."""

import itertools
from datetime import timedelta

import pytest

from isocenter.common.clock import ManualClock
from isocenter.common.index.ports import DueStudy
from isocenter.common.index.records import SettleState
from isocenter.indexer.domain import (
    TRANSITIONS,
    SettlingPolicy,
    Stimulus,
    StudyState,
    reportable_modalities,
)
from isocenter.indexer.testing import STUDY, Site, dataset

PAIRS = list(itertools.product(StudyState, Stimulus))
# A study that nobody has heard of has no known instances, and no settler holds it.
IMPOSSIBLE = {
    (StudyState.UNKNOWN, Stimulus.KNOWN_INSTANCES),
    (StudyState.UNKNOWN, Stimulus.CONFLICT),
    (StudyState.UNKNOWN, Stimulus.SETTLE),
}


def test_every_pair_of_state_and_stimulus_is_decided() -> None:
    assert set(PAIRS) == TRANSITIONS.keys()


def test_a_refused_stimulus_changes_and_reports_nothing() -> None:
    for (state, stimulus), transition in TRANSITIONS.items():
        if transition.refused:
            assert (state, ()) == (transition.state, transition.reports), (state, stimulus)


class Driver:
    """Brings a study into a state and applies a stimulus, through handlers, settler and index."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.key = site.keys.study_key(STUDY)
        self.due: DueStudy | None = None
        self.stale: DueStudy | None = None

    async def bring_to(self, state: StudyState) -> None:
        if state is StudyState.UNKNOWN:
            return
        await self.site.receive(dataset(number=1))
        if state is StudyState.RECEIVING:
            await self.claim()  # and lose it again, so that a stale claim exists
            self.stale, self.due = self.due, None
            await self.site.receive(dataset(number=2))
            return
        await self.claim()
        if state is StudyState.SETTLED:
            assert self.due
            assert await self.site.settler.settle(self.due)
        await self.site.relay.run_once()
        self.site.bus.entries.clear()

    async def claim(self) -> list[DueStudy]:
        self.site.clock.advance(60)
        found = await self.site.index.claim_due(self.site.clock.now(), 30, 10)
        self.due = found[0] if found else self.due
        return found

    async def apply(self, stimulus: Stimulus) -> None:
        site = self.site
        match stimulus:
            case Stimulus.NEW_INSTANCES:
                await site.receive(dataset(number=9))
            case Stimulus.KNOWN_INSTANCES:
                await site.replay()
            case Stimulus.CONFLICT:
                site.clock.advance(0.001)
                await site.receive(dataset(number=1, PatientName="Other^Name"))
            case Stimulus.TRANSFER_CLOSED:
                await site.deliver(site.closed_event())
            case Stimulus.SETTLE_NOW:
                await site.index.settle_now(self.key, site.clock.now())
            case Stimulus.CLAIM:
                # Time enough for the quiet period, but not for a lease that another settler holds.
                site.clock.advance(0 if self.due else 60)
                await site.index.claim_due(site.clock.now(), 30, 10)
            case Stimulus.SETTLE:
                due = self.due or self.stale
                assert due
                await site.settler.settle(due)
            case Stimulus.LEASE_OVER:
                site.clock.advance(31 if self.due else 0)

    async def state(self) -> StudyState:
        study = await self.site.index.get_study(STUDY)
        if study is None:
            return StudyState.UNKNOWN
        if study.state is SettleState.SETTLED:
            return StudyState.SETTLED
        now = self.site.clock.now()
        assert study.settle_at
        if study.settle_at > now:
            return StudyState.RECEIVING
        # Due: held by a settler if nobody else can have it.
        return StudyState.RECEIVING if await self.site.index.claim_due(now, 0.001, 10) else StudyState.CLAIMED


@pytest.mark.parametrize(("state", "stimulus"), [pair for pair in PAIRS if pair not in IMPOSSIBLE])
async def test_the_index_does_what_the_table_says(site: Site, state: StudyState, stimulus: Stimulus) -> None:
    driver = Driver(site)
    await driver.bring_to(state)
    assert state == await driver.state()

    await driver.apply(stimulus)

    expected = TRANSITIONS[state, stimulus]
    assert expected.state == await driver.state()
    await site.relay.run_once()
    assert list(expected.reports) == site.bus.types


def test_times_of_the_policy_count_from_the_platforms_clock() -> None:
    policy = SettlingPolicy(timedelta(seconds=60), timedelta(seconds=2), timedelta(seconds=5400))
    now = ManualClock().now()
    arrival = policy.arrival(now, "t", None)
    assert (now + timedelta(seconds=60), now + timedelta(seconds=5400)) == (
        arrival.settle_at,
        arrival.latest_settle_at,
    )
    assert now + timedelta(seconds=2) == policy.settle_at_after_close(now)


def test_a_modality_that_is_no_code_string_is_not_reported() -> None:
    assert ["CT", "OT 1"] == reportable_modalities(("CT", "Doe^Jane", "ct", "OT 1", "X" * 17, ""))
