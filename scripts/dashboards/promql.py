"""PromQL from the names in the code. Each function gives an expression; labels are those of the code."""

from __future__ import annotations

from isocenter.common.telemetry import Counter, Gauge, Histogram
from isocenter.common.telemetry.metrics import exposed_name
from isocenter.common.telemetry.names import LABELS, SHARED

CHOSEN = 'service=~"$service",instance=~"$instance"'
"""What the variables of the dashboard select."""
RATE = "$__rate_interval"


def label(name: str) -> str:
    """A label of the code as `/metrics` shows it; those of a scrape stay as they are."""
    return LABELS.get(name, name).replace(".", "_")


def shown(name: str) -> str:
    """The value of a label in a legend."""
    return f"{{{{{label(name)}}}}}"


def series(name: str, **where: str) -> str:
    """With matchers: a value that begins with `!` must not match. Both are regular expressions."""
    matchers = [
        f'{label(key)}!~"{value[1:]}"' if value.startswith("!") else f'{label(key)}=~"{value}"'
        for key, value in where.items()
    ]
    return f"{name}{{{','.join([CHOSEN, *matchers])}}}"


def rate(metric: Counter, *by: str, **where: str) -> str:
    """Per second."""
    return f"sum{_by(by)} (rate({series(exposed_name(metric), **where)}[{RATE}]))"


def increase(metric: Counter, window: str, *by: str, **where: str) -> str:
    return f"sum{_by(by)} (increase({series(exposed_name(metric), **where)}[{window}]))"


def quantile(share: float, metric: Histogram, *by: str, **where: str) -> str:
    buckets = series(exposed_name(metric) + "_bucket", **where)
    return f"histogram_quantile({share:g}, sum{_by(('le', *by))} (rate({buckets}[{RATE}])))"


def calls(metric: Histogram, *by: str, **where: str) -> str:
    """Per second."""
    return f"sum{_by(by)} (rate({series(exposed_name(metric) + '_count', **where)}[{RATE}]))"


def level(metric: Gauge, *by: str, **where: str) -> str:
    """Over replicas: the maximum of what they share, the sum of what is each one's own."""
    return f"{'max' if metric in SHARED else 'sum'}{_by(by)} ({series(exposed_name(metric), **where)})"


def lowest(metric: Gauge, *by: str, **where: str) -> str:
    return f"min{_by(by)} ({series(exposed_name(metric), **where)})"


def share(part: str, whole: str) -> str:
    """0 while there is nothing of the part; nothing while there is nothing of the whole."""
    return f"({part} or vector(0)) / ({whole} > 0)"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(label(name) for name in labels)})" if labels else ""
