"""`kill -9` of the running platform, again and again, while two associations send.

`ISOCENTER_FAULT_KILLS` (6) says how often, `ISOCENTER_FAULT_SEED` repeats a run. A kill lands at a random
moment of a load, of a start, or while studies settle; of some, power fails too.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks import retrieve
from benchmarks.embedded import Embedded
from tests.faults import commitment, judge, power
from tests.faults.zygote import Zygote

from isocenter.common.keys import SiteKeys

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ISOCENTER_FAULT_KILLS", "6"))
SEED = int(os.environ.get("ISOCENTER_FAULT_SEED", "0")) or secrets.randbits(32)
PHASES = {"load": 10, "power": 4, "settle": 3, "start": 3}
"""Where a kill lands, and how often relative to the others."""
LOAD_SECONDS = (0.05, 1.5)
PROGRESS_SECONDS = 60.0
SETTLE_SECONDS = 120.0
ENVIRONMENT = {
    "ISOCENTER_INDEXER_QUIET_SECONDS": "1",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.2",
    "ISOCENTER_INDEXER_SETTLE_POLL_SECONDS": "0.1",
    "ISOCENTER_INGEST_COMMITMENT_UNKNOWN_SECONDS": "1",
}
NEVER_SENT = "2.25.404"


class Sender:
    """The load, in a process of its own that survives every kill."""

    def __init__(self, platform: Embedded, report: Path) -> None:
        self.report = report
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "faults" / "load_sender.py")),
                *("--port", str(platform.dicom_port), "--called", platform.ae_title),
                *("--seed", str(SEED), "--lanes", "2", "--report", str(report)),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def wait_for_progress(self) -> None:
        """Returns when something was acknowledged after this call."""
        before = self._size()
        _wait(lambda: self._size() > before + 200, PROGRESS_SECONDS, "nothing was acknowledged")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No load in the block: what has arrived can settle."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def finish(self) -> None:
        """Every study that was begun is acknowledged to its last instance."""
        self._process.send_signal(signal.SIGTERM)
        assert 0 == self._process.wait(PROGRESS_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _size(self) -> int:
        return self.report.stat().st_size if self.report.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(240 + 12 * KILLS)
def test_nothing_acknowledged_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with capsys.disabled():
        print(f"\n{KILLS} kills, ISOCENTER_FAULT_SEED={SEED}", flush=True)  # noqa: T201 - to repeat the run
    platform, zygote = Embedded(tmp_path / "site", ENVIRONMENT), Zygote()
    phases, losses = Counter[str](), Counter[str]()
    try:
        started = _first_start(platform, zygote)
        sender = Sender(platform, tmp_path / "report.jsonl")
        try:
            _kill_again_and_again(platform, zygote, sender, random.Random(SEED), phases, losses, started)
            platform.launch()
            platform.wait_ready()
            sender.finish()
        finally:
            sender.kill()
        heard = judge.read_report(sender.report)
        states = asyncio.run(_all_settled(platform, heard))
        served = _served(platform, heard)
        sops = {sop for study in heard.studies.values() for sop in study}
        answer = commitment.ask(platform, [*sops, NEVER_SENT])
        leftovers = judge.staged_leftovers(platform.data_dir)
        assert 0 == platform.stop()
    finally:
        platform.kill()
        zygote.close()

    keys = SiteKeys.load_or_create(platform.data_dir / "keys" / "site.key")
    held = asyncio.run(judge.read_store(platform.data_dir))
    rebuilt_dir = _rebuild(platform.data_dir, tmp_path / "rebuilt")
    kept, rebuilt = (
        asyncio.run(judge.dump(directory / "index.sqlite")) for directory in (platform.data_dir, rebuilt_dir)
    )
    lost = judge.lost(heard, held, keys)
    expected = {keys.study_key(study): (True, len(sops)) for study, sops in heard.studies.items()}
    stored = {key: (True, len(instances)) for key, instances in held.per_study.items()}
    with capsys.disabled():
        _print_table(
            {
                "kills": _counted(phases),
                "unsynced files after a power loss": _counted(losses),
                "acknowledged": f"{heard.acknowledgements} ({heard.instances} distinct)",
                "associations broken": heard.broken,
                "failure statuses heard": len(heard.refusals),
                "lost": len(lost),
                "objects": held.objects,
                "corrupt": len(held.corrupt),
                "committed": len(answer.committed),
                "studies": len(heard.studies),
                "settled with the right count": sum(states.get(k) == v for k, v in expected.items()),
                "staging leftovers": len(leftovers),
                "index lines, kept / rebuilt": f"{len(kept)} / {len(rebuilt)}",
                "seconds": round(time.monotonic() - began),
            }
        )

    assert KILLS == sum(phases.values())
    assert heard.instances > 0
    assert [] == lost
    assert [] == held.corrupt
    assert expected == stored
    assert expected == states
    assert heard.studies == served
    assert sops == answer.committed
    assert {NEVER_SENT: commitment.NO_SUCH_OBJECT_INSTANCE} == answer.failed
    assert [] == leftovers
    assert kept == rebuilt


def _first_start(platform: Embedded, zygote: Zygote) -> float:
    """Seconds from launch to ready, the second time; the platform is stopped again."""
    for _ in range(2):
        began = time.monotonic()
        platform.launch(zygote.spawn)
        platform.wait_ready()
        seconds = time.monotonic() - began
        platform.stop()
    return seconds


def _kill_again_and_again(
    platform: Embedded,
    zygote: Zygote,
    sender: Sender,
    rng: random.Random,
    phases: Counter[str],
    losses: Counter[str],
    started: float,
) -> None:
    for _ in range(KILLS):
        phase = rng.choices(list(PHASES), list(PHASES.values()))[0]
        platform.launch(zygote.spawn)
        if phase == "start":
            time.sleep(started * rng.uniform(0, 1.2))
        else:
            platform.wait_ready()
            sender.wait_for_progress()
            time.sleep(rng.uniform(*LOAD_SECONDS))
        if phase == "settle":
            with sender.paused():
                time.sleep(rng.uniform(0, 1.5))
                platform.kill()
        else:
            platform.kill()
        if phase == "power":
            losses += power.lose(platform.data_dir, rng)
        phases[phase] += 1


async def _all_settled(platform: Embedded, heard: judge.Heard) -> dict[str, tuple[bool, int]]:
    """Waits until as many instances as were sent are in settled studies, or gives what there is in time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        states = await judge.settled(platform.data_dir / "index.sqlite")
        whole = sum(count for done, count in states.values() if done) == heard.instances
        if (whole and len(states) == len(heard.studies)) or time.monotonic() > deadline:
            return states
        await asyncio.sleep(0.3)


def _served(platform: Embedded, heard: judge.Heard) -> dict[str, dict[str, str]]:
    """Every acknowledged study read back over WADO-RS: SOP Instance UID -> SHA-256 of its data set."""
    served = {}
    for study in heard.studies:
        status, headers, body = platform.get(f"/dicom-web/studies/{study}", retrieve.ANY_SYNTAX)
        found = retrieve.parts(headers, body) if status == 200 else []
        served[study] = {retrieve.sop_instance_uid(part): retrieve.digest(part) for part in found}
    return served


def _rebuild(data_dir: Path, copy: Path) -> Path:
    """A site with the same keys and objects, and the index that `isocenter reindex` makes from them alone."""
    for name in ("objects", "keys"):
        shutil.copytree(data_dir / name, copy / name)
    for path in data_dir.glob("keys.sqlite*"):
        shutil.copy2(path, copy)
    copy.chmod(0o700)
    subprocess.run(
        [sys.executable, "-m", "isocenter.cli", "reindex", "--data-dir", str(copy)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return copy


def _wait(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.01)


def _counted(each: Counter[str]) -> str:
    return f"{each.total()} ({', '.join(f'{count} {name}' for name, count in each.most_common())})"


def _print_table(rows: dict[str, object]) -> None:
    width = max(map(len, rows))
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))  # noqa: T201 - the report
