"""The `isocenter` command.

A command's module is imported when its name is on the command line: `isocenter studies` need not wait for the
libraries of the acceptor.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from isocenter.cli.errors import EXIT_TABLE, CommandError, Exit
from isocenter.cli.output import report_error
from isocenter.common.errors import IsocenterError, Misconfigured, NotFound, Transient

COMMANDS = {
    "up": ("commands_up", "Start the platform in this process: ingest, indexer and gateway."),
    "demo": ("commands_demo", "Send real studies through the platform and prove that they come back equal."),
    "send": ("commands_send", "Send DICOM files, byte for byte, and say what became of each."),
    "synth-ct": ("commands_synth", "Write a CT volume that looks like a torso and is nobody's."),
    "studies": ("commands_studies", "List the studies of this site, from its index."),
    "trace": ("commands_trace", "Follow one study: its events with times, and its traces as a waterfall."),
    "stage": (
        "commands_stage",
        "Bring a settled study to this node's disk as aligned volumes, and say when it is ready.",
    ),
    "staged": (
        "commands_staged",
        "What is on this node: bytes, leases, pins, hits, and how loads carry the bytes.",
    ),
    "unstage": (
        "commands_unstage",
        "Remove staged copies from this node. The study itself is as safe as before; what is in use stays.",
    ),
    "view": (
        "commands_view",
        "Draw a montage of the largest volume of a study, as it is staged: a person sees that it is right.",
    ),
    "gpu": ("commands_gpu", "GPUs of this node: what staged volumes can be loaded with."),
    "commitments": (
        "commands_commitments",
        "List requests for storage commitment: who asked, what was found, and whether it was told.",
    ),
    "dlq": ("commands_dlq", "Records that a consumer gave up on: list, look into, try again."),
    "topics": (
        "commands_topics",
        "The topics of the contract on a Kafka cluster: list, compare, create, and who may use them.",
    ),
    "bucket": ("commands_bucket", "The bucket of this site in its object store: create it as it must be."),
    "probe-tier": (
        "commands_probe_tier",
        "Try to destroy locked objects: whether an S3 store may hold a tier that calls itself WORM.",
    ),
    "reindex": (
        "commands_reindex",
        "Rebuild the index from the objects alone, equal to the one it replaces.",
    ),
    "keys": (
        "commands_keys",
        "The keys that studies are sealed with: what wraps them, and wrapping them anew.",
    ),
    "adopt": (
        "commands_adopt",
        "Register an archive of DICOM files where it lies, without copying, and index it.",
    ),
    "migrate": (
        "commands_migrate",
        "Move a site from its data directory into a cluster, or back: whole, compared, resumable.",
    ),
    "doctor": (
        "commands_doctor",
        "Check this machine: ports, disk, clock, limits, keys, versions.",
    ),
}
"""Command -> module with a `register`, and its line in `isocenter --help`; in that order."""

COMPLETION = "_ISOCENTER_COMPLETE"
"""Set by the shell when it asks for completions."""

_EPILOG = (
    "[bold]First steps[/bold]\n\n[cyan]isocenter up[/cyan] in one terminal, then in another:\n\n"
    "[cyan]isocenter synth-ct ct && isocenter send ct && isocenter studies[/cyan]\n\n"
    "[bold]Exit codes[/bold]\n\n" + "; ".join(EXIT_TABLE.splitlines()) + "."
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"isocenter {version('isocenter')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the commands that these arguments may need."""
    root = typer.Typer(
        name="isocenter",
        help="Event-driven storage for medical imaging: what arrives is durable, indexed and traceable.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback()(_root)
    named = [argument for argument in arguments if not argument.startswith("-")][:1]
    if named and named[0] in COMMANDS:
        _register(root, named[0])
    else:
        for name, (_, line) in COMMANDS.items():
            if COMPLETION in os.environ:
                _register(root, name)
            else:
                root.command(name, help=line)(_placeholder)
    return root


def _register(root: typer.Typer, name: str) -> None:
    try:
        importlib.import_module(f"isocenter.cli.{COMMANDS[name][0]}").register(root)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("isocenter.gpu_stager"):
            raise
        raise CommandError(
            "the stager is not part of this installation",
            hint="pip install 'isocenter[staging]'",
            code=Exit.MISCONFIGURED,
        ) from None


def _placeholder() -> None:
    """Stands for a command in the list of commands; never called, since none was named."""


def app() -> None:
    """Runs the command line. Every foreseen failure is one line on stderr and a documented exit code."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    try:
        command_line(sys.argv[1:])()
    except CommandError as error:
        report_error(error)
        code = error.code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except IsocenterError as error:
        report_error(CommandError(str(error)))
        code = _code(error)
    except Exception:  # noqa: BLE001 - the last line: a stack for the report, and a code of its own
        traceback.print_exc()
        report_error(CommandError("this is a defect", hint="please report it with the lines above"))
        code = Exit.BUG
    sys.exit(int(code))


def _code(error: IsocenterError) -> Exit:
    match error:
        case Misconfigured():
            return Exit.MISCONFIGURED
        case NotFound():
            return Exit.NOT_FOUND
        case Transient():
            return Exit.UNREACHABLE
        case _:
            return Exit.REFUSED
