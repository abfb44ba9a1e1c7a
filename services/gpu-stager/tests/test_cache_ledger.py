"""Who may stay and who must go, over ten thousand random steps and one by one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from isocenter.common.errors import Overloaded, Permanent
from isocenter.gpu_stager.cache.ledger import CacheFull, Ledger, Limits, Pin, Priority, Row, TooLarge
from isocenter.gpu_stager.cache.states import CHARGED, TRANSITIONS, Impossible, State, Stimulus, after

QUOTA = 1000
LIMITS = Limits(quota_bytes=QUOTA)


def row(name: str, size: int = 100, priority: Priority = Priority.INFERENCE, disk: int = 0) -> Row:
    return Row(name, f"study-{name[0]}", f"series-{name}", "CT", size, priority, disk)


def completed(ledger: Ledger, name: str, now: float) -> None:
    for stimulus in (Stimulus.FETCH, Stimulus.DECODE, Stimulus.WRITE, Stimulus.VERIFY, Stimulus.COMMIT):
        ledger.move(name, stimulus)
    ledger.rows[name].last_used = now


def add(
    ledger: Ledger, name: str, now: float, size: int = 100, priority: Priority = Priority.INFERENCE
) -> list[str]:
    """A ready entry; what went for it is gone."""
    chosen = ledger.reserve(row(name, size, priority), now)
    for each in chosen:
        ledger.move(each, Stimulus.GONE)
    completed(ledger, name, now)
    return chosen


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for state in State:
        for stimulus in Stimulus:
            if (state, stimulus) in TRANSITIONS:
                assert after(state, stimulus) is TRANSITIONS[state, stimulus]
            else:
                with pytest.raises(Impossible):
                    after(state, stimulus)


def test_ready_is_reached_only_through_every_step() -> None:
    before = {state for (state, _), to in TRANSITIONS.items() if to is State.READY}
    assert before == {State.VERIFIED, State.ABSENT}
    assert TRANSITIONS[State.ABSENT, Stimulus.FOUND] is State.READY


def test_what_goes_first() -> None:
    ledger = Ledger(Limits(quota_bytes=QUOTA, high=1.0, largest=1.0))
    add(ledger, "old", 0)
    add(ledger, "soft", 1)
    ledger.pin("soft", Pin.SOFT, 1)
    add(ledger, "guess", 2, priority=Priority.PRIOR)
    ledger.pin("guess", Pin.SOFT, -2000)  # ran out
    add(ledger, "hard", 3)
    ledger.pin("hard", Pin.HARD, 3)
    add(ledger, "leased", 4)
    ledger.use("leased", "lease", 4)
    add(ledger, "newer", 5)
    add(ledger, "fresh", 299)
    ledger.rows["leased"].leases["lease"] = 1000.0
    assert ledger.reserve(row("x", 700), 300.0) == ["guess", "old", "newer", "soft"]
    with pytest.raises(CacheFull):
        ledger.reserve(row("y", 300), 300.0)
    assert (
        ledger.rows["hard"].state is ledger.rows["leased"].state is ledger.rows["fresh"].state is State.READY
    )


def test_watermarks_evict_from_high_down_to_low_and_not_before() -> None:
    ledger = Ledger(LIMITS)
    for number in range(9):
        add(ledger, f"e{number}", number)
    assert ledger.surplus(1000, {}) == []
    add(ledger, "last", 999)
    assert ledger.surplus(1000, {}) == ["e0", "e1"]


def test_a_disk_without_free_space_loses_its_own_entries_only() -> None:
    ledger = Ledger(LIMITS)
    for number in range(4):
        add(ledger, f"e{number}", number)
        ledger.rows[f"e{number}"].disk = number % 2
    assert ledger.surplus(1000, {0: -1, 1: 150}) == ["e1", "e3"]
    assert ledger.reserve(row("x", 50), 1000, floor=60) == ["e0"]


def test_one_entry_takes_no_more_than_its_share_unless_it_is_forced() -> None:
    ledger = Ledger(LIMITS)
    with pytest.raises(TooLarge):
        ledger.reserve(row("a", 251), 0)
    ledger.reserve(row("a", 251), 0, forced=True)
    with pytest.raises(TooLarge):
        ledger.reserve(row("b", QUOTA + 1), 0, forced=True)
    assert issubclass(TooLarge, Permanent)
    assert issubclass(CacheFull, Overloaded)


def test_guesses_have_a_share_and_make_room_for_each_other_in_it() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "g1", 0, 150, Priority.PRIOR)
    with pytest.raises(CacheFull):  # still in grace
        ledger.reserve(row("g2", 150, Priority.BULK), 10)
    assert ledger.reserve(row("g2", 150, Priority.BULK), 100) == ["g1"]


def test_a_guess_pushes_out_nothing_that_was_asked_for_not_even_later_by_the_marks() -> None:
    ledger = Ledger(LIMITS)
    for number in range(4):
        add(ledger, f"e{number}", number, 200)
    with pytest.raises(CacheFull):
        ledger.reserve(row("g", 150, Priority.PRIOR), 1000)
    ledger.reserve(row("g", 100, Priority.PRIOR), 1000)
    assert ledger.surplus(1001, {}) == []
    assert ledger.reserve(row("d", 200), 1001) == ["e0"]


def test_a_copy_on_its_way_out_is_neither_replaced_nor_lost() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "a", 0)
    ledger.use("a", "lease", 0)
    ledger.drop(["a"], "destroyed")
    for attempt in (1.0, 2.0):
        with pytest.raises(CacheFull):
            ledger.reserve(row("a"), attempt)
        assert ledger.rows["a"].leases
        assert ledger.rows["a"].dropped == "destroyed"
    assert ledger.use("a", "other", 3) is None
    assert ledger.surplus(59, {}) == []
    assert ledger.surplus(61, {}) == ["a"]
    with pytest.raises(CacheFull):
        ledger.reserve(row("a"), 62)
    ledger.move("a", Stimulus.GONE)
    ledger.reserve(row("a"), 63)
    with pytest.raises(Impossible):
        ledger.reserve(row("a"), 64)


def test_a_dropped_entry_goes_though_it_is_pinned_and_in_grace() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "a", 0)
    ledger.pin("a", Pin.HARD, 0)
    assert ledger.surplus(1, {}) == []
    ledger.drop(["a"], "dropped")
    assert ledger.surplus(1, {}) == ["a"]


def test_leases_run_out_unless_they_are_renewed() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "a", 0)
    ledger.use("a", "lease", 0)
    assert ledger.renew("a", "lease", 59)
    assert not ledger.evict("a", 118)
    assert not ledger.renew("a", "lease", 119)
    ledger.expire(119)
    assert not ledger.rows["a"].leases
    assert ledger.evict("a", 119)


def test_checking_an_entry_is_no_use_of_it() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "g", 0, priority=Priority.PRIOR)
    ledger.use("g", "scrub", 500, look=True)
    assert not ledger.evict("g", 501)
    ledger.release("g", "scrub", 502, look=True)
    assert (ledger.rows["g"].last_used, ledger.rows["g"].priority, ledger.prefetch_used) == (
        0,
        Priority.PRIOR,
        0,
    )
    ledger.use("g", "read", 503)
    assert (ledger.rows["g"].priority, ledger.prefetch_used) == (Priority.INFERENCE, 1)


@pytest.mark.parametrize(("used", "worth"), [(3, False), (4, True)])
def test_prefetch_ends_when_less_than_a_fifth_of_it_is_used(used: int, worth: bool) -> None:
    ledger = Ledger(LIMITS)
    for number in range(20):
        assert ledger.prefetch_worthwhile
        add(ledger, f"g{number}", 0, 10, Priority.PRIOR)
        if number < used:
            assert ledger.use(f"g{number}", "lease", 0)
        else:
            assert ledger.evict(f"g{number}", 0)
    assert ledger.prefetch_worthwhile is worth


def test_the_real_size_is_charged_and_makes_room() -> None:
    ledger = Ledger(LIMITS)
    for number in range(8):
        add(ledger, f"e{number}", number)
    ledger.reserve(row("x", 200), 1000)
    assert ledger.charged == QUOTA
    assert ledger.resize("x", 240, 1000) == ["e0"]
    with pytest.raises(TooLarge):
        ledger.resize("x", 251, 1000)
    ledger.resize("x", 10, 1000)
    assert ledger.rows["x"].bytes == 10
    completed(ledger, "x", 1000)
    with pytest.raises(Impossible):
        ledger.resize("x", 20, 1000)


def test_a_lost_disk_takes_its_entries_along_and_no_others() -> None:
    ledger = Ledger(LIMITS)
    add(ledger, "a", 0)
    add(ledger, "b", 0)
    ledger.rows["b"].disk = 1
    ledger.use("b", "lease", 0)
    assert [each.name for each in ledger.lost(1)] == ["b"]
    assert set(ledger.rows) == {"a"}
    assert not ledger.renew("b", "lease", 1)


class Walk:
    """Random steps, and what must hold after each of them. The model of leases and pins is its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ledger = Ledger(LIMITS)
        self.now = 0.0
        self.leases: dict[tuple[str, str], float] = {}
        self.hard: set[str] = set()
        self.dropped: set[str] = set()
        self.seen: Counter[str] = Counter()

    def states(self) -> dict[str, State]:
        return {name: each.state for name, each in self.ledger.rows.items()}

    def pick(self, *states: State) -> str | None:
        names = [name for name, state in self.states().items() if state in states]
        return self.random.choice(names) if names else None

    def leased(self, name: str) -> bool:
        return any(each == name and until > self.now for (each, _), until in self.leases.items())

    def step(self) -> None:
        self.now += self.random.choice([0.0, 0.1, 1.0, 5.0, 20.0, 70.0])
        before = {
            name: (each.state, each.priority.demanded, each.last_used)
            for name, each in self.ledger.rows.items()
        }
        kind = self.random.choices(
            (
                "reserve",
                "further",
                "gone",
                "use",
                "renew",
                "release",
                "pin",
                "drop",
                "surplus",
                "resize",
                "fail",
            ),
            (30, 60, 20, 15, 8, 8, 4, 2, 8, 4, 2),
        )[0]
        guess: bool = getattr(self, f"_{kind}")() or False
        for name, (state, demanded, last_used) in before.items():
            left = self.ledger.rows.get(name)
            if state is not State.READY or (left is not None and left.state is State.READY):
                continue
            self.seen["evicted"] += 1
            assert not self.leased(name), f"{kind} evicted what is leased"
            if name not in self.dropped:
                assert name not in self.hard, f"{kind} evicted what is pinned hard"
                assert self.now - last_used >= LIMITS.grace_seconds, f"{kind} evicted in grace"
            assert not (guess and demanded and name not in self.dropped), "a guess evicted what was asked for"
        self.check()

    def check(self) -> None:
        rows = list(self.ledger.rows.values())
        assert self.ledger.charged == sum(each.bytes for each in rows if each.state in CHARGED)
        staying = [each for each in rows if each.state in CHARGED and each.state is not State.EVICTING]
        assert sum(each.bytes for each in staying) <= QUOTA
        assert self.ledger.charged <= QUOTA + LIMITS.largest * QUOTA
        guesses = sum(each.bytes for each in staying if not each.priority.demanded)
        assert guesses <= LIMITS.prefetch * QUOTA

    def _reserve(self) -> bool:
        name = f"{self.random.choice('abcdef')}{self.random.randrange(8)}"
        priority = self.random.choice(list(Priority))
        old = self.ledger.rows.get(name)
        if old is not None and (old.making or old.available):
            with pytest.raises(Impossible):
                self.ledger.reserve(row(name), self.now)
            return False
        try:
            self.ledger.reserve(row(name, self.random.randrange(1, 260), priority), self.now)
        except CacheFull:
            self.seen["full"] += 1
        except TooLarge:
            self.seen["too large"] += 1
        else:
            self.seen["reserved"] += 1
            self.dropped.discard(name)
            self.hard.discard(name)
        return not priority.demanded

    def _further(self) -> None:
        following = {
            State.RESERVED: Stimulus.FETCH,
            State.FETCHING: Stimulus.DECODE,
            State.DECODING: Stimulus.WRITE,
            State.WRITING: Stimulus.VERIFY,
            State.VERIFIED: Stimulus.COMMIT,
        }
        if (name := self.pick(*following)) is not None:
            self.ledger.move(name, following[self.ledger.rows[name].state]).last_used = self.now

    def _gone(self) -> None:
        if (name := self.pick(State.EVICTING)) is not None:
            self.ledger.move(name, Stimulus.GONE)
            self.leases = {key: until for key, until in self.leases.items() if key[0] != name}

    def _use(self) -> None:
        name = self.pick(State.READY, State.EVICTING, State.FETCHING)
        if name is None:
            return
        lease = str(self.random.randrange(10**9))
        used = self.ledger.use(name, lease, self.now, look=self.random.random() < 0.2)
        assert (used is not None) == (self.states()[name] is State.READY and name not in self.dropped)
        if used is not None:
            self.leases[name, lease] = self.now + LIMITS.lease_seconds

    def _renew(self) -> None:
        if not self.leases:
            return
        name, lease = self.random.choice(list(self.leases))
        if self.ledger.renew(name, lease, self.now):
            self.leases[name, lease] = self.now + LIMITS.lease_seconds
        else:
            assert self.leases[name, lease] <= self.now
            del self.leases[name, lease]

    def _release(self) -> None:
        if self.leases:
            name, lease = self.random.choice(list(self.leases))
            self.ledger.release(name, lease, self.now)
            del self.leases[name, lease]

    def _pin(self) -> None:
        name = self.pick(*State)
        pin = self.random.choice([Pin.NONE, Pin.NONE, Pin.SOFT, Pin.HARD])
        if name is not None and self.ledger.pin(name, pin, self.now):
            (self.hard.add if pin is Pin.HARD else self.hard.discard)(name)

    def _drop(self) -> None:
        study = f"study-{self.random.choice('abcdef')}"
        names = [name for name, each in self.ledger.rows.items() if each.study_key == study]
        self.ledger.drop(names, "dropped")
        self.dropped.update(names)

    def _surplus(self) -> None:
        self.ledger.expire(self.now)
        self.ledger.surplus(self.now, {0: self.random.choice([-1, -1, -1, 150])})

    def _resize(self) -> bool:
        name = self.pick(State.FETCHING, State.DECODING, State.WRITING)
        if name is None:
            return False
        try:
            self.ledger.resize(name, self.random.randrange(1, 260), self.now)
        except (CacheFull, TooLarge):
            self.seen["not resized"] += 1
        return not self.ledger.rows[name].priority.demanded

    def _fail(self) -> None:
        name = self.pick(State.FETCHING, State.WRITING)
        if name is not None:
            self.ledger.failed(name, self.now + 1)
            if self.random.random() < 0.5:
                self.ledger.forget(name)


@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_random_steps(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(10_000):
        walk.step()
    assert walk.seen["reserved"] > 300
    assert walk.seen["evicted"] > 200
    assert walk.seen["full"] > 100
