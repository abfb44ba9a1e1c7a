"""What happens to the canary study, on whatever the platform runs: stored, refused, asked for, poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from benchmarks.dimse import Association, AssociationError, DataSet
from tests.privacy import canary
from tests.privacy.canary import UIDS, VALUES

from isocenter.common.clock import SystemClock
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol, StoredInstance
from isocenter.common.telemetry import noop

if TYPE_CHECKING:
    from isocenter.common.bus.factory import Transport
    from isocenter.common.keys import SiteKeys
    from isocenter.common.objects.ports import ObjectStore

DICOM_JSON = "application/dicom+json"
METADATA = {
    "series_key",
    "instance_key",
    "content_digest",
    "transfer_syntax_uid",
    "sop_class_uid",
    "received_at",
}
BROKEN_OFF = 0xFFFF
"""Stands for an association that ended instead of a status."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a running platform listens."""

    dicom_port: int
    ae_title: str
    stow: str
    """Root of STOW-RS: `/studies` is below it."""
    dicom_web: str
    """Root of QIDO-RS and WADO-RS."""


def store_over_dimse(target: Target) -> None:
    """Two instances, one of them twice, a conflict, and everything that is refused."""
    first, second = UIDS["first instance"], UIDS["second instance"]
    refused = UIDS["refused instance"]
    assert 0 == _c_store(target, first, canary.encoded(canary.data_set(first)))
    assert 0 == _c_store(target, first, canary.encoded(canary.data_set(first)))
    assert 0 == _c_store(target, first, canary.encoded(canary.data_set(first, pixel=1)))
    assert 0 == _c_store(target, second, canary.encoded(canary.data_set(second)))
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
    statuses = [_c_store(target, refused, data) for data in refusals]
    assert 0 not in statuses
    assert 0 != _c_store(target, name, canary.encoded(canary.data_set(refused)))


def _c_store(target: Target, sop_instance_uid: str, data: bytes) -> int:
    address = ("127.0.0.1", target.dicom_port)
    try:
        with Association(address, [canary.CT_IMAGE], called=target.ae_title, calling="PEER") as association:
            return association.store(DataSet(canary.CT_IMAGE, sop_instance_uid, (data,)))
    except AssociationError:
        return BROKEN_OFF


def store_over_stow(target: Target) -> list[bytes]:
    """A good instance, then requests that fail in part and as a whole. Returns the answers that refuse."""
    url = f"{target.stow}/studies"
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


def ask_for_commitment(target: Target) -> list[bytes]:
    """Of instances that are there and one that is not; then requests that are refused. Returns the answers
    that refuse.
    """
    name, url = VALUES["patient name"], f"{target.stow}/commitment-requests/{UIDS['transaction']}"
    items = [
        {
            "00081150": {"vr": "UI", "Value": [canary.CT_IMAGE]},
            "00081155": {"vr": "UI", "Value": [UIDS[each]]},
        }
        for each in ("first instance", "second instance", "refused instance")
    ]
    request = {"00081199": {"vr": "SQ", "Value": items}}
    headers = {"Content-Type": DICOM_JSON, "Accept": DICOM_JSON}
    with httpx.Client(timeout=30, headers=headers) as client:
        assert client.post(url, json=request).status_code in {200, 202}
        answers = [
            client.post(url, json=request),
            client.post(f"{url}{name}", json=request),
            client.get(f"{url}.{name}"),
            client.post(f"{url}.1", json={"00081199": {"vr": "SQ", "Value": [{"00081155": name}]}}),
            client.post(f"{url}.1", content=name.encode() + UIDS["study"].encode()),
            client.post(f"{url}.1", json=request, headers={"Content-Type": name}),
        ]
    assert not [answer.status_code for answer in answers if answer.status_code < 400]
    return [_answer(answer) for answer in answers]


def _post(client: httpx.Client, url: str, *files: bytes) -> httpx.Response:
    boundary = "canary-boundary"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    return client.post(url, content=body, headers={"Content-Type": _multipart(boundary)})


def _multipart(boundary: str) -> str:
    return f'multipart/related; type="application/dicom"; boundary={boundary}'


def ask(target: Target) -> list[bytes]:
    """Queries that find the study, and reads that fail. Returns the answers that refuse."""
    name, study, unknown = VALUES["patient name"], UIDS["study"], UIDS["unknown study"]
    instance = f"studies/{study}/series/{UIDS['series']}/instances/{UIDS['first instance']}"
    with httpx.Client(base_url=f"{target.dicom_web}/", timeout=30) as client:
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


async def poison(keys: SiteKeys, store: ObjectStore, transport: Transport) -> None:
    """Two facts of ingest's that no indexer can digest: an object that is no longer DICOM (and whose bytes a
    careless error message would quote), and one that is not there.
    """
    clock = SystemClock()
    uid = UIDS["poison instance"]
    damaged = canary.part10(canary.data_set(uid))
    cut = damaged.index(UIDS["series"].encode()) + 5
    events = []
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
    bus = transport.bus("ingest", noop("ingest"))
    await bus.start()
    try:
        for event in events:
            await bus.publish(event)
    finally:
        await bus.stop()


def _stored_event(keys: SiteKeys, clock: SystemClock, stored: StoredInstance) -> CloudEvent:
    data = InstancesStored(
        study_key=keys.study_key(UIDS["study"]),
        transfer_id="poison",
        protocol=Protocol.DIMSE,
        sender="PEER",
        instances=[stored],
    )
    return CloudEvent(id=clock.new_id(), source="/isocenter/ingest", time=clock.now(), data=data)
