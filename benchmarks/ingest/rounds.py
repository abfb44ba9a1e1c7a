"""Runs every target over every corpus, round by round, and reduces the rounds to medians."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import procfs
from benchmarks.corpus import Corpus
from benchmarks.ingest.processes import TargetFailed
from benchmarks.ingest.targets import CSTORE, STOW, Running, Target

SENDER = "benchmarks.sender"
ROOT = Path(__file__).resolve().parents[2]
_COUNT_SECONDS = 180.0
_FORGET_SECONDS = 65.0
"""ext4 without a journal of its own leaves the inodes of deleted files alone for a minute, and finding others
costs whoever creates a file more than the file."""
_LEAST_FREE = 8 << 30


def run(
    targets: Sequence[Target],
    corpora: Sequence[Corpus],
    associations: Sequence[int],
    rounds: int,
    scratch: Path,
) -> list[dict[str, Any]]:
    """One row per target, corpus and number of associations.

    Targets alternate within a round, and each round starts with another target, so that a slow minute of
    the machine does not fall on one of them alone.
    """
    trials: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for number in range(rounds):
        if number:
            _clear(scratch)
        for corpus in corpora:
            for lanes in associations:
                if shutil.disk_usage(scratch).free < _LEAST_FREE:
                    _clear(scratch)
                fit = [target for target in targets if protocol_of(corpus) in target.protocols]
                shift = number % len(fit) if fit else 0
                for target in (*fit[shift:], *fit[:shift]):
                    trial = _trial(target, corpus, lanes, seed=number + 1, scratch=scratch)
                    trials.setdefault((target.name, corpus.name, lanes), []).append(trial)
                    _say(number, target, corpus, lanes, trial)
    by_name = {target.name: target for target in targets}
    return [
        _row(by_name[name], corpus, lanes, results)
        for (name, corpus, lanes), results in sorted(
            trials.items(), key=lambda item: _place(item[0], corpora)
        )
    ]


def _clear(scratch: Path) -> None:
    """Removes what the trials left, and waits until the file system has got over it."""
    for directory in scratch.iterdir():
        shutil.rmtree(directory)
    os.sync()
    time.sleep(_FORGET_SECONDS)


def protocol_of(corpus: Corpus) -> str:
    return STOW if corpus.per_request else CSTORE


def sender_alone(corpora: Sequence[Corpus], associations: Sequence[int]) -> dict[str, float]:
    """Instances per second of the sender against a receiver that keeps nothing, C-STORE."""
    command = [sys.executable, "-m", "benchmarks.sink"]
    found = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as sink:
        try:
            port = int(sink.stdout.readline()) if sink.stdout else 0
            for corpus in corpora:
                for lanes in associations:
                    if protocol_of(corpus) == CSTORE:
                        sent = _send(port, "SINK", corpus, lanes, seed=1)
                        found[f"{corpus.name} x{lanes}"] = round(sent["stored"] / sent["seconds"], 1)
        finally:
            sink.terminate()
    return found


def _place(key: tuple[str, str, int], corpora: Sequence[Corpus]) -> tuple[int, int, str]:
    """Rows that are compared stand together."""
    name, corpus, lanes = key
    return [each.name for each in corpora].index(corpus), lanes, name


def _trial(target: Target, corpus: Corpus, lanes: int, *, seed: int, scratch: Path) -> dict[str, Any]:
    os.sync()  # dirty pages of the last trial are not this one's cost
    # Not removed at once: the next trial would pay for it.
    directory = tempfile.mkdtemp(prefix=f"{target.name}-", dir=scratch)
    with target.start(Path(directory)) as running:
        nodelay = procfs.environment(running.pid).get("TCP_NODELAY") == "1"
        idle = procfs.resident_mb(running.pid)
        cpu = procfs.cpu_seconds(running.pid)
        with procfs.PeakMemory(running.pid) as peak:
            port = running.web if corpus.per_request else running.port
            report = _send(port, running.called, corpus, lanes, seed)
            acknowledged = time.monotonic()
            extra = report["warm_up"] if running.counts_all else 0
            seconds = 0.0 if report["failures"] else _COUNT_SECONDS
            counted = _count(running, report["studies"], report["stored"] + extra, seconds) - extra
            searchable = time.monotonic() - acknowledged
        cpu = procfs.cpu_seconds(running.pid) - cpu
        sealed = running.sealed() if running.sealed else None
    return {
        **report,
        "seed": seed,
        "instances": corpus.instances,
        "counted": counted,
        "settled_after_s": searchable,
        "tcp_nodelay": nodelay,
        "receiver_cpu_s": cpu,
        "idle_rss_mb": idle,
        "peak_rss_mb": peak.megabytes,
        "sealed": sealed,
    }


def _send(port: int, called: str, corpus: Corpus, lanes: int, seed: int) -> dict[str, Any]:
    options = {
        "port": port,
        "called": called,
        "seed": seed,
        "corpus": corpus.name,
        "instances": corpus.instances,
        "rows": corpus.rows,
        "columns": corpus.columns,
        "frames": corpus.frames,
        "per-request": corpus.per_request,
        "associations": lanes,
    }
    command = [sys.executable, "-m", SENDER]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, cwd=ROOT)
    if done.returncode:
        raise TargetFailed(f"the sender failed: {done.stderr[-800:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _count(running: Running, studies: Sequence[str], expected: int, seconds: float) -> int:
    """What the target holds, once it is what is expected or time is up."""
    deadline = time.monotonic() + seconds
    while True:
        counted = running.count(studies)
        if counted >= expected or time.monotonic() > deadline:
            return counted
        time.sleep(0.2)


def _row(target: Target, corpus: str, lanes: int, trials: list[dict[str, Any]]) -> dict[str, Any]:
    def median(field: str, digits: int) -> float | None:
        values = [trial[field] for trial in trials if trial[field] is not None]
        return round(statistics.median(values), digits) if values else None

    seconds = statistics.median(trial["seconds"] for trial in trials)
    sent = trials[0]["bytes"]
    worst = min(trials, key=lambda trial: trial["counted"])
    return {
        "target": target.name,
        "corpus": corpus,
        "associations": lanes,
        "durable": target.durable,
        "instances_per_s": round(worst["instances"] / seconds, 1),
        "mb_per_s": round(sent / 1e6 / seconds, 1),
        "p50_ms": median("p50_ms", 2),
        "p99_ms": median("p99_ms", 2),
        "receiver_cpu_s": median("receiver_cpu_s", 2),
        "cpu_s_per_gb": round(
            statistics.median(trial["receiver_cpu_s"] for trial in trials) / (sent / 1e9), 2
        )
        if sent
        else None,
        "sender_cpu_s": median("cpu_seconds", 2),
        "idle_rss_mb": median("idle_rss_mb", 1),
        "peak_rss_mb": max(round(trial["peak_rss_mb"], 1) for trial in trials),
        "settled_after_s": median("settled_after_s", 2),
        "max_pdu": trials[0]["max_pdu"],
        "sealed": trials[0]["sealed"],
        "sender": SENDER,
        "address": trials[0]["address"],
        "corpus_digest": [trial["corpus_digest"] for trial in trials],
        "seeds": [trial["seed"] for trial in trials],
        "seconds": [round(trial["seconds"], 3) for trial in trials],
        "instances": worst["instances"],
        "stored": min(trial["stored"] for trial in trials),
        "counted": worst["counted"],
        "bytes": sent,
        "tcp_nodelay": all(trial["tcp_nodelay"] for trial in trials),
        "failures": [failure for trial in trials for failure in trial["failures"]],
    }


def _say(number: int, target: Target, corpus: Corpus, lanes: int, trial: dict[str, Any]) -> None:
    rate = trial["stored"] / trial["seconds"]
    print(
        f"round {number + 1}  {target.name:<17} {corpus.name:<10} x{lanes}  {rate:8.1f}/s"
        f"  peak {trial['peak_rss_mb']:7.1f} MB  {'; '.join(trial['failures'])}",
        file=sys.stderr,
    )
