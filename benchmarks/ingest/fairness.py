"""When a comparison is fair, and the ratios that a fair one yields.

A results document that breaks a rule is refused: no ratio is computed and no file is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

OURS = "isocenter"
RATIOS = {
    "ct_vs_orthanc_sync": ("ct", "orthanc_sync"),
    "small_vs_orthanc_sync": ("small", "orthanc_sync"),
    "large_vs_orthanc_sync": ("large", "orthanc_sync"),
    "ct_vs_storescp": ("ct", "storescp"),
}
"""Name -> (corpus, peer). Each compares instances per second with one association."""

_SAME = ("sender", "instances", "bytes", "seeds")


class Unfair(Exception):
    """The comparison must not be published; the text lists every reason."""


def judge(rows: Sequence[Row]) -> list[str]:
    """Every reason why these rows must not be compared; empty when they may be."""
    reasons: list[str] = []
    for row in rows:
        name = f"{row['target']} {row['corpus']} x{row['associations']}"
        if row["failures"]:
            reasons.append(f"{name}: transfers failed: {row['failures']}")
        if row["stored"] != row["instances"]:
            reasons.append(f"{name}: {row['stored']} acknowledged of {row['instances']} sent")
        if row["counted"] != row["instances"]:
            reasons.append(f"{name}: the target holds {row['counted']} of {row['instances']} sent")
        if not row["tcp_nodelay"]:
            reasons.append(f"{name}: started without TCP_NODELAY=1")
    for (corpus, associations), group in _groups(rows).items():
        reasons += [
            f"{corpus} x{associations}: {field} differs between targets"
            for field in _SAME
            if len({repr(row[field]) for row in group}) > 1
        ]
        ours = next((row for row in group if row["target"] == OURS), None)
        reasons += [
            f"{corpus} x{associations}: {row['target']} is durable before Success and {OURS} is not"
            for row in group
            if ours is not None and row["durable"] and not ours["durable"]
        ]
        reasons += [
            f"{corpus} x{associations}: {row['target']} is named as synchronous but is not durable"
            for row in group
            if row["target"].endswith("_sync") and not row["durable"]
        ]
    return reasons


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """The flat map of the results file. Above 1 means that ours is faster.

    `ct_vs_storescp` stands against a peer that syncs nothing: the peer does less, so the ratio can only
    understate ours. A ratio whose rows are not there is left out.

    Raises:
        Unfair
    """
    reasons = judge(rows)
    if reasons:
        raise Unfair("; ".join(reasons))
    rates = {
        (row["target"], row["corpus"]): row["instances_per_s"] for row in rows if row["associations"] == 1
    }
    found = {
        name: round(rates[OURS, corpus] / rates[peer, corpus], 3)
        for name, (corpus, peer) in RATIOS.items()
        if (OURS, corpus) in rates and (peer, corpus) in rates
    }
    peaks = [row["peak_rss_mb"] for row in rows if row["target"] == OURS and row["corpus"] == "large"]
    if peaks:
        found["rss_mb_large"] = round(max(peaks), 1)
    return found


def _groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["associations"]), []).append(row)
    return groups
