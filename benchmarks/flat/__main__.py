"""What a C-STORE costs in a larger archive: `python -m benchmarks.flat`.

Two archives of each target run side by side: the reference stays at the first mark, the other is filled from
mark to mark. At each mark windows of stores alternate between the two, so that other work of the machine hits
both, and the ratio is of what was measured in the same minutes.

Exit status: 0 written, 1 a receiver failed, 3 the platform is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.corpus import Corpus
from benchmarks.flat import report
from benchmarks.flat.archive import Archive
from benchmarks.ingest.processes import TargetFailed
from benchmarks.ingest.targets import isocenter, isocenter_ingest
from benchmarks.machine import machine

from isocenter.common.clock import SystemClock

HERE = Path(__file__).resolve().parents[1]
BUILDERS = {"isocenter_ingest": isocenter_ingest, "isocenter": isocenter}
SMALL = Corpus("flat", 0, 32, 32)
"""2 KB of pixels: the archive grows in number, not in bytes."""
PIECES = 4
"""Windows of each archive at a mark."""


def main() -> int:
    arguments = _arguments()
    marks = [int(mark) for mark in arguments.marks.split(",")]
    when = SystemClock().now().isoformat(timespec="seconds")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flat-", dir=arguments.scratch) as scratch:
        room = shutil.disk_usage(scratch).free
        needed = arguments.bytes_each * (marks[0] + marks[-1])
        if room < needed:
            print(
                f"refused: needs {needed / 1e9:.0f} GB of disk, {room / 1e9:.0f} GB are free", file=sys.stderr
            )
            return 1
        for name in arguments.targets.split(","):
            try:
                rows += _measure(name, marks, arguments.window, Path(scratch) / name)
                shutil.rmtree(Path(scratch) / name)
            except TargetFailed as error:
                print(f"{name} failed: {error}", file=sys.stderr)
                return 1
    document = {
        "command": shlex.join(["python", "-m", "benchmarks.flat", *sys.argv[1:]]),
        "when": when,
        "machine": machine(),
        "settings": {"marks": marks, "window": arguments.window, "instance_bytes": 2 * 32 * 32},
        "rows": rows,
        "ratios": ratios(rows),
    }
    print("\n".join(report.table(rows)))
    print(json.dumps(document["ratios"]))
    if arguments.quick and arguments.output is None:
        return 0
    report.write(arguments.output or HERE / "results" / "flat.json", document, page=arguments.output is None)
    return 0


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`<target>_p50_100k_over_10k`: the archive over the reference, of the same minutes."""
    found = {}
    for row in rows:
        if row["archive"] == "filled" and row["mark"] != row["first"]:
            base = next(
                each
                for each in rows
                if (each["target"], each["mark"], each["archive"])
                == (row["target"], row["mark"], "reference")
            )
            span = f"{report.short(row['mark'])}_over_{report.short(row['first'])}"
            for quantile in ("p50", "p99"):
                name = f"{row['target']}_{quantile}_{span}"
                found[name] = round(row[f"{quantile}_ms"] / base[f"{quantile}_ms"], 3)
    return found


def _measure(name: str, marks: Sequence[int], window: int, scratch: Path) -> list[dict[str, Any]]:
    target = BUILDERS[name]()
    if target is None:
        raise TargetFailed("not installed")
    rows = []
    with contextlib.ExitStack() as stack:
        archives = {}
        for number, role in enumerate(("reference", "filled"), start=1):
            root = scratch / role
            root.mkdir(parents=True)
            archives[role] = Archive(stack.enter_context(target.start(root)), seed=number)
        for mark in marks:
            began = time.monotonic()
            for role, archive in archives.items():
                archive.fill(SMALL, marks[0] if role == "reference" else mark)
            _say(f"{name}: {mark:,} stored after {time.monotonic() - began:.0f} s")
            latencies: dict[str, list[float]] = {role: [] for role in archives}
            for piece in range(PIECES):
                order = list(archives) if piece % 2 else list(reversed(archives))
                for role in order:
                    share = replace(SMALL, instances=window // PIECES)
                    latencies[role] += archives[role].window(share)
            rows += [
                {
                    "target": name,
                    "archive": role,
                    "first": marks[0],
                    "mark": mark,
                    "held": archives[role].held,
                    "stores": len(found),
                    "p50_ms": round(statistics.median(found) * 1000, 3),
                    "p99_ms": round(statistics.quantiles(found, n=100)[98] * 1000, 3),
                }
                for role, found in latencies.items()
            ]
            for row in rows[-2:]:
                _say(f"  {row['archive']:<10} p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms")
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a trial; writes nothing without --output")
    parser.add_argument("--long", action="store_true", help="a million as well")
    parser.add_argument("--marks", help="instances stored before each measurement, comma-separated")
    parser.add_argument("--window", type=int, help="stores measured at each mark in each archive")
    parser.add_argument("--targets", default=",".join(BUILDERS), help="comma-separated")
    parser.add_argument("--scratch", type=Path, help="directory on the disk to measure; default: TMPDIR")
    parser.add_argument("--output", type=Path, help="results file; default benchmarks/results/flat.json")
    parser.add_argument("--bytes-each", type=int, default=25_000, help="disk that an instance may need")
    arguments = parser.parse_args()
    if arguments.marks is None:
        arguments.marks = "50,100" if arguments.quick else "10000,100000" + ",1000000" * arguments.long
    if arguments.window is None:
        arguments.window = 40 if arguments.quick else 2000
    return arguments


if __name__ == "__main__":
    sys.exit(main())
