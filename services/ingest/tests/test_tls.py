"""DICOM over TLS: certificates bound to AE titles, versions, stalls, reloads (PS3.15 section B.13)."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pynetdicom import AE

from isocenter.common.errors import Misconfigured
from isocenter.common.serving import loop_factory
from isocenter.common.settings import PlatformSettings
from isocenter.common.telemetry import Counter, setup
from isocenter.ingest.dimse.access import Access
from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.dimse.testing import Authority, Identity
from isocenter.ingest.dimse.tls import fingerprint
from isocenter.ingest.processes.reservation import Reservation
from isocenter.ingest.testing import RELEASE_RQ, Wire, associate_rq, command_set, p_data, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, World

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is asked for here
NOT_RECOGNISED = bytes((0, 1, 1, 3))
"""Rejected-permanent by the service user: calling AE title not recognised (PS3.8 table 9-21)."""


@dataclass
class Site:
    """An authority, our certificate, and two modalities: one may store and verify, the other verify only."""

    authority: Authority
    server: Identity
    modality: Identity
    tester: Identity
    peers: Path

    def list_peers(self, **certificates: str) -> None:
        entries = []
        for title, each in certificates.items():
            allow = '["echo"]' if title == "TESTER" else '["echo", "store"]'
            entries.append(f'[[peer]]\nae_title = "{title}"\ncertificates = ["{each}"]\nallow = {allow}\n')
        self.peers.write_text("".join(entries))

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "tls_certificate_file": self.server.certificate,
            "tls_key_file": self.server.key,
            "tls_client_ca_file": self.authority.file,
            "dicom_tls_port": 0,
            "associate_timeout_seconds": 5,
        } | more

    def client(self, identity: Identity | None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.file)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        for name, version in versions.items():
            setattr(context, f"{name}_version", version)
        return context


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "tls"
    folder.mkdir()
    authority = Authority(folder, "authority")
    server, modality, tester = (authority.issue(name) for name in ("server", "modality", "tester"))
    made = Site(authority, server, modality, tester, folder / "peers.toml")
    made.list_peers(MODALITY=modality.fingerprint, TESTER=tester.fingerprint)
    return made


@pytest.fixture
async def service(world: World, site: Site) -> AsyncIterator[IngestService]:
    world.ports = _with_peers(world, site)
    service = world.service(**site.settings())
    await service.start()
    yield service
    await service.stop()


def _with_peers(world: World, site: Site) -> Any:
    return replace(world.ports, peers_file=site.peers)


async def connect(service: IngestService, context: ssl.SSLContext) -> Wire:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.dicom_tls_port, ssl=context, server_hostname="localhost"
    )
    return Wire(reader, writer)


async def answer(wire: Wire, calling: str, *contexts: tuple[str, str]) -> tuple[int, bytes]:
    """Of the acceptor to an A-ASSOCIATE-RQ; (0, b"") where the connection ended instead."""
    try:
        await wire.send(associate_rq(*(contexts or ((CT, EXPLICIT),)), calling=calling))
        found = await wire.pdu()
    except (OSError, ssl.SSLError):
        found = (0, b"")
    await wire.close()
    return found


# -- who is let in ------------------------------------------------------------------------------------------


async def test_a_listed_certificate_stores_over_tls_1_3(
    service: IngestService, site: Site, world: World, dicom: Dicom
) -> None:
    wire = await connect(service, site.client(site.modality))
    assert wire.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    await wire.send(associate_rq((CT, EXPLICIT), calling="MODALITY"))
    assert (await wire.pdu())[0] == PduType.ASSOCIATE_AC
    instance = dicom.instance(pixels=3_000_000)
    data = dicom.data_set(dicom.file(instance))
    request = command_set(1, sop_class=CT, sop_instance=str(instance.SOPInstanceUID), data_set=True)
    await wire.send(p_data(1, request, command=True) + p_data(1, data, command=False))
    assert await wire.status() == 0
    await wire.send(RELEASE_RQ)
    assert (await wire.pdu())[0] == PduType.RELEASE_RP
    await wire.close()
    [kept] = (await world.objects()).values()
    assert dicom.data_set(kept) == data


@pytest.mark.parametrize(
    ("identity", "calling"), [("modality", "TESTER"), ("tester", "MODALITY"), ("modality", "NOBODY")]
)
async def test_a_title_counts_only_with_its_own_certificate(
    service: IngestService, site: Site, identity: str, calling: str
) -> None:
    wire = await connect(service, site.client(getattr(site, identity)))
    assert await answer(wire, calling) == (PduType.ASSOCIATE_RJ, NOT_RECOGNISED)


async def test_what_a_peer_may_not_do_is_not_agreed_on(service: IngestService, site: Site) -> None:
    wire = await connect(service, site.client(site.tester))
    kind, body = await answer(wire, "TESTER", (CT, EXPLICIT), (VERIFICATION, IMPLICIT))
    assert kind == PduType.ASSOCIATE_AC
    assert _results(body) == [(1, 1), (3, 0)]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize("fault", ["none", "expired", "unknown", "tls-1.1", "plain"])
async def test_a_handshake_that_fails_ends_before_an_association(
    world: World, site: Site, tmp_path: Path, fault: str
) -> None:
    telemetry = setup("ingest", PlatformSettings(log_level="error", spans_kept=0))
    world.ports = _with_peers(world, site)
    world.ports = replace(world.ports, telemetry=telemetry)
    service = world.service(**site.settings())
    await service.start()
    identities = {
        "none": None,
        "expired": site.authority.issue("expired", days=-1),
        "unknown": Authority(tmp_path, "other").issue("unknown"),
    }
    if fault == "plain":
        wire = await Wire.open(service.dicom_tls_port)
        found = await answer(wire, "MODALITY")
    else:
        context = site.client(identities.get(fault, site.modality))
        if fault == "tls-1.1":
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        try:
            found = await answer(await connect(service, context), "MODALITY")
        except (ssl.SSLError, OSError):
            found = (0, b"")
    assert found[0] not in {PduType.ASSOCIATE_AC, PduType.ASSOCIATE_RJ}
    await until(lambda: telemetry.metrics.value(Counter.INGEST_TLS_FAILURES) == 1)
    # And the next one is served.
    wire = await connect(service, site.client(site.modality))
    assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC
    await service.stop()


async def test_tls_1_2_keeps_to_the_profile(service: IngestService, site: Site) -> None:
    twelve = ssl.TLSVersion.TLSv1_2
    wire = await connect(service, site.client(site.modality, maximum=twelve))
    assert wire.writer.get_extra_info("cipher")[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC
    cbc = site.client(site.modality, maximum=twelve)
    cbc.set_ciphers("ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises((ssl.SSLError, OSError)):
        await connect(service, cbc)


async def test_pynetdicom_stores_over_tls(
    service: IngestService, site: Site, dicom: Dicom, tmp_path: Path
) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(dicom.file(dicom.instance()))

    def send() -> int:
        ae = AE(ae_title="MODALITY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.add_requested_context(CT, EXPLICIT)
        association = ae.associate(
            "127.0.0.1",
            service.dicom_tls_port,
            ae_title="ISOCENTER",
            tls_args=(site.client(site.modality), "localhost"),
        )
        assert association.is_established
        status = association.send_c_store(path)
        association.release()
        return int(status.Status)

    assert await asyncio.to_thread(send) == 0


# -- without TLS --------------------------------------------------------------------------------------------


async def test_in_clear_a_title_with_a_certificate_is_refused_and_one_that_is_not_listed_too(
    service: IngestService,
) -> None:
    for calling in ("MODALITY", "NOBODY"):
        wire = await Wire.open(service.dicom_port)
        assert await answer(wire, calling) == (PduType.ASSOCIATE_RJ, NOT_RECOGNISED)


async def test_in_clear_a_peer_may_do_what_its_entry_says(world: World, site: Site) -> None:
    site.peers.write_text('[[peer]]\nae_title = "CR1"\nallow = ["echo"]\n')
    world.ports = _with_peers(world, site)
    service = world.service(accept_unknown_peers=True)
    await service.start()
    contexts = ((CT, EXPLICIT), (VERIFICATION, IMPLICIT))
    for calling, results in (("CR1", [(1, 1), (3, 0)]), ("NOBODY", [(1, 0), (3, 0)])):
        kind, body = await answer(await Wire.open(service.dicom_port), calling, *contexts)
        assert kind == PduType.ASSOCIATE_AC
        assert _results(body) == results
    await service.stop()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"dicom_host": EVERYWHERE}, "ISOCENTER_INGEST_DICOM_PLAIN=anywhere"),
        ({"dicom_host": "::"}, "ISOCENTER_INGEST_DICOM_PLAIN=anywhere"),
        ({"dicom_plain": "off"}, "there is no DICOM port"),
        ({"tls_key_file": Path("key")}, "ISOCENTER_INGEST_TLS_CERTIFICATE_FILE"),
    ],
)
def test_what_would_be_open_to_all_or_to_nobody_is_refused(
    world: World, settings: dict[str, Any], names: str
) -> None:
    with pytest.raises(Misconfigured, match=names):
        world.service(**settings)


def test_tls_without_a_listed_certificate_is_refused(world: World, site: Site) -> None:
    with pytest.raises(Misconfigured, match="no peer is listed with a certificate"):
        world.service(**site.settings())


def test_a_key_of_another_certificate_is_refused(world: World, site: Site) -> None:
    world.ports = _with_peers(world, site)
    with pytest.raises(Misconfigured, match="no certificate with its key"):
        world.service(**site.settings(tls_key_file=site.modality.key))


async def test_asked_for_it_listens_in_clear_everywhere_or_not_at_all(world: World, site: Site) -> None:
    world.ports = _with_peers(world, site)
    anywhere = world.service(dicom_host=EVERYWHERE, dicom_plain="anywhere")
    await anywhere.start()
    assert anywhere.dicom_port
    await anywhere.stop()
    off = world.service(**site.settings(dicom_plain="off"))
    await off.start()
    assert off.dicom_port == 0
    assert all(check.ok for check in await off.health())
    await off.stop()


# -- stalls and reloads -------------------------------------------------------------------------------------


async def test_a_client_that_stalls_in_the_handshake_is_dropped_and_holds_nobody_up(
    world: World, site: Site
) -> None:
    world.ports = _with_peers(world, site)
    service = world.service(**site.settings(associate_timeout_seconds=1, max_associations=4))
    await service.start()
    # More than may be under way: the oldest give way at once, the others when their time is over.
    silent = [await Wire.open(service.dicom_tls_port) for _ in range(12)]
    wire = await connect(service, site.client(site.modality))
    assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC
    async with asyncio.timeout(10):
        assert [await each.reader.read() for each in silent] == [b""] * 12
    for each in silent:
        await each.close()
    await service.stop()


async def test_a_new_certificate_and_new_peers_hold_for_the_next_connection_only(
    service: IngestService, site: Site
) -> None:
    running = await connect(service, site.client(site.modality))
    await running.send(associate_rq((VERIFICATION, IMPLICIT), calling="MODALITY"))
    assert (await running.pdu())[0] == PduType.ASSOCIATE_AC
    before = running.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    renewed = site.authority.issue("renewed", file="server")
    site.list_peers(TESTER=site.tester.fingerprint)
    _access(service).reload()

    wire = await connect(service, site.client(site.tester))
    shown = wire.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert shown != before
    assert fingerprint(shown) == renewed.fingerprint
    assert (await answer(wire, "TESTER", (VERIFICATION, IMPLICIT)))[0] == PduType.ASSOCIATE_AC
    removed = await connect(service, site.client(site.modality))
    assert await answer(removed, "MODALITY") == (PduType.ASSOCIATE_RJ, NOT_RECOGNISED)

    await running.send(p_data(1, command_set(0x30, sop_class=VERIFICATION), command=True))
    assert await running.status() == 0
    await running.close()


async def test_files_that_cannot_be_used_change_nothing(service: IngestService, site: Site) -> None:
    site.server.certificate.write_text("no certificate")
    _access(service).reload()
    wire = await connect(service, site.client(site.modality))
    assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC


async def test_a_changed_file_is_noticed(
    service: IngestService, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isocenter.ingest.dimse.access.LOOK_SECONDS", 0.02)
    await _access(service).stop()
    _access(service).start()
    site.list_peers(TESTER=site.tester.fingerprint)
    await until(lambda: _access(service).admission.peers and len(_access(service).admission.peers or ()) == 1)


def test_uvloop_serves_tls_as_well(site: Site, world: World) -> None:
    """The loop of the real service has a TLS of its own."""
    world.ports = _with_peers(world, site)

    async def scenario() -> int:
        service = world.service(**site.settings())
        await service.start()
        kind, _ = await answer(await connect(service, site.client(site.modality)), "MODALITY")
        await service.stop()
        return kind

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert runner.run(scenario()) == PduType.ASSOCIATE_AC


async def test_services_that_share_ports_serve_both(world: World, site: Site) -> None:
    world.ports = _with_peers(world, site)
    with Reservation() as ports:
        shared = {
            "dicom_port": ports.take("127.0.0.1", 0),
            "dicom_tls_port": ports.take("127.0.0.1", 0),
            "shared_ports": True,
        }
        services = [world.service(**(site.settings() | shared)) for _ in range(2)]
        for service in services:
            await service.start()
        for _ in range(8):
            wire = await connect(services[0], site.client(site.modality))
            assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC
        await services[0].stop()
        wire = await connect(services[1], site.client(site.modality))
        assert (await answer(wire, "MODALITY"))[0] == PduType.ASSOCIATE_AC
        await services[1].stop()


def _access(service: IngestService) -> Access:
    found = service._access
    assert isinstance(found, Access)
    return found


def _results(body: bytes) -> list[tuple[int, int]]:
    """Context id and result of each answer in an A-ASSOCIATE-AC."""
    position, found = 68, []
    while position < len(body):
        length = int.from_bytes(body[position + 2 : position + 4], "big")
        if body[position] == 0x21:
            found.append((body[position + 4], body[position + 6]))
        position += 4 + length
    return found
