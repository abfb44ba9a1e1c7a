"""Staged volumes on a node with a GPU: `python -m benchmarks.gpu.run`.

Records the node, then runs B1 to B15 and writes benchmarks/results/gpu.json after each: what ends early keeps
what it has. One that fails is recorded with its error, and the rest goes on. On a fresh node with CUDA 13:

    make install && .venv/bin/python -m ensurepip
    .venv/bin/python -m pip install cupy-cuda13x kvikio-cu13

Exit status: 0 everything that can be measured here was, 1 something failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, NotMeasured
from benchmarks.gpu.measures import ALL, base_rates
from benchmarks.gpu.node import node

from isocenter.common.clock import SystemClock
from isocenter.gpu_stager.modes.probe import probe

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small volumes and few rounds: does it run at all?"
    )
    parser.add_argument("--only", default="", help="e.g. B1,B3")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = [name for name in ALL if not arguments.only or name in arguments.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=arguments.scratch) as folder:
        scratch = Path(folder)
        verdict = probe(scratch)
        if arguments.quick:
            bench = Bench(scratch, verdict, slices=32, rounds=2, seconds=1)
        else:
            bench = Bench(scratch, verdict, slices=2048, rounds=5, seconds=60)
        result: dict[str, Any] = {
            "at": SystemClock().now().isoformat(timespec="seconds"),
            "command": " ".join(["python -m benchmarks.gpu.run", *sys.argv[1:]]),
            "node": node(scratch),
            "verdict": json.loads(verdict.to_json()),
            "volume_bytes": bench.slices * 512 * 512 * 2,
            "rounds": bench.rounds,
            "measured": {},
        }
        print(f"mode {verdict.mode}; {'; '.join(verdict.reasons)}")
        bench.base = base_rates(bench)
        result["base_GB_per_s"] = bench.base
        for name in chosen:
            result["measured"][name] = _one(name, bench)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = [name for name, one in result["measured"].items() if "error" in one]
    left = [name for name, one in result["measured"].items() if "not_measured" in one]
    print(f"measured {len(chosen) - len(failed) - len(left)}, left out {left}, failed {failed}")
    return 1 if failed else 0


def _one(name: str, bench: Bench) -> dict[str, Any]:
    started = time.perf_counter()
    what = (ALL[name].__doc__ or "").strip()
    try:
        found: dict[str, Any] = ALL[name](bench)
    except NotMeasured as error:
        found = {"not_measured": str(error)}
    except Exception as error:  # noqa: BLE001 - recorded; the others are worth having
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(f"{name} {what} {found}")
    return {"what": what, **found, "took_s": round(time.perf_counter() - started, 2)}


if __name__ == "__main__":
    sys.exit(main())
