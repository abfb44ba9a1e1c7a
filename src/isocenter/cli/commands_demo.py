"""`isocenter demo`: the whole main job on real input, with proof."""

from __future__ import annotations

import asyncio
import json as jsonlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydicom
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from isocenter.cli import commands_studies, commands_trace, send_dimse, state
from isocenter.cli.commands_send import (
    Transmit,
    dimse_transmitter,
    inspect_all,
    print_refused,
    stow_transmitter,
)
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.files import Candidate
from isocenter.cli.options import examples
from isocenter.cli.outcome import Fate, Outcome, Watcher, count
from isocenter.cli.output import size_text, stderr, stdout, step_progress, transfer_progress
from isocenter.cli.site import open_index
from isocenter.cli.state import RunningPlatform
from isocenter.cli.synth import uid_for, write_ct
from isocenter.cli.wado import Comparison, RetrievalError, Sent, compare, fingerprint_file, retrieve
from isocenter.common.index.records import SettleState, StudyRecord

DEMO_DIR = Path(".data/demo")
START_SECONDS = 60.0
SETTLE_SECONDS = 90.0
STOP_SECONDS = 40.0
SHOWN_STUDIES = 12
CALLING = "ISOCENTER-DEMO"
STOW_RS = "STOW-RS"


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter demo                               # everything, in half a minute",
            "isocenter up --data-dir .data/demo/data      # afterwards: look around in what it left",
        )
    )(demo)


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was sent over one protocol."""

    protocol: str
    outcomes: list[Outcome]
    seconds: float


def demo(
    directory: Annotated[
        Path, typer.Option(help="Where the demo works; emptied first.", file_okay=False)
    ] = DEMO_DIR,
    slices: Annotated[int, typer.Option(min=1, max=2000, help="Slices of the CT volume.")] = 200,
) -> None:
    """Send real studies through the platform and prove that they come back equal.

    Starts the platform in a process of its own, sends the DICOM files of the pydicom package and a
    synthesised CT over C-STORE and STOW-RS, waits until every study has settled, retrieves all of them over
    DICOMweb, compares every byte, and shows the journey of one study.
    """
    began = time.perf_counter()
    data_dir = _prepare(directory)
    with _platform(data_dir, directory / "platform.log") as starting:
        ct = _draw(directory / "ct", slices)
        running = starting()
        _step(f"Platform ready: {running.ae_title}@{running.host}:{running.dicom_port}, {running.dicom_web}")
        delivered = _deliver(running, ct)
        outcomes = [outcome for each in delivered for outcome in each.outcomes]
        records = _settle(data_dir, {o.study_instance_uid for o in outcomes if o.fate is Fate.STORED})
        failures = _prove(running, delivered, records)
        time.sleep(0.3)  # spans leave in small batches; the retrieval's belong into the picture
        _journey(data_dir)
        print_refused(outcomes, stdout())
    _close(outcomes, records, failures, time.perf_counter() - began)


def _prepare(directory: Path) -> Path:
    """Empties what an earlier demo left; refuses a folder that is something else, or in use."""
    data_dir = directory / "data"
    running = state.find_running(data_dir)
    if running is not None:
        raise CommandError(
            f"a platform runs on {data_dir} (process {running.pid})", hint="stop it first", code=Exit.BUSY
        )
    marker = directory / "isocenter-demo"
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise CommandError(
            f"{directory} holds other files", hint="name an empty --directory", code=Exit.MISCONFIGURED
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    marker.touch()
    return data_dir


@contextmanager
def _platform(data_dir: Path, log: Path) -> Iterator[_Starting]:
    """`isocenter up` in a process of its own, on free ports; drained at the end."""
    command = [sys.executable, "-m", "isocenter.cli", "up", "--json", "--data-dir", str(data_dir)]
    command += ["--dicom-port", "0", "--http-port", "0"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stream)  # noqa: S603 - our own command
    try:
        yield _Starting(process, log)
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_SECONDS)
        if status:
            raise CommandError(f"the platform stopped with status {status}", hint=f"see {log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


class _Starting:
    """Waits for the line that says where the platform listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def __call__(self) -> RunningPlatform:
        if self._process.stdout is None:
            raise AssertionError
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(errors="replace")[-600:]
            raise CommandError(f"the platform did not start: {tail}", code=Exit.UNREACHABLE)
        found = jsonlib.loads(line)
        found.pop("dicom_web")
        return RunningPlatform(**found)


def _draw(directory: Path, slices: int) -> list[Path]:
    with step_progress() as progress:
        task = progress.add_task("Drawing a CT volume", total=slices)
        paths = write_ct(
            directory, slices=slices, on_slice=lambda number: progress.update(task, completed=number)
        )
    size = sum(path.stat().st_size for path in paths)
    _step(f"CT volume drawn: {slices} slices, {size_text(size)}, in {directory}")
    return paths


def _deliver(running: RunningPlatform, ct: Sequence[Path]) -> list[Delivered]:
    """Two associations and STOW-RS at the same time. One transfer brings all files of a study."""
    package = Path(pydicom.__file__).parent / "data"
    skipped: list[Outcome] = []
    candidates = inspect_all([package], skipped)
    studies = sorted({c.header.study_instance_uid for c in candidates if c.header})
    over_dimse = set(studies[::2])
    dimse = [c for c in candidates if c.header and c.header.study_instance_uid in over_dimse]
    stow = [c for c in candidates if not (c.header and c.header.study_instance_uid in over_dimse)]
    volume = inspect_all(list(ct), skipped)
    peer = send_dimse.Peer(running.host, running.dicom_port, running.ae_title, CALLING)
    with transfer_progress() as progress, ThreadPoolExecutor(3) as pool:

        def deliver(protocol: str, transmit: Transmit, mine: Sequence[Candidate]) -> Delivered:
            task = progress.add_task(protocol, total=len(mine), bytes="")
            sent = 0

            def on_bytes(number: int) -> None:
                nonlocal sent
                sent += number
                progress.update(task, bytes=size_text(sent))

            began = time.perf_counter()
            outcomes = transmit(mine, Watcher(on_bytes, lambda _: progress.advance(task)))
            return Delivered(protocol, outcomes, time.perf_counter() - began)

        lanes = [
            pool.submit(deliver, "C-STORE", dimse_transmitter(peer), volume),
            pool.submit(deliver, "C-STORE", dimse_transmitter(peer), dimse),
            pool.submit(deliver, STOW_RS, stow_transmitter(running.dicom_web), stow),
        ]
        delivered = [lane.result() for lane in lanes]
    for each in delivered:
        kept = [o for o in each.outcomes if o.fate is Fate.STORED]
        _step(
            f"{each.protocol}: {len(kept)} instances stored ({size_text(sum(o.size for o in kept))}) in"
            f" {each.seconds:.1f} s, {count(each.outcomes, Fate.REFUSED)} refused"
        )
    if skipped:
        stdout().print(f"  [dim]{len(skipped)} files of the package are no DICOM and were not sent[/dim]")
    return delivered


def _settle(data_dir: Path, studies: set[str]) -> list[StudyRecord]:
    """Watches the index until every study that was sent has settled."""
    began = time.perf_counter()
    live = Live(console=stderr(), transient=True, refresh_per_second=8)
    with live if sys.stderr.isatty() else nullcontext():
        while True:
            records = asyncio.run(_studies(data_dir, studies))
            waiting = [r for r in records if r.state is not SettleState.SETTLED]
            if len(records) == len(studies) and not waiting:
                break
            if time.perf_counter() - began > SETTLE_SECONDS:
                missing = len(studies) - len(records) + len(waiting)
                raise CommandError(
                    f"{missing} of {len(studies)} studies have not settled",
                    hint="see platform.log in the demo's folder, and isocenter dlq ls",
                )
            live.update(_overview(records, len(studies)))
            time.sleep(0.1)
    _step(f"{len(records)} studies settled, {time.perf_counter() - began:.1f} s after the last byte")
    stdout().print(_overview(records, len(studies)))
    return records


async def _studies(data_dir: Path, wanted: set[str]) -> list[StudyRecord]:
    async with open_index(data_dir) as index:
        return [study async for study in index.studies() if study.study_instance_uid in wanted]


def _overview(records: Sequence[StudyRecord], expected: int) -> Table:
    ordered = sorted(records, key=lambda record: (-record.instances, record.study_key))
    table = commands_studies.table(ordered[:SHOWN_STUDIES])
    settled = sum(1 for record in records if record.state is SettleState.SETTLED)
    more = f", {len(records) - SHOWN_STUDIES} more not shown" if len(records) > SHOWN_STUDIES else ""
    table.caption = f"{settled} of {expected} settled{more}"
    table.caption_justify = "left"
    return table


def _prove(
    running: RunningPlatform, delivered: Sequence[Delivered], records: Sequence[StudyRecord]
) -> list[str]:
    """Retrieves every study over WADO-RS and compares; returns what is wrong."""
    sent: dict[str, list[Sent]] = {}
    for each in delivered:
        for outcome in each.outcomes:
            if outcome.fate is Fate.STORED:
                fingerprint = fingerprint_file(outcome.path)
                sent.setdefault(fingerprint.sop_instance_uid, []).append(
                    Sent(fingerprint, each.protocol == STOW_RS)
                )
    began = time.perf_counter()
    problems: list[str] = []
    total = Comparison(0, 0, (), 0)
    with step_progress() as progress:
        task = progress.add_task("Retrieving over WADO-RS and comparing", total=len(records))
        for record in records:
            try:
                found = compare(retrieve(running.dicom_web, record.study_instance_uid), sent)
            except RetrievalError as error:
                problems.append(f"study {record.study_key}: {error}")
                continue
            if not found.proven:
                problems.append(f"study {record.study_key}: {len(found.different)} instances differ")
            if found.equal_whole + found.equal_data_set != record.instances:
                problems.append(f"study {record.study_key}: not all instances came back")
            total = Comparison(
                total.equal_whole + found.equal_whole,
                total.equal_data_set + found.equal_data_set,
                total.different + found.different,
                total.size + found.size,
            )
            progress.advance(task)
    seconds = time.perf_counter() - began
    if not problems:
        _step(
            f"Byte for byte equal: {total.equal_whole} whole files (STOW-RS), {total.equal_data_set} data"
            f" sets (C-STORE), {len(records)} studies; {size_text(total.size)} retrieved in {seconds:.1f} s"
        )
    for problem in problems:
        stderr().print(Text(f"✗ {problem}", style="red"))
    return problems


def _journey(data_dir: Path) -> None:
    out = stdout()
    out.print()
    record, steps, spans = asyncio.run(commands_trace.read(data_dir, uid_for(1, "study")))
    commands_trace.show(out, record, steps, spans)
    out.print()


def _close(
    outcomes: Sequence[Outcome], records: Sequence[StudyRecord], failures: list[str], seconds: float
) -> None:
    out = stdout()
    conflicts = sum(record.conflicts for record in records)
    if conflicts:
        out.print(
            f"{conflicts} conflicts: the package holds different files with the same SOP Instance UID."
            " All are kept, the first stays current."
        )
    stored, refused = count(outcomes, Fate.STORED), count(outcomes, Fate.REFUSED)
    if failures:
        raise CommandError(f"{len(failures)} studies did not come back as they were sent")
    out.print(
        f"\n[bold green]Done in {seconds:.1f} s:[/bold green] {stored} instances acknowledged,"
        f" {len(records)} studies settled and equal to what was sent, {refused} files refused with a reason."
    )
    out.print("Next: [cyan]make up[/cyan], or [cyan]isocenter studies -d .data/demo/data[/cyan]")


def _step(text: str) -> None:
    stdout().print(Text("✓ ", style="green") + Text(text))
