"""Grafana's dashboard model (schema 41: Grafana 11.6 and later), as far as these dashboards need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isocenter.common.telemetry import Gauge
from isocenter.common.telemetry.metrics import exposed_name

SCHEMA = 41
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RED, ORANGE, GREEN = "red", "orange", "green"
LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}


@dataclass(frozen=True, slots=True)
class Target:
    """A query and how its series are called, `{{label}}` for the value of one.

    `expected`: it has a sample on every site that has received a study.
    """

    expression: str
    legend: str = ""
    expected: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `limits`: from which value on it is which colour."""

    title: str
    description: str
    targets: Sequence[Target]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    limits: Sequence[tuple[float | None, str]] = ()
    runbook: str = ""
    """Anchor of the entry that says what to do."""
    highest: float | None = None

    def model(self, number: int, x: int, y: int) -> dict[str, Any]:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [
                {
                    "refId": chr(ord("A") + position),
                    "datasource": SOURCE,
                    "editorMode": "code",
                    "expr": target.expression,
                    "legendFormat": target.legend or "__auto",
                    "range": True,
                    "instant": False,
                }
                for position, target in enumerate(self.targets)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "links": (
                [{"title": "What to do", "url": f"${{runbook}}#{self.runbook}", "targetBlank": True}]
                if self.runbook
                else []
            ),
        }

    def _defaults(self) -> dict[str, Any]:
        steps = [{"color": colour, "value": value} for value, colour in self.limits]
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "min": 0,
            "color": {"mode": "thresholds" if self.limits and self.kind == "stat" else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": steps or [{"color": GREEN, "value": None}]},
        }
        if self.highest is not None:
            defaults["max"] = self.highest
        if self.kind == "timeseries":
            style = "line" if self.limits else "off"
            defaults["custom"] = {
                "drawStyle": "line",
                "fillOpacity": 10,
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": False,
                "thresholdsStyle": {"mode": style},
            }
        return defaults

    def _options(self) -> dict[str, Any]:
        if self.kind == "stat":
            return {
                "colorMode": "background",
                "graphMode": "area",
                "justifyMode": "auto",
                "textMode": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        return {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}}


def stat(
    title: str,
    description: str,
    target: Target,
    *,
    limits: Sequence[tuple[float | None, str]],
    runbook: str,
    unit: str = "short",
) -> Panel:
    """One number whose colour says how it is."""
    return Panel(
        title,
        description,
        [target],
        unit=unit,
        kind="stat",
        width=4,
        height=5,
        limits=limits,
        runbook=runbook,
    )


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows of panels, each row under a heading."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        return [target for panels in self.rows.values() for panel in panels for target in panel.targets]

    def model(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["isocenter"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "fiscalYearStartMonth": 0,
            "liveNow": False,
            "annotations": {"list": [_ALERTS]},
            "links": [_OTHERS],
            "templating": {"list": _variables()},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        y = 0
        for heading, panels in self.rows.items():
            row = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            found.append(
                {
                    "id": len(found) + 1,
                    "type": "row",
                    "title": heading,
                    "collapsed": False,
                    "gridPos": row,
                    "panels": [],
                }
            )
            y += 1
            x = deepest = 0
            for panel in panels:
                if x + panel.width > COLUMNS:
                    x, y, deepest = 0, y + deepest, 0
                found.append(panel.model(len(found) + 1, x, y))
                x += panel.width
                deepest = max(deepest, panel.height)
            y += deepest
        return found


_ALERTS = {
    "name": "Alerts",
    "datasource": SOURCE,
    "enable": True,
    "iconColor": RED,
    "expr": 'ALERTS{alertname=~"Isocenter.*",alertstate="firing",severity="critical"}',
    "titleFormat": "{{alertname}}",
    "step": "60s",
}
_OTHERS = {
    "title": "Isocenter",
    "type": "dashboards",
    "tags": ["isocenter"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}


def _variables() -> list[dict[str, Any]]:
    ready = exposed_name(Gauge.READY)
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        _choice("service", "Service", f"label_values({ready}, service)"),
        _choice("instance", "Replica", f'label_values({ready}{{service=~"$service"}}, instance)'),
        {
            "name": "runbook",
            "label": "Address of the runbook",
            "type": "textbox",
            "query": "docs/runbook.md",
            "current": {"text": "docs/runbook.md", "value": "docs/runbook.md"},
            "hide": 2,
        },
    ]


def _choice(name: str, text: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": text,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "Variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }
