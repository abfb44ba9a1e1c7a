"""What survives: replays, rebuilds, restarts and late instances. Each test has a site of its own."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.embedded import Embedded
from tests.flows.conftest import Stopped
from tests.flows.helpers import ENVIRONMENT, dump, isocenter, isocenter_json, settled

from isocenter.cli.eventlog import open_inspector
from isocenter.cli.synth import uid_for
from isocenter.cli.wado import Sent, compare, fingerprint_file, retrieve

Start = Callable[[Stopped], Embedded]
STUDY = uid_for(1, "study")
CATCH_UP_SECONDS = 60.0


def test_replaying_every_topic_from_the_beginning_changes_nothing(site: Stopped, start: Start) -> None:
    before, events = dump(site.data_dir), asyncio.run(_topics(site.data_dir))
    subscriptions = _subscriptions(site.data_dir)
    ends = _offsets(site.data_dir)

    asyncio.run(_rewind(site.data_dir, subscriptions))
    rewound = _offsets(site.data_dir)
    with start(site) as platform:
        _until(lambda: _offsets(platform.data_dir) == ends)
        time.sleep(1.0)  # a study that was opened again by mistake would settle in this time

    assert any(ends.values())
    assert not any(rewound.values())
    assert before == dump(site.data_dir)
    assert events == asyncio.run(_topics(site.data_dir))


def test_replaying_beside_a_running_platform_changes_nothing(site: Stopped, start: Start) -> None:
    before, events = dump(site.data_dir), asyncio.run(_topics(site.data_dir))
    ends = _offsets(site.data_dir)

    with start(site) as platform:
        asyncio.run(_rewind(platform.data_dir, _subscriptions(platform.data_dir)))
        _until(lambda: _offsets(platform.data_dir) == ends)
        time.sleep(1.0)

    assert before == dump(site.data_dir)
    assert events == asyncio.run(_topics(site.data_dir))


def test_a_rebuilt_index_equals_the_one_that_was_there(site: Stopped) -> None:
    before = dump(site.data_dir)

    report = isocenter_json("reindex", data_dir=site.data_dir)

    assert before == dump(site.data_dir)
    assert len(site.studies) == report["studies"] == report["settled"]
    assert [] == report["unreadable"]


def test_an_index_that_was_lost_comes_back_and_serves(site: Stopped, start: Start, ct: list[Path]) -> None:
    before = dump(site.data_dir)
    for path in site.data_dir.glob("index.sqlite*"):
        path.unlink()

    isocenter("reindex", data_dir=site.data_dir)

    assert before == dump(site.data_dir)
    with start(site) as platform:
        assert _comes_back(platform, ct)
    assert before == dump(site.data_dir)


def test_a_restart_keeps_everything(site: Stopped, start: Start, ct: list[Path]) -> None:
    before = dump(site.data_dir)

    with start(site) as platform:
        assert _comes_back(platform, ct)
        first = platform.pid
    with start(site) as platform:
        assert _comes_back(platform, ct)
        assert first != platform.pid

    assert before == dump(site.data_dir)


def test_a_killed_platform_starts_again_on_the_same_data(site: Stopped, start: Start, ct: list[Path]) -> None:
    """The lock dies with its process: no file has to be removed by hand."""
    platform = start(site)
    platform.launch()
    platform.wait_ready()
    platform.kill()

    with platform:
        assert _comes_back(platform, ct)


def test_late_instances_make_the_next_version(tmp_path: Path, ct: list[Path]) -> None:
    with Embedded(tmp_path, ENVIRONMENT) as platform:
        isocenter("send", *ct[:8], data_dir=platform.data_dir)
        first = settled(platform.data_dir, [STUDY])[STUDY]
        isocenter("send", *ct[8:], data_dir=platform.data_dir)
        second = settled(platform.data_dir, [STUDY], version=2)[STUDY]
        journey = isocenter_json("trace", STUDY, data_dir=platform.data_dir)

    assert (1, 8) == (first.version, first.instances)
    assert (2, len(ct)) == (second.version, second.instances)
    versions = [
        event["data"]["version"] for event in journey["events"] if event["type"].endswith("study.settled.v1")
    ]
    assert [1, 2] == versions


def test_trace_and_studies_work_after_the_platform_has_stopped(site: Stopped) -> None:
    journey = isocenter_json("trace", STUDY, data_dir=site.data_dir)
    listed = isocenter_json("studies", "--limit", "500", data_dir=site.data_dir)

    assert {"ingest", "indexer"} <= {span["service"] for span in journey["spans"]}
    assert set(site.studies) == {study["study_instance_uid"] for study in listed}


def _comes_back(platform: Embedded, ct: list[Path]) -> bool:
    sent = {mark.sop_instance_uid: [Sent(mark, whole=False)] for mark in map(fingerprint_file, ct)}
    found = compare(retrieve(platform.dicom_web, STUDY), sent)
    return found.proven and found.equal_data_set == len(ct)


def _subscriptions(data_dir: Path) -> list[tuple[str, str]]:
    """Every consumer group with every topic it reads."""
    with sqlite3.connect(data_dir / "bus.sqlite") as connection:
        found = connection.execute("SELECT grp, topic FROM subscriptions ORDER BY grp, topic").fetchall()
    connection.close()
    assert found
    return found


def _offsets(data_dir: Path) -> dict[tuple[str, str, int], int]:
    """Group, topic, partition -> the next record it will read; what it never committed is left out."""
    with sqlite3.connect(data_dir / "bus.sqlite") as connection:
        rows = connection.execute("SELECT grp, topic, part, off FROM offsets WHERE off > 0").fetchall()
    connection.close()
    return {(group, topic, partition): offset for group, topic, partition, offset in rows}


async def _rewind(data_dir: Path, subscriptions: list[tuple[str, str]]) -> None:
    async with open_inspector(data_dir) as inspector:
        for group, topic in subscriptions:
            await inspector.rewind(group, topic)


async def _topics(data_dir: Path) -> dict[str, int]:
    async with open_inspector(data_dir) as inspector:
        return await inspector.topics()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the consumers did not catch up"
        time.sleep(0.1)
