"""The results file and its part of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.index.measure import LOOKUPS, SEARCHES, SETTLING
from benchmarks.page import replace_part

TARGET = 1.5


def ratios(rows: list[dict[str, Any]], small: str, large: str) -> dict[str, Any]:
    """p99 at the large size over p99 at the small one, per question and the worst of each group."""
    p99 = {(row["question"], row["size"]): row["p99_ms"] for row in rows if row["cache"] == "warm"}
    each = {
        question: round(p99[question, large] / p99[question, small], 2)
        for question in (*LOOKUPS, *SEARCHES, *SETTLING)
    }
    name = f"p99_{large}_over_{small}"
    return {
        f"lookup_{name}": max(each[question] for question in LOOKUPS),
        f"search_{name}": max(each[question] for question in SEARCHES),
        f"settle_{name}": max(each[question] for question in SETTLING),
        "each": each,
    }


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
    lines += ["", "| ratio of the warm p99 | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in found.items() if name != "each"]
    lines += [f"| {name} | {value} |" for name, value in found["each"].items()]
    lines += ["", f"Target: lookups and searches below {TARGET}.", ""]
    return "\n".join(lines)
