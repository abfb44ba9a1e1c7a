"""`isocenter send`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from isocenter.cli import send_dimse, send_stow, state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.files import Candidate, Skipped, find, inspect
from isocenter.cli.options import (
    DEFAULT_AE_TITLE,
    DEFAULT_DATA_DIR,
    DEFAULT_DICOM_PORT,
    DEFAULT_HOST,
    DEFAULT_HTTP_PORT,
    DataDir,
    Json,
    examples,
)
from isocenter.cli.outcome import Fate, Outcome, Watcher, count, refused, skipped
from isocenter.cli.output import emit_json, size_text, stderr, stdout, transfer_progress
from isocenter.cli.scu import AssociationError

DEFAULT_WEB = f"http://{DEFAULT_HOST}:{DEFAULT_HTTP_PORT}/dicom-web"
MAX_NAMED = 40


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter send ~/dicom                       # every file below a folder, over C-STORE",
            "isocenter send --stow scan.dcm               # over STOW-RS",
            "isocenter send ct --to pacs.local:104 --aet PACS",
            "isocenter send ct --json | jq '.refused'     # who was refused, and why",
        )
    )(send)


def send(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders to walk.", exists=True)],
    stow: Annotated[bool, typer.Option("--stow", help="STOW-RS instead of C-STORE.")] = False,
    to: Annotated[
        str, typer.Option(help="HOST:PORT, or a DICOMweb URL with --stow. Default: the running platform.")
    ] = "",
    aet: Annotated[str, typer.Option(help="Called AE title. Default: the platform's.")] = "",
    calling: Annotated[str, typer.Option(help="Our own AE title.")] = "ISOCENTER-CLI",
    allow_refused: Annotated[
        bool, typer.Option("--allow-refused", help="Exit 0 even if something was refused.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """Send DICOM files, byte for byte, and say what became of each.

    Over C-STORE the data set leaves as it lies in the file, in the file's transfer syntax.
    Over STOW-RS the whole file does.
    Files in a folder that are no DICOM are skipped; files you name are always sent.

    Exits 1 when anything was refused.
    """
    started = time.perf_counter()
    target, transmit = _transmitter(stow, to, aet, calling, data_dir)
    with transfer_progress(quiet=json) as progress:
        outcomes = deliver(paths, transmit, progress, f"Sending to {target}")
    seconds = time.perf_counter() - started
    if json:
        emit_json(summary(outcomes, target, seconds))
    else:
        print_summary(outcomes, target, seconds)
    if count(outcomes, Fate.REFUSED) and not allow_refused:
        raise typer.Exit(Exit.REFUSED)


Transmit = Callable[[Sequence[Candidate], Watcher], list[Outcome]]


def deliver(paths: Sequence[Path], transmit: Transmit, progress: Progress, title: str) -> list[Outcome]:
    """Finds, inspects and transmits; a dead receiver leaves the rest refused instead of unmentioned."""
    outcomes: list[Outcome] = []
    candidates = inspect_all(paths, outcomes)
    task = progress.add_task(title, total=len(candidates), bytes="")
    total_bytes = sum(candidate.size for candidate in candidates)
    sent: list[Outcome] = []
    try:
        transmit(candidates, _watch(progress, task, total_bytes, sent.append))
    except CommandError as error:
        if not any(outcome.fate is Fate.STORED for outcome in sent):
            raise
        done = {outcome.path for outcome in sent}
        rest = [candidate for candidate in candidates if candidate.path not in done]
        sent += [refused(candidate, reason=f"not sent: {error.message}") for candidate in rest]
    return outcomes + sent


def dimse_transmitter(peer: send_dimse.Peer) -> Transmit:
    def transmit(candidates: Sequence[Candidate], watcher: Watcher) -> list[Outcome]:
        try:
            return send_dimse.send(candidates, peer, watcher)
        except AssociationError as error:
            raise CommandError(
                error.text,
                hint="isocenter up, or name another node with --to HOST:PORT --aet TITLE",
                code=Exit.UNREACHABLE,
            ) from error

    return transmit


def stow_transmitter(base_url: str) -> Transmit:
    return lambda candidates, watcher: send_stow.send(candidates, base_url, watcher)


def summary(outcomes: Sequence[Outcome], target: str, seconds: float) -> dict[str, object]:
    """The JSON form. `files` holds every file, refused ones again under `refused`."""
    return {
        "target": target,
        "seconds": round(seconds, 3),
        "bytes": sum(o.size for o in outcomes if o.fate is Fate.STORED),
        "counts": {fate.value: count(outcomes, fate) for fate in Fate},
        "studies": sorted({o.study_instance_uid for o in outcomes if o.fate is Fate.STORED}),
        "refused": [o.as_json() for o in outcomes if o.fate is Fate.REFUSED],
        "files": [o.as_json() for o in outcomes],
    }


def print_summary(outcomes: Sequence[Outcome], target: str, seconds: float) -> None:
    kept = [o for o in outcomes if o.fate is Fate.STORED]
    size = sum(o.size for o in kept)
    studies = len({o.study_instance_uid for o in kept})
    rate = f", {size_text(size / seconds)}/s" if seconds > 0.5 else ""
    out = stdout()
    out.print(
        f"[green]{len(kept)} stored[/green] ({studies} studies, {size_text(size)}) at {target}"
        f" in {seconds:.1f} s{rate}"
    )
    if ignored := count(outcomes, Fate.SKIPPED):
        out.print(f"[dim]{ignored} files skipped: not DICOM[/dim]")
    print_refused(outcomes, stderr())


def print_refused(outcomes: Sequence[Outcome], console: Console) -> None:
    bad = [o for o in outcomes if o.fate is Fate.REFUSED]
    if not bad:
        return
    reasons: dict[str, list[str]] = {}
    for outcome in bad:
        reasons.setdefault(outcome.reason, []).append(outcome.path.name)
    table = Table(
        title=f"{len(bad)} refused", title_style="bold yellow", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("why", overflow="fold", ratio=2)
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("which", overflow="fold", ratio=3)
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - MAX_NAMED} more: see --json" if len(names) > MAX_NAMED else ""
        table.add_row(Text(reason), str(len(names)), Text(", ".join(names[:MAX_NAMED]) + more))
    console.print(table)


def inspect_all(paths: Sequence[Path], outcomes: list[Outcome]) -> list[Candidate]:
    """Candidates in order; what is skipped or cannot be read goes to `outcomes`."""
    candidates = []
    for entry in find(paths):
        if isinstance(entry, Skipped):
            outcomes.append(skipped(entry))
            continue
        try:
            candidates.append(inspect(entry))
        except OSError as error:
            outcomes.append(Outcome(entry, Fate.REFUSED, 0, reason=f"cannot be read: {error.strerror}"))
    return candidates


def _watch(progress: Progress, task: TaskID, total_bytes: int, keep: Callable[[Outcome], None]) -> Watcher:
    """One bar for files; the bytes column shows the volume that is done."""
    sent = 0

    def on_bytes(number: int) -> None:
        nonlocal sent
        sent += number
        progress.update(task, bytes=f"{size_text(sent)} of {size_text(total_bytes)}")

    def on_outcome(outcome: Outcome) -> None:
        keep(outcome)
        progress.advance(task)

    return Watcher(on_bytes=on_bytes, on_outcome=on_outcome)


def _transmitter(stow: bool, to: str, aet: str, calling: str, data_dir: Path) -> tuple[str, Transmit]:
    running = state.find_running(data_dir)
    if stow:
        base = to or (running.dicom_web if running else DEFAULT_WEB)
        if "://" not in base:
            base = f"http://{base}/dicom-web"
        return base, stow_transmitter(base.rstrip("/"))
    host, port = DEFAULT_HOST, DEFAULT_DICOM_PORT
    if to:
        host, port = _host_port(to)
    elif running:
        host, port = running.host, running.dicom_port
    called = aet or (running.ae_title if running else DEFAULT_AE_TITLE)
    peer = send_dimse.Peer(host, port, called, calling)
    return f"{called}@{host}:{port}", dimse_transmitter(peer)


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise CommandError(f"--to {text} is no HOST:PORT", hint="--to 127.0.0.1:11112", code=Exit.USAGE)
    return host.strip("[]"), int(port)
