"""`apply`: a batch of instances of one study becomes rows, in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from isocenter.common.index.encoding import micros, number_order, of_level, pack, to_json
from isocenter.common.index.ports import Applied, Arrival, OutboxBuilder
from isocenter.common.index.query import Level
from isocenter.common.index.records import ConflictRecord, InstanceRecord, SettleState
from isocenter.common.index.sqlite import outbox as outbox_table
from isocenter.common.index.sqlite.aggregates import refresh
from isocenter.common.index.terms import terms_of


@dataclass(frozen=True, slots=True)
class _Known:
    object_key: str
    received_at: int
    series_id: int
    series_key: str


@dataclass(slots=True)
class _Outcome:
    """What a batch does, decided while its rows are written."""

    new: list[InstanceRecord] = field(default_factory=list)
    duplicates: int = 0
    conflicts: list[ConflictRecord] = field(default_factory=list)
    replaced_in: set[int] = field(default_factory=set)
    """Series that lost an instance, or got another object for one."""


def apply(
    connection: sqlite3.Connection,
    batch: Sequence[InstanceRecord],
    arrival: Arrival,
    build_outbox: OutboxBuilder,
) -> Applied:
    study_uids = {(record.study_instance_uid, record.study_key) for record in batch}
    if len(study_uids) != 1:
        raise ValueError("a batch holds instances of one study")
    ((study_uid, study_key),) = study_uids
    before = connection.execute(
        "SELECT id, state, version FROM studies WHERE study_uid = ?", (study_uid,)
    ).fetchone()
    study_id = before["id"] if before else _insert_study(connection, study_uid, study_key, batch[0], arrival)
    outcome = _write_instances(connection, study_id, batch, arrival)
    changed = bool(outcome.new or outcome.replaced_in)
    reopened = None
    if changed:
        if before and before["state"] == SettleState.SETTLED.value:
            reopened = int(before["version"])
        refresh(connection, study_id, outcome.new, outcome.replaced_in)
        _reset_timer(connection, study_id, arrival, reopened=reopened is not None)
    if outcome.conflicts:
        _count_conflicts(connection, study_id)
    applied = Applied(
        new=tuple(record.sop_instance_uid for record in outcome.new),
        duplicates=outcome.duplicates,
        conflicts=tuple(outcome.conflicts),
        reopened_version=reopened,
    )
    if changed or outcome.conflicts:
        outbox_table.add(connection, build_outbox(study_key, applied))
    return applied


def _write_instances(
    connection: sqlite3.Connection, study_id: int, batch: Sequence[InstanceRecord], arrival: Arrival
) -> _Outcome:
    sops = json.dumps([record.sop_instance_uid for record in batch])
    known = {
        row["sop_uid"]: _Known(row["object_key"], row["received_at"], row["series_id"], row["series_key"])
        for row in connection.execute(
            "SELECT sop_uid, object_key, received_at, series_id, series_key FROM instances i"
            " JOIN series se ON se.id = series_id"
            " WHERE i.study_id = ? AND sop_uid IN (SELECT value FROM json_each(?))",
            (study_id, sops),
        )
    }
    losers = {
        row["conflicting_object_key"]
        for row in connection.execute(
            "SELECT conflicting_object_key FROM conflicts"
            " WHERE study_id = ? AND sop_uid IN (SELECT value FROM json_each(?))",
            (study_id, sops),
        )
    }
    series_ids: dict[str, int] = {}
    outcome = _Outcome()
    for record in batch:
        current = known.get(record.sop_instance_uid)
        if record.object_key in losers or (current and current.object_key == record.object_key):
            outcome.duplicates += 1
            continue
        received_at = micros(record.received_at)
        if current and (current.received_at, current.object_key) <= (received_at, record.object_key):
            losers.add(record.object_key)
            outcome.conflicts.append(
                _add_conflict(
                    connection,
                    study_id,
                    record,
                    current=current.object_key,
                    loser=(record.series_key, record.object_key),
                    arrival=arrival,
                )
            )
            continue
        uid = record.series_instance_uid
        if uid not in series_ids:
            series_ids[uid] = _series_id(connection, study_id, record)
        if current:
            losers.add(current.object_key)
            outcome.replaced_in |= {current.series_id, series_ids[uid]}
            connection.execute(
                "DELETE FROM instances WHERE study_id = ? AND sop_uid = ?",
                (study_id, record.sop_instance_uid),
            )
            outcome.conflicts.append(
                _add_conflict(
                    connection,
                    study_id,
                    record,
                    current=record.object_key,
                    loser=(current.series_key, current.object_key),
                    arrival=arrival,
                )
            )
        else:
            outcome.new.append(record)
        _insert_instance(connection, study_id, series_ids[uid], record)
        known[record.sop_instance_uid] = _Known(
            record.object_key, received_at, series_ids[uid], record.series_key
        )
    return outcome


def _insert_study(
    connection: sqlite3.Connection, study_uid: str, study_key: str, first: InstanceRecord, arrival: Arrival
) -> int:
    received = micros(first.received_at)
    cursor = connection.execute(
        "INSERT INTO studies (study_uid, study_key, patient_issuer, patient_id, accession_issuer, accession,"
        " attributes, sources, modalities, series, instances, size_bytes, conflicts, first_received_at,"
        " last_received_at, state, version, revision, latest_settle_at, open_transfers, manifests)"
        " VALUES (?, ?, '', '', '', '', '{}', '{}', '[]', 0, 0, 0, 0, ?, ?, 'receiving', 0, 0, ?, '[]',"
        " '{}')",
        (study_uid, study_key, received, received, micros(arrival.latest_settle_at)),
    )
    return int(cursor.lastrowid or 0)


def _series_id(connection: sqlite3.Connection, study_id: int, record: InstanceRecord) -> int:
    row = connection.execute(
        "INSERT INTO series (study_id, series_uid, series_key, attributes, sources, instances, size_bytes)"
        " VALUES (?, ?, ?, '{}', '{}', 0, 0)"
        " ON CONFLICT (study_id, series_uid) DO UPDATE SET series_key = excluded.series_key RETURNING id",
        (study_id, record.series_instance_uid, record.series_key),
    ).fetchone()
    return int(row["id"])


def _insert_instance(
    connection: sqlite3.Connection, study_id: int, series_id: int, record: InstanceRecord
) -> None:
    own = of_level(record, Level.INSTANCE)
    terms: dict[str, list[str]] = {}
    for path, _, text in sorted(terms_of(own, Level.INSTANCE)):
        terms.setdefault(".".join(path), []).append(text)
    connection.execute(
        "INSERT INTO instances (study_id, series_id, sop_uid, number_order, sop_class_uid,"
        " transfer_syntax_uid,"
        " instance_key, object_key, content_digest, size_bytes, received_at, sender, attributes, context,"
        " terms,"
        " metadata, frames) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            study_id,
            series_id,
            record.sop_instance_uid,
            number_order(own),
            record.sop_class_uid,
            record.transfer_syntax_uid,
            record.instance_key,
            record.object_key,
            record.content_digest,
            record.size_bytes,
            micros(record.received_at),
            record.sender,
            to_json(own),
            pack(of_level(record, Level.STUDY) | of_level(record, Level.SERIES)),
            to_json(terms),
            record.metadata,
            record.frames,
        ),
    )


def _add_conflict(
    connection: sqlite3.Connection,
    study_id: int,
    record: InstanceRecord,
    *,
    current: str,
    loser: tuple[str, str],
    arrival: Arrival,
) -> ConflictRecord:
    """`loser`: series key and object key of the object that is not, or no longer, the current one."""
    connection.execute(
        "UPDATE conflicts SET current_object_key = ? WHERE study_id = ? AND sop_uid = ?",
        (current, study_id, record.sop_instance_uid),
    )
    conflict = ConflictRecord(
        sop_instance_uid=record.sop_instance_uid,
        study_key=record.study_key,
        series_key=loser[0],
        instance_key=record.instance_key,
        current_object_key=current,
        conflicting_object_key=loser[1],
        detected_at=arrival.now,
    )
    connection.execute(
        "INSERT INTO conflicts VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            study_id,
            conflict.sop_instance_uid,
            conflict.series_key,
            conflict.instance_key,
            conflict.current_object_key,
            conflict.conflicting_object_key,
            micros(conflict.detected_at),
        ),
    )
    return conflict


def _count_conflicts(connection: sqlite3.Connection, study_id: int) -> None:
    connection.execute(
        "UPDATE studies SET conflicts = (SELECT count(*) FROM conflicts WHERE study_id = :id) WHERE id = :id",
        {"id": study_id},
    )


def _reset_timer(connection: sqlite3.Connection, study_id: int, arrival: Arrival, *, reopened: bool) -> None:
    row = connection.execute(
        "SELECT latest_settle_at, open_transfers FROM studies WHERE id = ?", (study_id,)
    ).fetchone()
    latest = micros(arrival.latest_settle_at) if reopened else row["latest_settle_at"]
    settle_at = micros(arrival.settle_at)
    transfers = set(json.loads(row["open_transfers"]))
    if arrival.transfer_id is not None:
        transfers.add(arrival.transfer_id)
    connection.execute(
        "UPDATE studies SET state = 'receiving', revision = revision + 1, settle_at = ?, settle_reason = ?,"
        " latest_settle_at = ?, lease_until = NULL, open_transfers = ?, traceparent = coalesce(?,"
        " traceparent)"
        " WHERE id = ?",
        (
            min(settle_at, latest),
            "max-wait" if latest < settle_at else "quiet",
            latest,
            to_json(sorted(transfers)),
            arrival.traceparent,
            study_id,
        ),
    )
