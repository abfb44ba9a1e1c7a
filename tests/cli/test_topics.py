"""`isocenter topics` on a cluster of its own, which has an authorizer."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its stubs export less than the package
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    ResourcePatternType,
    ResourceType,
)

from isocenter.cli.errors import Exit
from isocenter.cli.main import app
from isocenter.common.bus import access
from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.errors import Misconfigured
from isocenter.common.events.topics import all_topics
from isocenter.common.settings import KafkaSettings
from isocenter.common.telemetry import noop

if TYPE_CHECKING:
    from testbed.kafka import KafkaServer

ONE_BROKER = {"ISOCENTER_KAFKA_REPLICATION_FACTOR": "1", "ISOCENTER_KAFKA_MIN_INSYNC_REPLICAS": "1"}
GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
ACL_TOOL = "kafka-acls-4.3.1"
ACL_JARS = {
    "kafka-clients": "52501b7b47510c66f898871adaf6d2968ab7246561d44ced43643a8a587f0b36",
    "kafka-server-common": "d7c719f749579a399011f0df7414de8a78f10f074a6122caa550fdb141351575",
    "kafka-tools": "62f3c5dd7aa3442d4c5bc6a95f86e2502178ea09de8e27f74d9563bf955e253c",
}
OPERATIONS = {
    access.Operation.READ: AclOperation.READ,
    access.Operation.WRITE: AclOperation.WRITE,
    access.Operation.CREATE: AclOperation.CREATE,
    access.Operation.DESCRIBE: AclOperation.DESCRIBE,
    access.Operation.ALTER_CONFIGS: AclOperation.ALTER_CONFIGS,
}
RESOURCES = {
    access.Resource.TOPIC: ResourceType.TOPIC,
    access.Resource.GROUP: ResourceType.GROUP,
    access.Resource.CLUSTER: ResourceType.BROKER,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """Always native: the authorizer is a setting."""
    from testbed.cache import must_be_available  # noqa: PLC0415 - as in the root conftest
    from testbed.kafka import KafkaServer  # noqa: PLC0415
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    server = KafkaServer(tmp_path_factory.mktemp("guarded"), settings=GUARDED)
    try:
        server.start()
    except ServerUnavailable as error:
        if must_be_available():
            pytest.fail(f"NOT RUN: {error}")
        pytest.skip(f"NOT RUN: {error}")
    yield server
    server.kill()


@pytest.fixture
def acl_tool() -> list[str | Path]:
    """What `kafka-acls.sh` starts. Of 4.3.1: Maven Central has no kafka-tools 4.4.0."""
    from testbed.cache import CACHE, building, download, must_be_available  # noqa: PLC0415 - as above
    from testbed.jre import java  # noqa: PLC0415
    from testbed.kafka import CENTRAL, install  # noqa: PLC0415
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    try:
        with building(ACL_TOOL) as scratch:
            for artifact, sha256 in ACL_JARS.items() if scratch is not None else ():
                path = f"org/apache/kafka/{artifact}/4.3.1/{artifact}-4.3.1.jar"
                download(CENTRAL + path, sha256, Path(str(scratch)) / f"{artifact}.jar")
        jars = f"{CACHE / ACL_TOOL}/*:{install()}/*"
        return [java(), "-XX:TieredStopAtLevel=1", "-cp", jars, "org.apache.kafka.tools.AclCommand"]
    except ServerUnavailable as error:
        if must_be_available():
            pytest.fail(f"NOT RUN: {error}")
        pytest.skip(f"NOT RUN: {error}")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def topics(*arguments: str, **environment: str) -> Done:
    """The command line in this process: a start of Python each would cost more than all the rest."""
    out, err = io.StringIO(), io.StringIO()
    levels = {name: logging.getLogger(name).level for name in ("aiokafka", "pynetdicom")}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ISOCENTER_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["isocenter", "topics", *arguments])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            app()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def on(server: KafkaServer) -> dict[str, str]:
    return {**ONE_BROKER, "ISOCENTER_KAFKA_BOOTSTRAP": server.bootstrap}


def document(done: Done) -> Any:
    assert "" == done.stderr
    return json.loads(done.stdout)


def test_ls_is_the_contract_and_needs_no_cluster() -> None:
    listed = document(topics("ls", "--json"))

    assert list(all_topics()) == [each["name"] for each in listed]
    assert {each["name"]: each["config"] for each in listed} == {
        name: topic.kafka_config() for name, topic in all_topics().items()
    }
    text = topics("ls").stdout
    assert all(name in text for name in all_topics())


def test_diff_then_apply_then_nothing_and_what_is_refused_stays_said(guarded: KafkaServer) -> None:
    environment = on(guarded)
    for service in ("ingest", "indexer"):
        with pytest.raises(Misconfigured, match=r"no such topic.*: imaging\..*isocenter topics apply"):
            asyncio.run(start(guarded, service))
    before = topics("diff", "--json", **environment)
    applied = topics("apply", "--json", **environment)
    again = topics("apply", "--json", **environment)
    after = topics("diff", **environment)

    assert Exit.REFUSED == before.returncode
    assert {"create"} == {each["kind"] for each in document(before)}
    assert sorted(all_topics()) == sorted(each["topic"] for each in document(applied)["applied"])
    assert {"applied": [], "refused": []} == document(again)
    assert (Exit.OK, Exit.OK, Exit.OK) == (applied.returncode, again.returncode, after.returncode)
    asyncio.run(start(guarded, "ingest"))
    assert "as the contract says" in after.stdout

    # A minimum of 2 on topics with one replica would make them read-only.
    defaults = topics("apply", "--json", ISOCENTER_KAFKA_BOOTSTRAP=guarded.bootstrap)
    assert Exit.REFUSED == defaults.returncode
    assert [] == document(defaults)["applied"]
    assert {"replication", "config"} == {each["kind"] for each in document(defaults)["refused"]}
    assert Exit.OK == topics("diff", **environment).returncode

    name = "imaging.study.v1"
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap})
    admin.create_partitions([NewPartitions(name, 13)])[name].result()
    while len(admin.list_topics(name, timeout=10).topics[name].partitions) != 13:
        pass  # the controller has answered, the broker learns of it in a moment
    refused = topics("apply", **environment)
    different = topics("diff", "--bootstrap", guarded.bootstrap, "--json", **ONE_BROKER)

    assert (Exit.REFUSED, Exit.REFUSED) == (refused.returncode, different.returncode)
    assert "keys would move" in refused.stderr
    assert [(name, "partitions")] == [(each["topic"], each["kind"]) for each in document(different)]


async def start(server: KafkaServer, service: str) -> None:
    """Starts what a service writes with, and stops it."""
    transport = KafkaTransport(KafkaSettings(bootstrap=server.bootstrap))
    bus = transport.bus(service, noop(service))
    try:
        await bus.start()
    finally:
        await bus.stop()
        await transport.close()


def test_acls_are_listed_compared_and_the_commands_are_those_of_kafkas_own_tool(
    guarded: KafkaServer, tmp_path: Path, acl_tool: list[str | Path]
) -> None:
    environment = on(guarded)
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap})
    missing = topics("acls", "--json", **environment)
    wants = access.wanted_acls()
    others = [acl for acl in wants if acl.principal != "User:isocenter-ingest"]
    stranger = access.Acl("User:stranger", access.Resource.TOPIC, "inbound.study.v1", access.Operation.READ)
    for future in admin.create_acls([binding(acl) for acl in (*others, stranger)]).values():
        future.result()

    lines = topics("acls", "--commands", **environment).stdout.splitlines()
    for line in lines:
        tool, *rest = shlex.split(line)
        assert "kafka-acls.sh" == tool
        done = subprocess.run(
            [*acl_tool, *rest], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert 0 == done.returncode, done.stdout + done.stderr
    equal = topics("acls", "--json", **environment)

    assert Exit.REFUSED == missing.returncode
    assert len(wants) == len(json.loads(missing.stdout)["missing"])
    assert all("--allow-principal User:isocenter-ingest " in line.replace("'", "") for line in lines)
    assert any("--operation Write --topic imaging.instance.v1" in line.replace("'", "") for line in lines)
    report = document(equal)
    assert (Exit.OK, True, [], []) == (
        equal.returncode,
        report["authorizer"],
        report["missing"],
        report["denied"],
    )
    assert ["User:stranger"] == [each["principal"] for each in report["extra"]]
    assert "not needed by us" in topics("acls", **environment).stdout


def test_acls_without_a_cluster_are_lines_to_run() -> None:
    done = topics("acls", "--commands", "--system", "ris-east", "--principal", "User:CN={},O=East")

    assert Exit.OK == done.returncode
    lines = done.stdout.splitlines()
    assert len(set(lines)) == len(lines)
    assert all(line.startswith("kafka-acls.sh --bootstrap-server $BOOTSTRAP --add ") for line in lines)
    theirs = [line for line in lines if "'User:CN=ris-east,O=East'" in line]
    assert any("--operation Write --topic 'inbound.study.v1'" in line for line in theirs)
    assert any("--group 'ris-east.' --resource-pattern-type prefixed" in line for line in theirs)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("diff",), Exit.MISCONFIGURED, "no Kafka cluster is named"),
        (("apply",), Exit.MISCONFIGURED, "no Kafka cluster is named"),
        (("diff", "--bootstrap", "127.0.0.1:1"), Exit.UNREACHABLE, "cannot be reached"),
        (("acls", "--principal", "User:all"), Exit.USAGE, "has no {}"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], code: Exit, said: str) -> None:
    done = topics(*arguments)

    assert code == done.returncode
    assert said in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["ls", "diff", "apply", "acls"])
def test_help_teaches(command: str) -> None:
    done = topics(command, "--help", COLUMNS="200")

    assert Exit.OK == done.returncode
    assert f"isocenter topics {command}" in done.stdout


def binding(acl: access.Acl) -> AclBinding:
    pattern = ResourcePatternType.LITERAL
    if acl.pattern is access.Pattern.PREFIXED:
        pattern = ResourcePatternType.PREFIXED
    return AclBinding(
        RESOURCES[acl.resource],
        acl.name,
        pattern,
        acl.principal,
        "*",
        OPERATIONS[acl.operation],
        AclPermissionType.ALLOW,
    )
