"""Group commit: who waits for whom."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from isocenter.common.bus.embedded import writer as module
from isocenter.common.bus.embedded.writer import Writer


def nothing(_connection: sqlite3.Connection) -> None:
    return None


async def test_a_patient_job_shares_the_next_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    writer = Writer(tmp_path / "bus.sqlite")
    before = writer.transactions
    patient = writer.submit(nothing, patient=True)
    await asyncio.sleep(0.05)
    assert not patient.done()

    await asyncio.wait_for(writer.submit(nothing), 10)
    await asyncio.wait_for(patient, 10)

    assert 1 == writer.transactions - before
    writer.close()


async def test_a_patient_job_does_not_wait_for_ever(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "bus.sqlite")
    before = writer.transactions

    await asyncio.wait_for(writer.submit(nothing, patient=True), 10)

    assert 1 == writer.transactions - before
    writer.close()


async def test_closing_does_not_wait_for_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    writer = Writer(tmp_path / "bus.sqlite")
    patient = writer.submit(nothing, patient=True)
    await asyncio.sleep(0.05)

    await asyncio.wait_for(asyncio.to_thread(writer.close), 10)
    await asyncio.wait_for(patient, 10)
