"""`isocenter bucket apply`."""

from __future__ import annotations

from typing import Annotated

import typer

from isocenter.cli.options import Json, examples
from isocenter.cli.output import emit_json, stdout
from isocenter.common.objects.s3 import ensure_bucket
from isocenter.common.settings import S3Settings


def register(app: typer.Typer) -> None:
    bucket = typer.Typer(
        name="bucket",
        help="The bucket of this site in its object store: create it as it must be.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    bucket.callback()(_group)
    bucket.command(
        "apply",
        epilog=examples(
            "isocenter bucket apply                       # before the first start of a cluster",
            "isocenter bucket apply --no-object-lock      # for a store without Object Lock",
        ),
    )(apply)
    app.add_typer(bucket)


def _group() -> None:
    """Keeps `apply` a command of its own while it is the only one."""


def apply(
    object_lock: Annotated[
        bool,
        typer.Option(
            "--object-lock/--no-object-lock",
            help="Keep every version, so that objects can be locked. Most stores cannot turn it on later.",
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Create the bucket that ISOCENTER_S3_BUCKET names, if it is not there; again and again does no harm.

    No default retention is set: how long an object is kept is decided for each. Exits 5 if the bucket is
    there and was made without the Object Lock that is asked for.
    """
    state = ensure_bucket(S3Settings.load(), object_lock=object_lock)
    if json:
        emit_json(
            {
                "bucket": state.name,
                "created": state.created,
                "versioned": state.versioned,
                "object_lock": state.object_lock,
            }
        )
        return
    kind = "with Object Lock" if state.object_lock else "with versions" if state.versioned else "plain"
    stdout().print(f"bucket {state.name}: {'created' if state.created else 'was there'}, {kind}")
