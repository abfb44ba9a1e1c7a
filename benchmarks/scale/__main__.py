"""Scale-out: the same load on 1, 2 and 4 replicas of ingest and indexer, `python -m benchmarks.scale --help`.

On a machine with few cores more replicas cannot be faster, and this says so: what must hold is that an
instance costs the same CPU time however many replicas share the work, and that the lag comes back to 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.page import replace_part
from prometheus_client.parser import text_string_to_metric_families
from testbed.cluster import Cluster, Replica

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PAGE = ROOT / "benchmarks" / "RESULTS.md"
REPLICAS = (1, 2, 4)
ASSOCIATIONS = 4
INSTANCES = 3000
SIDE = 128
CATCH_UP_SECONDS = 300.0
SCALED = ("ingest", "indexer")
LAG = "isocenter_bus_consumer_lag"
METHOD = """\
Each run has a fresh Kafka, MongoDB and radosgw (objects in memory), so that no run pays for the data of
another; the order of the replica counts is turned round in every second repetition. Before the clock starts
each replica has stored and indexed some studies: the first costs what only a start costs (connections,
imports). CPU seconds are user and system time of all processes of the service between the first byte sent
and "lag 0, every study settled", from /proc. What idle replicas cost is in them, and told on its own too.
"""
WARM_ROUNDS = 4
WARM_INSTANCES = 40
IDLE_SECONDS = 20.0


@dataclass(frozen=True)
class Run:
    """One measured load."""

    replicas: int
    stored: int
    send_seconds: float
    lag_zero_seconds: float
    """From the first byte sent until every study has settled and no group has lag."""
    peak_lag: int
    cpu_per_1000: dict[str, float]
    """Service -> CPU seconds per 1,000 instances, and `total`."""
    engines_cpu_per_1000: float
    idle_cpu_per_minute: dict[str, float]
    """Service -> CPU seconds per minute of all its replicas before the load, nothing to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--instances", type=int, default=INSTANCES, help="of each run (%(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="runs per replica count (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="300 instances, once; writes no results")
    arguments = parser.parse_args()
    instances, repeat = (300, 1) if arguments.quick else (arguments.instances, arguments.repeat)
    runs = []
    for repetition in range(repeat):
        for replicas in REPLICAS if repetition % 2 == 0 else reversed(REPLICAS):
            with tempfile.TemporaryDirectory(prefix="isocenter-scale-") as folder:
                runs.append(measure(Path(folder), replicas, instances, seed=repetition * 10 + replicas))
            print(line(runs[-1]), flush=True)
    document = report(runs, instances)
    print("\n".join(table(document)))
    if not arguments.quick:
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
        replace_part(PAGE, "scale", "python -m benchmarks.scale", markdown(document))
    return 0


def measure(folder: Path, replicas: int, instances: int, seed: int) -> Run:
    environment = {"ISOCENTER_LOG_LEVEL": "warning", "ISOCENTER_SPANS_KEPT": "0"}
    with Cluster(folder, ingest=replicas, indexer=replicas, environment=environment) as cluster:
        services = {name: cluster.of(name) for name in SCALED}
        engines = (cluster.kafka, cluster.mongo, cluster.s3)
        warm_stored, warm_studies = warm_up(cluster, seed)
        idle = idle_cpu(services)
        before = {name: cpu(each) for name, each in services.items()}
        engines_before = sum(tree_cpu(pid) for server in engines for pid in server.pids)
        began = time.monotonic()
        stored, studies = send(cluster, instances, seed)
        sent = time.monotonic()
        peak = until_settled(cluster, warm_stored + stored, warm_studies + studies)
        ended = time.monotonic()
        after = {name: cpu(each) for name, each in services.items()}
        engines_after = sum(tree_cpu(pid) for server in engines for pid in server.pids)
    per_1000 = {name: (after[name] - before[name]) * 1000 / stored for name in SCALED}
    return Run(
        replicas=replicas,
        stored=stored,
        send_seconds=sent - began,
        lag_zero_seconds=ended - began,
        peak_lag=peak,
        cpu_per_1000={**per_1000, "total": sum(per_1000.values())},
        engines_cpu_per_1000=(engines_after - engines_before) * 1000 / stored,
        idle_cpu_per_minute=idle,
    )


def warm_up(cluster: Cluster, seed: int) -> tuple[int, int]:
    """Studies enough that every replica has had some. Returns instances stored and studies."""
    stored = studies = 0
    for number in range(WARM_ROUNDS):
        some, of = send(cluster, WARM_INSTANCES, seed=5000 + seed * 10 + number)
        stored, studies = stored + some, studies + of
    until_settled(cluster, stored, studies)
    return stored, studies


def idle_cpu(services: dict[str, list[Replica]]) -> dict[str, float]:
    before = {name: cpu(each) for name, each in services.items()}
    time.sleep(IDLE_SECONDS)
    return {name: (cpu(each) - before[name]) * 60 / IDLE_SECONDS for name, each in services.items()}


def send(cluster: Cluster, instances: int, seed: int) -> tuple[int, int]:
    """Four associations at once, dealt to the replicas. Returns instances stored and studies."""
    receivers = cluster.of("ingest")
    share, per = ASSOCIATIONS // len(receivers), instances // ASSOCIATIONS
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.sender", "--corpus", "scale"),
                *("--port", str(replica.dicom_port), "--called", cluster.ae_title),
                *("--seed", str(seed * 100 + number), "--instances", str(per * share)),
                *("--rows", str(SIDE), "--columns", str(SIDE), "--associations", str(share)),
                "--no-warm-up",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for number, replica in enumerate(receivers)
    ]
    stored = studies = 0
    for process in processes:
        said = json.loads(process.communicate()[0])
        if process.returncode or said["failures"]:
            raise RuntimeError(f"the sender failed: {said['failures']}")
        stored += said["stored"]
        studies += len(said["studies"])
    return stored, studies


def until_settled(cluster: Cluster, stored: int, studies: int) -> int:
    """Returns the highest lag seen once every instance is in a settled study and no group has lag."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    peak = 0
    while True:
        lag = sum(lag_of(replica) for replica in cluster.of("indexer"))
        peak = max(peak, lag)
        if lag == 0:
            found = cluster.isocenter_json("studies", "--limit", "1000")
            settled = [each for each in found if each["state"] == "settled"]
            if len(settled) == studies and sum(each["instances"] for each in settled) == stored:
                return peak
        if time.monotonic() > deadline:
            raise RuntimeError(f"not settled in time: lag {lag}")
        time.sleep(0.5)


def lag_of(replica: Replica) -> int:
    _, text = replica.health("/metrics")
    return round(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            if family.name.startswith(LAG)
            for sample in family.samples
        )
    )


def cpu(replicas: list[Replica]) -> float:
    return sum(replica.cpu_seconds() for replica in replicas)


def tree_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(runs: list[Run], instances: int) -> dict[str, Any]:
    total = {
        count: statistics.median(run.cpu_per_1000["total"] for run in runs if run.replicas == count)
        for count in REPLICAS
    }
    one = total[REPLICAS[0]]
    return {
        "command": "python -m benchmarks.scale",
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine(),
        "settings": {
            "instances": instances,
            "corpus": f"CT Image, {SIDE} x {SIDE} x 16 bit, one study per association",
            "associations": ASSOCIATIONS,
            "method": METHOD,
        },
        "rows": [asdict(run) for run in runs],
        "ratios": {
            f"cpu_per_instance_{count}_over_1": round(total[count] / one, 3) for count in REPLICAS[1:]
        },
    }


def line(run: Run) -> str:
    return (
        f"{run.replicas} replicas: {run.stored} stored in {run.send_seconds:.1f} s"
        f" ({run.stored / run.send_seconds:.0f}/s), lag 0 after {run.lag_zero_seconds:.1f} s,"
        f" CPU s per 1,000: {run.cpu_per_1000['total']:.2f},"
        f" idle CPU s per minute: {sum(run.idle_cpu_per_minute.values()):.2f}"
    )


def table(document: dict[str, Any]) -> list[str]:
    lines = [
        "| replicas | instances/s | lag 0 after | peak lag | ingest | indexer | both | engines | idle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        per = row["cpu_per_1000"]
        cells = (
            row["replicas"],
            f"{row['stored'] / row['send_seconds']:.0f}",
            f"{row['lag_zero_seconds']:.1f} s",
            row["peak_lag"],
            *(f"{per[name]:.2f}" for name in (*SCALED, "total")),
            f"{row['engines_cpu_per_1000']:.2f}",
            f"{sum(row['idle_cpu_per_minute'].values()):.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "From `ingest` to `engines`: CPU seconds per 1,000 instances. `idle`: CPU seconds per minute of all",
        "replicas of both services before the load.",
        "",
    ]
    return [*lines, *(f"- `{name}`: {value}" for name, value in document["ratios"].items())]


def markdown(document: dict[str, Any]) -> str:
    about, settings = document["machine"], document["settings"]
    return f"""\
## Scale-out: 1, 2 and 4 replicas of ingest and indexer

Command `{document["command"]}` at {document["when"]}.
{about["cpus"]} CPUs ({about["cpu"]}) are shared by the services, Kafka, MongoDB, radosgw and the sender:
instances/s cannot grow here, and what the figures show is what an instance costs.
{settings["instances"]} instances per run, {settings["corpus"]}, {settings["associations"]} associations.
{METHOD}
{chr(10).join(table(document))}
"""


if __name__ == "__main__":
    sys.exit(main())
