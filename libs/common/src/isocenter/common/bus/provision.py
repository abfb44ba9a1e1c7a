"""Topics as code: what the contract wants, what a cluster has, and the changes between the two.

Pure: `isocenter.common.bus.admin` talks to the cluster. What would lose data or order is never done from
here, only said: partitions (keys would move, and the order of each study would break once), replicas (copying
them is load that an operator schedules), and topics that nobody knows (they may hold data).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from isocenter.common.errors import Misconfigured
from isocenter.common.events.topics import Topic, all_topics
from isocenter.common.settings import KafkaSettings

APPLY = "isocenter topics apply"
MIN_IN_SYNC = "min.insync.replicas"


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is in a cluster, or as it should be.

    Attributes:
        replication: the fewest replicas that any of its partitions has.
        config: values in force, in Kafka's names; for a wanted topic only those that the contract fixes.
    """

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CreateTopic:
    """The topic is not there."""

    kind: ClassVar[str] = "create"
    wanted: TopicState

    @property
    def topic(self) -> str:
        return self.wanted.name

    @property
    def refusal(self) -> str:
        return ""

    def __str__(self) -> str:
        return f"{self.wanted.partitions} partitions, {self.wanted.replication} replicas, " + ", ".join(
            f"{name}={value}" for name, value in sorted(self.wanted.config.items())
        )


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """A setting of the topic has another value."""

    kind: ClassVar[str] = "config"
    topic: str
    name: str
    has: str | None
    wants: str
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.has} -> {self.wants}"


@dataclass(frozen=True, slots=True)
class PartitionsDiffer:
    """Refused: the partition of a key depends on how many there are."""

    kind: ClassVar[str] = "partitions"
    topic: str
    has: int
    wants: int

    @property
    def refusal(self) -> str:
        fewer = "" if self.has < self.wants else "; Kafka cannot take partitions away at all"
        return (
            "keys would move to other partitions, and events of one study would overtake each other"
            f"{fewer}. Stop the producers, drain every group, delete the topic, then {APPLY}"
        )

    def __str__(self) -> str:
        return f"{self.has} partitions -> {self.wants}"


@dataclass(frozen=True, slots=True)
class ReplicationDiffers:
    """Refused: copying replicas is load that an operator plans."""

    kind: ClassVar[str] = "replication"
    topic: str
    has: int
    wants: int

    @property
    def refusal(self) -> str:
        return "use kafka-reassign-partitions.sh: it copies the data, with a throttle"

    def __str__(self) -> str:
        return f"{self.has} replicas -> {self.wants}"


@dataclass(frozen=True, slots=True)
class UnknownTopic:
    """Refused: a topic with a prefix of ours that is not in the contract, left over or mistyped."""

    kind: ClassVar[str] = "unknown"
    topic: str

    @property
    def refusal(self) -> str:
        return "nothing here writes or reads it; look what is in it before you delete it with kafka-topics.sh"

    def __str__(self) -> str:
        return "not in the contract"


Change = CreateTopic | ChangeConfig | PartitionsDiffer | ReplicationDiffers | UnknownTopic


def wanted(settings: KafkaSettings, topics: Iterable[Topic] | None = None) -> dict[str, TopicState]:
    """The topics of the contract for a cluster of this size.

    Args:
        settings: the site's replication factor and in-sync minimum, in place of the contract's defaults.
        topics: None: all of the contract.

    Raises:
        Misconfigured: more replicas must be in sync than there are: no record could ever be written.
    """
    replicas, in_sync = settings.replication_factor, settings.min_insync_replicas
    if in_sync > replicas:
        raise Misconfigured(
            f"{KafkaSettings.variable('min_insync_replicas')} is above"
            f" {KafkaSettings.variable('replication_factor')}: nothing could be written",
            min_insync_replicas=in_sync,
            replication_factor=replicas,
        )
    contract = all_topics().values() if topics is None else topics
    sized = (replace(each, replication_factor=replicas, min_insync_replicas=in_sync) for each in contract)
    return {
        each.name: TopicState(each.name, each.partitions, each.replication_factor, each.kafka_config())
        for each in sized
    }


def diff(wants: Mapping[str, TopicState], has: Mapping[str, TopicState]) -> list[Change]:
    """What separates a cluster from the contract, by topic; empty when nothing does."""
    changes = [change for name in sorted(wants) for change in _of_topic(wants[name], has.get(name))]
    prefixes = {prefix_of(name) for name in wants}
    changes += [
        UnknownTopic(name) for name in sorted(has.keys() - wants.keys()) if prefix_of(name) in prefixes
    ]
    return changes


def prefix_of(topic: str) -> str:
    """`imaging.` of `imaging.study.v1`: who a topic belongs to."""
    return topic.partition(".")[0] + "."


def missing(names: Iterable[str], existing: Iterable[str]) -> list[str]:
    """Those that a cluster lacks, in order."""
    return sorted(set(names) - set(existing))


def written_by(service: str) -> set[str]:
    """The topics of the contract that a service writes, its retries and dead letters included."""
    return {name for name, topic in all_topics().items() if service in topic.producers}


def require(names: Iterable[str], existing: Iterable[str]) -> None:
    """For the start of a service.

    Raises:
        Misconfigured: a topic is missing; the message says which, and what creates them.
    """
    absent = missing(names, existing)
    if absent:
        raise Misconfigured(
            f"no such topic, or no right to see it: {', '.join(absent)}; run `{APPLY}`, look at"
            " `isocenter topics acls`"
        )


def _of_topic(wants: TopicState, has: TopicState | None) -> Iterator[Change]:
    if has is None:
        yield CreateTopic(wants)
        return
    if has.partitions != wants.partitions:
        yield PartitionsDiffer(wants.name, has.partitions, wants.partitions)
    if has.replication != wants.replication:
        yield ReplicationDiffers(wants.name, has.replication, wants.replication)
    for name, value in sorted(wants.config.items()):
        if has.config.get(name) != value:
            unwritable = name == MIN_IN_SYNC and int(value) > has.replication
            refusal = "more than it has replicas: nothing could be written to it" if unwritable else ""
            yield ChangeConfig(wants.name, name, has.config.get(name), value, refusal)
