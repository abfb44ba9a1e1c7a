"""Dashboards are those that the code makes, ask only for what exists, and show something on a living site."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import yaml
from benchmarks.embedded import Embedded
from scripts.dashboards.__main__ import BOARDS, FOLDER, render
from scripts.dashboards.grafana import Dashboard, Target
from testbed.prometheus import Prometheus, promtool
from testbed.server import ServerUnavailable
from tests.flows.helpers import ENVIRONMENT
from tests.observability.conftest import OBSERVABILITY, send_study, unavailable
from tests.observability.expressions import check_names, exposed, labels_in
from tests.observability.test_alerts import RULES, _anchors

from isocenter.common.telemetry import Gauge
from isocenter.common.telemetry.metrics import exposed_name
from isocenter.common.telemetry.names import SHARED

SECONDS = 60.0
BOARD = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    """Made anew by: python -m scripts.dashboards."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}

    assert render() == committed


@BOARD
def test_a_dashboard_asks_for_metrics_and_labels_that_exist(board: Dashboard) -> None:
    for target in board.targets:
        check_names(target.expression)
        assert set(re.findall(r"\{\{(\w+)\}\}", target.legend)) <= labels_in(target.expression)


@BOARD
def test_what_replicas_share_is_not_added_up(board: Dashboard) -> None:
    shared = {exposed_name(gauge) for gauge in SHARED}
    for target in board.targets:
        for how, name in re.findall(r"\b(sum|max|min)(?: by \([^)]*\))? \(([a-z_]+)\{", target.expression):
            assert (name in shared) <= (how == "max"), target.expression


@BOARD
def test_panels_do_not_overlap_and_say_what_they_show(board: Dashboard) -> None:
    model = board.model()
    taken: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    shown = [panel for panel in model["panels"] if panel["type"] != "row"]
    assert all(panel["description"].endswith(".") for panel in shown)
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    assert {"datasource", "service", "instance", "runbook"} == {
        variable["name"] for variable in model["templating"]["list"]
    }


@BOARD
def test_a_link_of_a_panel_leads_to_an_entry_of_the_runbook(board: Dashboard) -> None:
    for panel in board.model()["panels"]:
        for link in panel.get("links", ()):
            assert link["url"].removeprefix("${runbook}#") in _anchors()


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    """One that nobody looks at is not worth its cost."""
    asked = " ".join(
        [target.expression for board in BOARDS.values() for target in board.targets]
        + [rule["expr"] for rule in RULES]
    )

    unseen = {
        name for name in exposed() if not name.endswith(("_sum", "_count", "_bucket")) and name not in asked
    }

    assert set() == unseen


def test_the_scrape_configuration_is_valid() -> None:
    try:
        done = promtool("check", "config", OBSERVABILITY / "prometheus.yml")
    except ServerUnavailable as error:
        unavailable(error)

    assert 0 == done.returncode, done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Scraped:
    """A platform that has received and served a study, and the Prometheus that watches it."""

    prometheus: Prometheus
    port: int


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    root = tmp_path_factory.mktemp("scraped")
    with Embedded(root / "site", ENVIRONMENT) as platform:
        configuration = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        configuration["rule_files"] = [str(OBSERVABILITY / "alerts" / "*.yaml")]
        configuration["scrape_configs"][0]["static_configs"] = [
            {"targets": [f"127.0.0.1:{platform.http_port}"]}
        ]
        prometheus = Prometheus(root / "prometheus", configuration)
        try:
            prometheus.start()
        except ServerUnavailable as error:
            unavailable(error)
        try:
            # A counter that begins at its last value has no rate: the first scrape comes before the study.
            _until(lambda: bool(prometheus.query(exposed_name(Gauge.READY))))
            send_study(platform, root / "one", seed=1)
            _scrape_passes(prometheus)
            study = send_study(platform, root / "two", seed=2)
            assert 200 == platform.get(f"/dicom-web/studies/{study}/metadata")[0]
            _scrape_passes(prometheus)
            yield Scraped(prometheus, platform.http_port)
        finally:
            prometheus.discard()


def test_every_query_is_taken_and_those_of_a_living_site_have_an_answer(scraped: Scraped) -> None:
    empty = []
    for name, board in BOARDS.items():
        for target in board.targets:
            found = scraped.prometheus.query(_filled_in(target))
            if target.expected and not found:
                empty.append(f"{name}: {target.expression}")

    assert [] == empty


def test_prometheus_loads_the_rules_and_none_of_them_fails(scraped: Scraped) -> None:
    _until(lambda: all(rule["lastEvaluation"] > "2000" for rule in scraped.prometheus.rules()))

    assert {rule.get("alert") or rule["record"] for rule in RULES} == {
        rule["name"] for rule in scraped.prometheus.rules()
    }
    assert {"ok"} == {rule["health"] for rule in scraped.prometheus.rules()}


def test_a_healthy_site_is_silent(scraped: Scraped) -> None:
    """Disks of a test machine may be as full as they like."""
    firing = {
        rule["name"]
        for rule in scraped.prometheus.rules()
        if rule.get("state") in {"pending", "firing"} and "Disk" not in rule["name"]
    }

    assert set() == firing


def test_the_page_names_only_what_the_code_names(scraped: Scraped) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scraped.port, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()

    found = {re.split(r"[{ ]", line, maxsplit=1)[0] for line in page.splitlines() if not line.startswith("#")}

    assert found <= exposed().keys()
    assert len(found) > 30


def _filled_in(target: Target) -> str:
    """The variables as Grafana would put them in."""
    text = target.expression.replace("$service", ".*").replace("$instance", ".*")
    return text.replace("$__rate_interval", "1m")


def _scrape_passes(prometheus: Prometheus) -> None:
    """Returns after a scrape that began later."""
    for _ in range(2):
        before = _last_scrape(prometheus)
        _until(partial(_scraped_since, prometheus, before))


def _last_scrape(prometheus: Prometheus) -> str:
    (target,) = prometheus.targets()
    return str(target["lastScrape"])


def _scraped_since(prometheus: Prometheus, before: str) -> bool:
    return _last_scrape(prometheus) != before


def _until(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
