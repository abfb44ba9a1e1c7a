"""Reads Isocenter's events with nothing of Isocenter's: confluent-kafka and the standard library.

    python subscribe.py --bootstrap kafka:9092 --group viewer.studies

Prints one line of JSON per event it acts on. What to copy into your own program:

* commit after the work, by hand: a crash in between brings the event again, and nothing is lost;
* so events come twice: `ce_source` and `ce_id` tell, and they are kept in the same transaction as the work;
* a study settles more than once: act on the highest `version`;
* read both CloudEvents modes, any minor version, and ignore what you do not know.
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import sys
import threading
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message

SETTLED = "org.isocenter.imaging.study.settled.v1"
REASONS = {"quiet", "transfer-closed", "max-wait", "manual"}
TABLES = """
CREATE TABLE IF NOT EXISTS seen(source TEXT, id TEXT, PRIMARY KEY(source, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS studies(study_key TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID;
"""


class NotAnEvent(ValueError):
    """A record that is no CloudEvent with JSON data. The text names what is wrong and quotes nothing."""


def read_event(message: Message) -> tuple[dict[str, str], dict[str, Any]]:
    """Attributes and data of a record, in binary or structured mode."""
    try:
        headers = {
            name.lower(): value.decode()
            for name, value in dict(message.headers() or ()).items()
            if isinstance(value, bytes) and name.lower().startswith(("ce_", "content-type"))
        }
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        body = json.loads(message.value() or b"")
        if content_type == "application/cloudevents+json":
            attributes = {name: value for name, value in body.items() if isinstance(value, str)}
            data = body["data"]
        else:
            attributes = {
                name.removeprefix("ce_"): value for name, value in headers.items() if name.startswith("ce_")
            }
            data = body
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise NotAnEvent("not readable") from None
    absent = [name for name in ("id", "source", "type") if name not in attributes]
    if absent or attributes.get("specversion") != "1.0" or not isinstance(data, dict):
        raise NotAnEvent(f"incomplete: {', '.join(absent) or 'specversion or data'}")
    return attributes, data


def act(
    attributes: dict[str, str], data: dict[str, Any], database: sqlite3.Connection
) -> dict[str, Any] | None:
    """The work, in one transaction with the memory of having done it; None where there is nothing to do."""
    with database:
        added = database.execute(
            "INSERT OR IGNORE INTO seen VALUES(?, ?)", (attributes["source"], attributes["id"])
        )
        if not added.rowcount or attributes["type"] != SETTLED:
            return None  # a duplicate, or a type that this program does not act on
        newer = database.execute(
            "INSERT INTO studies VALUES(?, ?) ON CONFLICT(study_key) DO UPDATE SET version = excluded.version"
            " WHERE excluded.version > studies.version",
            (data["study_key"], data["version"]),
        )
        if not newer.rowcount:
            return None  # an earlier version than the one we acted on
        return {
            "study_key": data["study_key"],
            "version": data["version"],
            # Codes are added inside a major version: an unknown one is no error.
            "reason": data["reason"] if data["reason"] in REASONS else "unknown",
            "instances": data["instances"],
            "schema": attributes.get("dataschema", "").rpartition(":")[2],
            "id": attributes["id"],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT")
    parser.add_argument("--group", required=True, help="begins with the name of your system and a full stop")
    parser.add_argument("--topic", default="imaging.study.v1")
    parser.add_argument("--state", default="subscriber.sqlite", help="what was seen and done")
    parser.add_argument(
        "--until-idle", type=float, metavar="SECONDS", help="end when nothing comes for so long"
    )
    parser.add_argument(
        "-X", action="append", default=[], metavar="NAME=VALUE", help="a setting of librdkafka"
    )
    options = parser.parse_args()

    database = sqlite3.connect(options.state)
    database.executescript(TABLES)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            **dict(each.split("=", 1) for each in options.X),
        }
    )
    consumer.subscribe([options.topic])
    try:
        while not stopping.is_set():
            message = consumer.poll(1.0 if options.until_idle is None else options.until_idle)
            if message is None:
                if options.until_idle is not None:
                    break
                continue
            if error := message.error():
                raise KafkaException(error)
            try:
                attributes, data = read_event(message)
                done = act(attributes, data, database)
            except (NotAnEvent, KeyError) as error:
                # Where it is and what kind of fault, never what is in it.
                place = f"{message.topic()}/{message.partition()}/{message.offset()}"
                sys.stderr.write(f"skipped {place}: {type(error).__name__}\n")
                done = None
            if done is not None:
                sys.stdout.write(json.dumps(done) + "\n")
                sys.stdout.flush()
            consumer.commit(message=message, asynchronous=False)
    finally:
        consumer.close()
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
