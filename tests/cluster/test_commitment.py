"""Storage commitment in a cluster: any replica answers what another was asked; without the index all wait."""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from testbed.cluster import Cluster, Replica, get
from tests.cluster.helpers import send, until

from isocenter.cli.synth import write_ct
from isocenter.ingest.commitment.testing import Requester

CT = "1.2.840.10008.5.1.4.1.1.2"
Pair = tuple[str, str]


@dataclass
class Asked:
    """A cluster that knows one requester, and a study in it."""

    cluster: Cluster
    modality: Requester
    stored: list[Pair]
    folder: Path

    def new_study(self, seed: int) -> list[Path]:
        return write_ct(self.folder / f"ct{seed}", slices=2, seed=seed)


@pytest.fixture(scope="module")
def asked(
    new_cluster: Callable[..., AbstractContextManager[Cluster]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("commitment")
    modality = Requester().listen()
    peers = folder / "peers.toml"
    peers.write_text(f'[[peer]]\nae_title = "MODALITY"\nhost = "127.0.0.1"\nport = {modality.port}\n')
    environment = {"ISOCENTER_PEERS_FILE": str(peers), "ISOCENTER_INGEST_ACCEPT_UNKNOWN_PEERS": "true"}
    with new_cluster(folder / "cluster", indexer=1, gateway=0, environment=environment) as cluster:
        made = Asked(cluster, modality, [], folder)
        files = made.new_study(71)
        send(cluster, cluster.of("ingest")[0], *files)
        made.stored += [(CT, str(dcmread(each, stop_before_pixels=True).SOPInstanceUID)) for each in files]
        yield made
    modality.hang_up()


def post(replica: Replica, transaction: str, references: list[Pair]) -> tuple[int, Any]:
    items = [
        {"00081150": {"vr": "UI", "Value": [kind]}, "00081155": {"vr": "UI", "Value": [uid]}}
        for kind, uid in references
    ]
    body = json.dumps({"00081199": {"vr": "SQ", "Value": items}})
    headers = {"Content-Type": "application/dicom+json", "Accept": "application/dicom+json"}
    connection = http.client.HTTPConnection("127.0.0.1", replica.http_port, timeout=60)
    try:
        connection.request("POST", path_of(transaction), body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def path_of(transaction: str) -> str:
    return f"/dicom-web/commitment-requests/{transaction}"


def result(replica: Replica, transaction: str) -> dict[str, Any]:
    """Of a request, asked for until it is there."""

    def look() -> dict[str, Any] | None:
        status, _, body = get(replica.http_port, path_of(transaction), "application/dicom+json")
        assert status in {200, 202}
        return json.loads(body) if status == 200 else None

    return until(look, "no result")


async def test_a_replica_that_dies_is_stood_in_for(asked: Asked) -> None:
    """What one replica was asked the other one tells, and both know the result."""
    first, second = asked.cluster.of("ingest")
    transaction = f"2.25.{secrets.randbits(100)}"
    assert 202 >= post(first, transaction, asked.stored)[0]
    committed = await asyncio.to_thread(result, second, transaction)
    assert len(asked.stored) == len(committed["00081199"]["Value"])
    assert "00081198" not in committed

    told = len(asked.modality.reports)
    asked.modality.hang_up()
    assert 0 == await asked.modality.ask(first.dicom_port, transaction, asked.stored)
    first.kill()
    asked.modality.listen()
    report = await asked.modality.report(told + 1, seconds=60)

    assert (transaction, asked.stored, {}) == (report.transaction_uid, report.committed, report.failed)


async def test_without_the_index_instances_are_taken_and_commitment_waits(asked: Asked) -> None:
    cluster, replica = asked.cluster, asked.cluster.of("ingest")[1]
    before, after = (f"2.25.{secrets.randbits(100)}" for _ in range(2))
    first, second = asked.new_study(72)
    assert 1 == send(cluster, replica, first)["counts"]["stored"]
    told = len(asked.modality.reports)
    asked.modality.hang_up()
    assert 0 == await asked.modality.ask(replica.dicom_port, before, asked.stored)

    cluster.mongo.kill()
    asked.modality.listen()
    try:
        assert 0x0213 == await asked.modality.ask(replica.dicom_port, after, asked.stored)
        assert 1 == send(cluster, replica, second)["counts"]["stored"], "of a study that this replica knows"
        assert 200 == get(replica.health_port, "/readyz", "*/*")[0]
    finally:
        cluster.mongo.start()

    report = await asked.modality.report(told + 1, seconds=60)
    assert (before, asked.stored) == (report.transaction_uid, report.committed)
    assert 0 == await asked.modality.ask(replica.dicom_port, after, asked.stored)
    assert after == (await asked.modality.report(told + 2, seconds=60)).transaction_uid
