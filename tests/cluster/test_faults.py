"""Everything that can go away goes away, again and again, while studies arrive at two replicas.

`ISOCENTER_CLUSTER_ROUNDS` (2) says how often, `ISOCENTER_FAULT_SEED` repeats a run,
`ISOCENTER_CLUSTER_FAULTS` (a part of the name) picks some of the faults. After `ISOCENTER_CLUSTER_MINUTES` no
further round begins: the table says how many there were.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from testbed import network
from testbed.cache import must_be_available
from testbed.cluster import Cluster
from testbed.server import ServerUnavailable, die_with_parent
from tests.cluster import verdict
from tests.cluster.faults import FAULTS, schedule
from tests.faults import judge

from isocenter.common.keys import SiteKeys

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("ISOCENTER_CLUSTER_ROUNDS", "2"))
SEED = int(os.environ.get("ISOCENTER_FAULT_SEED", "0")) or secrets.randbits(32)
ONLY = os.environ.get("ISOCENTER_CLUSTER_FAULTS", "")
MINUTES = float(os.environ.get("ISOCENTER_CLUSTER_MINUTES", "inf"))
LOAD_SECONDS = (0.5, 3.0)
PACE_SECONDS = 0.15
"""Between two instances of a lane: on two cores the services, not the load, are what is tested here."""
READY_SECONDS = 90.0
CATCH_UP_SECONDS = 90.0
SETTLE_SECONDS = 180.0
ENVIRONMENT = {
    "ISOCENTER_INDEXER_QUIET_SECONDS": "2",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.3",
    "ISOCENTER_INDEXER_LEASE_SECONDS": "5",
    "ISOCENTER_INGEST_PUBLISH_TIMEOUT_SECONDS": "10",
    "ISOCENTER_LOG_LEVEL": "warning",
}


class Load:
    """Two lanes of associations, to both replicas of ingest, in a process that survives every fault."""

    def __init__(self, cluster: Cluster, report: Path) -> None:
        self.report = report
        ports = [part for replica in cluster.of("ingest") for part in ("--port", str(replica.dicom_port))]
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "faults" / "load_sender.py"), *ports),
                *("--called", cluster.ae_title, "--seed", str(SEED), "--report", str(report)),
                *("--pace", str(PACE_SECONDS)),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that a thread could hold
        )

    def wait_for_progress(self) -> None:
        """Returns when something was acknowledged after this call."""
        before = self.heard().acknowledgements
        wait(lambda: self.heard().acknowledgements > before, READY_SECONDS, "nothing was acknowledged")

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def heard(self) -> judge.Heard:
        return judge.read_report(self.report) if self.report.exists() else judge.Heard()

    def finish(self) -> None:
        """Every study that was begun is acknowledged to its last instance. It may be slow, not stand."""
        self._process.send_signal(signal.SIGTERM)
        before, since = self.heard().acknowledgements, time.monotonic()
        while self._process.poll() is None:
            time.sleep(0.2)
            now = self.heard().acknowledgements
            if now > before:
                before, since = now, time.monotonic()
            assert time.monotonic() < since + READY_SECONDS, (
                f"nothing acknowledged for {READY_SECONDS} s after {now}; the last lines of the report: "
                + self.report.read_text()[-1000:]
            )
        assert 0 == self._process.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Rounds:
    """Faults one after another, each judged before the next."""

    def __init__(self, cluster: Cluster, load: Load, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._load = load
        self._tell = tell
        self._rng = random.Random(SEED)
        self._judged: dict[str, int] = {}
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        names = [name for name in schedule(ROUNDS * 50 if ONLY else ROUNDS, self._rng) if ONLY in name][
            :ROUNDS
        ]
        until = time.monotonic() + MINUTES * 60
        for number, name in enumerate(names, 1):
            began = time.monotonic()
            if began > until:
                break
            self._load.wait_for_progress()
            time.sleep(self._rng.uniform(*LOAD_SECONDS))
            before = self._load.heard().acknowledgements
            with FAULTS[name][1](self._cluster, self._rng):
                self._stuck_is_seen(name)
            self._judge(name)
            heard = self._load.heard()
            self.done[name] += 1
            self._tell(
                f"  {number:3}/{len(names)} {name:<34} {time.monotonic() - began:5.1f} s"
                f"  +{heard.acknowledgements - before} acknowledged, {len(heard.studies)} studies"
            )

    def _stuck_is_seen(self, name: str) -> None:
        """Whoever looks at the metrics while it lasts sees that something waits, or who does not answer."""
        if "mongod" in name:
            seen = verdict.waiting(self._cluster)
            assert any(seen.values()), f"{name}: nothing told of it"
            return
        heard = self._load.heard()
        missing = asyncio.run(self._compare(heard.studies)).missing
        if missing:
            seen = verdict.waiting(self._cluster)
            missing = asyncio.run(self._compare(heard.studies)).missing  # still, after the look?
            assert not missing or any(seen.values()), (
                f"{name}: {len(missing)} wait and no metric says so: {seen}"
            )

    def _judge(self, name: str) -> None:
        """Nothing acknowledged is missing, nothing is there twice, versions follow one another."""
        with self._load.paused():
            # Two cores: the load goes on during the fault, not while everybody catches up.
            wait(
                lambda: all(replica.ready() for replica in self._cluster.replicas),
                READY_SECONDS,
                lambda: f"after {name} not ready: {self._unready()}",
            )
            heard = self._load.heard()
            touched = {
                study: sops
                for study, sops in heard.studies.items()
                if len(sops) != self._judged.get(study) or len(heard.studies) < 3
            }
            found = verdict.Indexed()

            def whole() -> bool:
                nonlocal found
                found = asyncio.run(self._compare(touched))
                return not found.missing

            wait(whole, CATCH_UP_SECONDS, lambda: f"after {name} not indexed: {found.missing[:5]}")
            assert [] == found.twice, name
            assert [] == verdict.out_of_order(self._cluster), name
            self._judged |= {study: len(sops) for study, sops in touched.items()}

    def _unready(self) -> dict[str, str]:
        said = {}
        for replica in self._cluster.replicas:
            try:
                status, text = replica.health("/readyz")
            except OSError as error:
                status, text = 0, repr(error)
            if status != 200:
                said[replica.name] = text[-600:]
        return said

    async def _compare(self, studies: dict[str, dict[str, str]]) -> verdict.Indexed:
        async with verdict.open_index(self._cluster) as index:
            return await verdict.compare(index, studies)


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * ROUNDS)
def test_nothing_acknowledged_is_lost_whatever_fails(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    new_cluster: Callable[..., AbstractContextManager[Cluster]],
) -> None:
    try:
        network.prepare()
    except ServerUnavailable as error:
        if must_be_available():
            pytest.fail(f"NOT RUN: {error}")
        pytest.skip(f"NOT RUN: {error}")

    def tell(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)  # noqa: T201 - the report of the run

    began = time.monotonic()
    tell(f"\n{ROUNDS} rounds, ISOCENTER_FAULT_SEED={SEED}")
    with new_cluster(tmp_path / "cluster", environment=ENVIRONMENT, object_store="bluestore") as cluster:
        tell("  " + ", ".join(each.version for each in (cluster.kafka, cluster.mongo, cluster.s3)))
        load = Load(cluster, tmp_path / "report.jsonl")
        rounds = Rounds(cluster, load, tell)
        try:
            rounds.run()
            load.finish()
        finally:
            load.kill()
        heard = load.heard()
        states = asyncio.run(_all_settled(cluster, heard))
        held = asyncio.run(verdict.held(cluster))
        disordered = verdict.out_of_order(cluster)
        kept = asyncio.run(verdict.dump(cluster))
        for replica in cluster.replicas:
            replica.stop()
        rebuilt = _rebuilt(cluster)

    keys = SiteKeys.load(cluster.key_file)
    lost = judge.lost(heard, held, keys)
    expected = {keys.study_key(study): (True, len(sops)) for study, sops in heard.studies.items()}
    for line in _table(
        {
            "rounds": f"{sum(rounds.done.values())}",
            "acknowledged": f"{heard.acknowledgements} ({heard.instances} distinct)",
            "associations broken": heard.broken,
            "failure statuses heard": len(heard.refusals),
            "lost": len(lost),
            "objects": held.objects,
            "corrupt": len(held.corrupt),
            "studies": len(heard.studies),
            "settled with the right count": sum(states.get(key) == value for key, value in expected.items()),
            "studies out of order": len(disordered),
            "index lines, kept / rebuilt": f"{len(kept)} / {len(rebuilt)}",
            "seconds": round(time.monotonic() - began),
        }
    ):
        tell(line)

    assert heard.instances > 0
    assert [] == lost
    assert [] == held.corrupt
    assert [] == disordered
    assert expected == states
    assert kept == rebuilt


def _rebuilt(cluster: Cluster) -> list[str]:
    """The index that `isocenter reindex` makes from the bucket alone, in another database."""
    name = "rebuilt"
    kept = cluster.environment["ISOCENTER_MONGO_DATABASE"]
    cluster.isocenter(
        "reindex", environment={"ISOCENTER_MONGO_DATABASE": name, "ISOCENTER_KEYS_DATABASE": kept}
    )
    return asyncio.run(verdict.dump(cluster, name))


async def _all_settled(cluster: Cluster, heard: judge.Heard) -> dict[str, tuple[bool, int]]:
    """Waits until as many instances as were sent are in settled studies, or gives what there is in time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        states = await verdict.states(cluster)
        whole = sum(count for done, count in states.values() if done) == heard.instances
        if (whole and len(states) == len(heard.studies)) or time.monotonic() > deadline:
            return states
        await asyncio.sleep(0.5)


def wait(condition: Callable[[], bool], seconds: float, failure: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure() if callable(failure) else failure
        time.sleep(0.1)


def _table(rows: dict[str, object]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]
