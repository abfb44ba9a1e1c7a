"""Sends one corpus over n associations and prints one JSON line: `python -m benchmarks.sender --help`.

Its own process, so that its CPU time is not the receiver's. One thread per association; they start together
and the clock runs from the first association request to the last release.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import dataclass, field

from benchmarks.corpus import Corpus, Generator
from benchmarks.dimse import Association, AssociationError

_WARM_UP = Corpus("warm-up", 20, 64, 64)
_WARM_UP_STUDY = 900


@dataclass
class Lane:
    """One association's result."""

    latencies: list[float] = field(default_factory=list)
    sent_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    max_pdu: int = 0
    started: float = 0.0
    ended: float = 0.0


def main() -> None:
    arguments = _arguments()
    corpus = Corpus(
        arguments.corpus, arguments.instances, arguments.rows, arguments.columns, arguments.frames
    )
    address = ("127.0.0.1", arguments.port)
    generator = Generator(arguments.seed)

    warm_up = Lane()
    if not arguments.no_warm_up:
        _send(warm_up, address, arguments.called, generator, _WARM_UP, _WARM_UP_STUDY, threading.Barrier(1))

    lanes = [Lane() for _ in range(arguments.associations)]
    barrier = threading.Barrier(len(lanes))
    threads = [
        threading.Thread(
            target=_send, args=(lane, address, arguments.called, generator, share, number, barrier)
        )
        for number, (lane, share) in enumerate(
            zip(lanes, _shares(corpus, arguments.associations), strict=True), start=1
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    latencies = sorted(latency for lane in lanes for latency in lane.latencies)
    failures = [failure for lane in (warm_up, *lanes) for failure in lane.failures]
    report = {
        "stored": len(latencies),
        "warm_up": len(warm_up.latencies),
        "bytes": sum(lane.sent_bytes for lane in lanes),
        "seconds": max(lane.ended for lane in lanes) - min(lane.started for lane in lanes),
        "p50_ms": statistics.median(latencies) * 1000 if latencies else None,
        "p99_ms": _quantile(latencies, 0.99) * 1000 if latencies else None,
        "cpu_seconds": time.process_time(),
        "max_pdu": lanes[0].max_pdu,
        "studies": [generator.study_uid(number) for number in range(1, len(lanes) + 1)],
        "failures": failures[:5],
    }
    print(json.dumps(report))


def _send(
    lane: Lane,
    address: tuple[str, int],
    called: str,
    generator: Generator,
    corpus: Corpus,
    study: int,
    barrier: threading.Barrier,
) -> None:
    barrier.wait()
    lane.started = time.perf_counter()
    try:
        with Association(address, [corpus.sop_class_uid], called=called) as association:
            lane.max_pdu = association.max_pdu
            for instance in generator.study(corpus, study, corpus.instances):
                began = time.perf_counter()
                status = association.store(instance)
                if status == 0:
                    lane.latencies.append(time.perf_counter() - began)
                    lane.sent_bytes += instance.size
                else:
                    lane.failures.append(f"status {status:#06x}")
    except AssociationError as error:
        lane.failures.append(str(error))
    lane.ended = time.perf_counter()


def _shares(corpus: Corpus, lanes: int) -> list[Corpus]:
    """The corpus cut into one study per association, as equal as it goes."""
    each, more = divmod(corpus.instances, lanes)
    return [
        Corpus(corpus.name, each + (lane < more), corpus.rows, corpus.columns, corpus.frames)
        for lane in range(lanes)
    ]


def _quantile(ordered: list[float], fraction: float) -> float:
    """Nearest rank: the smallest value with at least this fraction at or below it."""
    rank = max(1, -(-len(ordered) * fraction // 1))
    return ordered[int(rank) - 1]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Lean C-STORE sender of the benchmarks")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--called", required=True, help="called AE title")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--instances", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--columns", type=int, required=True)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--no-warm-up", action="store_true", help="the caller has warmed up the receiver")
    return parser.parse_args()


if __name__ == "__main__":
    main()
