"""Reads and changes the topics of a Kafka cluster, and reads its access lists, with the client of the bus.

aiokafka's own `alter_configs` replaces every setting of a topic with those it is given: settings that an
operator made would be gone. So the incremental request (KIP-339) is defined here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped] # no py.typed
from aiokafka.admin.config_resource import (  # type: ignore[import-untyped] # as above
    ConfigResource,
    ConfigResourceType,
)
from aiokafka.errors import for_code  # type: ignore[import-untyped] # as above
from aiokafka.protocol.admin import DescribeAclsRequest  # type: ignore[import-untyped] # as above
from aiokafka.protocol.api import Request, RequestStruct, Response  # type: ignore[import-untyped] # as above
from aiokafka.protocol.types import (  # type: ignore[import-untyped] # as above
    Array,
    Boolean,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
)

from isocenter.common.bus.access import Acl, Operation, Pattern, Resource
from isocenter.common.bus.kafka import KafkaError
from isocenter.common.bus.kafka_options import client_options
from isocenter.common.bus.provision import Change, ChangeConfig, CreateTopic, TopicState, diff
from isocenter.common.errors import BusUnavailable, IsocenterError, Misconfigured
from isocenter.common.settings import KafkaSettings

REQUEST_MS = 15_000
LOOKS = 100
LOOK_SECONDS = 0.05
_TOPIC_EXISTS = 36
_NO_AUTHORIZER = 54
_ANY = 1
_SET = 0
_ALLOW = 3
_RESOURCES = {2: Resource.TOPIC, 3: Resource.GROUP, 4: Resource.CLUSTER}
_PATTERNS = {3: Pattern.LITERAL, 4: Pattern.PREFIXED}
_OPERATIONS = {
    2: Operation.ALL,
    3: Operation.READ,
    4: Operation.WRITE,
    5: Operation.CREATE,
    6: Operation.DELETE,
    7: Operation.ALTER,
    8: Operation.DESCRIBE,
    10: Operation.DESCRIBE_CONFIGS,
    11: Operation.ALTER_CONFIGS,
}


class _AlterResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _AlterStruct(RequestStruct):  # type: ignore[misc] # as above
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(
                        ("name", String("utf-8")),
                        ("config_operation", Int8),
                        ("value", String("utf-8")),
                    ),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class _IncrementalAlterConfigs(Request[_AlterStruct]):  # type: ignore[misc] # as above
    API_KEY = 44

    def __init__(self, resources: list[Any]) -> None:
        self._resources = resources

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._resources, False)


class ClusterAdmin:
    """An open connection; made by `connect`.

    Every method raises BusUnavailable when the cluster does not answer or is changing just now, and
    Misconfigured when it refuses: not allowed, too few brokers, a value it does not take.
    """

    def __init__(self, client: AIOKafkaAdminClient) -> None:
        self._client = client

    async def topic_names(self) -> set[str]:
        """All topics that this user may see."""
        with _told():
            return set(await self._client.list_topics())

    async def topics(self, names: Iterable[str] | None = None) -> dict[str, TopicState]:
        """The state of these topics, those that exist; None: of all but Kafka's own."""
        with _told():
            described = await self._client.describe_topics()
            wanted = None if names is None else set(names)
            present = {
                each["topic"]: each
                for each in described
                if not each["is_internal"] and (wanted is None or each["topic"] in wanted)
            }
            for name, each in present.items():
                _check(each["error_code"], None, topic=name)
            configs = await self._configs(present)
        return {
            name: TopicState(
                name,
                len(each["partitions"]),
                min((len(one["replicas"]) for one in each["partitions"]), default=0),
                configs[name],
            )
            for name, each in present.items()
        }

    async def apply(self, changes: Iterable[Change]) -> None:
        """Makes the changes that are not refused. Again, or beside another who does the same, is harmless."""
        changes = [change for change in changes if not change.refusal]
        new = [change.wanted for change in changes if isinstance(change, CreateTopic)]
        altered: dict[str, list[tuple[str, int, str]]] = {}
        for change in changes:
            if isinstance(change, ChangeConfig):
                altered.setdefault(change.topic, []).append((change.name, _SET, change.wants))
        with _told():
            if new:
                topics = [
                    NewTopic(each.name, each.partitions, each.replication, topic_configs=dict(each.config))
                    for each in new
                ]
                answer = await self._client.create_topics(topics, timeout_ms=REQUEST_MS)
                for topic, code, *message in answer.topic_errors:
                    if code != _TOPIC_EXISTS:
                        _check(code, message[0] if message else None, topic=topic)
            if altered:
                resources = [(ConfigResourceType.TOPIC, name, each) for name, each in altered.items()]
                answer = await self._client._send_to_controller(_IncrementalAlterConfigs(resources))  # noqa: SLF001 - as its own methods do
                for code, message, _, topic in answer.responses:
                    _check(code, message, topic=topic)

    async def settle(self, wants: dict[str, TopicState]) -> list[Change]:
        """Applies what may be applied and looks again.

        Returns:
            What still differs: refused changes, and nothing else.

        Raises:
            BusUnavailable: the cluster said yes and yet is not as it should be; try again.
        """
        await self.apply(diff(wants, await self.topics()))
        for _ in range(LOOKS):
            left = diff(wants, await self.topics())
            undone = [change for change in left if not change.refusal]
            if not undone:
                return left
            # A broker learns of a change a moment after the controller has accepted it.
            await asyncio.sleep(LOOK_SECONDS)
        raise BusUnavailable("the cluster does not show what it accepted", topic=undone[0].topic)

    async def acls(self) -> list[Acl] | None:
        """The cluster's rules on topics, groups and itself; None where it has no authorizer."""
        with _told():
            # The controller's listener and the brokers' answer alike; a random node is one of them.
            request = DescribeAclsRequest(_ANY, None, _ANY, None, None, _ANY, _ANY)
            answer = await self._client._send_request(request)  # noqa: SLF001 - aiokafka wraps no ACL request
            if answer.error_code == _NO_AUTHORIZER:
                return None
            _check(answer.error_code, answer.error_message)
        return sorted(
            Acl(
                principal,
                _RESOURCES[kind],
                name,
                _OPERATIONS.get(operation, Operation.OTHER),
                _PATTERNS.get(pattern, Pattern.LITERAL),
                allow=permission == _ALLOW,
            )
            for kind, name, pattern, rules in answer.resources
            for principal, _, operation, permission in rules
            if kind in _RESOURCES
        )

    async def _configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        found: dict[str, dict[str, str]] = {}
        for answer in await self._client.describe_configs(resources) if resources else ():
            for code, message, _, name, entries in answer.resources:
                _check(code, message, topic=name)
                found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        return found


@contextlib.asynccontextmanager
async def connect(settings: KafkaSettings) -> AsyncIterator[ClusterAdmin]:
    """An administrator's connection to the cluster of these settings.

    Raises:
        Misconfigured: no cluster is named, or it cannot be signed in to as the settings say.
        BusUnavailable: nobody answers there.
    """
    options = client_options(settings, "isocenter-topics") | {"request_timeout_ms": REQUEST_MS}
    client = AIOKafkaAdminClient(**options)
    try:
        with _told():
            await client.start()
        yield ClusterAdmin(client)
    finally:
        await client.close()


def _check(code: int, message: str | None, **ids: str) -> None:
    """Raises for an answer that is not success."""
    if not code:
        return
    error = for_code(code)
    if error.retriable:
        raise BusUnavailable("the cluster cannot do it now", cause=error.__name__, **ids)
    raise Misconfigured(f"the cluster refuses: {message or error.__name__}", cause=error.__name__, **ids)


@contextlib.contextmanager
def _told() -> Any:
    """Errors of the client become ours."""
    try:
        yield
    except IsocenterError:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        raise BusUnavailable("the cluster cannot be reached", cause=type(error).__name__) from None
