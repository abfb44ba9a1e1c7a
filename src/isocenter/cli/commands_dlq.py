"""`isocenter dlq ls|show|replay`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json as jsonlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.eventlog import open_inspector
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stdout
from isocenter.common.bus.inspect import DeadLetter
from isocenter.common.events.codec import event_type_of

Ident = tuple[str, int, int]


def register(app: typer.Typer) -> None:
    dlq = typer.Typer(
        name="dlq",
        help="Records that a consumer gave up on: list, look into, try again.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    dlq.command("ls", epilog=examples("isocenter dlq ls", "isocenter dlq ls --all --json"))(ls)
    dlq.command("show", epilog=examples("isocenter dlq show imaging.instance.v1.indexer.instances.dlq:0:3"))(
        show
    )
    dlq.command(
        "replay",
        epilog=examples(
            "isocenter dlq replay imaging.instance.v1.indexer.instances.dlq:0:3",
            "isocenter dlq replay --all                   # after the cause is gone",
        ),
    )(replay)
    app.add_typer(dlq)


def ls(
    every: Annotated[bool, typer.Option("--all", help="Those that were replayed too.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """List dead letters: which group gave up, why, and under which id to replay.

    Exits 0 also when there are some.
    """
    letters = [each for each in asyncio.run(_letters(data_dir)) if every or not each.replayed]
    if json:
        emit_json([as_json(each) for each in letters])
        return
    if not letters:
        stdout().print("No dead letters.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "group", "event", "when (UTC)", "reason"):
        table.add_column(name, overflow="fold")
    for each in letters:
        table.add_row(
            Text(ident_of(each)),
            each.group,
            (event_type_of(each.record.headers) or "?").removeprefix("org.isocenter.imaging."),
            f"{_time(each):%Y-%m-%d %H:%M:%S}",
            Text(" ".join(filter(None, (each.reason, each.error, "(replayed)" if each.replayed else "")))),
        )
    stdout().print(table)


def show(
    ident: Annotated[str, typer.Argument(metavar="ID", help="TOPIC:PARTITION:OFFSET, as `dlq ls` shows it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """Show one dead letter whole: headers, reason, error and the record as it came."""
    wanted = parse_ident(ident)
    letter = next((each for each in asyncio.run(_letters(data_dir)) if _place(each) == wanted), None)
    if letter is None:
        raise CommandError(f"no dead letter {ident}", hint="isocenter dlq ls --all", code=Exit.NOT_FOUND)
    if json:
        emit_json(as_json(letter, whole=True))
        return
    out = stdout()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    origin = f"{letter.origin_topic}[{letter.origin_partition}]@{letter.origin_offset}"
    for name, value in (
        ("id", ident_of(letter)),
        ("group", letter.group),
        ("from", origin),
        ("when", f"{_time(letter):%Y-%m-%d %H:%M:%S} UTC"),
        ("reason", letter.reason),
        ("error", letter.error),
        ("replayed", "yes" if letter.replayed else "no"),
    ):
        table.add_row(name, Text(value))
    out.print(table)
    out.print("\n[bold]Headers[/bold]")
    for name, raw in letter.record.headers:
        out.print(Text(f"  {name}: {_text(raw)}"))
    out.print("\n[bold]Value[/bold]")
    out.print(Text(_pretty(letter.record.value)))


def replay(
    idents: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="TOPIC:PARTITION:OFFSET")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every dead letter that was not replayed yet.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """Give dead letters back to the group that gave up on them, and to nobody else.

    Works while the platform runs (it does the work) and while it does not (it happens at the next start).
    What fails again comes back as a new dead letter.
    """
    if bool(idents) == every:
        raise CommandError("name dead letters, or --all", hint="isocenter dlq ls", code=Exit.USAGE)
    count = asyncio.run(_replay(data_dir, [parse_ident(each) for each in idents or []], every=every))
    if json:
        emit_json({"replayed": count})
    else:
        stdout().print(f"{count} replayed")


async def _letters(data_dir: Path) -> list[DeadLetter]:
    async with open_inspector(data_dir) as inspector:
        return [letter async for letter in inspector.dead_letters()]


async def _replay(data_dir: Path, idents: list[Ident], *, every: bool) -> int:
    async with open_inspector(data_dir) as inspector:
        if every:
            return await inspector.replay_all()
        for topic, partition, offset in idents:
            await inspector.replay(topic, partition, offset)
    return len(idents)


def parse_ident(text: str) -> Ident:
    """Raises CommandError."""
    topic, _, rest = text.partition(":")
    partition, _, offset = rest.partition(":")
    if not topic or not partition.isdigit() or not offset.isdigit():
        raise CommandError(f"{text} is no TOPIC:PARTITION:OFFSET", hint="isocenter dlq ls", code=Exit.USAGE)
    return topic, int(partition), int(offset)


def ident_of(letter: DeadLetter) -> str:
    return ":".join(map(str, _place(letter)))


def _place(letter: DeadLetter) -> Ident:
    return letter.record.topic, letter.record.partition, letter.record.offset


def as_json(letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": ident_of(letter),
        "group": letter.group,
        "type": event_type_of(letter.record.headers),
        "time": _time(letter),
        "origin": {
            "topic": letter.origin_topic,
            "partition": letter.origin_partition,
            "offset": letter.origin_offset,
        },
        "reason": letter.reason,
        "error": letter.error,
        "replayed": letter.replayed,
    }
    if whole:
        found["headers"] = {name: _text(raw) for name, raw in letter.record.headers}
        found["value_base64"] = (
            None if letter.record.value is None else base64.b64encode(letter.record.value).decode()
        )
    return found


def _time(letter: DeadLetter) -> datetime:
    return datetime.fromtimestamp(letter.record.timestamp_ms / 1000, UTC)


def _text(raw: bytes | None) -> str:
    return "null" if raw is None else raw.decode(errors="backslashreplace")


def _pretty(value: bytes | None) -> str:
    if value is None:
        return "null"
    try:
        return jsonlib.dumps(jsonlib.loads(value), indent=2)
    except ValueError:
        return f"{len(value)} bytes, no JSON: {binascii.hexlify(value[:256], ' ').decode()}"
