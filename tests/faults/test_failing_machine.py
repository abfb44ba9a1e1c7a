"""A disk that answers EIO and a clock that jumps: refused while it lasts, nothing acknowledged lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from benchmarks.corpus import Corpus, Generator
from benchmarks.dimse import DataSet
from benchmarks.embedded import Embedded, Process, spawn
from tests.faults import commitment, judge
from tests.faults.test_disk_full import assert_sound, digests, send, served
from tests.faults.unreliable import Faults

ROOT = Path(__file__).resolve().parents[2]
SMALL = Corpus("small", 0, 64, 64)
LARGE = Corpus("large", 0, 512, 512, frames=8)
OUT_OF_RESOURCES = 0xA700
DAY = 86_400.0
QUICK = {
    "ISOCENTER_INDEXER_QUIET_SECONDS": "1",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.2",
    "ISOCENTER_INDEXER_SETTLE_POLL_SECONDS": "0.1",
    "ISOCENTER_INGEST_COMMITMENT_UNKNOWN_SECONDS": "1",
}


class Unreliable:
    """The platform as a subprocess, and what fails it."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        self.platform = Embedded(root / "site", environment)
        self._control = root / "faults.json"
        self.nothing_fails()

    def eio(self, *calls: str) -> None:
        Faults(eio=list(calls), below=str(self.platform.data_dir / "objects")).set(self._control)

    def clock(self, seconds: float) -> None:
        Faults(clock=seconds).set(self._control)

    def nothing_fails(self) -> None:
        Faults().set(self._control)

    def start(self) -> None:
        self.platform.launch(self._spawn)
        self.platform.wait_ready()

    def _spawn(
        self, command: Sequence[str], output: Path, log: Path, environment: Mapping[str, str]
    ) -> Process:
        # The arguments stand behind `python -m isocenter.cli`.
        script = ROOT / "tests" / "faults" / "unreliable.py"
        return spawn(
            [sys.executable, str(script), str(self._control), *list(command)[3:]],
            output,
            log,
            {**environment, "PYTHONPATH": str(ROOT)},
        )


@pytest.fixture
def machine(tmp_path: Path) -> Unreliable:
    return Unreliable(tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "shape"),
    [(("sync",), SMALL), (("write",), SMALL), (("sync", "write"), LARGE)],
    ids=["sync-small", "write-small", "both-large"],
)
def test_a_disk_that_fails_refuses_and_recovers(
    machine: Unreliable, calls: tuple[str, ...], shape: Corpus
) -> None:
    generator, platform = Generator(11), machine.platform
    study = generator.study_uid(1)
    before, during = list(generator.study(shape, 1, 6)), list(generator.study(shape, 1, 12, start=6))
    machine.start()
    try:
        assert [0] * len(before) == send(platform, before)
        machine.eio(*calls)
        assert {OUT_OF_RESOURCES} == set(send(platform, during))
        assert digests(before) == served(platform, study, len(before))

        machine.nothing_fails()
        until(lambda: send(platform, during[:1]) == [0])
        assert [0] * len(during) == send(platform, during)
        assert digests([*before, *during]) == served(platform, study, len(before) + len(during))
        assert commitment.Answer(sops(before) | sops(during), {}) == commitment.ask(
            platform, sops(before) | sops(during), shape.sop_class_uid
        )
        assert 0 == platform.stop()
        assert [] == judge.staged_leftovers(platform.data_dir)
        assert_sound(platform, study, [*before, *during])
    finally:
        platform.kill()


@pytest.mark.slow
def test_killed_while_the_disk_fails_it_holds_what_it_acknowledged(machine: Unreliable) -> None:
    generator, platform = Generator(12), machine.platform
    study = generator.study_uid(1)
    acknowledged: list[DataSet] = []
    machine.start()
    try:
        for round_ in range(3):
            some = list(generator.study(SMALL, 1, 10, start=10 * round_))
            assert [0] * len(some) == send(platform, some)
            acknowledged += some
            machine.eio("sync")
            send(platform, list(generator.study(SMALL, 2, 3, start=3 * round_)))
            platform.kill()
            machine.nothing_fails()
            machine.start()
        assert digests(acknowledged) == served(platform, study, len(acknowledged))
        assert commitment.Answer(sops(acknowledged), {}) == commitment.ask(platform, sops(acknowledged))
        assert 0 == platform.stop()
        assert_sound(platform, study, acknowledged)
    finally:
        platform.kill()


@pytest.mark.slow
def test_what_cannot_be_read_is_an_error_and_no_short_answer(machine: Unreliable) -> None:
    generator, platform = Generator(13), machine.platform
    study = generator.study_uid(1)
    instances = list(generator.study(SMALL, 1, 4))
    machine.start()
    try:
        assert [0] * len(instances) == send(platform, instances)
        served(platform, study, len(instances))
        machine.eio("read")
        status, headers, body = platform.get(f"/dicom-web/studies/{study}", "multipart/related")
        assert status == 503, body[:200]
        assert headers["content-type"] == "application/problem+json"
        machine.nothing_fails()
        assert digests(instances) == served(platform, study, len(instances))
    finally:
        platform.kill()


@pytest.mark.slow
@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY, -2 * 3600.0])
def test_a_clock_that_jumps_loses_nothing_and_stops_nothing(machine: Unreliable, jump: float) -> None:
    generator, platform = Generator(14), machine.platform
    study = generator.study_uid(1)
    first, second, third = (list(generator.study(SMALL, 1, 8, start=8 * number)) for number in range(3))
    machine.start()
    try:
        assert [0] * len(first) == send(platform, first)
        machine.clock(jump)
        assert [0] * len(second) == send(platform, second)
        machine.nothing_fails()  # and back again, as when somebody notices
        assert [0] * len(third) == send(platform, third)
        everything = [*first, *second, *third]
        assert digests(everything) == served(platform, study, len(everything))
        platform.kill()
        machine.clock(jump)
        machine.start()
        assert digests(everything) == served(platform, study, len(everything))
        assert commitment.Answer(sops(everything), {}) == commitment.ask(platform, sops(everything))
        assert 0 == platform.stop()
        assert_sound(platform, study, everything)
    finally:
        platform.kill()


@pytest.mark.slow
def test_commitment_tells_of_files_that_were_torn(machine: Unreliable) -> None:
    """Cut, changed and removed behind the store's back while it was down."""
    generator, platform = Generator(15), machine.platform
    study = generator.study_uid(1)
    instances = list(generator.study(SMALL, 1, 9))
    machine.start()
    try:
        assert [0] * len(instances) == send(platform, instances)
        served(platform, study, len(instances))
        assert 0 == platform.stop()
        stored = platform.data_dir / "objects" / "objects" / "instances"
        cut, changed, gone, *_ = sorted(path for path in stored.rglob("*") if path.is_file())
        whole = changed.read_bytes()
        cut.write_bytes(cut.read_bytes()[:-100])
        changed.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        gone.unlink()

        machine.start()
        answer = commitment.ask(platform, sops(instances))
        assert len(instances) - 3 == len(answer.committed)
        assert [commitment.PROCESSING_FAILURE] * 2 + [commitment.NO_SUCH_OBJECT_INSTANCE] == sorted(
            answer.failed.values()
        )
        again = [each for each in instances if each.sop_instance_uid in answer.failed]
        assert [0] * len(again) == send(platform, again)  # what a sender does who hears that
        assert commitment.Answer(sops(instances), {}) == commitment.ask(platform, sops(instances))
    finally:
        platform.kill()


def sops(instances: list[DataSet]) -> set[str]:
    return {instance.sop_instance_uid for instance in instances}


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not recover in time"
        time.sleep(0.2)
