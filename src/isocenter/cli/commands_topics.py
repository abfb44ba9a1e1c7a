"""`isocenter topics ls|diff|apply|acls`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.options import Json, examples
from isocenter.cli.output import emit_json, stderr, stdout
from isocenter.common.bus import access
from isocenter.common.bus.admin import connect
from isocenter.common.bus.provision import Change, diff, wanted
from isocenter.common.events.topics import Topic, all_topics
from isocenter.common.settings import KafkaSettings

Bootstrap = Annotated[
    str | None,
    typer.Option("--bootstrap", "-b", metavar="HOST:PORT,...", help="Instead of ISOCENTER_KAFKA_BOOTSTRAP."),
]

_SETTINGS = (
    "[bold]Settings[/bold]\n\n"
    "ISOCENTER_KAFKA_BOOTSTRAP, _SECURITY_PROTOCOL, _SASL_MECHANISM, _USERNAME, _PASSWORD, _CA_FILE say where"
    " the cluster is and how to sign in.\n\n"
    "ISOCENTER_KAFKA_REPLICATION_FACTOR (3) and ISOCENTER_KAFKA_MIN_INSYNC_REPLICAS (2) are those of the"
    " topics; a cluster of one broker needs 1 and 1.\n\n"
)


def register(app: typer.Typer) -> None:
    topics = typer.Typer(
        name="topics",
        help="The topics of the contract on a Kafka cluster: list, compare, create, and who may use them.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    topics.command(
        "ls", epilog=examples("isocenter topics ls", "isocenter topics ls --json | jq '.[].name'")
    )(ls)
    topics.command(
        "diff",
        epilog=_SETTINGS
        + examples(
            "isocenter topics diff                        # exit code 1: something differs",
            "isocenter topics diff -b kafka:9092 --json",
        ),
    )(diff_)
    topics.command(
        "apply",
        epilog=_SETTINGS
        + examples(
            "isocenter topics apply                       # before the first start, and after an upgrade",
            "isocenter topics apply --json",
        ),
    )(apply)
    topics.command(
        "acls",
        epilog=_SETTINGS
        + examples(
            "isocenter topics acls                        # compared with the cluster's, where it has any",
            "isocenter topics acls --commands | sh        # with $BOOTSTRAP set",
            "isocenter topics acls --system ris-east --commands",
            "isocenter topics acls --principal 'User:CN={},O=Hospital' --commands",
        ),
    )(acls)
    app.add_typer(topics)


def ls(json: Json = False) -> None:
    """List the topics of the contract, without asking any cluster."""
    topics = list(all_topics().values())
    if json:
        emit_json([topic_json(each) for each in topics])
        return
    table = _table("topic", "partitions", "kept for", "key", "written by", "read by group")
    for each in topics:
        table.add_row(
            each.name,
            str(each.partitions),
            f"{each.retention.days} days",
            each.key,
            ", ".join(each.producers),
            ", ".join(each.consumers) or "-",
        )
    stdout().print(table)


def diff_(bootstrap: Bootstrap = None, json: Json = False) -> None:
    """Say what separates the cluster from the contract, and change nothing.

    Exits 0 when nothing does, 1 when something does.
    """
    changes = asyncio.run(_diff(_settings(bootstrap)))
    _report(changes, json=json, empty="The cluster has every topic as the contract says.")
    if changes:
        raise typer.Exit(Exit.REFUSED)


def apply(bootstrap: Bootstrap = None, json: Json = False) -> None:
    """Create missing topics and correct settings, then look again. Running it twice is harmless.

    Never changes the number of partitions (keys would move), never moves replicas, never deletes a topic.
    Those it names, says what to do, and exits 1.
    """
    settings = _settings(bootstrap)
    done, left = asyncio.run(_apply(settings))
    if json:
        emit_json(
            {"applied": [change_json(each) for each in done], "refused": [change_json(each) for each in left]}
        )
    else:
        _report(done, json=False, empty="Nothing to do: the cluster has every topic as the contract says.")
        for each in left:
            stderr().print(
                Text(f"refused: {each.topic}: {each}: {each.refusal}", style="yellow"), soft_wrap=True
            )
    if left:
        raise typer.Exit(Exit.REFUSED)


def acls(
    bootstrap: Bootstrap = None,
    principal: Annotated[
        str, typer.Option("--principal", help="How the cluster names a service; {} is its name.")
    ] = access.PRINCIPAL,
    system: Annotated[
        list[str] | None,
        typer.Option(
            "--system", metavar="NAME", help="Another system that reads facts and announces studies."
        ),
    ] = None,
    commands: Annotated[
        bool,
        typer.Option("--commands", help="Lines for a shell that add what is missing, with kafka-acls.sh."),
    ] = False,
    json: Json = False,
) -> None:
    """List what each service must be allowed to do, derived from the topics; it changes nothing.

    With a cluster that has an authorizer: compared with its rules, and exit code 1 when one is missing or a
    Deny is in the way. Rules that nothing here needs are listed, too.
    """
    if "{}" not in principal:
        raise CommandError("--principal has no {} for the name", hint=access.PRINCIPAL, code=Exit.USAGE)
    settings = KafkaSettings.load(**({} if bootstrap is None else {"bootstrap": bootstrap}))
    wants = access.wanted_acls(principal)
    wants += [acl for name in system or () for acl in access.system_acls(name, principal)]
    has = None if settings.bootstrap is None else asyncio.run(_acls(settings))
    report = None if has is None else access.compare(wants, has)
    if commands:
        for line in access.commands(
            wants if report is None else report.missing, settings.bootstrap or "$BOOTSTRAP"
        ):
            typer.echo(line)
        return
    if json:
        emit_json(_acl_report_json(wants, report))
    else:
        _show_acls(wants, report, asked=settings.bootstrap is not None)
    if report is not None and not report.equal:
        raise typer.Exit(Exit.REFUSED)


def topic_json(topic: Topic) -> dict[str, Any]:
    return {
        "name": topic.name,
        "owner": topic.owner,
        "key": topic.key,
        "producers": list(topic.producers),
        "consumers": list(topic.consumers),
        "event_types": list(topic.event_types),
        "partitions": topic.partitions,
        "dicom_uids": topic.dicom_uids,
        "config": topic.kafka_config(),
    }


def change_json(change: Change) -> dict[str, Any]:
    return {
        "topic": change.topic,
        "kind": change.kind,
        "change": str(change),
        "refused": change.refusal or None,
    }


def _settings(bootstrap: str | None) -> KafkaSettings:
    settings = KafkaSettings.load(**({} if bootstrap is None else {"bootstrap": bootstrap}))
    if settings.bootstrap is None:
        raise CommandError(
            "no Kafka cluster is named; the embedded event log makes its topics itself",
            hint="ISOCENTER_KAFKA_BOOTSTRAP=host:9092, or --bootstrap",
            code=Exit.MISCONFIGURED,
        )
    return settings


async def _diff(settings: KafkaSettings) -> list[Change]:
    _quiet()
    async with connect(settings) as cluster:
        return diff(wanted(settings), await cluster.topics())


async def _apply(settings: KafkaSettings) -> tuple[list[Change], list[Change]]:
    _quiet()
    wants = wanted(settings)
    async with connect(settings) as cluster:
        before = diff(wants, await cluster.topics())
        left = await cluster.settle(wants)
    return [each for each in before if not each.refusal], left


async def _acls(settings: KafkaSettings) -> list[access.Acl] | None:
    _quiet()
    async with connect(settings) as cluster:
        return await cluster.acls()


def _quiet() -> None:
    """What the client logs about a cluster that is not there, we say in one line."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _report(changes: Iterable[Change], *, json: bool, empty: str) -> None:
    changes = list(changes)
    if json:
        emit_json([change_json(each) for each in changes])
        return
    if not changes:
        stdout().print(f"[green]{empty}[/green]")
        return
    table = _table("topic", "what", "has -> should have")
    for each in changes:
        table.add_row(each.topic, each.kind + (" (refused)" if each.refusal else ""), Text(str(each)))
    stdout().print(table)


def _show_acls(wants: list[access.Acl], report: access.AccessReport | None, *, asked: bool) -> None:
    table = _table("principal", "operation", "on", *(["cluster"] if report else []))
    extra = [] if report is None else list(report.extra)
    for each in [*wants, *extra]:
        name = each.name + ("*" if each.pattern is access.Pattern.PREFIXED else "")
        verdict = [] if report is None else [_verdict(each, report)]
        table.add_row(Text(each.principal), each.operation.value, f"{each.resource.value} {name}", *verdict)
    stdout().print(table)
    if asked and report is None:
        stderr().print("[yellow]The cluster has no authorizer: everybody may do everything.[/yellow]")


def _verdict(acl: access.Acl, report: access.AccessReport) -> str:
    if acl in report.denied:
        return "[red]denied[/red]"
    if acl in report.missing:
        return "[red]missing[/red]"
    return "[yellow]not needed by us[/yellow]" if acl in report.extra else "[green]allowed[/green]"


def _acl_report_json(wants: list[access.Acl], report: access.AccessReport | None) -> dict[str, Any]:
    found: dict[str, Any] = {"authorizer": report is not None, "wanted": [_acl_json(each) for each in wants]}
    if report is not None:
        for name in ("missing", "denied", "extra"):
            found[name] = [_acl_json(each) for each in getattr(report, name)]
    return found


def _acl_json(acl: access.Acl) -> dict[str, str]:
    return {
        "principal": acl.principal,
        "operation": acl.operation.value,
        "resource": acl.resource.value,
        "name": acl.name,
        "pattern": acl.pattern.value,
    }


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
