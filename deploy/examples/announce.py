r"""Announces a study to Isocenter with nothing of Isocenter's: confluent-kafka and the standard library.

    python announce.py --bootstrap kafka:9092 --source /hospital-east/ris --sender RIS_EAST \
        --uid 1.2.826.0.1.3680043.10.54321.1 --kind dicomweb --ref https://pacs.east.example/dicom-web

Prints where the record is once it is durable, and exits 0; exits 1 when it is not known to be. What to copy:

* `acks=all` and an idempotent producer: a retry of the client writes no second record;
* the same `id` when the same thing is announced again: here it is derived from what is announced;
* `partitioner=murmur2_random`, or announcements of one study lose their order;
* no credentials in the reference: access is agreed beforehand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

TYPE = "org.isocenter.inbound.study.announced.v1"
SCHEMA = "urn:isocenter:schema:org.isocenter.inbound.study.announced:1.0"
SECONDS = 30.0


def event_of(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, Any]]:
    """Attributes and data."""
    data: dict[str, Any] = {
        "study_instance_uid": options.uid,
        "location": {"kind": options.kind, "ref": options.ref},
        "sender": options.sender,
    }
    if options.instances is not None:
        data["instances"] = options.instances
    content = json.dumps([options.source, data], sort_keys=True)
    attributes = {
        "specversion": "1.0",
        "id": options.id or str(uuid.uuid5(uuid.NAMESPACE_URL, content)),
        "source": options.source,
        "type": TYPE,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dataschema": SCHEMA,
    }
    return attributes, data


def record_of(
    attributes: dict[str, str], data: dict[str, Any], mode: str
) -> tuple[list[tuple[str, str | bytes | None]], bytes]:
    """Headers and value in a CloudEvents mode."""
    if mode == "structured":
        envelope = {**attributes, "datacontenttype": "application/json", "data": data}
        return [("content-type", "application/cloudevents+json")], json.dumps(envelope).encode()
    headers: list[tuple[str, str | bytes | None]] = [
        (f"ce_{name}", value) for name, value in attributes.items()
    ]
    return [*headers, ("content-type", "application/json")], json.dumps(data).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", default="inbound.study.v1")
    parser.add_argument(
        "--source", required=True, help="a URI reference that names your system, without hosts"
    )
    parser.add_argument("--sender", required=True, help="your system, as the site calls it")
    parser.add_argument("--uid", required=True, help="Study Instance UID")
    parser.add_argument("--kind", required=True, choices=["s3", "dicomweb", "dimse"])
    parser.add_argument(
        "--ref", required=True, help="s3://bucket/prefix, https://host/path or dimse://AE_TITLE"
    )
    parser.add_argument("--instances", type=int, help="how many the study has there")
    parser.add_argument("--id", help="of the event; default: derived from what is announced")
    parser.add_argument("--key", help="of the record; default: the Study Instance UID")
    parser.add_argument("--mode", choices=["binary", "structured"], default="binary")
    parser.add_argument(
        "-X", action="append", default=[], metavar="NAME=VALUE", help="a setting of librdkafka"
    )
    options = parser.parse_args()

    attributes, data = event_of(options)
    headers, value = record_of(attributes, data, options.mode)
    placed: list[dict[str, Any]] = []

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        if error is None:
            place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
            placed.append({"id": attributes["id"], **place})
        else:
            sys.stderr.write(f"not delivered: {error.name()}\n")

    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "delivery.timeout.ms": int(SECONDS * 1000),
            "allow.auto.create.topics": False,
            **dict(each.split("=", 1) for each in options.X),
        }
    )
    producer.produce(
        options.topic, value, key=options.key or options.uid, headers=headers, on_delivery=on_delivery
    )
    producer.flush(SECONDS + 5)
    if not placed:
        return 1
    sys.stdout.write(json.dumps(placed[0]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
