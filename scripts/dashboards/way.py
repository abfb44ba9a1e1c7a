"""From the first byte of an instance to the settled study: where does the time go?"""

from __future__ import annotations

from scripts.dashboards.grafana import GREEN, RED, Dashboard, Panel, Target
from scripts.dashboards.promql import increase, level, quantile, rate, shown

from isocenter.common.telemetry import Counter, Gauge, Histogram

WAY = Dashboard(
    "isocenter-way",
    "A study's way",
    "From the first byte to settled, step by step: where does the time go?",
    {
        "Ingest": [
            Panel(
                "Time to Success",
                "99 of a hundred instances.",
                [Target(quantile(0.99, Histogram.INGEST_STORE, "protocol"), shown("protocol"))],
                unit="s",
                runbook="isocenteringestslow",
            ),
            Panel(
                "Of it: making the object durable",
                "99 of a hundred requests, by operation.",
                [Target(quantile(0.99, Histogram.STORE, "operation"), shown("operation"))],
                unit="s",
                runbook="isocenterobjectstoreslow",
            ),
            Panel(
                "Of it: making the event durable",
                "99 of a hundred, by topic.",
                [Target(quantile(0.99, Histogram.PUBLISH, "topic"), shown("topic"))],
                unit="s",
                runbook="isocentereventsrefused",
            ),
            Panel(
                "Associations",
                "Open, and how many may be.",
                [
                    Target(level(Gauge.INGEST_ASSOCIATIONS), "open"),
                    Target(level(Gauge.INGEST_ASSOCIATIONS_LIMIT), "limit"),
                ],
                runbook="isocenterassociationsnearlimit",
            ),
            Panel(
                "Transfers",
                "Associations and STOW-RS requests that ended, per minute, by outcome.",
                [
                    Target(
                        f"60 * {rate(Counter.INGEST_TRANSFERS, 'protocol', 'outcome')}",
                        f"{shown('protocol')} {shown('outcome')}",
                    )
                ],
            ),
            Panel(
                "Studies fetched",
                "Attempts to fetch an announced study, per minute, by kind of source and outcome.",
                [
                    Target(
                        f"60 * {rate(Counter.INGEST_PULLS, 'protocol', 'outcome')}",
                        f"{shown('protocol')} {shown('outcome')}",
                        expected=False,
                    )
                ],
            ),
            Panel(
                "Not announced yet",
                "Instances whose object is durable and whose event is not.",
                [Target(level(Gauge.UNANNOUNCED), "instances")],
                runbook="isocenterunannounced",
            ),
        ],
        "Index": [
            Panel(
                "Instances indexed",
                "Per second, by outcome.",
                [Target(rate(Counter.INDEX_INSTANCES, "outcome"), shown("outcome"))],
                unit="ops",
            ),
            Panel(
                "Time per event",
                "95 of a hundred, by group.",
                [Target(quantile(0.95, Histogram.PROCESS, "group"), shown("group"))],
                unit="s",
            ),
            Panel(
                "Conflicts",
                "Instances of the last hour that came with other content under a known SOP Instance UID.",
                [
                    Target(
                        increase(Counter.INDEX_INSTANCES, "1h", outcome="conflict"),
                        "conflicts",
                        expected=False,
                    )
                ],
                runbook="isocenterconflicts",
            ),
        ],
        "Settle": [
            Panel(
                "Studies",
                "Receiving now.",
                [Target(level(Gauge.STUDIES_RECEIVING), "receiving")],
            ),
            Panel(
                "Settled",
                "Study versions per minute, by reason.",
                [Target(f"60 * {rate(Counter.STUDIES_SETTLED, 'reason')}", shown("reason"))],
            ),
            Panel(
                "Lateness",
                "Of those that settled: from the end of the quiet period to the event, 95 of a hundred."
                " Of those that wait: how long the longest is due.",
                [
                    Target(quantile(0.95, Histogram.SETTLE_LATENESS), "settled late"),
                    Target(level(Gauge.SETTLE_OVERDUE), "longest due"),
                ],
                unit="s",
                limits=((None, GREEN), (120, RED)),
                runbook="isocentersettlingoverdue",
            ),
        ],
    },
)
