"""What operators and `isocenter dlq` may ask of the topics, over any engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from isocenter.common.bus.records import ERROR, ORIGIN_ID, REASON, parse_ident, split_dlq


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    value: bytes | None

    def header(self, name: str) -> str | None:
        for given, value in self.headers:
            if given == name and value is not None:
                return value.decode(errors="backslashreplace")
        return None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a group gave up on. `origin_*` are its place in the topic it was published to."""

    record: StoredRecord
    origin_topic: str
    origin_partition: int | None
    origin_offset: int | None
    group: str
    reason: str
    error: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class GroupLag:
    """What a consumer group has not committed of a topic, over all its partitions."""

    group: str
    topic: str
    lag: int


class TopicInspector(Protocol):
    """What an operator may ask of the topics."""

    async def topics(self) -> dict[str, int]:
        """Name -> number of records that are there."""
        ...

    def read(self, topic: str, start_offset: int = 0) -> AsyncIterator[StoredRecord]:
        """The records of all partitions that are there now, in order of offset within each."""
        ...

    def dead_letters(self) -> AsyncIterator[DeadLetter]: ...

    async def replay(self, topic: str, partition: int, offset: int) -> None:
        """Gives one dead letter back to the group that it came from.

        Raises:
            NotFound: there is no such dead letter.
            Transient: the platform runs and did not answer.
        """
        ...

    async def replay_all(self, topic: str | None = None) -> int:
        """Gives back every dead letter that was not replayed yet, of one dead-letter topic or of all.

        Returns:
            How many.
        """
        ...

    async def groups(self) -> list[GroupLag]:
        """Every group with a topic that it reads."""
        ...

    async def rewind(self, group: str, topic: str) -> None:
        """The group reads the topic again from its first record, and so does everything that it does.

        Raises:
            NotFound: the group never read this topic.
            Transient: the platform runs and did not answer, or, on a cluster, the group has members:
                stop the service first.
        """
        ...

    async def close(self) -> None: ...


def dead_letter(record: StoredRecord, groups: set[str], replayed: bool) -> DeadLetter:
    """`groups` are those that exist: names of topics and groups both have dots."""
    topic, group = split_dlq(record.topic, groups) or ("", "")
    origin = parse_ident(record.header(ORIGIN_ID) or "")
    return DeadLetter(
        record,
        topic,
        None if origin is None else origin[1],
        None if origin is None else origin[2],
        group,
        record.header(REASON) or "",
        record.header(ERROR) or "",
        replayed,
    )
