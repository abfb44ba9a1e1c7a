"""Tables of the embedded index, as code with a version.

Times are whole microseconds since 1970 UTC. `*_terms` hold the normal forms that search compares
(`isocenter.common.index.terms`), `sources` says per attribute which instance its value came from.
"""

from __future__ import annotations

import sqlite3

from isocenter.common.errors import Misconfigured

VERSION = 1
APPLICATION_ID = 0x15_0C_E7_E4
"""Marks the file as ours (`PRAGMA application_id`), so that no other database is opened by mistake."""

_DDL = """
CREATE TABLE marks (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

CREATE TABLE studies (
    id INTEGER PRIMARY KEY,
    study_uid TEXT NOT NULL UNIQUE,
    study_key TEXT NOT NULL UNIQUE,
    patient_issuer TEXT NOT NULL, patient_id TEXT NOT NULL,
    accession_issuer TEXT NOT NULL, accession TEXT NOT NULL,
    attributes TEXT NOT NULL, sources TEXT NOT NULL,
    modalities TEXT NOT NULL,
    series INTEGER NOT NULL, instances INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, conflicts INTEGER NOT NULL,
    first_received_at INTEGER NOT NULL, last_received_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('receiving', 'settled')),
    version INTEGER NOT NULL, revision INTEGER NOT NULL,
    settle_at INTEGER, settle_reason TEXT, latest_settle_at INTEGER, lease_until INTEGER,
    open_transfers TEXT NOT NULL,
    settled_at INTEGER, settled_reason TEXT, manifests TEXT NOT NULL,
    traceparent TEXT
) STRICT;
CREATE INDEX studies_newest ON studies (last_received_at DESC, study_uid);
CREATE INDEX studies_patient ON studies (patient_id, patient_issuer);
CREATE INDEX studies_accession ON studies (accession, accession_issuer);
CREATE INDEX studies_due ON studies (settle_at) WHERE state = 'receiving';

CREATE TABLE study_terms (
    path TEXT NOT NULL, value TEXT NOT NULL, owner INTEGER NOT NULL, item INTEGER NOT NULL,
    PRIMARY KEY (path, value, owner, item)
) STRICT, WITHOUT ROWID;
CREATE INDEX study_terms_owner ON study_terms (owner);

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    study_id INTEGER NOT NULL REFERENCES studies (id),
    series_uid TEXT NOT NULL,
    series_key TEXT NOT NULL,
    attributes TEXT NOT NULL, sources TEXT NOT NULL,
    instances INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    UNIQUE (study_id, series_uid)
) STRICT;
CREATE INDEX series_uid ON series (series_uid);

CREATE TABLE series_terms (
    path TEXT NOT NULL, value TEXT NOT NULL, owner INTEGER NOT NULL, item INTEGER NOT NULL,
    PRIMARY KEY (path, value, owner, item)
) STRICT, WITHOUT ROWID;
CREATE INDEX series_terms_owner ON series_terms (owner);

CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    study_id INTEGER NOT NULL REFERENCES studies (id),
    series_id INTEGER NOT NULL REFERENCES series (id),
    sop_uid TEXT NOT NULL,
    number_order INTEGER NOT NULL,
    sop_class_uid TEXT NOT NULL, transfer_syntax_uid TEXT NOT NULL,
    instance_key TEXT NOT NULL, object_key TEXT NOT NULL, content_digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, received_at INTEGER NOT NULL, sender TEXT NOT NULL,
    attributes TEXT NOT NULL, context BLOB NOT NULL, terms TEXT NOT NULL,
    metadata BLOB NOT NULL, frames BLOB NOT NULL,
    UNIQUE (study_id, sop_uid)
) STRICT;
CREATE INDEX instances_order ON instances (series_id, number_order, sop_uid);
CREATE INDEX instances_uid ON instances (sop_uid);

CREATE TABLE conflicts (
    study_id INTEGER NOT NULL REFERENCES studies (id),
    sop_uid TEXT NOT NULL,
    series_key TEXT NOT NULL, instance_key TEXT NOT NULL,
    current_object_key TEXT NOT NULL, conflicting_object_key TEXT NOT NULL,
    detected_at INTEGER NOT NULL,
    PRIMARY KEY (study_id, sop_uid, conflicting_object_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE confirmations (
    object_key TEXT PRIMARY KEY, event_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL
) STRICT;
"""

_LATER = """
CREATE TABLE IF NOT EXISTS commitments (
    id TEXT PRIMARY KEY,
    requester TEXT NOT NULL, transaction_uid TEXT NOT NULL,
    refs BLOB NOT NULL,
    requested_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('checking', 'reporting', 'done', 'given-up')),
    failures TEXT NOT NULL, checked_at INTEGER,
    attempts INTEGER NOT NULL, revision INTEGER NOT NULL,
    due_at INTEGER NOT NULL, lease_until INTEGER NOT NULL,
    UNIQUE (requester, transaction_uid)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS commitments_due ON commitments (due_at) WHERE state IN ('checking', 'reporting');
CREATE INDEX IF NOT EXISTS commitments_newest ON commitments (requested_at DESC, id);
"""
"""What came after version 1 and changes nothing in it: releases that do not know it do not miss it."""

TABLES = (
    "study_terms",
    "series_terms",
    "conflicts",
    "instances",
    "series",
    "studies",
    "confirmations",
)
"""What a rebuild empties, in an order in which it can. Events that wait in the outbox were decided, requests
for storage commitment were accepted, and neither is in any object: they stay."""


def prepare(connection: sqlite3.Connection) -> None:
    """Creates the tables in an empty file, or checks that the file is ours and of this version.

    Raises:
        Misconfigured: another program's database, or one written by a newer release.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _prepare(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _prepare(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        for statement in _DDL.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    elif application != APPLICATION_ID:
        raise Misconfigured("the index file is another program's database")
    elif found != VERSION:
        raise Misconfigured("another release wrote the index: run `isocenter reindex`", version=found)
    for statement in _LATER.split(";\n"):
        connection.execute(statement)


_REBUILDING = "rebuilding"


def begin_rebuild(connection: sqlite3.Connection) -> None:
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - constant table names
    connection.execute("INSERT OR IGNORE INTO marks VALUES (?)", (_REBUILDING,))


def end_rebuild(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM marks WHERE name = ?", (_REBUILDING,))


def is_rebuilding(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM marks WHERE name = ?", (_REBUILDING,)).fetchone()
    return found is not None
