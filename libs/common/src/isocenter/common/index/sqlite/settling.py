"""Study revisions: timers, leases and the one write that settles."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta

from isocenter.common.events.models import SettleReason
from isocenter.common.index.encoding import micros, moment, to_json
from isocenter.common.index.ports import Backlog, DueStudy, RestoredRevision, Settlement
from isocenter.common.index.sqlite import outbox as outbox_table


def close_transfer(
    connection: sqlite3.Connection, study_key: str, settle_at: datetime, transfer_id: str | None
) -> bool:
    row = connection.execute(
        "SELECT id, settle_at, open_transfers FROM studies WHERE study_key = ? AND state = 'receiving'",
        (study_key,),
    ).fetchone()
    if row is None:
        return False
    transfers = set(json.loads(row["open_transfers"])) - {transfer_id}
    connection.execute(
        "UPDATE studies SET open_transfers = ? WHERE id = ?", (to_json(sorted(transfers)), row["id"])
    )
    if transfers or row["settle_at"] <= micros(settle_at):
        return False
    connection.execute(
        "UPDATE studies SET settle_at = ?, settle_reason = ? WHERE id = ?",
        (micros(settle_at), SettleReason.TRANSFER_CLOSED.value, row["id"]),
    )
    return True


def settle_now(connection: sqlite3.Connection, study_key: str, now: datetime) -> bool:
    found = connection.execute(
        "UPDATE studies SET settle_at = min(settle_at, ?), settle_reason = ?"
        " WHERE study_key = ? AND state = 'receiving' AND instances > 0",
        (micros(now), SettleReason.MANUAL.value, study_key),
    )
    return found.rowcount > 0


def claim_due(
    connection: sqlite3.Connection, now: datetime, lease_seconds: float, limit: int
) -> list[DueStudy]:
    claimed = connection.execute(
        "UPDATE studies SET lease_until = :until WHERE id IN (SELECT id FROM studies"
        " WHERE state = 'receiving' AND settle_at <= :now AND coalesce(lease_until, 0) <= :now"
        " ORDER BY settle_at, study_key LIMIT :limit)"
        " RETURNING study_uid, study_key, version, revision, settle_reason, traceparent, settle_at",
        {"now": micros(now), "until": micros(now + timedelta(seconds=lease_seconds)), "limit": limit},
    ).fetchall()
    return [
        DueStudy(
            study_instance_uid=row["study_uid"],
            study_key=row["study_key"],
            version=row["version"],
            revision=row["revision"],
            reason=SettleReason(row["settle_reason"]),
            traceparent=row["traceparent"],
            due_at=moment(row["settle_at"]),
        )
        for row in sorted(claimed, key=lambda row: (row["settle_at"], row["study_key"]))
    ]


def settle(connection: sqlite3.Connection, due: DueStudy, settlement: Settlement) -> bool:
    if settlement.version != due.version + 1:
        raise ValueError("a settlement writes the version after the claimed one")
    settled = connection.execute(
        "UPDATE studies SET state = 'settled', version = ?, settled_at = ?, settled_reason = ?, manifests ="
        " ?,"
        " settle_at = NULL, settle_reason = NULL, lease_until = NULL, open_transfers = '[]'"
        " WHERE study_uid = ? AND state = 'receiving' AND version = ? AND revision = ?",
        (
            settlement.version,
            micros(settlement.settled_at),
            settlement.reason.value,
            to_json(settlement.manifests),
            due.study_instance_uid,
            due.version,
            due.revision,
        ),
    )
    if settled.rowcount == 0:
        return False
    outbox_table.add(connection, [settlement.entry])
    if settlement.confirmation is not None:
        connection.execute(
            "INSERT OR IGNORE INTO confirmations VALUES (?, ?)",
            (settlement.confirmation, settlement.entry.event_id),
        )
    return True


def pending_confirmations(connection: sqlite3.Connection, limit: int) -> list[str]:
    found = connection.execute(
        "SELECT object_key FROM confirmations c"
        " WHERE NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = c.event_id)"
        " ORDER BY object_key LIMIT ?",
        (limit,),
    )
    return [row["object_key"] for row in found]


def confirmations_written(connection: sqlite3.Connection, object_keys: Sequence[str]) -> None:
    connection.executemany("DELETE FROM confirmations WHERE object_key = ?", [(key,) for key in object_keys])


def restore(
    connection: sqlite3.Connection, study_instance_uid: str, restored: RestoredRevision, *, settled: bool
) -> None:
    connection.execute(
        "UPDATE studies SET version = ?, settled_at = ?, settled_reason = ?, manifests = ?"
        " WHERE study_uid = ?",
        (
            restored.version,
            micros(restored.settled_at),
            restored.reason.value,
            to_json(restored.manifests),
            study_instance_uid,
        ),
    )
    if settled:
        connection.execute(
            "UPDATE studies SET state = 'settled', settle_at = NULL, settle_reason = NULL, lease_until ="
            " NULL,"
            " open_transfers = '[]' WHERE study_uid = ?",
            (study_instance_uid,),
        )


def backlog(connection: sqlite3.Connection) -> Backlog:
    receiving, due, latest = connection.execute(
        "SELECT count(*), min(settle_at), min(latest_settle_at) FROM studies WHERE state = 'receiving'"
    ).fetchone()
    (waiting,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    first = outbox_table.pending(connection, 1)
    return Backlog(
        receiving,
        waiting,
        settle_at=None if due is None else moment(due),
        latest_settle_at=None if latest is None else moment(latest),
        outbox_since=first[0].decided_at if first else None,
    )
