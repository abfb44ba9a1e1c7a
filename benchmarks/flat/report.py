"""The results file and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.page import replace_part

_FIELDS = {
    "target": "target",
    "mark": "at",
    "archive": "archive",
    "held": "instances held",
    "stores": "stores",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
}


def write(path: Path, document: dict[str, Any], *, page: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    if page:
        replace_part(path.parents[1] / "RESULTS.md", "flat", "python -m benchmarks.flat", _markdown(document))


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(_FIELDS.values())} |", "|" + "---|" * len(_FIELDS)]
    lines += ["| " + " | ".join(str(row[field]) for field in _FIELDS) + " |" for row in rows]
    return lines


def short(number: int) -> str:
    """10000 -> 10k."""
    for size, unit in ((10**6, "m"), (10**3, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def _markdown(document: dict[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    lines = [
        "## Flat cost: a C-STORE in a larger archive",
        "",
        f"Command `{document['command']}` at {document['when']}.",
        f"Machine: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB,",
        f"{machine['system']}.",
        "",
        f"One association, {settings['window']:,} stores of {settings['instance_bytes']:,} bytes of pixels",
        "at each mark, in windows that alternate between two archives: the reference, which stays near the",
        "first mark, and the one that was filled to the mark (500 instances in a study). Nothing waits to be",
        "indexed when a window begins. Ratios: the filled archive over the reference, in the same minutes.",
        "",
        *table(document["rows"]),
        "",
        "| ratio | value |",
        "|---|---|",
        *[f"| `{name}` | {value} |" for name, value in document["ratios"].items()],
        "",
        "Target: within 1.1.",
        "",
    ]
    return "\n".join(lines)
