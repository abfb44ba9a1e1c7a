"""Names in PromQL: each must be one that the platform exposes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from isocenter.common.telemetry import Counter, Gauge, Histogram
from isocenter.common.telemetry.metrics import exposed_labels, exposed_name

_SCRAPE = {"instance", "job", "le", "alertname", "alertstate"}
_WORDS = frozenset({
    "absent", "and", "avg", "bool", "by", "clamp_min", "count", "deriv", "group_left", "group_right",
    "histogram_quantile", "ignoring", "increase", "label_values", "max", "max_over_time", "min",
    "min_over_time", "offset", "on", "or", "rate", "sum", "topk", "unless", "vector", "without",
})  # fmt: skip


def exposed() -> dict[str, frozenset[str]]:
    """Series -> its labels."""
    found = {exposed_name(metric): exposed_labels(metric) for metric in (*Counter, *Gauge)}
    for metric in Histogram:
        for suffix in ("_bucket", "_count", "_sum"):
            found[exposed_name(metric) + suffix] = exposed_labels(metric)
    return found


def series_in(expression: str) -> set[str]:
    """Every name in an expression that is no word of the language, no label and no text."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", text) if name not in _WORDS}


def labels_in(expression: str) -> set[str]:
    """Those that are matched on or aggregated by."""
    text = re.sub(r'"[^"]*"', '""', expression)
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text)
    found = {name.strip() for names in grouped for name in names.split(",") if name.strip()}
    for matchers in re.findall(r"\{([^}]*)\}", text):
        found |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    return found


def check_names(expression: str, recorded: Iterable[str] = ()) -> None:
    """Raises AssertionError for a series or a label that does not exist."""
    known, used = exposed(), series_in(expression) - set(recorded)
    assert used <= known.keys(), f"no such series: {sorted(used - known.keys())} in {expression}"
    labels = _SCRAPE.union(*(known[name] for name in used))
    unknown = labels_in(expression) - labels
    assert not unknown, f"no such label: {sorted(unknown)} in {expression}"
