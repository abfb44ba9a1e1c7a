"""What a study and a series show: the attributes and counts of the current instances below them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from isocenter.common.index import attributes as kept
from isocenter.common.index.encoding import identity_of, micros, of_level, to_json, unpack
from isocenter.common.index.merge import merge, order_of
from isocenter.common.index.query import Level
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.index.terms import terms_of


def refresh(
    connection: sqlite3.Connection, study_id: int, new: Sequence[InstanceRecord], replaced_in: set[int]
) -> None:
    """Counts and attributes of the study and of the series that the batch touched.

    New instances are added to what is there. Only where an object gave way to another is everything read
    again.
    """
    by_series: dict[str, list[InstanceRecord]] = {}
    for record in new:
        by_series.setdefault(record.series_instance_uid, []).append(record)
    rows = connection.execute("SELECT * FROM series WHERE study_id = ?", (study_id,)).fetchall()
    for row in rows:
        if row["id"] in replaced_in:
            _recount_series(connection, row)
        elif row["series_uid"] in by_series:
            _grow_series(connection, row, by_series[row["series_uid"]])
    study = connection.execute("SELECT * FROM studies WHERE id = ?", (study_id,)).fetchone()
    if replaced_in:
        incoming = _stored(connection, "study_id", study_id, Level.STUDY)
        _write_study_document(connection, study, {}, {}, incoming)
    else:
        incoming = [(_order(record), of_level(record, Level.STUDY)) for record in new]
        document, sources = json.loads(study["attributes"]), json.loads(study["sources"])
        _write_study_document(connection, study, document, sources, incoming)
    _recount_study(connection, study, new, replaced_in)


def _grow_series(connection: sqlite3.Connection, row: sqlite3.Row, records: list[InstanceRecord]) -> None:
    incoming = [(_order(record), of_level(record, Level.SERIES)) for record in records]
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
        "UPDATE studies SET attributes = :attributes, sources = :sources, modalities = :modalities,"
        " patient_id = :patient_id, patient_issuer = :patient_issuer, accession = :accession,"
        " accession_issuer = :accession_issuer WHERE id = :id",
        {
            "id": study["id"],
            "attributes": to_json(merged),
            "sources": to_json(origins),
            "modalities": to_json(modalities),
            **identity_of(merged),
        },
    )
    terms = {(".".join(path), text, item) for path, item, text in terms_of(merged, Level.STUDY)}
    terms |= {(kept.MODALITIES_IN_STUDY, modality, 0) for modality in modalities}
    connection.execute("DELETE FROM study_terms WHERE owner = ?", (study["id"],))
    connection.executemany(
        "INSERT INTO study_terms (owner, path, value, item) VALUES (?, ?, ?, ?)",
        [(study["id"], *term) for term in terms],
    )


def _recount_study(
    connection: sqlite3.Connection, study: sqlite3.Row, new: Sequence[InstanceRecord], replaced_in: set[int]
) -> None:
    if replaced_in:
        span = "(SELECT min(received_at), max(received_at) FROM instances WHERE study_id = :id)"
        bounds: dict[str, int] = {}
    else:
        received = [micros(record.received_at) for record in new]
        span = "(min(first_received_at, :low), max(last_received_at, :high))"
        bounds = {"low": min(received), "high": max(received)}
    connection.execute(
        f"UPDATE studies SET (first_received_at, last_received_at) = {span},"  # noqa: S608 - constants above
        " (series, instances, size_bytes) ="
        " (SELECT count(*), sum(instances), sum(size_bytes) FROM series WHERE study_id = :id)"
        " WHERE id = :id",
        {"id": study["id"], **bounds},
    )
