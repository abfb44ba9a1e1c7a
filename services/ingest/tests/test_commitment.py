"""Storage commitment over DIMSE: what is asked is durable before Success, what is told was read back."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.uid import CTImageStorage, MRImageStorage

from isocenter.common.clock import SystemClock
from isocenter.common.index.commitments import CommitmentState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.ingest.app import build
from isocenter.ingest.commitment import worker
from isocenter.ingest.commitment.domain import FailureReason
from isocenter.ingest.commitment.testing import Requester, index_everything, numbered
from isocenter.ingest.dimse.testing import Authority, Identity
from isocenter.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World

    Pair = tuple[str, str]
    Start = Callable[..., Awaitable[IngestService]]

# pynetdicom leaves the socket of a call that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

GONE, DAMAGED, OTHER_CLASS = (
    FailureReason.NO_SUCH_OBJECT_INSTANCE,
    FailureReason.PROCESSING_FAILURE,
    FailureReason.CLASS_INSTANCE_CONFLICT,
)


@dataclass
class Site:
    """An ingest with an index, a requester it knows, and instances in its store."""

    world: World
    index: SqliteIndex
    start: Start
    requester: Requester
    stored: list[Pair]
    service: IngestService

    def path_of(self, number: int) -> Path:
        """The file of one stored instance, in the order of `stored`."""
        files = [p for p in (self.world.root / "instances").rglob("*") if p.is_file()]
        return sorted(files, key=lambda path: path.name)[number]

    async def ask(self, transaction: str, references: Any, **how: Any) -> int:
        return await self.requester.ask(self.service.dicom_port, transaction, references, **how)


@pytest.fixture
def requester() -> Iterator[Requester]:
    requester = Requester().listen()
    yield requester
    requester.hang_up()


@pytest.fixture
async def site(
    world: World,
    scu: type[Scu],
    dicom: Dicom,
    tmp_path: Path,
    requester: Requester,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Site]:
    for name in ("POLL_SECONDS", "IDLE_POLL_SECONDS"):
        monkeypatch.setattr(worker, name, 0.05)
    peers = tmp_path / "peers.toml"
    peers.write_text(f'[[peer]]\nae_title = "MODALITY"\nhost = "127.0.0.1"\nport = {requester.port}\n')
    index = await SqliteIndex.open(tmp_path / "index.sqlite")
    ports = replace(world.ports, index=index, peers_file=peers, clock=SystemClock())
    running: list[IngestService] = []

    async def start(**settings: Any) -> IngestService:
        given = {"dicom_port": 0, "commitment_unknown_seconds": 0.3} | settings
        running.append(build(IngestSettings(**given), ports))
        await running[-1].start()
        return running[-1]

    service = await start()
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(dicom.file(dicom.instance(pixels=300_000 if number else 64)))
    assert [0, 0, 0] == await scu(service.dicom_port).store(*files)
    stored = await index_everything(index, world.store)
    yield Site(world, index, start, requester, stored, service)
    for each in running:
        await each.stop()
    await index.close()


async def test_what_is_whole_is_committed_on_an_association_of_our_own(site: Site) -> None:
    assert 0 == await site.ask("2.25.1", site.stored)

    report = await site.requester.report()

    assert "1.2.840.10008.1.20.1.1" == report.sop_instance_uid
    assert (1, "2.25.1", site.stored, {}) == (
        report.event_type,
        report.transaction_uid,
        report.committed,
        report.failed,
    )
    assert (True, False) == report.role, "the requester stays the SCU"


async def test_each_failure_has_its_reason_and_the_rest_is_committed(site: Site) -> None:
    stored = sorted(site.stored, key=lambda pair: site.world.keys.instance_key(pair[1]))
    (_, flipped), whole = stored[0], stored[1]
    unknown = ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5")
    wrong = (str(MRImageStorage), whole[1])
    path = await _file_of(site, flipped)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)

    assert 0 == await site.ask("2.25.2", [stored[0], whole, unknown, wrong])
    report = await site.requester.report()

    assert 2 == report.event_type
    assert [whole] == report.committed
    assert {flipped: DAMAGED, unknown[1]: GONE, whole[1]: OTHER_CLASS} == report.failed


async def _file_of(site: Site, sop_instance_uid: str) -> Path:
    (located,) = await site.index.locate([sop_instance_uid])
    name = located.object_key.rpartition("/")[2]
    (path,) = [p for p in site.world.root.rglob("*") if p.is_file() and p.name.startswith(name)]
    return path


async def test_an_object_that_was_deleted_is_not_committed(site: Site) -> None:
    (located,) = await site.index.locate([site.stored[0][1]])
    await site.world.store.delete(located.object_key)

    await site.ask("2.25.3", site.stored)

    assert {site.stored[0][1]: GONE} == (await site.requester.report()).failed


async def test_other_content_under_the_same_uid_must_be_whole_too(
    site: Site, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    first, second = (
        dicom.instance(study="1.2.3", series="1.2.3.4", sop="1.2.3.4.5", pixels=n) for n in (8, 9)
    )
    for number, data in enumerate((first, second)):
        path = tmp_path / f"twin{number}.dcm"
        path.write_bytes(dicom.file(data))
        assert [0] == await scu(site.service.dicom_port).store(path)
    await index_everything(site.index, site.world.store)
    twins = await site.index.locate(["1.2.3.4.5"])
    assert 2 == len(twins)
    reference = (str(CTImageStorage), "1.2.3.4.5")
    await site.ask("2.25.4", [reference])
    assert [reference] == (await site.requester.report()).committed

    await site.world.store.delete(next(each.object_key for each in twins if not each.content_digest))
    await site.ask("2.25.5", [reference])

    assert {"1.2.3.4.5": GONE} == (await site.requester.report(2)).failed


async def test_what_is_indexed_a_moment_later_is_waited_for(
    site: Site, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    path = tmp_path / "late.dcm"
    late = dicom.instance()
    path.write_bytes(dicom.file(late))
    service = await site.start(commitment_unknown_seconds=60)
    assert [0] == await scu(service.dicom_port).store(path)
    await site.service.stop()
    reference = (str(late.SOPClassUID), str(late.SOPInstanceUID))
    assert 0 == await site.requester.ask(service.dicom_port, "2.25.6", [reference])
    with pytest.raises(TimeoutError):
        await site.requester.report(seconds=0.5)

    await index_everything(site.index, site.world.store)

    assert [reference] == (await site.requester.report()).committed


async def test_a_process_that_was_away_waits_for_the_index_to_catch_up(
    site: Site, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    """Stored and asked for, then the platform is down for longer than an unknown instance is waited for."""
    path, late = tmp_path / "late.dcm", dicom.instance()
    path.write_bytes(dicom.file(late))
    service = await site.start(commitment_unknown_seconds=60)
    assert [0] == await scu(service.dicom_port).store(path)
    await site.service.stop()
    reference = (str(late.SOPClassUID), str(late.SOPInstanceUID))
    assert 0 == await site.requester.ask(service.dicom_port, "2.25.21", [reference])
    await service.stop()
    await asyncio.sleep(1.1)

    await site.start(commitment_unknown_seconds=1)
    with pytest.raises(TimeoutError):
        await site.requester.report(seconds=0.3)
    await index_everything(site.index, site.world.store)

    assert [reference] == (await site.requester.report()).committed


async def test_a_request_outlives_its_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process dies with the request in hand: its lease runs out, and the next one answers."""
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.5)
    site.requester.hang_up()
    assert 0 == await site.ask("2.25.7", site.stored)
    await site.service.stop()
    site.requester.listen()

    await site.start()

    assert site.stored == (await site.requester.report()).committed


async def test_a_peer_that_is_down_is_called_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "pause_after", lambda _: 0.2)
    site.requester.hang_up()
    assert 0 == await site.ask("2.25.8", site.stored)
    await _until(site, "2.25.8", lambda kept: kept.attempts >= 2)

    site.requester.listen()

    assert site.stored == (await site.requester.report()).committed
    await _until(site, "2.25.8", lambda kept: kept.state is CommitmentState.DONE)


async def test_a_peer_that_answers_with_a_failure_is_called_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "pause_after", lambda _: 0.2)
    site.requester.answer = 0x0110
    assert 0 == await site.ask("2.25.9", site.stored)
    await site.requester.report()
    site.requester.answer = 0
    await site.requester.report(2)
    await _until(site, "2.25.9", lambda kept: kept.state is CommitmentState.DONE)


async def test_a_peer_that_does_not_agree_to_the_roles_is_called_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "pause_after", lambda _: 0.2)
    site.requester.hang_up()
    site.requester.listen(roles=False)
    assert 0 == await site.ask("2.25.18", site.stored)
    await _until(site, "2.25.18", lambda kept: kept.attempts >= 1)
    assert [] == site.requester.reports
    site.requester.hang_up()

    site.requester.listen()

    assert site.stored == (await site.requester.report()).committed


async def test_the_report_goes_over_tls_where_the_peer_is_listed_with_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our certificate as the client's, and only to who has one of an authority that we know."""
    monkeypatch.setattr(worker, "pause_after", lambda _: 0.2)
    known, unknown = Authority(tmp_path, "known"), Authority(tmp_path, "unknown")
    ours, theirs, false = known.issue("ours"), known.issue("theirs"), unknown.issue("false")
    await site.service.stop()
    port = site.requester.port
    (tmp_path / "peers.toml").write_text(
        f'[[peer]]\nae_title = "MODALITY"\nhost = "localhost"\nport = {port}\ntls = true\n'
        f'[[peer]]\nae_title = "OTHER"\ncertificates = ["{theirs.fingerprint}"]\n'
    )
    site.service = await site.start(
        tls_certificate_file=ours.certificate,
        tls_key_file=ours.key,
        tls_client_ca_file=known.file,
        dicom_tls_port=0,
    )
    site.requester.hang_up()
    site.requester.listen(tls=_server(false, known))
    assert 0 == await site.ask("2.25.19", site.stored)
    await _until(site, "2.25.19", lambda kept: kept.attempts >= 1)
    site.requester.hang_up()
    assert [] == site.requester.reports

    site.requester.listen(tls=_server(theirs, known))

    assert site.stored == (await site.requester.report()).committed


def _server(identity: Identity, authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(identity.certificate, identity.key)
    return context


async def test_a_peer_that_is_silent_holds_up_no_stop(site: Site) -> None:
    site.requester.hang_up()
    with socket.create_server(("127.0.0.1", site.requester.port)) as silent:
        silent.settimeout(10)
        assert 0 == await site.ask("2.25.20", site.stored)
        connection, _ = await asyncio.to_thread(silent.accept)
        with connection:
            async with asyncio.timeout(2):
                await site.service.stop()
            threads = [each for each in threading.enumerate() if each.name == "commitment-report"]
            assert threads
            assert all(each.daemon for each in threads), "nor an end of the process"
    for each in threads:
        await asyncio.to_thread(each.join, 10)


async def test_a_peer_that_stays_away_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "pause_after", lambda _: 0.1)
    await site.service.stop()
    site.service = await site.start(commitment_give_up_hours=1 / 3600)
    site.requester.hang_up()
    assert 0 == await site.ask("2.25.10", site.stored)

    await _until(site, "2.25.10", lambda kept: kept.state is CommitmentState.GIVEN_UP)


async def _until(site: Site, transaction: str, holds: Callable[[Any], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds(await site.index.get_commitment("MODALITY", transaction)):  # noqa: ASYNC110 - a row
            await asyncio.sleep(0.02)


async def test_the_same_request_again_is_answered_anew_and_another_one_is_refused(site: Site) -> None:
    assert 0 == await site.ask("2.25.11", site.stored)
    await site.requester.report()
    await _until(site, "2.25.11", lambda kept: kept.state is CommitmentState.DONE)

    assert 0 == await site.ask("2.25.11", site.stored)
    assert site.stored == (await site.requester.report(2)).committed
    assert 0x0115 == await site.ask("2.25.11", site.stored[:1])


async def test_five_thousand_references(site: Site) -> None:
    many = [*site.stored, *numbered(5000)]

    assert 0 == await site.ask("2.25.12", many)
    report = await site.requester.report(seconds=40)

    assert site.stored == report.committed
    assert {uid: GONE for _, uid in numbered(5000)} == report.failed


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"action": 2}, 0x0123),
        ({"sop_instance": "1.2.3"}, 0x0112),
        ({"sop_class": str(CTImageStorage)}, 0x0112),
    ],
)
async def test_a_request_for_something_else_is_refused(site: Site, how: dict[str, Any], status: int) -> None:
    assert status == await site.ask("2.25.13", site.stored, **how)
    assert [] == await site.index.commitments(10)


async def test_a_request_without_what_it_needs_is_refused(site: Site) -> None:
    assert 0x0115 == await site.ask("2.25.14", [])
    assert 0x0115 == await site.ask("", site.stored)
    assert [] == await site.index.commitments(10)


async def test_who_could_not_be_told_is_refused(site: Site) -> None:
    stranger = Requester(ae_title="STRANGER")

    assert await stranger.ask(site.service.dicom_port, "2.25.15", site.stored) in {-1, 0x0124}
    assert [] == await site.index.commitments(10)


async def test_an_index_that_cannot_keep_it_refuses_the_request_and_no_instance(
    site: Site, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    await site.index.close()

    assert 0x0213 == await site.ask("2.25.16", site.stored)
    path = tmp_path / "next.dcm"
    path.write_bytes(dicom.file(dicom.instance()))
    assert [0] == await scu(site.service.dicom_port).store(path)
    assert all(check.ok for check in await site.service.health()), "senders need not be turned away"


async def test_without_an_index_storage_commitment_is_not_offered(service: IngestService) -> None:
    assert -1 == await Requester().ask(service.dicom_port, "2.25.17", numbered(1))
