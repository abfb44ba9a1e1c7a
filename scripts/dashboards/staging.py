"""GPU nodes: what is staged, how it is used, what it costs."""

from __future__ import annotations

from scripts.dashboards.grafana import Dashboard, Panel, Target
from scripts.dashboards.promql import level, quantile, rate, shown

from isocenter.common.telemetry import Counter, Gauge, Histogram


def _some(expression: str, legend: str = "") -> Target:
    """A site without GPU nodes has none of these."""
    return Target(expression, legend, expected=False)


STAGING = Dashboard(
    "isocenter-staging",
    "Staging",
    "Series staged on GPU nodes: waiting, loading, space.",
    {
        "Waiting": [
            Panel(
                "Requests",
                "Series asked for, per second.",
                [_some(rate(Counter.STAGER_REQUESTS, "outcome"), shown("outcome"))],
                unit="reqps",
            ),
            Panel(
                "Time to stage",
                "99 of a hundred; hits are not counted.",
                [_some(quantile(0.99, Histogram.STAGER_STAGE))],
                unit="s",
            ),
            Panel(
                "From the last instance to ready",
                "Half, and 99 of a hundred.",
                [
                    _some(quantile(0.5, Histogram.STAGER_LATENCY), "half"),
                    _some(quantile(0.99, Histogram.STAGER_LATENCY), "99 %"),
                ],
                unit="s",
            ),
        ],
        "Loading": [
            Panel(
                "Loads",
                "Per second, by the way that the bytes took.",
                [_some(rate(Counter.STAGER_LOADS, "mode"), shown("mode"))],
                unit="reqps",
            ),
            Panel(
                "Bytes",
                "Per second.",
                [_some(rate(Counter.STAGER_LOADED_BYTES, "mode"), shown("mode"))],
                unit="Bps",
            ),
            Panel(
                "Time per load",
                "99 of a hundred.",
                [_some(quantile(0.99, Histogram.STAGER_LOAD, "mode"), shown("mode"))],
                unit="s",
            ),
        ],
        "Space": [
            Panel(
                "Staged",
                "Bytes, and how many may be.",
                [
                    _some(level(Gauge.STAGER_BYTES, "state"), shown("state")),
                    _some(level(Gauge.STAGER_QUOTA), "quota"),
                ],
                unit="bytes",
            ),
            Panel("Leases", "Held by processes of the nodes.", [_some(level(Gauge.STAGER_LEASES))]),
            Panel(
                "Evictions",
                "Per second, by reason.",
                [_some(rate(Counter.STAGER_EVICTIONS, "reason"), shown("reason"))],
                unit="ops",
            ),
        ],
    },
)
