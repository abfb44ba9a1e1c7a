"""`DOE^JANE` goes through everything the platform does, refusals and failures included, and is found nowhere
but in the index and in the objects.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks.embedded import Embedded
from tests.privacy import canary
from tests.privacy.canary import UIDS, Search
from tests.privacy.scenario import (
    Target,
    ask,
    ask_for_commitment,
    poison,
    store_over_dimse,
    store_over_stow,
)

from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore

ENVIRONMENT = {
    "ISOCENTER_LOG_LEVEL": "debug",
    "ISOCENTER_INDEXER_QUIET_SECONDS": "1",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.2",
}


@dataclass
class Site:
    """A platform that has seen everything and is stopped now, and what it said meanwhile."""

    data_dir: Path
    output: bytes
    """Log and standard output of every run."""
    metrics: bytes
    answers: list[bytes]
    """Headers and bodies of HTTP answers that refuse."""
    records: dict[str, list[bytes]] = field(default_factory=dict)
    """Topic -> key, headers and body of every record."""
    object_metadata: list[str] = field(default_factory=list)

    @property
    def dead_letters(self) -> list[bytes]:
        return [part for topic, parts in self.records.items() if topic.endswith(".dlq") for part in parts]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    platform = Embedded(tmp_path_factory.mktemp("canary"), ENVIRONMENT)
    with platform:
        target = _target(platform)
        store_over_dimse(target)
        answers = store_over_stow(target) + ask_for_commitment(target)
        platform.instances(f"/dicom-web/studies/{UIDS['study']}", at_least=3)
        answers += ask(_target(platform))
        metrics = platform.get("/metrics", "text/plain")[2]
    asyncio.run(_poison(platform.data_dir))
    with platform:
        # The first delivery, retries in place, the retry topic and the dead-letter topic all happen here.
        _until(lambda: b"event.dead_lettered" in platform.log.read_bytes())
        answers += ask(_target(platform))
        metrics += platform.get("/metrics", "text/plain")[2]
    output = platform.log.read_bytes() + platform.output.read_bytes()
    found = Site(platform.data_dir, output, metrics, answers)
    asyncio.run(_read_back(found))
    return found


def test_the_canary_is_where_it_may_be(site: Site) -> None:
    """The index holds every value of it that was accepted: finding nothing elsewhere means something. Objects
    are sealed, but for the poison that was put there by hand.
    """
    accepted = set(canary.CANARIES) - {"unknown study", "refused instance", "poison instance"}
    index = [path.read_bytes() for path in site.data_dir.glob("index.sqlite*")]
    assert accepted - {"other name", "private", "institution"} <= Search().hits(*index)
    objects = [path.read_bytes() for path in _files(site.data_dir / "objects" / "objects" / "instances")]
    poison, sealed = canary.poison_and_others(objects)
    assert 1 == len(poison)
    assert len(sealed) >= 4
    assert set() == Search().hits(*sealed)


def test_no_record_of_any_topic_holds_it(site: Site) -> None:
    assert {"imaging.instance.v1", "imaging.study.v1"} <= {
        topic for topic, records in site.records.items() if records
    }
    found = {topic: Search().hits(*records) for topic, records in site.records.items()}
    assert {topic: set[str]() for topic in site.records} == found


def test_no_dead_letter_holds_it(site: Site) -> None:
    assert site.dead_letters
    assert set() == Search().hits(*site.dead_letters)


def test_the_event_log_file_does_not_hold_it(site: Site) -> None:
    """Byte by byte: also what was deleted, and what is in a write-ahead log."""
    files = sorted(site.data_dir.glob("bus.sqlite*"))
    assert files
    assert set() == Search().hits(*(path.read_bytes() for path in files))


def test_no_log_line_holds_it(site: Site) -> None:
    assert b"event.dead_lettered" in site.output
    assert set() == Search().hits(site.output)


def test_no_span_holds_it(site: Site) -> None:
    files = sorted(site.data_dir.glob("spans.sqlite*"))
    content = b"".join(path.read_bytes() for path in files)
    assert b"isocenter.study_key" in content
    assert set() == Search().hits(content)


def test_no_metric_holds_it(site: Site) -> None:
    assert b"isocenter" in site.metrics
    assert set() == Search().hits(site.metrics)


def test_no_name_of_a_file_or_object_and_no_object_metadata_hold_it(site: Site) -> None:
    names = [str(path.relative_to(site.data_dir)) for path in site.data_dir.rglob("*")]
    assert any(name.startswith("objects/objects/instances/") for name in names)
    assert site.object_metadata
    assert set() == Search().hits(*names, *site.object_metadata)


def test_no_other_file_of_the_platform_holds_it(site: Site) -> None:
    """Whatever is added to the data directory one day is covered by this."""
    others = [
        path
        for path in _files(site.data_dir)
        if not path.name.startswith("index.sqlite") and "objects/objects" not in str(path)
    ]
    assert set() == Search().hits(*(path.read_bytes() for path in others))


def test_no_answer_that_refuses_repeats_what_was_asked(site: Site) -> None:
    """Problem documents are copied into tickets and proxies' logs."""
    assert site.answers
    assert set() == Search().hits(*site.answers)


@pytest.mark.parametrize("name", sorted(canary.CANARIES))
def test_the_search_finds_every_spelling(name: str) -> None:
    """The searcher itself can fail: it finds each value in each disguise."""
    value = canary.CANARIES[name].encode()
    disguises = [
        value,
        value.hex().encode(),
        value.decode().encode("utf-16-le"),
        *(base64.b64encode(b"x" * lead + value + b"tail") for lead in range(3)),
    ]
    assert [{name}] * len(disguises) == [
        Search().hits(b"...." + disguise + b"....") & {name} for disguise in disguises
    ]


async def _poison(data_dir: Path) -> None:
    keys = SiteKeys.load_or_create(data_dir / "keys" / "site.key")
    store = LocalObjectStore(data_dir / "objects")
    transport = EmbeddedTransport(data_dir / "bus.sqlite")
    try:
        await poison(keys, store, transport)
    finally:
        await transport.close()
        await store.close()


def _target(platform: Embedded) -> Target:
    return Target(platform.dicom_port, platform.ae_title, platform.dicom_web, platform.dicom_web)


async def _read_back(site: Site) -> None:
    """Records and object metadata of the stopped platform."""
    transport = EmbeddedTransport(site.data_dir / "bus.sqlite")
    try:
        inspector = transport.inspector()
        for topic in await inspector.topics():
            parts = site.records.setdefault(topic, [])
            async for record in inspector.read(topic):
                parts += [record.key or b"", record.value or b"", repr(record.headers).encode()]
    finally:
        await transport.close()
    store = LocalObjectStore(site.data_dir / "objects")
    try:
        site.object_metadata = [f"{info.key} {dict(info.metadata)}" async for info in store.list()]
    finally:
        await store.close()


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)
