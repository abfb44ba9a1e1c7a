"""Events that wait, are retried or were given up."""

from __future__ import annotations

from scripts.dashboards.grafana import GREEN, RED, Dashboard, Panel, Target
from scripts.dashboards.promql import calls, increase, level, quantile, rate, shown

from isocenter.common.telemetry import Counter, Gauge, Histogram

DELIVERY = Dashboard(
    "isocenter-delivery",
    "Delivery",
    "Events: what waits, what is retried, what was given up, by consumer group.",
    {
        "Waiting": [
            Panel(
                "Lag",
                "Events not processed yet, by group; its retry topic counts.",
                [Target(level(Gauge.CONSUMER_LAG, "group"), shown("group"))],
                runbook="isocenterlaggrows",
                width=12,
            ),
            Panel(
                "Studies parked",
                "With an event that is retried; their later events wait behind it.",
                [Target(level(Gauge.PARKED, "group"), shown("group"))],
                runbook="isocenterstudiesparked",
                width=12,
            ),
            Panel(
                "Outbox",
                "Events decided and not published.",
                [Target(level(Gauge.OUTBOX_PENDING), "events")],
                runbook="isocenteroutboxold",
            ),
            Panel(
                "Outbox, oldest",
                "Since the oldest of them was decided.",
                [Target(level(Gauge.OUTBOX_AGE), "age")],
                unit="s",
                limits=((None, GREEN), (120, RED)),
                runbook="isocenteroutboxold",
            ),
            Panel(
                "Not announced yet",
                "By replica of ingest.",
                [Target(level(Gauge.UNANNOUNCED, "instance"), "{{instance}}")],
                runbook="isocenterunannounced",
            ),
        ],
        "Done": [
            Panel(
                "Events finished",
                "Per second, by group and outcome.",
                [
                    Target(
                        rate(Counter.EVENTS_CONSUMED, "group", "outcome"),
                        f"{shown('group')} {shown('outcome')}",
                    )
                ],
                unit="ops",
            ),
            Panel(
                "Time per event",
                "95 of a hundred, by group. An attempt that failed counts.",
                [Target(quantile(0.95, Histogram.PROCESS, "group"), shown("group"))],
                unit="s",
            ),
            Panel(
                "Attempts that failed",
                "Per second, by group and type of error. Each is tried again.",
                [
                    Target(
                        calls(Histogram.PROCESS, "group", "error_type", error_type=".+"),
                        f"{shown('group')} {shown('error_type')}",
                        expected=False,
                    )
                ],
                unit="ops",
                runbook="isocenterstudiesparked",
            ),
        ],
        "Given up": [
            Panel(
                "Dead letters kept",
                "On the dead-letter topic of each group, replayed ones included.",
                [Target(level(Gauge.DEAD_LETTERS_KEPT, "topic", "group"), shown("group"))],
                runbook="isocenterdeadletters",
            ),
            Panel(
                "Dead letters by reason",
                "In the last hour.",
                [
                    Target(
                        increase(Counter.DEAD_LETTERS, "1h", "group", "reason"),
                        f"{shown('group')} {shown('reason')}",
                        expected=False,
                    )
                ],
                runbook="isocenterdeadletters",
            ),
            Panel(
                "Consumers started anew",
                "In the last hour, by the watchdog.",
                [Target(increase(Counter.CONSUMER_RESTARTS, "1h", "group"), shown("group"), expected=False)],
                runbook="isocenterconsumerrestarts",
            ),
        ],
        "Publishing": [
            Panel(
                "Events published",
                "Per second, by topic.",
                [Target(rate(Counter.EVENTS_SENT, "topic"), shown("topic"))],
                unit="ops",
                width=12,
            ),
            Panel(
                "Events refused by the bus",
                "Per second, by service and type of error.",
                [
                    Target(
                        rate(Counter.EVENTS_SENT, "service", "error_type", error_type=".+"),
                        f"{{{{service}}}} {shown('error_type')}",
                        expected=False,
                    )
                ],
                unit="ops",
                width=12,
                runbook="isocentereventsrefused",
            ),
        ],
    },
)
