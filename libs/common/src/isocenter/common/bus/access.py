"""Who may do what on the cluster: access lists derived from the topics, as data.

Kafka's rules (its documentation, "Authorization using ACLs"): an idempotent producer needs Write on the topic
and nothing on the cluster since Kafka 2.8; Read, Write, Delete and Alter imply Describe; AlterConfigs implies
DescribeConfigs; a matching Deny wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from isocenter.common.bus.provision import prefix_of
from isocenter.common.bus.records import DLQ_SUFFIX, RETRY_SUFFIX
from isocenter.common.events.topics import OPERATOR, OTHER_SYSTEMS, Topic, all_topics

PRINCIPAL = "User:isocenter-{}"
"""`{}` is the service's name; a site with client certificates has its own form, `User:CN={},O=Hospital`."""
ANYBODY = "User:*"


class Resource(StrEnum):
    TOPIC = "topic"
    GROUP = "group"
    CLUSTER = "cluster"


class Pattern(StrEnum):
    LITERAL = "literal"
    PREFIXED = "prefixed"


class Operation(StrEnum):
    ALL = "All"
    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DELETE = "Delete"
    ALTER = "Alter"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"
    ALTER_CONFIGS = "AlterConfigs"
    OTHER = "other"


IMPLIED = {
    Operation.DESCRIBE: {Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER},
    Operation.DESCRIBE_CONFIGS: {Operation.ALTER_CONFIGS},
}
CLUSTER = "kafka-cluster"
"""The one name of the resource."""


@dataclass(frozen=True, slots=True, order=True)
class Acl:
    """One rule. Host is always any: networks are the business of network policy."""

    principal: str
    resource: Resource
    name: str
    operation: Operation
    pattern: Pattern = Pattern.LITERAL
    allow: bool = True

    def covers(self, want: Acl) -> bool:
        """Whether this rule decides about what `want` is about, Allow or Deny apart."""
        return (
            self.principal in {want.principal, ANYBODY}
            and self.resource is want.resource
            and self._matches(want)
            and (
                self.operation in {want.operation, Operation.ALL}
                or (self.allow and self.operation in IMPLIED.get(want.operation, ()))
            )
        )

    def _matches(self, want: Acl) -> bool:
        if self.pattern is Pattern.PREFIXED:
            return want.name.startswith(self.name)
        return self.name == "*" or (self.pattern is want.pattern and self.name == want.name)


@dataclass(frozen=True, slots=True)
class AccessReport:
    """Attributes:
    missing: wanted, and no rule allows it.
    denied: wanted, and a rule forbids it.
    extra: rules on topics of ours that nothing here needs: other systems, or something left over.
    """

    missing: tuple[Acl, ...]
    denied: tuple[Acl, ...]
    extra: tuple[Acl, ...]

    @property
    def equal(self) -> bool:
        """Everything wanted is allowed. Extra rules are for people to judge."""
        return not self.missing and not self.denied


def wanted_acls(principal: str = PRINCIPAL, topics: Iterable[Topic] | None = None) -> list[Acl]:
    """What the services of this release, and the operator, need."""
    contract = list(all_topics().values() if topics is None else topics)
    found = {
        acl for topic in contract for acl in (*_services(topic, principal), *_operator(topic, principal))
    }
    # Listing the access lists is a question to the cluster.
    found.add(Acl(principal.format(OPERATOR), Resource.CLUSTER, CLUSTER, Operation.DESCRIBE))
    return sorted(found)


def system_acls(system: str, principal: str = PRINCIPAL, topics: Iterable[Topic] | None = None) -> list[Acl]:
    """What another system needs to read facts and to announce studies. Its groups begin with `<system>.`."""
    who = principal.format(system)
    found = []
    for topic in all_topics().values() if topics is None else topics:
        if OTHER_SYSTEMS in topic.producers:
            found.append(Acl(who, Resource.TOPIC, topic.name, Operation.WRITE))
        elif topic.event_types:
            found.append(Acl(who, Resource.TOPIC, topic.name, Operation.READ))
    found.append(Acl(who, Resource.GROUP, f"{system}.", Operation.READ, Pattern.PREFIXED))
    return sorted(found)


def compare(wants: Iterable[Acl], has: Iterable[Acl], topics: Iterable[str] | None = None) -> AccessReport:
    """Judges a cluster's rules; extra ones are looked for on `topics`, None: those of the contract."""
    wants, has = list(wants), list(has)
    ours = set(all_topics() if topics is None else topics)
    missing = [want for want in wants if not any(rule.allow and rule.covers(want) for rule in has)]
    denied = [want for want in wants if any(not rule.allow and rule.covers(want) for rule in has)]
    extra = [
        rule
        for rule in has
        if rule.allow
        and rule.resource is Resource.TOPIC
        and any(_touches(rule, name) for name in ours)
        and not any(rule.covers(want) for want in wants)
    ]
    return AccessReport(tuple(missing), tuple(denied), tuple(sorted(extra)))


def commands(acls: Iterable[Acl], bootstrap: str = "$BOOTSTRAP") -> list[str]:
    """Lines for a shell that add these rules with Kafka's own tool; adding a rule again changes nothing."""
    grouped: dict[tuple[str, Resource, str, Pattern], list[str]] = {}
    for acl in sorted(acls):
        key = (acl.principal, acl.resource, acl.name, acl.pattern)
        grouped.setdefault(key, []).append(f"--operation {acl.operation.value}")
    lines = []
    for (principal, resource, name, pattern), operations in grouped.items():
        target = "--cluster" if resource is Resource.CLUSTER else f"--{resource.value} '{name}'"
        prefixed = " --resource-pattern-type prefixed" if pattern is Pattern.PREFIXED else ""
        lines.append(
            f"kafka-acls.sh --bootstrap-server {bootstrap} --add --allow-principal '{principal}'"
            f" {' '.join(operations)} {target}{prefixed}"
        )
    return lines


def _services(topic: Topic, principal: str) -> Iterator[Acl]:
    for service in topic.producers:
        if service != OTHER_SYSTEMS:
            yield Acl(principal.format(service), Resource.TOPIC, topic.name, Operation.WRITE)
    for group in topic.consumers:
        who = principal.format(group.partition(".")[0])
        yield Acl(who, Resource.TOPIC, topic.name, Operation.READ)
        yield Acl(who, Resource.GROUP, group, Operation.READ)


def _operator(topic: Topic, principal: str) -> Iterator[Acl]:
    """Provisions, and mends dead letters; reads UIDs of other systems only where somebody gave up on them."""
    who = principal.format(OPERATOR)
    for operation in (Operation.CREATE, Operation.DESCRIBE, Operation.ALTER_CONFIGS):
        yield Acl(who, Resource.TOPIC, prefix_of(topic.name), operation, Pattern.PREFIXED)
    if not topic.dicom_uids or topic.name.endswith(DLQ_SUFFIX):
        yield Acl(who, Resource.TOPIC, topic.name, Operation.READ)
    if topic.name.endswith(RETRY_SUFFIX):
        yield Acl(who, Resource.TOPIC, topic.name, Operation.WRITE)


def _touches(rule: Acl, topic: str) -> bool:
    if rule.pattern is Pattern.PREFIXED:
        return topic.startswith(rule.name)
    return rule.name in {topic, "*"}
