"""The results file and its part of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.index.measure import LOOKUPS, SEARCHES, SETTLING
from benchmarks.page import replace_part

TARGET = 1.5


def ratios(rows: list[dict[str, Any]], small: str, large: str) -> dict[str, Any]:
    """Time at the large size over time at the small one, warm: per question, and the worst of each group."""
    times = {(row["question"], row["size"]): row for row in rows if row["cache"] == "warm"}
    groups = {"lookup": LOOKUPS, "search": SEARCHES, "settle": SETTLING}
    found: dict[str, Any] = {}
    each: dict[str, dict[str, float]] = {}
    for quantile in ("p99", "p50"):
        field = f"{quantile}_ms"
        for name, questions in groups.items():
            for question in questions:
                slope = times[question, large][field] / times[question, small][field]
                each.setdefault(question, {})[quantile] = round(slope, 2)
            worst = max(each[question][quantile] for question in questions)
            found[f"{name}_{quantile}_{large}_over_{small}"] = worst
    return {**found, "each": each}


def write_page(path: Path, document: dict[str, Any]) -> None:
    replace_part(path, "index", "python -m benchmarks.index", markdown(document))


def markdown(document: dict[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    lines = [
        "## Index: the same questions of a larger archive (MongoDB)",
        "",
        f"Command `{document['command']}` at {document['when']}.",
        f"Machine: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB,",
        f"{machine['system']}. Absolute figures are this machine's, which was doing other work beside; the",
        "ratios are the result.",
        "",
        *[f"- {text}" for text in settings],
        "",
        "| archive | studies | load s | indexes s | data GB | disk GB | indexes GB | disk GB/million |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['size']} ({row['instances']:,}) | {row['studies']:,} | {row['load_seconds']}"
        f" | {row['index_seconds']} | {row['data_gb']} | {row['disk_gb']} | {row['index_gb']}"
        f" | {row['disk_gb_per_million']} |"
        for row in document["archives"]
    ]
    memory = document["memory"]
    lines += [
        "",
        (
            f"mongod resident: {memory['start_mb']} MB after start, {memory['end_mb']} MB at the end"
            f" (cache limit {memory['cache_gb']} GB, both archives in one server)."
        ),
        "",
        "| question | cache | size | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['question']} | {row['cache']} | {row['size']} | {row['p50_ms']} | {row['p99_ms']} |"
        for row in document["rows"]
    ]
    found = document["ratios"]
    lines += ["", "| slope, warm: the large archive over the small one | p99 | p50 |", "|---|---|---|"]
    lines += [f"| {name} | {value['p99']} | {value['p50']} |" for name, value in found["each"].items()]
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in found.items() if name != "each"]
    lines += ["", f"Target: p99 of lookups and searches below {TARGET}.", ""]
    return "\n".join(lines)
