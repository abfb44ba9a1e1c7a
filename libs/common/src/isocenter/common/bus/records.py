"""Names and headers of records that the bus moves, and the parser that survives foreign ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from isocenter.common.bus.kafka import ConsumerRecord
from isocenter.common.events.topics import dlq_topic, retry_topic

ORIGIN_TOPIC = "x-origin-topic"
ORIGIN_ID = "x-origin-id"
REASON = "x-reason"
ERROR = "x-error"
REPLAY_OF = "x-replay-of"
REPLAYED = "x-replayed"
"""On a dead-letter topic of a cluster: not a letter, but the note that the one at this place was replayed."""
RETRY_SUFFIX = ".retry"
DLQ_SUFFIX = ".dlq"


def ident_of(record: ConsumerRecord, headers: dict[str, str]) -> str:
    """Where the record was first, `topic/partition/offset`: a copy keeps it, an event sent twice has two."""
    return headers.get(ORIGIN_ID) or f"{record.topic}/{record.partition}/{record.offset}"


def parse_ident(ident: str) -> tuple[str, int, int] | None:
    """Topic, partition and offset, or None for what is not one of ours."""
    topic, _, rest = ident.partition("/")
    partition, _, offset = rest.partition("/")
    if topic and partition.isdecimal() and offset.isdecimal():
        return topic, int(partition), int(offset)
    return None


def split_dlq(topic: str, groups: set[str] | None = None) -> tuple[str, str] | None:
    """Origin topic and group of a dead-letter topic. Both contain dots: `groups` are those that exist.

    Groups are `<service>.<handler>`, so without them the last two parts are taken.
    """
    if not topic.endswith(DLQ_SUFFIX):
        return None
    stem = topic.removesuffix(DLQ_SUFFIX)
    for group in groups or ():
        if stem.endswith(f".{group}") and dlq_topic(stem.removesuffix(f".{group}"), group) == topic:
            return stem.removesuffix(f".{group}"), group
    parts = stem.split(".")
    if len(parts) < 3:
        return None
    return ".".join(parts[:-2]), ".".join(parts[-2:])


def retry_topic_of_dlq(topic: str, groups: set[str] | None = None) -> str | None:
    found = split_dlq(topic, groups)
    return None if found is None else retry_topic(*found)


def replay_headers(
    topic: str, partition: int, offset: int, headers: tuple[tuple[str, bytes | None], ...]
) -> tuple[tuple[str, bytes | None], ...]:
    """Headers of a dead letter that goes back to its group: why it died is dropped, where it was is kept."""
    kept = tuple((name, value) for name, value in headers if name not in {REASON, ERROR, REPLAY_OF})
    place = f"{topic}/{partition}/{offset}".encode()
    return (*kept, (REASON, b"replay"), (REPLAY_OF, place))


async def tolerant_parser(
    record: ConsumerRecord, original: Callable[[ConsumerRecord], Awaitable[Any]]
) -> Any:
    """FastStream's parser decodes every header as UTF-8. One null or foreign value there and the record is
    skipped and committed before any policy sees it. So null values are left out, as if the header were
    absent, and other bytes are made readable.
    """
    if any(value is None or not _is_utf8(value) for _, value in record.headers or ()):
        readable = tuple((name, _readable(value)) for name, value in record.headers if value is not None)
        record = replace(record, headers=readable)
    return await original(record)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _readable(value: bytes) -> bytes:
    return value.decode(errors="backslashreplace").encode()
