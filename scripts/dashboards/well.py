"""What is promised to senders and readers, and whether it is kept."""

from __future__ import annotations

from scripts.dashboards.grafana import GREEN, ORANGE, RED, Dashboard, Panel, Target, stat
from scripts.dashboards.promql import calls, level, lowest, quantile, rate, share, shown

from isocenter.common.telemetry import Counter, Gauge, Histogram

WELL = Dashboard(
    "isocenter-well",
    "Isocenter: is it well?",
    "What is promised to senders and readers, and whether it is kept. Begin here.",
    {
        "Now": [
            stat(
                "Ready",
                "1 where every replica of the service takes work.",
                Target(lowest(Gauge.READY, "service"), "{{service}}"),
                limits=((None, RED), (1, GREEN)),
                runbook="isocenterservicenotready",
            ),
            stat(
                "Senders refused",
                "Share of instances refused for want of resources. Promised: below 0.1 %.",
                Target(
                    share(
                        rate(Counter.INGEST_REJECTIONS, reason="out-of-resources"),
                        rate(Counter.INGEST_INSTANCES),
                    ),
                    expected=False,
                ),
                unit="percentunit",
                limits=((None, GREEN), (0.001, ORANGE), (0.0144, RED)),
                runbook="isocentersendersrefused",
            ),
            stat(
                "Reads failed",
                "Share of readers' requests that ended in a server error. Promised: below 0.1 %.",
                Target(
                    share(calls(Histogram.HTTP_SERVER, status_code="5.."), calls(Histogram.HTTP_SERVER)),
                    expected=False,
                ),
                unit="percentunit",
                limits=((None, GREEN), (0.001, ORANGE), (0.0144, RED)),
                runbook="isocenterreadsfail",
            ),
            stat(
                "Oldest unsettled study",
                "Since its first unsettled instance. The maximum wait ends it: 90 minutes by default.",
                Target(level(Gauge.RECEIVING_AGE)),
                unit="s",
                limits=((None, GREEN), (5400, ORANGE), (7200, RED)),
                runbook="isocenterstudyunsettled",
            ),
            stat(
                "Studies parked",
                "Studies with an event that is retried, in all groups.",
                Target(f"sum({level(Gauge.PARKED, 'group')})"),
                limits=((None, GREEN), (1, ORANGE)),
                runbook="isocenterstudiesparked",
            ),
            stat(
                "Dead letters",
                "Records on dead-letter topics, replayed ones included.",
                Target(f"sum({level(Gauge.DEAD_LETTERS_KEPT, 'topic', 'group')})"),
                limits=((None, GREEN), (1, ORANGE)),
                runbook="isocenterdeadletters",
            ),
        ],
        "Traffic": [
            Panel(
                "Instances taken in",
                "Per second, by outcome. `known` was sent before.",
                [Target(rate(Counter.INGEST_INSTANCES, "outcome"), shown("outcome"))],
                unit="ops",
            ),
            Panel(
                "Bytes",
                "In: instances taken in. Out: what readers were sent.",
                [
                    Target(rate(Counter.INGEST_BYTES), "in"),
                    Target(rate(Counter.GATEWAY_BYTES), "out", expected=False),
                ],
                unit="Bps",
            ),
            Panel(
                "Readers' requests",
                "Per second, by route.",
                [Target(calls(Histogram.HTTP_SERVER, "route"), shown("route"), expected=False)],
                unit="reqps",
            ),
        ],
        "Promises": [
            Panel(
                "Time to Success",
                "From the first byte of an instance to Success: 50, 95 and 99 of a hundred.",
                [
                    Target(
                        quantile(part, Histogram.INGEST_STORE, "protocol"),
                        f"p{part * 100:g} {shown('protocol')}",
                    )
                    for part in (0.5, 0.95, 0.99)
                ],
                unit="s",
                limits=((None, GREEN), (5, RED)),
                runbook="isocenteringestslow",
            ),
            Panel(
                "Time to answer",
                "Of readers' requests, 95 of a hundred, by route.",
                [
                    Target(
                        quantile(0.95, Histogram.HTTP_SERVER, "route"),
                        shown("route"),
                        expected=False,
                    )
                ],
                unit="s",
            ),
            Panel(
                "Refusals by reason",
                "Instances per second. `out-of-resources` is ours; the others are about the sender's data.",
                [
                    Target(
                        rate(Counter.INGEST_REJECTIONS, "reason"),
                        shown("reason"),
                        expected=False,
                    )
                ],
                unit="ops",
                runbook="isocentersendersrefused",
            ),
        ],
        "Hostile or broken": [
            Panel(
                "Parsers lost",
                "Child processes per minute that an instance's header cost, by reason.",
                [
                    Target(
                        f"60 * {rate(Counter.PARSERS_LOST, 'reason')}",
                        shown("reason"),
                        expected=False,
                    )
                ],
                width=12,
            ),
            Panel(
                "TLS handshakes that failed",
                "Connections per minute to the DICOM TLS port that ended in the handshake.",
                [Target(f"60 * {rate(Counter.INGEST_TLS_FAILURES)}", "connections", expected=False)],
                width=12,
            ),
        ],
        "Processes": [
            Panel(
                "Checks that fail",
                "1 for each readiness check of a replica that fails.",
                [
                    Target(
                        f"1 - {lowest(Gauge.CHECK, 'service', 'instance', 'check')} > 0",
                        f"{{{{service}}}} {{{{instance}}}} {shown('check')}",
                        expected=False,
                    )
                ],
                runbook="isocentercheckfails",
            ),
            Panel(
                "Event loop",
                "How late work begins that is due, 95 of a hundred. Late: no CPU, or something blocks.",
                [
                    Target(
                        quantile(0.95, Histogram.LOOP_DELAY, "service", "instance"),
                        "{{service}} {{instance}}",
                    )
                ],
                unit="s",
                limits=((None, GREEN), (0.5, RED)),
                runbook="isocenterloopdelayed",
            ),
            Panel(
                "Spans lost",
                "That the local span store could not keep. Nothing where a trace store has them.",
                [Target(level(Gauge.SPANS_LOST, "service", "instance"), "{{service}} {{instance}}")],
            ),
        ],
    },
)
