"""The `isocenter` command."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import click
import typer

from isocenter.cli import commands_send
from isocenter.cli.errors import EXIT_TABLE, CommandError, Exit
from isocenter.cli.output import report_error
from isocenter.common.errors import IsocenterError, Misconfigured, NotFound, Transient

_EPILOG = (
    "[bold]First steps[/bold]\n\n[cyan]isocenter up[/cyan] in one terminal, then in another:\n\n"
    "[cyan]isocenter synth-ct ct && isocenter send ct && isocenter studies[/cyan]\n\n"
    "[bold]Exit codes[/bold]\n\n" + "\n\n".join(EXIT_TABLE.splitlines())
)

typer_app = typer.Typer(
    name="isocenter",
    help="Event-driven storage for medical imaging: what arrives is durable, indexed and traceable.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"isocenter {version('isocenter')}")
        raise typer.Exit


@typer_app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


for module in (commands_send,):
    module.register(typer_app)


def app() -> None:
    """Runs the command line. Every foreseen failure is one line on stderr and a documented exit code."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    try:
        code = typer_app(standalone_mode=False)
    except CommandError as error:
        report_error(error)
        code = error.code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except IsocenterError as error:
        report_error(CommandError(str(error)))
        code = _code(error)
    sys.exit(int(code or 0))


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
