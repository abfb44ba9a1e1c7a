"""C-STORE and STOW-RS ingest beside Orthanc and DCMTK storescp: `python -m benchmarks.ingest`.

Exit status: 0 written, 1 a receiver failed, 2 the comparison would be unfair (nothing is written),
3 a peer or the platform is not installed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpus import FULL, QUICK
from benchmarks.ingest import fairness, report, rounds, targets
from benchmarks.ingest.processes import TargetFailed
from benchmarks.machine import machine

from isocenter.common.clock import SystemClock

HERE = Path(__file__).resolve().parents[1]
MEMORY = {"tmpfs", "ramfs"}
BUILDERS: dict[str, Callable[[], targets.Target | None]] = {
    "isocenter_ingest": targets.isocenter_ingest,
    "isocenter": targets.isocenter,
    "orthanc_sync": partial(targets.orthanc, "orthanc_sync"),
    "orthanc_nosync": partial(targets.orthanc, "orthanc_nosync", sync=False),
    "orthanc_dicomweb": partial(targets.orthanc, "orthanc_dicomweb", dicomweb=True),
    "storescp": targets.storescp,
}
MAY_MISS = {"orthanc_dicomweb"}
"""Debian alone has the plugin; without it there is nothing to compare STOW-RS with, and the page says so."""
ROUNDS = 5


def main() -> int:
    arguments = _arguments()
    if arguments.verify:
        return _verify(arguments.verify)
    chosen, skipped = [], []
    for name in arguments.targets.split(","):
        target = BUILDERS[name]()
        if target is None and name in MAY_MISS:
            skipped.append(f"{name} is not installed (scripts/install_peers.sh)")
            print(f"\n  SKIPPED: {skipped[-1]}\n", file=sys.stderr)
            continue
        if target is None:
            print(f"{name} is not installed: run scripts/install_peers.sh and uv sync", file=sys.stderr)
            return 3
        chosen.append(target)
    corpora = [corpus for corpus in (QUICK if arguments.quick else FULL) if corpus.name in arguments.corpora]
    lanes = [int(number) for number in arguments.associations.split(",")]
    count = arguments.rounds or (1 if arguments.quick else ROUNDS)
    when = SystemClock().now().isoformat(timespec="seconds")
    try:
        with tempfile.TemporaryDirectory(prefix="ingest-", dir=arguments.scratch) as scratch:
            filesystem = _filesystem(Path(scratch))
            if filesystem in MEMORY and not arguments.quick:
                print(f"refused: {scratch} is on {filesystem}, where a sync costs nothing", file=sys.stderr)
                return 2
            alone = rounds.sender_alone(corpora, lanes)
            rows = rounds.run(chosen, corpora, lanes, count, Path(scratch))
        ratios = fairness.ratios(rows)
    except TargetFailed as error:
        print(f"a receiver failed: {error}", file=sys.stderr)
        return 1
    except fairness.Unfair as error:
        print(f"refused, the comparison would be unfair: {error}", file=sys.stderr)
        return 2
    document = {
        "command": shlex.join(["python", "-m", "benchmarks.ingest", *sys.argv[1:]]),
        "when": when,
        "machine": {**machine(), "filesystem": filesystem},
        "settings": _settings(chosen, corpora, count, quick=arguments.quick)
        | {"commit": _commit(), "sender_alone": alone, "skipped": skipped},
        "rows": rows,
        "ratios": ratios,
    }
    print("\n".join(report.table(rows)))
    print(json.dumps(ratios))
    if arguments.quick and arguments.output is None:
        print("--quick: figures of a trial this short mean little; nothing is written", file=sys.stderr)
        return 0
    report.write_json(arguments.output or HERE / "results" / "ingest.json", document)
    if arguments.output is None:
        report.write_page(HERE / "RESULTS.md", document)
    return 0


def _verify(path: Path) -> int:
    """Judges a results file again: it must be fair and its ratios must follow from its rows."""
    document = json.loads(path.read_text())
    try:
        expected = fairness.ratios(document["rows"])
    except fairness.Unfair as error:
        print(f"unfair: {error}", file=sys.stderr)
        return 2
    if tuple(document) != report.KEYS or document["ratios"] != expected:
        print(
            "the ratios do not follow from the rows, or keys are not those of a results file", file=sys.stderr
        )
        return 2
    print("fair")
    return 0


def _settings(chosen: list[targets.Target], corpora: list[Any], count: int, *, quick: bool) -> dict[str, Any]:
    return {
        "quick": quick,
        "rounds": count,
        "targets": {
            target.name: f"({target.version}): {target.what}. {_listed(target.settings)}."
            for target in chosen
        },
        "sender": (
            "Sender: benchmarks/sender.py for all, raw data set bytes from memory, Explicit VR Little "
            "Endian, its own process on the same CPUs, same two loopback ends, TCP_NODELAY on both; "
            "fragments of the size that the receiver announces. STOW-RS: connections kept open, 20 CT or 100 "
            "small instances in a request, latencies are of requests."
        ),
        "method": (
            f"{count} interleaved rounds, each with another target first, medians (peak memory: the "
            "maximum); a fresh process and empty directory per trial; 20 warm-up instances in another study "
            "are not counted. New UIDs each round, the same for all targets. One study per association. "
            "CPU and memory are those of the receiver with its child processes, from before the transfer "
            "until the last instance is found: by QIDO-RS, by Orthanc's statistics, as a file, and for "
            "isocenter_ingest as an object and in an event. A receiver that lacks one spoils the whole run."
        ),
        "cache": (
            "Cache state: all dirty pages are synced before each trial; the page cache is warm and not "
            "dropped (ingest reads nothing back)."
        ),
        "corpora": [
            f"{corpus.name} {corpus.instances} x {corpus.pixel_bytes / 1e6:.3f} MB pixels"
            + (f", {corpus.per_request} in a request" if corpus.per_request else "")
            for corpus in corpora
        ],
        "tcp_nodelay": True,
        "transfer_syntax": "1.2.840.10008.1.2.1",
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=HERE
    )
    return done.stdout.strip() or "unknown"


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _filesystem(directory: Path) -> str:
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="one short round; writes nothing without --output"
    )
    parser.add_argument("--rounds", type=int, default=0, help="default 5, or 1 with --quick")
    parser.add_argument("--targets", default=",".join(BUILDERS), help="comma-separated")
    parser.add_argument("--corpora", default=",".join(corpus.name for corpus in FULL), help="comma-separated")
    parser.add_argument("--associations", default="1,4", help="comma-separated")
    parser.add_argument("--scratch", type=Path, help="directory on the disk to measure; default: TMPDIR")
    parser.add_argument("--output", type=Path, help="results file; default benchmarks/results/ingest.json")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="judge a results file and exit")
    arguments = parser.parse_args()
    arguments.corpora = arguments.corpora.split(",")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
