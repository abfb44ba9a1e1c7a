"""An event that no consumer can digest, and what an operator does about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.embedded import Embedded
from tests.flows.conftest import Stopped
from tests.flows.helpers import isocenter, isocenter_json

from isocenter.cli.errors import Exit
from isocenter.cli.eventlog import open_inspector
from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.clock import SystemClock
from isocenter.common.events.codec import source_of
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol, StoredInstance
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.telemetry import noop

Start = Callable[[Stopped], Embedded]
DEAD_LETTER_SECONDS = 60.0
_DAMAGED = b"no Part 10 file"


def test_a_dead_letter_is_listed_shown_and_given_back(site: Stopped, start: Start) -> None:
    event_id = asyncio.run(_publish_a_fact_about_a_damaged_object(site.data_dir))

    with start(site) as platform:
        (letter,) = _letters(platform.data_dir, 1)
        shown = isocenter_json("dlq", "show", letter["id"], data_dir=platform.data_dir)
        text = isocenter("dlq", "show", letter["id"], data_dir=platform.data_dir).stdout
        ready = platform.get("/readyz")[0]
        replayed = isocenter_json("dlq", "replay", letter["id"], data_dir=platform.data_dir)
        first, second = _letters(platform.data_dir, 2)

    assert "indexer.instances" == letter["group"]
    assert letter["type"].endswith("instances.stored.v1")
    assert event_id == shown["headers"]["ce_id"]
    assert event_id in text
    assert 200 == ready, "one record that nobody can digest is no reason to stop work"
    assert {"replayed": 1} == replayed
    assert (True, False) == (first["replayed"], second["replayed"])
    assert letter["id"] == first["id"]


def test_a_dead_letter_can_be_given_back_while_the_platform_is_down(site: Stopped, start: Start) -> None:
    asyncio.run(_publish_a_fact_about_a_damaged_object(site.data_dir))
    with start(site) as platform:
        _letters(platform.data_dir, 1)

    replayed = isocenter_json("dlq", "replay", "--all", data_dir=site.data_dir)

    assert {"replayed": 1} == replayed
    with start(site) as platform:
        assert [True, False] == [each["replayed"] for each in _letters(platform.data_dir, 2)]


def test_what_is_not_there_is_not_found(site: Stopped) -> None:
    known = "imaging.instance.v1.indexer.instances.dlq:0:999"

    isocenter("dlq", "show", known, data_dir=site.data_dir, expect=Exit.NOT_FOUND)
    isocenter("dlq", "replay", known, data_dir=site.data_dir, expect=Exit.NOT_FOUND)
    isocenter("dlq", "replay", "not an id", data_dir=site.data_dir, expect=Exit.USAGE)


def _letters(data_dir: Path, count: int) -> list[dict[str, Any]]:
    """Every dead letter, once there are so many."""
    deadline = time.monotonic() + DEAD_LETTER_SECONDS
    while asyncio.run(_count(data_dir)) < count:
        assert time.monotonic() < deadline, "no dead letter came"
        time.sleep(0.1)
    found: list[dict[str, Any]] = isocenter_json("dlq", "ls", "--all", data_dir=data_dir)
    return sorted(found, key=lambda letter: str(letter["time"]))


async def _count(data_dir: Path) -> int:
    async with open_inspector(data_dir) as inspector:
        return len([letter async for letter in inspector.dead_letters()])


async def _publish_a_fact_about_a_damaged_object(data_dir: Path) -> str:
    """An object under an instance's key that is no DICOM: what a defect in a store would leave."""
    keys, clock = SiteKeys.load_or_create(data_dir / "keys" / "site.key"), SystemClock()
    stored = StoredInstance(
        instance_key=keys.instance_key("1.2.3"),
        series_key=keys.series_key("1.2.4"),
        object_key=keys.object_key("1.2.3", "1.2.840.10008.1.2.1", "ab" * 32),
        content_digest="ab" * 32,
        size_bytes=len(_DAMAGED),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        received_at=clock.now(),
    )
    data = InstancesStored(
        study_key=keys.study_key("1.2.5"),
        transfer_id="gone",
        protocol=Protocol.DIMSE,
        sender="PEER",
        instances=[stored],
    )
    event = CloudEvent(id=clock.new_id(), source=source_of("ingest"), time=clock.now(), data=data)
    store = LocalObjectStore(data_dir / "objects")
    metadata = {
        "study_key": data.study_key,
        "series_key": stored.series_key,
        "instance_key": stored.instance_key,
        "content_digest": stored.content_digest,
        "transfer_syntax_uid": stored.transfer_syntax_uid,
        "sop_class_uid": stored.sop_class_uid,
        "received_at": stored.received_at.isoformat(),
        "sender": "PEER",
        "protocol": "dimse",
        "transfer_id": "gone",
        "sealing": "none",
    }
    await store.put(stored.object_key, _DAMAGED, metadata)
    await store.close()
    transport = EmbeddedTransport(data_dir / "bus.sqlite")
    bus = transport.bus("ingest", noop("ingest"))
    await bus.start()
    try:
        await bus.publish(event)
    finally:
        await bus.stop()
        await transport.close()
    return event.id
