"""Requests for storage commitment."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta

from isocenter.common.index.commitments import Commitment, CommitmentState, Located, Step
from isocenter.common.index.encoding import (
    bindable,
    failures_from,
    micros,
    moment,
    pack_references,
    to_json,
    unpack_references,
)

_OPEN = "state IN ('checking', 'reporting')"
_DUE = f"{_OPEN} AND due_at <= :now AND lease_until <= :now"


def create(connection: sqlite3.Connection, commitment: Commitment) -> Commitment:
    connection.execute(
        "INSERT INTO commitments VALUES (?, ?, ?, ?, ?, ?, ?, NULL, 0, 0, ?, 0)"
        " ON CONFLICT (requester, transaction_uid) DO NOTHING",
        (
            commitment.id,
            commitment.requester,
            commitment.transaction_uid,
            pack_references(commitment.references),
            micros(commitment.requested_at),
            commitment.state.value,
            to_json(commitment.failures),
            micros(commitment.requested_at),
        ),
    )
    kept = get(connection, commitment.requester, commitment.transaction_uid)
    return commitment if kept is None else kept


def get(connection: sqlite3.Connection, requester: str, transaction_uid: str) -> Commitment | None:
    row = connection.execute(
        "SELECT * FROM commitments WHERE requester = ? AND transaction_uid = ?",
        (bindable(requester), bindable(transaction_uid)),
    ).fetchone()
    return None if row is None else _commitment(row)


def any_due(connection: sqlite3.Connection, now: datetime) -> bool:
    found = connection.execute(f"SELECT 1 FROM commitments WHERE {_DUE} LIMIT 1", {"now": micros(now)})  # noqa: S608 - constants
    return found.fetchone() is not None


def claim(
    connection: sqlite3.Connection, now: datetime, lease_seconds: float, limit: int
) -> list[Commitment]:
    due = connection.execute(
        f"SELECT id FROM commitments WHERE {_DUE} ORDER BY due_at, id LIMIT :limit",  # noqa: S608 - constants
        {"now": micros(now), "limit": max(0, limit)},
    ).fetchall()
    claimed = []
    for (name,) in due:
        row = connection.execute(
            "UPDATE commitments SET lease_until = ?, revision = revision + 1 WHERE id = ? RETURNING *",
            (micros(now + timedelta(seconds=lease_seconds)), name),
        ).fetchone()
        claimed.append(_commitment(row))
    return claimed


def renew(connection: sqlite3.Connection, commitment: Commitment, until: datetime) -> bool:
    changed = connection.execute(
        f"UPDATE commitments SET lease_until = ? WHERE id = ? AND revision = ? AND {_OPEN}",  # noqa: S608 - constants
        (micros(until), commitment.id, commitment.revision),
    )
    return changed.rowcount == 1


def advance(connection: sqlite3.Connection, commitment: Commitment, step: Step) -> bool:
    changed = connection.execute(
        "UPDATE commitments SET state = ?, due_at = ?, attempts = ?, failures = ?, checked_at = ?,"
        " lease_until = 0 WHERE id = ? AND revision = ?",
        (
            step.state.value,
            micros(step.due_at),
            step.attempts,
            to_json(step.failures),
            None if step.checked_at is None else micros(step.checked_at),
            commitment.id,
            commitment.revision,
        ),
    )
    return changed.rowcount == 1


def repeat(connection: sqlite3.Connection, commitment: Commitment, now: datetime) -> bool:
    changed = connection.execute(
        "UPDATE commitments SET state = 'checking', requested_at = :now, due_at = :now, attempts = 0,"  # noqa: S608 - constants
        " failures = '{}', checked_at = NULL, revision = revision + 1, lease_until = 0"
        f" WHERE id = :id AND NOT {_OPEN}",
        {"now": micros(now), "id": commitment.id},
    )
    return changed.rowcount == 1


def purge(connection: sqlite3.Connection, before: datetime) -> int:
    gone = connection.execute(
        f"DELETE FROM commitments WHERE requested_at < ? AND NOT {_OPEN}",  # noqa: S608 - constants
        (micros(before),),
    )
    return gone.rowcount


def newest(connection: sqlite3.Connection, limit: int) -> list[Commitment]:
    found = connection.execute(
        "SELECT * FROM commitments ORDER BY requested_at DESC, id LIMIT ?", (max(0, limit),)
    )
    return [_commitment(row) for row in found]


def locate(connection: sqlite3.Connection, sop_instance_uids: Sequence[str]) -> list[Located]:
    wanted = json.dumps([bindable(uid) for uid in sop_instance_uids])
    found = connection.execute(
        "SELECT st.study_uid, i.sop_uid, i.sop_class_uid, st.study_key, i.instance_key, i.object_key,"
        " i.content_digest FROM instances i JOIN studies st ON st.id = i.study_id"
        " WHERE i.sop_uid IN (SELECT value FROM json_each(:wanted))"
        " UNION ALL SELECT st.study_uid, c.sop_uid, '', st.study_key, c.instance_key,"
        " c.conflicting_object_key, ''"
        " FROM instances i JOIN conflicts c ON c.study_id = i.study_id AND c.sop_uid = i.sop_uid"
        " JOIN studies st ON st.id = i.study_id WHERE i.sop_uid IN (SELECT value FROM json_each(:wanted))",
        {"wanted": wanted},
    )
    return [Located(*row) for row in found]


def _commitment(row: sqlite3.Row) -> Commitment:
    return Commitment(
        id=row["id"],
        requester=row["requester"],
        transaction_uid=row["transaction_uid"],
        references=unpack_references(row["refs"]),
        requested_at=moment(row["requested_at"]),
        state=CommitmentState(row["state"]),
        failures=failures_from(json.loads(row["failures"])),
        checked_at=None if row["checked_at"] is None else moment(row["checked_at"]),
        attempts=row["attempts"],
        revision=row["revision"],
    )
