"""How the index on MongoDB answers when the archive grows: `python -m benchmarks.index`.

Exit status: 0 written, 1 a ratio is above its target (written all the same), 3 no mongod here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.index import load, measure, report
from benchmarks.index.load import Archive
from benchmarks.index.measure import LOOKUPS, QUESTIONS, SEARCHES, SETTLING, Target
from benchmarks.index.synthetic import INSTANCES_PER_STUDY, METADATA_BYTES, STUDIES_PER_DAY
from benchmarks.machine import machine
from benchmarks.procfs import resident_mb
from pymongo import MongoClient
from testbed.mongo import MongoServer
from testbed.server import ServerUnavailable

from isocenter.common.clock import SystemClock
from isocenter.common.index.mongo import MongoIndex

HERE = Path(__file__).resolve().parents[1]
CACHE_GB = 4.0


def main() -> int:
    arguments = _arguments()
    sizes = [20_000, 100_000] if arguments.quick else [int(size) for size in arguments.sizes.split(",")]
    rounds = 1 if arguments.quick else arguments.rounds
    when = SystemClock().now().isoformat(timespec="seconds")
    with ExitStack() as stack:
        folder = arguments.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="index-")))
        server = MongoServer(folder, cache_gb=CACHE_GB)
        stack.callback(server.discard)
        try:
            result = asyncio.run(_run(server, sizes, rounds))
        except ServerUnavailable as error:
            print(error, file=sys.stderr)
            return 3
    document = {
        "command": _command(arguments),
        "when": when,
        "machine": machine(),
        "settings": _settings(rounds),
        **result,
    }
    print(json.dumps(document["ratios"], indent=2))
    if arguments.quick and arguments.output is None:
        print("--quick: sizes this small say little; nothing is written", file=sys.stderr)
        return 0
    output = arguments.output or HERE / "results" / "index.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n")
    if arguments.output is None:
        report.write_page(HERE / "RESULTS.md", document)
    judged = [
        value for name, value in document["ratios"].items() if name.startswith(("lookup_p99", "search_p99"))
    ]
    return int(max(judged) > report.TARGET)


async def _run(server: MongoServer, sizes: list[int], rounds: int) -> dict[str, Any]:
    archives = load.kept(server) or await _load(server, sizes)
    _forget(server.folder)
    server.start()
    start = resident_mb(server.pids[0])
    rows = await _cold(archives, 100)
    targets = await _open(archives)
    try:
        await _rounds(targets, 1, 0.3)  # warms up
        for target in targets:
            target.times.clear()
        await _rounds(targets, rounds, 1.0)
    finally:
        for target in targets:
            await target.index.close()
    for question in QUESTIONS:
        for target in sorted(targets, key=lambda each: each.archive.instances):
            rows.append(_row(question, target, "warm"))
    memory = {"start_mb": start, "end_mb": resident_mb(server.pids[0]), "cache_gb": CACHE_GB}
    return {
        "archives": _disk(server, archives),
        "memory": {name: round(value) for name, value in memory.items()},
        "rows": rows,
        "ratios": report.ratios(rows, archives[0].label, archives[-1].label),
    }


async def _load(server: MongoServer, sizes: list[int]) -> list[Archive]:
    archives = []
    server.start_alone()
    for size in sizes:
        print(f"loading {size:,} instances", flush=True)
        archives.append(await load.fill(server, _label(size), size))
    server.stop()
    server.start()
    await load.check_documents(server.uri)
    archives = [await load.build_indexes(archive) for archive in archives]
    server.stop()
    load.keep(server, archives)
    return archives


async def _cold(archives: list[Archive], count: int) -> list[dict[str, Any]]:
    """The first answers after a start with no page of the files in memory."""
    rows = []
    targets = await _open(archives)
    try:
        for question in LOOKUPS | SEARCHES:
            await measure.ask(targets, question, count)
            rows += [
                _row(question, target, "cold")
                for target in sorted(targets, key=lambda each: each.archive.instances)
            ]
    finally:
        for target in targets:
            await target.index.close()
    return rows


async def _rounds(targets: list[Target], rounds: int, share: float) -> None:
    for number in range(rounds):
        for question in LOOKUPS:
            await measure.ask(targets, question, int(1000 * share))
        for question in SEARCHES:
            await measure.ask(targets, question, int(400 * share))
        for question in SETTLING:
            await measure.ask(targets, question, int(60 * share))
        print(f"  round {number + 1} of {rounds}", flush=True)


async def _open(archives: list[Archive]) -> list[Target]:
    return [
        Target(archive, await MongoIndex.open(archive.settings, default_issuer="SITE"), random.Random(5))
        for archive in archives
    ]


def _row(question: str, target: Target, cache: str) -> dict[str, Any]:
    times = target.times[question]
    size = target.archive.label
    return {
        "question": question,
        "cache": cache,
        "size": size,
        "count": len(times),
        **measure.milliseconds(times),
    }


def _disk(server: MongoServer, archives: list[Archive]) -> list[dict[str, Any]]:
    rows = []
    with MongoClient[dict[str, Any]](server.uri) as client:
        for archive in archives:
            found = client[archive.settings.database].command("dbStats", scale=1)
            disk = found["storageSize"] + found["indexSize"]
            rows.append(
                {
                    "size": archive.label,
                    "instances": archive.instances,
                    "studies": archive.studies,
                    "load_seconds": round(archive.load_seconds),
                    "index_seconds": round(archive.index_seconds),
                    "data_gb": round(found["dataSize"] / 1e9, 2),
                    "disk_gb": round(disk / 1e9, 2),
                    "index_gb": round(found["indexSize"] / 1e9, 3),
                    "disk_gb_per_million": round(disk / archive.instances / 1e3, 3),
                }
            )
    return rows


def _forget(folder: Path) -> None:
    """Drops the server's files, and nobody else's, from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _label(size: int) -> str:
    return f"{size // 1_000_000}m" if size >= 1_000_000 else f"{size // 1000}k"


def _settings(rounds: int) -> list[str]:
    return [
        (
            f"Both archives are databases of one mongod (replica set of one, {CACHE_GB:.0f} GB cache),"
            " read through `MongoIndex`, PyMongo's asynchronous client, read concern majority."
        ),
        (
            "Loaded into a mongod that is no replica set yet, with `insert_many` straight into the"
            " collections, with the documents that the index itself writes (checked against `apply`), not"
            " through its transactions; indexes are built afterwards."
        ),
        (
            f"On average {INSTANCES_PER_STUDY:.0f} instances in a study: 40 % with 2, 25 % with 252,"
            f" 33 % with 352, 2 % with 1,200. {METADATA_BYTES} incompressible bytes of metadata in each."
        ),
        (
            f"{STUDIES_PER_DAY} studies a day at both sizes: the larger archive has more days and patients,"
            " not fuller days."
        ),
        f"A page is {measure.PAGE} matches and the count of those after it (up to 1,000).",
        (
            f"{rounds} rounds; in each, every question alternates between the sizes, answer by answer, so"
            " that other work of the machine hits both; quantiles over all rounds. 1,000 lookups, 400"
            " searches, 60 claims per round and size."
        ),
        (
            "cold: the first 100 answers to each question after a start of the server with its files dropped"
            " from the page cache, in the order of the table; warm: after a round that is not counted."
            " Indexes fit in the cache at both sizes, the instances of the larger archive do not."
        ),
    ]


def _command(arguments: argparse.Namespace) -> str:
    """What was asked for, without where the data lie."""
    given = [text if text != str(arguments.keep) else "FOLDER" for text in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks.index", *given])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--sizes", default="1000000,10000000", help="instances, the smallest first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="20,000 and 100,000 instances, one round")
    parser.add_argument("--keep", type=Path, help="load into this folder, or use what was loaded before")
    parser.add_argument("--output", type=Path, help="write the results there, and no page")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
