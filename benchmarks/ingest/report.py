"""The results file and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.page import replace_part

KEYS = ("command", "when", "machine", "settings", "rows", "ratios")


def write_json(path: Path, document: dict[str, Any]) -> None:
    if tuple(document) != KEYS:
        raise ValueError(f"a results file has the keys {KEYS}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def write_page(path: Path, document: dict[str, Any]) -> None:
    """Replaces the ingest part of the page and leaves the others."""
    replace_part(path, "ingest", "python -m benchmarks.ingest", markdown(document))


def markdown(document: dict[str, Any]) -> str:
    settings, machine = document["settings"], document["machine"]
    lines = [
        "## Ingest: C-STORE beside Orthanc and DCMTK storescp",
        "",
        f"Command `{document['command']}` at {document['when']}.",
        f"Machine: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB,",
        f"{machine['system']}, scratch on {machine['filesystem']}. ",
        "Absolute figures are this machine's; the ratios are the result.",
        "",
        *[f"- **{name}** {text}" for name, text in settings["targets"].items()],
        f"- {settings['sender']}",
        f"- {settings['method']}",
        f"- {settings['cache']}",
        f"- Corpora: {'; '.join(settings['corpora'])}.",
        "",
    ]
    lines += table(document["rows"])
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in document["ratios"].items()]
    lines += [
        "",
        "Ratios are instances/s of ours over the peer's with one association; above 1 means ours is faster.",
        "`rss_mb_large` is our peak resident memory in MB while it takes the large instances.",
        "storescp does not sync what it writes: after a power cut its Success may be for nothing, and it",
        "keeps no index. It is here as the measure of what the protocol costs, not as an equal.",
        "",
    ]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    head = (
        "corpus",
        "assoc.",
        "target",
        "durable",
        "inst/s",
        "MB/s",
        "p50 ms",
        "p99 ms",
        "CPU s",
        "idle MB",
        "peak MB",
        "searchable after s",
        "max PDU",
    )
    fields = (
        "corpus",
        "associations",
        "target",
        "durable",
        "instances_per_s",
        "mb_per_s",
        "p50_ms",
        "p99_ms",
        "receiver_cpu_s",
        "idle_rss_mb",
        "peak_rss_mb",
        "settled_after_s",
        "max_pdu",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            "yes" if row[field] is True else "no" if row[field] is False else row[field] for field in fields
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines
