"""The journey of one study: its events from the log and its spans, as tables for people and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isocenter.cli.eventlog import open_inspector, records
from isocenter.cli.output import size_text
from isocenter.cli.tracestore import read_traces
from isocenter.cli.waterfall import ms
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.engines import SPANS_FILE
from isocenter.common.errors import InvalidEvent, NotFound, UnknownEventType
from isocenter.common.events.codec import decode
from isocenter.common.events.models import (
    CloudEvent,
    InstanceConflicted,
    InstanceRejected,
    InstancesStored,
    StageStudy,
    StudyEvicted,
    StudySettled,
    StudyStaged,
    StudyUpdated,
    TransferClosed,
    UnstageStudy,
)
from isocenter.common.index.records import StudyRecord
from isocenter.common.settings import PlatformSettings
from isocenter.common.telemetry import StoredSpan, read_spans

TOPICS = ("imaging.instance.v1", "imaging.study.v1", "imaging.command.v1")


@dataclass(frozen=True, slots=True)
class Step:
    """One event of the study as it lies in the log."""

    time: datetime
    topic: str
    partition: int
    offset: int
    event: CloudEvent

    @property
    def name(self) -> str:
        return self.event.type.removeprefix("org.isocenter.imaging.")

    def as_json(self) -> dict[str, Any]:
        return {
            "time": self.time,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "id": self.event.id,
            "type": self.event.type,
            "source": self.event.source,
            "data": self.event.data.model_dump(mode="json"),
        }


async def steps(data_dir: Path, study_key: str) -> list[Step]:
    """The study's events in order of time. What is no event of ours is left out: `isocenter dlq` shows it."""
    found: list[Step] = []
    async with open_inspector(data_dir) as inspector:
        for topic in TOPICS:
            async for record in records(inspector, topic):
                if (record.key or b"") != study_key.encode():
                    continue
                try:
                    event = decode(record.headers, record.value or b"")
                except (InvalidEvent, UnknownEventType):
                    continue
                found.append(Step(event.time, topic, record.partition, record.offset, event))
    return sorted(found, key=lambda step: (step.time, step.topic, step.offset))


async def spans(data_dir: Path, record: StudyRecord, clock: Clock | None = None) -> list[StoredSpan]:
    """From the trace store that the settings name, else those kept on this machine, if there are any still.

    Raises:
        TraceStoreUnavailable: one is named and does not answer.
    """
    url = PlatformSettings.load(data_dir=data_dir).trace_store_url
    if url is not None:
        now = (clock or SystemClock()).now()
        return await read_traces(url, record.study_key, since=record.first_received_at, until=now)
    try:
        return await asyncio.to_thread(read_spans, data_dir / SPANS_FILE, record.study_key)
    except NotFound:
        return []


def event_table(found: Sequence[Step], *, every: bool = False) -> Table:
    """Runs of `instances.stored` become one line unless `every`."""
    table = Table(title="Events", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("what it says", overflow="fold")
    table.add_column("where in the log", style="dim", no_wrap=True)
    if not found:
        return table
    begun = found[0].time
    for run in [[step] for step in found] if every else runs(found):
        first, last = run[0], run[-1]
        offsets = f"{first.offset}" if first is last else f"{first.offset}..{last.offset}"
        table.add_row(
            f"{first.time:%H:%M:%S.%f}"[:-3],
            "+" + ms((first.time - begun).total_seconds() * 1e9),
            Text(first.name if first is last else f"{first.name} ({len(run)})", style=_style(first)),
            _says(run),
            f"{first.topic}[{first.partition}]@{offsets}",
        )
    return table


def runs(found: Sequence[Step]) -> list[list[Step]]:
    """Neighbouring `instances.stored` of one transfer belong together."""
    out: list[list[Step]] = []
    for step in found:
        data = step.event.data
        before = out[-1][-1].event.data if out else None
        if (
            isinstance(data, InstancesStored)
            and isinstance(before, InstancesStored)
            and data.transfer_id == before.transfer_id
        ):
            out[-1].append(step)
        else:
            out.append([step])
    return out


def _style(step: Step) -> str:
    match step.event.data:
        case StudySettled():
            return "bold green"
        case InstanceRejected() | InstanceConflicted():
            return "red"
        case _:
            return "cyan"


def _says(run: Sequence[Step]) -> str:
    data = run[0].event.data
    match data:
        case InstancesStored():
            stored = [step.event.data for step in run]
            count = sum(len(each.instances) for each in stored if isinstance(each, InstancesStored))
            return f"{count} instances durable, {data.protocol.value} from {data.sender}"
        case TransferClosed():
            how = "aborted" if data.aborted else "closed"
            return f"transfer {how} after {data.instances} instances"
        case StudySettled():
            return (
                f"version {data.version} ({data.reason.value}): {data.series} series,"
                f" {data.instances} instances, {'/'.join(data.modalities)}"
            )
        case StudyUpdated():
            return f"version {data.version} is out of date"
        case InstanceRejected():
            return f"refused: {data.reason.value}"
        case InstanceConflicted():
            return "same SOP Instance UID, other content: both kept"
        case StudyStaged():
            ready = f"ready on {data.node}: {size_text(data.size_bytes)}, {data.mode.value}"
            if data.received_at is None:
                return ready
            waited = (data.staged_at - data.received_at).total_seconds()
            return f"{ready}, {waited:.2f} s after it was received"
        case StudyEvicted():
            return f"a series is gone from {data.node}: {data.reason.value}"
        case StageStudy():
            what = "the study" if data.series_key is None else "a series"
            return f"{data.requested_by} wants {what} on a GPU node: {data.priority.value}"
        case UnstageStudy():
            what = "the study" if data.series_key is None else "a series"
            return f"{data.requested_by} needs {what} on GPU nodes no longer"
        case _:
            return ""
