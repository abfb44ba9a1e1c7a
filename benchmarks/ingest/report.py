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
        "## Ingest: C-STORE and STOW-RS beside Orthanc and DCMTK storescp",
        "",
        f"Command `{document['command']}` at {document['when']}, commit {settings.get('commit', 'unknown')}.",
        f"Machine: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB,",
        f"{machine['system']}, scratch on {machine['filesystem']}. ",
        "Absolute figures are this machine's; the ratios are the result.",
        "",
        *[f"- **{name}** {text}" for name, text in settings["targets"].items()],
        f"- {settings['sender']}",
        f"- {settings['method']}",
        f"- {settings['cache']}",
        *[f"- **Skipped: {skipped}**" for skipped in settings.get("skipped", [])],
        f"- Corpora: {'; '.join(settings['corpora'])}.",
        "",
    ]
    lines += table(document["rows"])
    alone = settings.get("sender_alone", {})
    if alone:
        pairs = ", ".join(f"{name} {rate:,.0f}" for name, rate in alone.items())
        lines += ["", f"The sender alone, against a receiver that keeps nothing, instances/s: {pairs}."]
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in document["ratios"].items()]
    lines += [
        "",
        "Ratios are instances/s of ours over the peer's; above 1 means ours is faster. `NAME` is the ingest",
        "service, `*_platform` the whole embedded platform, `*_x4` with four associations or connections,",
        "the others with one. `rss_mb_large*` is our peak resident memory in MB on the large corpus.",
        "storescp and orthanc_nosync do not sync what they write: after a power cut their Success may be for",
        "nothing, and storescp keeps no index. They tell what the protocol costs; they are no equals.",
        "",
    ]
    return "\n".join(lines)


COLUMNS = {
    "corpus": "corpus",
    "associations": "assoc.",
    "target": "target",
    "durable": "durable",
    "sealed": "sealed",
    "instances_per_s": "inst/s",
    "bar": "",
    "mb_per_s": "MB/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_s_per_gb": "CPU s/GB",
    "idle_rss_mb": "idle MB",
    "peak_rss_mb": "peak MB",
    "settled_after_s": "found after s",
    "max_pdu": "max PDU",
}
_BAR = 12


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each row; bars compare the rates of one corpus and number of associations."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        group = (row["corpus"], row["associations"])
        best[group] = max(best.get(group, 0.0), row["instances_per_s"])
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        share = row["instances_per_s"] / (best[row["corpus"], row["associations"]] or 1)
        shown = {**row, "bar": "█" * max(1, round(share * _BAR))}
        lines.append("| " + " | ".join(_cell(shown.get(field)) for field in COLUMNS) + " |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
