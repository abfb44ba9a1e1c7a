"""A staged volume beside the files it was made of: `python -m benchmarks.staging`.

Every way reads the same pixels, checked bit by bit before anything is timed, in interleaved rounds of one
run. Cold means that the pages of each file were dropped from this machine's cache before each read; what lies
below may keep them. Exit status: 0 written, 1 a reader gave other pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.machine import machine
from benchmarks.page import replace_part
from benchmarks.staging import readers, series
from benchmarks.staging.report import ratios, report
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless

from isocenter.common.clock import SystemClock

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("pydicom", "pylibjpeg-openjpeg", "imagecodecs", "zarr", "numpy")


@dataclass(frozen=True)
class Way:
    name: str
    read: Callable[[], Any]
    files: tuple[Path, ...]
    slices: int
    rounds: int


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="staging-", dir=arguments.scratch) as scratch:
        result = measure(Path(scratch), arguments.slices, arguments.slow_slices, arguments.rounds)
    result["ratios"] = ratios(result)
    result["command"] = "python -m benchmarks.staging " + " ".join(sys.argv[1:])
    print(report(result))
    if result["wrong"]:
        print(f"other pixels: {', '.join(result['wrong'])}", file=sys.stderr)
        return 1
    if arguments.write:
        (HERE / "results" / "staging.json").write_text(json.dumps(result, indent=1) + "\n")
        replace_part(HERE / "RESULTS.md", "staging", "python -m benchmarks.staging", report(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=512, help="of 512 x 512 pixels")
    parser.add_argument("--slow-slices", type=int, default=64, help="of the JPEG 2000 series; scaled up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--no-write", dest="write", action="store_false")
    return parser.parse_args()


def measure(scratch: Path, slices: int, slow_slices: int, rounds: int) -> dict[str, Any]:
    plain = series.all_objects(slices, None)
    files = {"plain": series.written(scratch, "plain", plain)}
    staged = {"plain": series.staged(scratch / "site-plain", plain)}
    for name, syntax, count in (("htj2k", HTJ2KLossless, slices), ("j2k", JPEG2000Lossless, slow_slices)):
        objects = series.all_objects(count, syntax)
        files[name] = series.written(scratch, name, objects)
        staged[name] = series.staged(scratch / f"site-{name}", objects)
    expected = readers.with_pydicom(files["plain"].paths)
    entry, folder, data = staged["plain"].entry, staged["plain"].folder, staged["plain"].data
    few = max(3, rounds // 2)
    ways = [
        Way("ours", readers.ours(folder, entry, kept=True), (data,), slices, rounds),
        Way("ours, fresh array", readers.ours(folder, entry, kept=False), (data,), slices, rounds),
        Way("ours, verified", readers.ours(folder, entry, kept=True, verify=True), (data,), slices, rounds),
        Way("np.fromfile", lambda: readers.with_fromfile(data, entry), (data,), slices, rounds),
        Way("zarr-python", lambda: readers.with_zarr(folder), (data,), slices, rounds),
        _files("pydicom", files["plain"], readers.with_pydicom, rounds),
        _files("pydicom, HTJ2K", files["htj2k"], readers.with_pydicom, few),
        _files("tuned, HTJ2K", files["htj2k"], readers.tuned_htj2k, rounds),
        _files("pydicom, J2K", files["j2k"], readers.with_pydicom, few),
    ]
    wrong = [way.name for way in ways if not np.array_equal(way.read(), expected[: way.slices])]
    times: dict[str, dict[str, list[float]]] = {way.name: {"cold": [], "warm": []} for way in ways}
    for turn in range(rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            if turn >= way.rounds:
                continue
            for state in ("cold", "warm"):
                if state == "cold":
                    series.drop(way.files)
                started = time.perf_counter()
                way.read()
                times[way.name][state].append((time.perf_counter() - started) * slices / way.slices)
    return {
        "at": SystemClock().now().isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "slices": slices,
        "bytes": entry.stacks[0].volume_bytes,
        "rounds": {way.name: way.rounds for way in ways},
        "wrong": wrong,
        "times": {name: {state: _summed(each) for state, each in by.items()} for name, by in times.items()},
        "stage_seconds": {
            name: one.seconds * slices / len(one.entry.stacks[0].frames) for name, one in staged.items()
        },
    }


def _summed(seconds: list[float]) -> dict[str, float]:
    return {"best": min(seconds), "median": statistics.median(seconds)}


def _files(name: str, files: series.Files, read: Callable[[Sequence[Path]], Any], rounds: int) -> Way:
    return Way(name, lambda: read(files.paths), files.paths, len(files.paths), rounds)


if __name__ == "__main__":
    sys.exit(main())
