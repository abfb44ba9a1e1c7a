"""Reads: search, single records, pages of records, and the dump."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from isocenter.common.index import dump
from isocenter.common.index.encoding import bindable
from isocenter.common.index.query import Level, Match, Page, Query
from isocenter.common.index.records import ConflictRecord, InstanceRecord, SeriesRecord, StudyRecord
from isocenter.common.index.sqlite import rows
from isocenter.common.index.sqlite.compile import compile_query

_INSTANCES = (
    "SELECT i.*, se.series_uid, se.series_key, st.study_uid, st.study_key FROM instances i"
    " JOIN series se ON se.id = i.series_id JOIN studies st ON st.id = i.study_id"
)
_STUDY_TERMS = (
    "SELECT path, item, value FROM study_terms JOIN studies st ON st.id = owner WHERE st.study_uid = ?"
)
_SERIES_TERMS = (
    "SELECT path, item, value FROM series_terms JOIN series se ON se.id = owner"
    " JOIN studies st ON st.id = se.study_id WHERE st.study_uid = ? AND se.series_uid = ?"
)
PAGE = 256
"""Records fetched at once by the iterators: bounds memory, whatever the size of the study."""

InstanceKey = tuple[str, int, str]
StudyKey = tuple[int, str]


def search(connection: sqlite3.Connection, query: Query, default_issuer: str) -> Page:
    statements = compile_query(query)
    parameters = statements.parameters | {"default_issuer": default_issuer}
    (remaining,) = connection.execute(statements.count, parameters).fetchone()
    matches = tuple(_match(row, query.level) for row in connection.execute(statements.page, parameters))
    return Page(matches, remaining)


def _match(row: sqlite3.Row, level: Level) -> Match:
    document = rows.study_view(row)
    if level is not Level.STUDY:
        document |= rows.series_view(row)
    if level is Level.INSTANCE:
        document |= json.loads(row["i_attributes"])
    return Match(
        study_instance_uid=row["st_uid"],
        series_instance_uid=row["se_uid"] if level is not Level.STUDY else None,
        sop_instance_uid=row["i_uid"] if level is Level.INSTANCE else None,
        attributes=dict(sorted(document.items())),
    )


def study(
    connection: sqlite3.Connection, name: str, default_issuer: str, *, by_key: bool
) -> StudyRecord | None:
    """By Study Instance UID, or also by study key."""
    row = connection.execute("SELECT * FROM studies WHERE study_uid = ?", (bindable(name),)).fetchone()
    if row is None and by_key:
        row = connection.execute("SELECT * FROM studies WHERE study_key = ?", (bindable(name),)).fetchone()
    return rows.study(row, default_issuer) if row else None


def series_of(connection: sqlite3.Connection, study_uid: str) -> list[SeriesRecord]:
    found = connection.execute(
        "SELECT se.*, st.study_uid FROM series se JOIN studies st ON st.id = se.study_id"
        " WHERE st.study_uid = ? ORDER BY se.series_uid",
        (bindable(study_uid),),
    )
    return [rows.series(row) for row in found]


def conflicts_of(connection: sqlite3.Connection, study_uid: str) -> list[ConflictRecord]:
    found = connection.execute(
        "SELECT c.*, st.study_key FROM conflicts c JOIN studies st ON st.id = c.study_id"
        " WHERE st.study_uid = ? ORDER BY c.sop_uid, c.conflicting_object_key",
        (bindable(study_uid),),
    )
    return [rows.conflict(row) for row in found]


def instances_after(
    connection: sqlite3.Connection,
    study_uid: str,
    series_uid: str | None,
    sop_uid: str | None,
    after: InstanceKey | None,
) -> tuple[list[InstanceRecord], InstanceKey | None]:
    """The next page in the order of `IndexReader.instances`, and where the one after it begins."""
    conditions = ["st.study_uid = :study"]
    if series_uid is not None:
        conditions.append("se.series_uid = :series")
    if sop_uid is not None:
        conditions.append("i.sop_uid = :sop")
    if after is not None:
        conditions.append("(se.series_uid, i.number_order, i.sop_uid) > (:after0, :after1, :after2)")
    position = after or ("", 0, "")
    found = connection.execute(
        f"{_INSTANCES} WHERE {' AND '.join(conditions)}"
        " ORDER BY se.series_uid, i.number_order, i.sop_uid LIMIT :page",
        {
            "study": bindable(study_uid),
            "series": bindable(series_uid or ""),
            "sop": bindable(sop_uid or ""),
            "page": PAGE,
        }
        | {f"after{number}": value for number, value in enumerate(position)},
    ).fetchall()
    last = found[-1] if len(found) == PAGE else None
    following = (last["series_uid"], last["number_order"], last["sop_uid"]) if last is not None else None
    return [rows.instance(row) for row in found], following


def studies_after(
    connection: sqlite3.Connection, default_issuer: str, after: StudyKey | None
) -> tuple[list[StudyRecord], StudyKey | None]:
    """The next page of studies, newest arrival first."""
    condition = "TRUE" if after is None else "(-last_received_at, study_uid) > (:received, :uid)"
    received, uid = after or (0, "")
    found = connection.execute(
        f"SELECT * FROM studies WHERE {condition}"  # noqa: S608 - constants above
        " ORDER BY last_received_at DESC, study_uid LIMIT :page",
        {"received": received, "uid": uid, "page": PAGE},
    ).fetchall()
    last = found[-1] if len(found) == PAGE else None
    following = (-last["last_received_at"], last["study_uid"]) if last is not None else None
    return [rows.study(row, default_issuer) for row in found], following


def study_uids(connection: sqlite3.Connection) -> list[str]:
    return [
        row["study_uid"] for row in connection.execute("SELECT study_uid FROM studies ORDER BY study_uid")
    ]


def dump_study(connection: sqlite3.Connection, study_uid: str) -> list[str]:
    """See `IndexReader.dump` for what is left out and why."""
    return list(_dump_lines(connection, study_uid))


def _dump_lines(connection: sqlite3.Connection, study_uid: str) -> Iterator[str]:
    record = study(connection, study_uid, "", by_key=False)
    if record is None:
        return
    yield dump.study_line(record, map(tuple, connection.execute(_STUDY_TERMS, (study_uid,))))
    for series in series_of(connection, study_uid):
        terms = connection.execute(_SERIES_TERMS, (study_uid, series.series_instance_uid))
        yield dump.series_line(series, map(tuple, terms))
    after: InstanceKey | None = None
    while True:
        page, after = instances_after(connection, study_uid, None, None, after)
        yield from map(dump.instance_line, page)
        if after is None:
            break
    for conflict in conflicts_of(connection, study_uid):
        yield dump.conflict_line(study_uid, conflict)
