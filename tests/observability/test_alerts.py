"""Every alert fires when it should and only then, names what exists, and has an entry in the runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed.prometheus import promtool
from testbed.server import ServerUnavailable
from tests.observability.conftest import OBSERVABILITY, unavailable
from tests.observability.expressions import check_names

CASES = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text())
ALERTS = sorted((OBSERVABILITY / "alerts").glob("*.yaml"))
RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
RULES = [
    rule for path in ALERTS for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
]
BY_NAME = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


@pytest.fixture(scope="module", autouse=True)
def _promtool() -> None:
    try:
        promtool("--version")
    except ServerUnavailable as error:
        unavailable(error)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", *ALERTS)

    assert 0 == done.returncode, done.stdout + done.stderr


def test_every_alert_has_a_case_and_the_other_way_round() -> None:
    assert BY_NAME.keys() == CASES.keys()


def _test(alert: str, series: dict[str, str], minutes: int, *, fires: bool) -> dict[str, Any]:
    """As promtool has it. ALERTS is what Prometheus itself writes down of alerts."""
    firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    return {
        "name": f"{alert}: {'fires' if fires else 'quiet'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count({firing}) > bool 0" if fires else f"count({firing}) or vector(0)",
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": 1 if fires else 0}],
            }
        ],
    }


def test_every_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    tests = [
        _test(alert, case[kind], case["minutes"], fires=kind == "fires")
        for alert, case in CASES.items()
        for kind in ("fires", "quiet")
    ]
    path = tmp_path / "alerts.test.yaml"
    path.write_text(
        json.dumps(
            {"rule_files": [str(path) for path in ALERTS], "evaluation_interval": "1m", "tests": tests}
        )
    )

    done = promtool("test", "rules", path)

    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    check_names(rule["expr"], recorded=RECORDED)


@pytest.mark.parametrize("alert", BY_NAME)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = BY_NAME[alert]
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook_url"} == annotations.keys()
    page, _, anchor = annotations["runbook_url"].partition("#")
    assert "docs/runbook.md" == page
    assert anchor in _anchors()


@pytest.mark.parametrize("alert", BY_NAME)
def test_an_alert_speaks_only_of_labels_it_has(alert: str) -> None:
    """A label that an aggregation drops would be shown as nothing."""
    rule = BY_NAME[alert]
    kept = {name.strip() for by in re.findall(r"by \(([^)]*)\)", rule["expr"]) for name in by.split(",")}
    kept |= set(re.findall(r'absent\(\w+\{(\w+)="', rule["expr"]))
    text = rule["annotations"]["summary"] + rule["annotations"]["description"]

    assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept


def test_every_entry_of_the_runbook_says_what_it_means_how_to_see_it_and_what_to_do() -> None:
    entries = _anchors()
    for anchor in {rule["annotations"]["runbook_url"].partition("#")[2] for rule in BY_NAME.values()}:
        text = entries[anchor]
        for word in ("*Means*:", "*See*:", "*Do*:"):
            assert word in text, f"{anchor} lacks {word}"


def _anchors() -> dict[str, str]:
    """Anchor of a heading, as GitHub makes it -> the text below it."""
    found: dict[str, str] = {}
    for part in re.split(r"^#+ ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        found[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] = text
    return found
