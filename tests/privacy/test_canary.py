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

import httpx
import pytest
from benchmarks.dimse import Association, AssociationError, DataSet
from benchmarks.embedded import Embedded
from tests.privacy import canary
from tests.privacy.canary import UIDS, VALUES, Search

from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.clock import SystemClock
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol, StoredInstance
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.telemetry import noop

DICOM_JSON = "application/dicom+json"
METADATA = {
    "series_key",
    "instance_key",
    "content_digest",
    "transfer_syntax_uid",
    "sop_class_uid",
    "received_at",
}
ENVIRONMENT = {
    "ISOCENTER_LOG_LEVEL": "debug",
    "ISOCENTER_INDEXER_QUIET_SECONDS": "1",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.2",
}


BROKEN_OFF = 0xFFFF
"""Stands for an association that ended instead of a status."""


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
        _store_over_dimse(platform)
        answers = _store_over_stow(platform)
        platform.instances(f"/dicom-web/studies/{UIDS['study']}", at_least=3)
        answers += _ask(platform)
        metrics = platform.get("/metrics", "text/plain")[2]
    asyncio.run(_poison(platform.data_dir))
    with platform:
        # The first delivery, retries in place, the retry topic and the dead-letter topic all happen here.
        _until(lambda: b"event.dead_lettered" in platform.log.read_bytes())
        answers += _ask(platform)
        metrics += platform.get("/metrics", "text/plain")[2]
    output = platform.log.read_bytes() + platform.output.read_bytes()
    found = Site(platform.data_dir, output, metrics, answers)
    asyncio.run(_read_back(found))
    return found


def test_the_canary_is_where_it_may_be(site: Site) -> None:
    """Index and objects hold every value that was accepted: finding nothing elsewhere means something."""
    accepted = set(canary.CANARIES) - {"unknown study", "refused instance", "poison instance"}
    index = [path.read_bytes() for path in site.data_dir.glob("index.sqlite*")]
    assert accepted - {"other name", "private", "institution"} <= Search().hits(*index)
    objects = [path.read_bytes() for path in _files(site.data_dir / "objects" / "objects" / "instances")]
    assert accepted <= Search().hits(*objects)


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


def _store_over_dimse(platform: Embedded) -> None:
    """Two instances, one of them twice, a conflict, and everything that is refused."""
    first, second = UIDS["first instance"], UIDS["second instance"]
    refused = UIDS["refused instance"]
    assert 0 == _c_store(platform, first, canary.encoded(canary.data_set(first)))
    assert 0 == _c_store(platform, first, canary.encoded(canary.data_set(first)))
    assert 0 == _c_store(platform, first, canary.encoded(canary.data_set(first, pixel=1)))
    assert 0 == _c_store(platform, second, canary.encoded(canary.data_set(second)))
    name = VALUES["patient name"]
    whole = canary.encoded(canary.data_set(refused))
    refusals = [
        canary.encoded(canary.data_set(refused, StudyInstanceUID=None)),
        canary.encoded(canary.data_set(second, pixel=2)),
        whole.replace(UIDS["study"].encode(), name.encode().ljust(len(UIDS["study"]), b"x")),
        whole[: whole.index(UIDS["series"].encode()) + 7],
        name.encode() * 40,
        b"",
    ]
    statuses = [_c_store(platform, refused, data) for data in refusals]
    assert 0 not in statuses
    assert 0 != _c_store(platform, name, canary.encoded(canary.data_set(refused)))


def _c_store(platform: Embedded, sop_instance_uid: str, data: bytes) -> int:
    address = ("127.0.0.1", platform.dicom_port)
    try:
        with Association(address, [canary.CT_IMAGE], called=platform.ae_title, calling="PEER") as association:
            return association.store(DataSet(canary.CT_IMAGE, sop_instance_uid, (data,)))
    except AssociationError:
        return BROKEN_OFF


def _store_over_stow(platform: Embedded) -> list[bytes]:
    """A good instance, then requests that fail in part and as a whole. Returns the answers that refuse."""
    url = f"{platform.dicom_web}/studies"
    good = canary.part10(canary.data_set(UIDS["stow instance"]))
    refused = canary.data_set(UIDS["refused instance"], SeriesInstanceUID=None)
    name, study = VALUES["patient name"], UIDS["study"]
    with httpx.Client(timeout=30) as client:
        assert 200 == _post(client, url, good).status_code
        answers = [
            _post(client, url, good[:200], name.encode() * 30, canary.part10(refused)),
            _post(client, f"{url}/{UIDS['unknown study']}", good),
            _post(client, f"{url}/{name}", good),
            client.post(f"{url}?PatientName={name}", content=good, headers={"Content-Type": f"text/{study}"}),
            client.post(url, content=b"--x\r\n" + name.encode(), headers={"Content-Type": _multipart("x")}),
            client.post(url, json={"00100010": name}, headers={"Content-Type": DICOM_JSON}),
        ]
    assert not [answer.status_code for answer in answers if answer.status_code < 400]
    # The first two list the SOP Instance UIDs that failed (PS3.18 section 10.5.3): that is their task.
    return [_answer(answer) for answer in answers[2:]]


def _post(client: httpx.Client, url: str, *files: bytes) -> httpx.Response:
    boundary = "canary-boundary"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    return client.post(url, content=body, headers={"Content-Type": _multipart(boundary)})


def _multipart(boundary: str) -> str:
    return f'multipart/related; type="application/dicom"; boundary={boundary}'


def _ask(platform: Embedded) -> list[bytes]:
    """Queries that find the study, and reads that fail. Returns the answers that refuse."""
    name, study, unknown = VALUES["patient name"], UIDS["study"], UIDS["unknown study"]
    instance = f"studies/{study}/series/{UIDS['series']}/instances/{UIDS['first instance']}"
    with httpx.Client(base_url=f"{platform.dicom_web}/", timeout=30) as client:
        for key, value in (
            ("PatientName", name),
            ("PatientName", "DOE*"),
            ("PatientID", VALUES["medical record number"]),
            ("PatientBirthDate", VALUES["birth date"]),
            ("AccessionNumber", VALUES["accession"]),
            ("StudyInstanceUID", study),
        ):
            answer = client.get("studies", params={key: value}, headers={"Accept": DICOM_JSON})
            assert answer.status_code in {200, 204, 400}
        assert 200 == client.get(f"studies/{study}/metadata", headers={"Accept": DICOM_JSON}).status_code
        paths = (
            f"studies/{unknown}",
            f"studies/{unknown}/metadata",
            f"studies/{study}/series/{unknown}",
            f"{instance}/frames/99",
            f"{instance}/frames/{name}",
            f"{instance}/bulkdata/{name}",
            f"{instance}/{name}",
            f"studies/{name}",
            f"studies?limit={name}",
            f"studies?PatientName={name}&StudyDate={name}",
            f"studies?includefield={name}",
        )
        answers = [client.get(path) for path in paths]
        # Not among the answers: the name of a parameter that nobody knows is quoted, values never are.
        assert 400 == client.get(f"studies?{name}={name}").status_code
        answers.append(client.get(f"studies/{study}", headers={"Accept": f"image/{name}"}))
        answers.append(client.request("DELETE", f"studies/{study}"))
    refusing = [answer for answer in answers if answer.status_code >= 400]
    assert len(refusing) >= 9
    return [_answer(answer) for answer in refusing]


def _answer(answer: httpx.Response) -> bytes:
    return repr(answer.headers.raw).encode() + answer.content


async def _poison(data_dir: Path) -> None:
    """Two facts of ingest's that no indexer can digest: an object that is no longer DICOM (and whose bytes a
    careless error message would quote), and one that is not there.
    """
    keys = SiteKeys.load_or_create(data_dir / "keys" / "site.key")
    clock = SystemClock()
    uid = UIDS["poison instance"]
    damaged = canary.part10(canary.data_set(uid))
    cut = damaged.index(UIDS["series"].encode()) + 5
    events = []
    store = LocalObjectStore(data_dir / "objects")
    try:
        for digest, content in (("ab" * 32, damaged[:cut]), ("cd" * 32, None)):
            key = keys.object_key(uid, "1.2.840.10008.1.2.1", digest)
            stored = StoredInstance(
                instance_key=keys.instance_key(uid),
                series_key=keys.series_key(UIDS["series"]),
                object_key=key,
                content_digest=digest,
                size_bytes=len(content or b""),
                sop_class_uid=canary.CT_IMAGE,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                received_at=clock.now(),
            )
            if content is not None:
                metadata = {
                    **stored.model_dump(mode="json", include=METADATA),
                    "study_key": keys.study_key(UIDS["study"]),
                    "sender": "PEER",
                    "protocol": "dimse",
                    "transfer_id": "poison",
                    "sealing": "none",
                }
                await store.put(key, content, metadata)
            events.append(_stored_event(keys, clock, stored))
    finally:
        await store.close()
    transport = EmbeddedTransport(data_dir / "bus.sqlite")
    bus = transport.bus("ingest", noop("ingest"))
    await bus.start()
    try:
        for event in events:
            await bus.publish(event)
    finally:
        await bus.stop()
        await transport.close()


def _stored_event(keys: SiteKeys, clock: SystemClock, stored: StoredInstance) -> CloudEvent:
    data = InstancesStored(
        study_key=keys.study_key(UIDS["study"]),
        transfer_id="poison",
        protocol=Protocol.DIMSE,
        sender="PEER",
        instances=[stored],
    )
    return CloudEvent(id=clock.new_id(), source="/isocenter/ingest", time=clock.now(), data=data)


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
