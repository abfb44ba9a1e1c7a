from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from isocenter.cli import checkup, state
from isocenter.cli.checkup import Finding, Verdict
from isocenter.cli.state import RunningPlatform


def _examine(data_dir: Path, **ports: int) -> dict[str, Finding]:
    found = checkup.examine(data_dir, **{"dicom_port": 0, "http_port": 0, **ports})
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def test_a_machine_where_nothing_has_run_passes(tmp_path: Path) -> None:
    findings = _examine(tmp_path / "new")

    assert [] == [each for each in findings.values() if each.verdict is Verdict.FAIL]
    assert not (tmp_path / "new").exists()
    assert [] == list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = _examine(tmp_path, dicom_port=port)["DICOM port"]

    assert Verdict.FAIL is finding.verdict
    assert str(port) in finding.value
    assert "--dicom-port 0" in finding.hint


def test_a_data_directory_that_others_can_read_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    finding = _examine(tmp_path)["data directory"]

    assert Verdict.FAIL is finding.verdict
    assert finding.hint.startswith("chmod 700")


def test_a_key_that_others_can_read_fails(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "site.key"
    key.parent.mkdir()
    key.write_bytes(b"x" * 32)
    key.chmod(0o644)

    assert Verdict.FAIL is _examine(tmp_path)["site key"].verdict

    key.chmod(0o600)

    assert Verdict.OK is _examine(tmp_path)["site key"].verdict


def test_a_key_file_that_is_named_must_be_there_and_may_be_mounted_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "mounted.key"
    monkeypatch.setenv("ISOCENTER_SITE_KEY_FILE", str(key))

    assert Verdict.FAIL is _examine(tmp_path)["site key"].verdict

    key.write_bytes(b"x" * 32)
    key.chmod(0o444)

    finding = _examine(tmp_path)["site key"]
    assert (Verdict.OK, True) == (finding.verdict, str(key) in finding.value)


def test_a_misspelt_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_INDEXER_QUIET_SECOND", "5")

    finding = _examine(tmp_path)["settings"]

    assert Verdict.WARN is finding.verdict
    assert "ISOCENTER_INDEXER_QUIET_SECOND" in finding.value


def test_a_setting_out_of_bounds_fails_and_its_value_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOCENTER_INGEST_MAX_PDU_BYTES", "-1234567")

    finding = _examine(tmp_path)["settings"]

    assert Verdict.FAIL is finding.verdict
    assert "ISOCENTER_INGEST_MAX_PDU_BYTES" in finding.value
    assert "1234567" not in finding.value


def test_a_platform_that_does_not_answer_fails(tmp_path: Path) -> None:
    """It holds the lock, and nobody listens."""
    tmp_path.chmod(0o700)
    with state.hold(tmp_path, purpose="start") as lock:
        lock.announce(RunningPlatform(os.getpid(), str(tmp_path), "127.0.0.1", 1, 1, "ISOCENTER", ""))
        finding = _examine(tmp_path)["platform"]

    assert Verdict.FAIL is finding.verdict
    assert "does not answer" in finding.value
