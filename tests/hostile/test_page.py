"""docs/threat-model.md names tests that exist and every setting and reason as it is called."""

from __future__ import annotations

import re
from pathlib import Path

from isocenter.common.errors import RejectReason
from isocenter.ingest.domain import STATUS_OF
from isocenter.ingest.settings import IngestSettings

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "threat-model.md").read_text()


def test_every_test_it_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = {path.stem: path.read_text() for path in HERE.glob("test_*.py")}
    there = set(sources) | {name for text in sources.values() for name in re.findall(r"def (test_\w+)", text)}
    assert named - there == set()
    of_attacks = {"test_instances", "test_wire", "test_http"}
    assert of_attacks <= named


def test_reasons_and_statuses_are_those_of_the_code() -> None:
    rows = re.findall(r"\| ([0-9A-F]{4})(?:; 0117 if in the command)? \| `([a-z-]+)`", PAGE)
    assert len(rows) >= 9
    for status, reason in rows:
        assert STATUS_OF[RejectReason(reason)] == int(status, 16), reason


def test_settings_are_those_of_the_code() -> None:
    named = {name.lower() for name in re.findall(r"ISOCENTER_INGEST_(\w+)", PAGE)}
    assert named
    assert named <= set(IngestSettings.model_fields)
