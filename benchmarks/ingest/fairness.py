"""When a comparison is fair, and the ratios that a fair one yields.

A results document that breaks a rule is refused: no ratio is computed and no file is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

INGEST = "isocenter_ingest"
"""The ingest service alone."""
PLATFORM = "isocenter"
"""The whole embedded platform."""
OURS = (INGEST, PLATFORM)


class Ratio(NamedTuple):
    """Instances per second of `ours` over those of `peer`, on one corpus with so many associations."""

    ours: str
    peer: str
    corpus: str
    associations: int = 1


def _ratios() -> dict[str, Ratio]:
    found = {}
    for lanes, suffix in ((1, ""), (4, "_x4")):
        for corpus in ("ct", "small", "large"):
            for ours, name in ((INGEST, corpus), (PLATFORM, f"{corpus}_platform")):
                found[f"{name}_vs_orthanc_sync{suffix}"] = Ratio(ours, "orthanc_sync", corpus, lanes)
            found[f"{corpus}_vs_orthanc_nosync{suffix}"] = Ratio(INGEST, "orthanc_nosync", corpus, lanes)
            found[f"{corpus}_vs_storescp{suffix}"] = Ratio(INGEST, "storescp", corpus, lanes)
        for corpus, name in (("stow_ct", "stow"), ("stow_small", "stow_small")):
            for ours, part in ((INGEST, name), (PLATFORM, f"{name}_platform")):
                found[f"{part}_vs_orthanc{suffix}"] = Ratio(ours, "orthanc_dicomweb", corpus, lanes)
    return found


RATIOS = _ratios()
_MEMORY = {"rss_mb_large": INGEST, "rss_mb_large_platform": PLATFORM}
_SAME = ("sender", "address", "corpus_digest", "instances", "bytes", "seeds")
_LOOPBACK = "loopback"


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
        if _LOOPBACK not in row.get("address", _LOOPBACK):  # results of the first release have none
            reasons.append(f"{name}: not on this machine's loopback")
    for (corpus, associations), group in _groups(rows).items():
        reasons += [
            f"{corpus} x{associations}: {field} differs between targets"
            for field in _SAME
            if len({repr(row.get(field)) for row in group}) > 1
        ]
        reasons += [
            f"{corpus} x{associations}: {row['target']} is durable before Success and {ours['target']} is not"
            for row in group
            for ours in group
            if ours["target"] in OURS and row["durable"] and not ours["durable"]
        ]
        reasons += [
            f"{corpus} x{associations}: {row['target']} is named as synchronous but is not durable"
            for row in group
            if row["target"].endswith("_sync") and not row["durable"]
        ]
    return reasons


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """The flat map of the results file. Above 1 means that ours is faster.

    `*_vs_storescp` and `*_vs_orthanc_nosync` stand against peers that sync nothing: the peer does less, so
    the ratio can only understate ours. A ratio whose rows are not there is left out.

    Raises:
        Unfair
    """
    reasons = judge(rows)
    if reasons:
        raise Unfair("; ".join(reasons))
    rates = {(row["target"], row["corpus"], row["associations"]): row["instances_per_s"] for row in rows}
    found = {
        name: round(rates[ours, corpus, lanes] / rates[peer, corpus, lanes], 3)
        for name, (ours, peer, corpus, lanes) in RATIOS.items()
        if (ours, corpus, lanes) in rates and (peer, corpus, lanes) in rates
    }
    for name, target in _MEMORY.items():
        peaks = [row["peak_rss_mb"] for row in rows if (row["target"], row["corpus"]) == (target, "large")]
        if peaks:
            found[name] = round(max(peaks), 1)
    return found


def _groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["associations"]), []).append(row)
    return groups
