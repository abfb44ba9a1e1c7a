"""Objects, index and disk."""

from __future__ import annotations

from scripts.dashboards.grafana import GREEN, RED, Dashboard, Panel, Target
from scripts.dashboards.promql import calls, level, quantile, rate, shown

from isocenter.common.telemetry import Counter, Gauge, Histogram

STORES = Dashboard(
    "isocenter-stores",
    "Stores",
    "What everything stands on: objects, index, disk.",
    {
        "Objects": [
            Panel(
                "Requests",
                "Per second, by operation.",
                [Target(calls(Histogram.STORE, "operation"), shown("operation"))],
                unit="reqps",
            ),
            Panel(
                "Time per request",
                "99 of a hundred, retries included.",
                [Target(quantile(0.99, Histogram.STORE, "operation"), shown("operation"))],
                unit="s",
                limits=((None, GREEN), (5, RED)),
                runbook="isocenterobjectstoreslow",
            ),
            Panel(
                "Errors",
                "Requests per second that failed after their retries.",
                [
                    Target(
                        rate(Counter.STORE_ERRORS, "operation", "error_type"),
                        f"{shown('operation')} {shown('error_type')}",
                        expected=False,
                    )
                ],
                unit="reqps",
                runbook="isocenterobjectstorefails",
            ),
        ],
        "Index": [
            Panel(
                "Calls",
                "Per second, by operation.",
                [Target(calls(Histogram.INDEX, "operation"), shown("operation"))],
                unit="reqps",
            ),
            Panel(
                "Time per call",
                "99 of a hundred, by operation.",
                [Target(quantile(0.99, Histogram.INDEX, "operation"), shown("operation"))],
                unit="s",
                limits=((None, GREEN), (2.5, RED)),
                runbook="isocenterindexslow",
            ),
            Panel(
                "Errors",
                "Calls per second that failed.",
                [
                    Target(
                        rate(Counter.INDEX_ERRORS, "operation", "error_type"),
                        f"{shown('operation')} {shown('error_type')}",
                        expected=False,
                    )
                ],
                unit="reqps",
                runbook="isocenterindexfails",
            ),
        ],
        "Disk": [
            Panel(
                "Free",
                "Share of the file system of the data directory; nothing where no data directory is used.",
                [
                    Target(
                        f"{level(Gauge.DISK_FREE, 'instance')} / {level(Gauge.DISK_SIZE, 'instance')}",
                        "{{instance}}",
                    )
                ],
                unit="percentunit",
                limits=((None, RED), (0.1, GREEN)),
                highest=1,
                runbook="isocenterdisklow",
                width=12,
            ),
            Panel(
                "Free, bytes",
                "Under the data directory.",
                [Target(level(Gauge.DISK_FREE, "instance"), "{{instance}}")],
                unit="bytes",
                runbook="isocenterdisklow",
                width=12,
            ),
        ],
    },
)
