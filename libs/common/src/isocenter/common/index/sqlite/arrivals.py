"""`apply`: a batch of instances of one study becomes rows, in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from isocenter.common.index import attributes as kept
from isocenter.common.index.ports import Applied, Arrival, OutboxBuilder
from isocenter.common.index.query import Level
from isocenter.common.index.records import ConflictRecord, DicomJson, InstanceRecord, SettleState
from isocenter.common.index.sqlite import outbox as outbox_table
from isocenter.common.index.sqlite.merge import merge, order_of
from isocenter.common.index.sqlite.rows import micros, pack, to_json, unpack
from isocenter.common.index.terms import first_text, terms_of

_NO_NUMBER = 2**62
"""Sorts instances without an instance number last."""


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
        _refresh(connection, study_id, outcome)
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
    own = _of_level(record, Level.INSTANCE)
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
            _number_order(own),
            record.sop_class_uid,
            record.transfer_syntax_uid,
            record.instance_key,
            record.object_key,
            record.content_digest,
            record.size_bytes,
            micros(record.received_at),
            record.sender,
            to_json(own),
            pack(_of_level(record, Level.STUDY) | _of_level(record, Level.SERIES)),
            to_json(terms),
            record.metadata,
            record.frames,
        ),
    )


def _of_level(record: InstanceRecord, level: Level) -> DicomJson:
    """Kept attributes of one level; the UIDs are those the record is filed under."""
    document = kept.select(record.attributes, level)
    match level:
        case Level.STUDY:
            document[kept.STUDY_INSTANCE_UID] = _uid(record.study_instance_uid)
        case Level.SERIES:
            document[kept.SERIES_INSTANCE_UID] = _uid(record.series_instance_uid)
        case Level.INSTANCE:
            document[kept.SOP_INSTANCE_UID] = _uid(record.sop_instance_uid)
            document[kept.SOP_CLASS_UID] = _uid(record.sop_class_uid)
    return document


def _uid(value: str) -> DicomJson:
    return {"vr": "UI", "Value": [value]}


def _number_order(own: DicomJson) -> int:
    text = first_text(own, (kept.INSTANCE_NUMBER,), "IS")
    try:
        return max(-(2**31), min(int(text), 2**31))
    except ValueError:
        return _NO_NUMBER


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


def _refresh(connection: sqlite3.Connection, study_id: int, outcome: _Outcome) -> None:
    """Counts and attributes of the study and of the series that the batch touched.

    New instances are added to what is there. Only where an object gave way to another is everything read
    again.
    """
    by_series: dict[str, list[InstanceRecord]] = {}
    for record in outcome.new:
        by_series.setdefault(record.series_instance_uid, []).append(record)
    rows = connection.execute("SELECT * FROM series WHERE study_id = ?", (study_id,)).fetchall()
    for row in rows:
        if row["id"] in outcome.replaced_in:
            _recount_series(connection, row)
        elif row["series_uid"] in by_series:
            _grow_series(connection, row, by_series[row["series_uid"]])
    study = connection.execute("SELECT * FROM studies WHERE id = ?", (study_id,)).fetchone()
    if outcome.replaced_in:
        incoming = _stored(connection, "study_id", study_id, Level.STUDY)
        _write_study_document(connection, study, {}, {}, incoming)
    else:
        incoming = [(_order(record), _of_level(record, Level.STUDY)) for record in outcome.new]
        document, sources = json.loads(study["attributes"]), json.loads(study["sources"])
        _write_study_document(connection, study, document, sources, incoming)
    _recount_study(connection, study, outcome)


def _grow_series(connection: sqlite3.Connection, row: sqlite3.Row, records: list[InstanceRecord]) -> None:
    incoming = [(_order(record), _of_level(record, Level.SERIES)) for record in records]
    _write_series_document(
        connection, row["id"], json.loads(row["attributes"]), json.loads(row["sources"]), incoming
    )
    connection.execute(
        "UPDATE series SET instances = instances + ?, size_bytes = size_bytes + ? WHERE id = ?",
        (len(records), sum(record.size_bytes for record in records), row["id"]),
    )


def _recount_series(connection: sqlite3.Connection, row: sqlite3.Row) -> None:
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM instances WHERE series_id = ?", (row["id"],)
    ).fetchone()
    if not count:
        connection.execute("DELETE FROM series_terms WHERE owner = ?", (row["id"],))
        connection.execute("DELETE FROM series WHERE id = ?", (row["id"],))
        return
    _write_series_document(
        connection, row["id"], {}, {}, _stored(connection, "series_id", row["id"], Level.SERIES)
    )
    connection.execute(
        "UPDATE series SET instances = ?, size_bytes = ? WHERE id = ?", (count, size, row["id"])
    )


def _stored(
    connection: sqlite3.Connection, column: str, owner: int, level: Level
) -> list[tuple[str, DicomJson]]:
    columns = "received_at, object_key, context"
    statement = f"SELECT {columns} FROM instances WHERE {column} = ?"  # noqa: S608 - constants
    return [
        (order_of(row["received_at"], row["object_key"]), kept.select(unpack(row["context"]), level))
        for row in connection.execute(statement, (owner,))
    ]


def _order(record: InstanceRecord) -> str:
    return order_of(micros(record.received_at), record.object_key)


def _write_series_document(
    connection: sqlite3.Connection,
    series_id: int,
    document: DicomJson,
    sources: dict[str, str],
    incoming: list[tuple[str, DicomJson]],
) -> None:
    merged, origins, changed = merge(document, sources, incoming)
    if not changed:
        return
    connection.execute(
        "UPDATE series SET attributes = ?, sources = ? WHERE id = ?",
        (to_json(merged), to_json(origins), series_id),
    )
    connection.execute("DELETE FROM series_terms WHERE owner = ?", (series_id,))
    connection.executemany(
        "INSERT INTO series_terms VALUES (?, ?, ?, ?)",
        [(".".join(path), text, series_id, item) for path, item, text in terms_of(merged, Level.SERIES)],
    )


def _write_study_document(
    connection: sqlite3.Connection,
    study: sqlite3.Row,
    document: DicomJson,
    sources: dict[str, str],
    incoming: list[tuple[str, DicomJson]],
) -> None:
    merged, origins, changed = merge(document, sources, incoming)
    modalities = [
        row["value"]
        for row in connection.execute(
            "SELECT DISTINCT value FROM series_terms JOIN series ON series.id = owner"
            " WHERE path = ? AND study_id = ? ORDER BY value",
            (kept.MODALITY, study["id"]),
        )
    ]
    if not changed and modalities == json.loads(study["modalities"]):
        return
    connection.execute(
        "UPDATE studies SET attributes = ?, sources = ?, modalities = ?, patient_id = ?, patient_issuer = ?,"
        " accession = ?, accession_issuer = ? WHERE id = ?",
        (
            to_json(merged),
            to_json(origins),
            to_json(modalities),
            first_text(merged, (kept.PATIENT_ID,), "LO"),
            first_text(merged, (kept.ISSUER_OF_PATIENT_ID,), "LO")
            or first_text(merged, (kept.PATIENT_ID_QUALIFIERS, kept.UNIVERSAL_ENTITY), "UT"),
            first_text(merged, (kept.ACCESSION_NUMBER,), "SH"),
            first_text(merged, (kept.ACCESSION_ISSUER, kept.LOCAL_NAMESPACE), "UT")
            or first_text(merged, (kept.ACCESSION_ISSUER, kept.UNIVERSAL_ENTITY), "UT"),
            study["id"],
        ),
    )
    terms = {(".".join(path), text, item) for path, item, text in terms_of(merged, Level.STUDY)}
    terms |= {(kept.MODALITIES_IN_STUDY, modality, 0) for modality in modalities}
    connection.execute("DELETE FROM study_terms WHERE owner = ?", (study["id"],))
    connection.executemany(
        "INSERT INTO study_terms (owner, path, value, item) VALUES (?, ?, ?, ?)",
        [(study["id"], *term) for term in terms],
    )


def _recount_study(connection: sqlite3.Connection, study: sqlite3.Row, outcome: _Outcome) -> None:
    if outcome.replaced_in:
        span = "(SELECT min(received_at), max(received_at) FROM instances WHERE study_id = :id)"
        bounds: dict[str, int] = {}
    else:
        received = [micros(record.received_at) for record in outcome.new]
        span = "(min(first_received_at, :low), max(last_received_at, :high))"
        bounds = {"low": min(received), "high": max(received)}
    connection.execute(
        f"UPDATE studies SET (first_received_at, last_received_at) = {span},"  # noqa: S608 - constants above
        " (series, instances, size_bytes) ="
        " (SELECT count(*), sum(instances), sum(size_bytes) FROM series WHERE study_id = :id)"
        " WHERE id = :id",
        {"id": study["id"], **bounds},
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
