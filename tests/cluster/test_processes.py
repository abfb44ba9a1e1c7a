"""One replica of ingest with several processes on its ports, on Apache Kafka, mongod and radosgw."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from testbed.cluster import Cluster, Replica
from tests.cluster.helpers import until

PROCESSES = 3
STUDY = "2.25.8700116101114"
ASSOCIATIONS = 18
"""That all of them go to one of three processes happens once in 10^8 runs."""


@pytest.fixture(scope="module")
def replica(cluster: Cluster) -> Iterator[Replica]:
    peers = cluster.folder / "peers.toml"
    peers.write_text('[[peer]]\nae_title = "MANY"\n')
    environment = {
        **cluster.environment,
        "ISOCENTER_PEERS_FILE": str(peers),
        "ISOCENTER_INGEST_PROCESSES": str(PROCESSES),
        "ISOCENTER_SPANS_KEPT": "0",
    }
    replica = Replica(cluster.folder / "ingest-many", "ingest", 9, environment)
    yield replica
    replica.kill()


@pytest.fixture(autouse=True)
def _running(replica: Replica) -> None:
    if not replica.alive:
        replica.start()
    until(lambda: len(children(replica)) == PROCESSES and all_ready(replica), "not every process is ready")


def children(replica: Replica) -> list[int]:
    pid = replica.pids[0]
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


def all_ready(replica: Replica) -> bool:
    status, body = replica.health("/readyz")
    return status == 200 and body.count('"dicom-port", "ok": true') == PROCESSES


def served_by(replica: Replica) -> Counter[int]:
    """Established connections to the DICOM port, by the process that has them."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and fields[1].endswith(f":{replica.dicom_port:04X}"):
            inodes.add(fields[9])
    found: Counter[int] = Counter()
    for pid in children(replica):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            found[pid] += match is not None and match[1] in inodes
    return +found


def associate(replica: Replica) -> Association:
    ae = AE(ae_title="MANY")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
    association = ae.associate("127.0.0.1", replica.dicom_port)
    assert association.is_established
    return association


def store(association: Association, file: Path) -> int:
    dataset = dcmread(file)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        STUDY,
        f"{STUDY}.1",
    )  # others count the slices of theirs
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    status = association.send_c_store(dataset)
    return int(status.Status) if "Status" in status else -1


def stored(replica: Replica) -> int:
    """As `/metrics` of the whole says."""
    _, page = replica.health("/metrics")
    series = r'^isocenter_ingest_instances_total\{.*outcome="stored".*\} (\S+)$'
    found = re.findall(series, page, re.MULTILINE)
    return int(sum(map(float, found)))


def test_associations_spread_and_all_of_them_store(replica: Replica, ct: list[Path]) -> None:
    before = stored(replica)
    associations = [associate(replica) for _ in range(ASSOCIATIONS)]
    spread = served_by(replica)
    assert ASSOCIATIONS == sum(spread.values())
    assert len(spread) >= 2
    assert [0] * ASSOCIATIONS == [store(each, ct[0]) for each in associations]
    for each in associations:
        each.release()
    assert before + ASSOCIATIONS == stored(replica)


def test_one_that_is_killed_takes_only_its_own_associations_along(replica: Replica, ct: list[Path]) -> None:
    associations = [associate(replica) for _ in range(ASSOCIATIONS)]
    assert [0] * ASSOCIATIONS == [store(each, ct[0]) for each in associations]
    before = stored(replica)
    victim, lost = served_by(replica).most_common(1)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: sum(not each.is_established for each in associations) == lost, "its peers do not notice")
    alive = [each for each in associations if each.is_established]
    assert [0] * len(alive) == [store(each, ct[0]) for each in alive]
    until(lambda: victim not in children(replica) and all_ready(replica), "no other took its place")
    assert len(children(replica)) == PROCESSES
    # What the lost one counted stays counted.
    assert before + len(alive) == stored(replica)
    for each in alive:
        each.release()
    assert '"worker.lost"' in replica.log.read_text()


def test_certificates_and_peers_are_read_again_by_all(replica: Replica) -> None:
    pids = children(replica)
    before = replica.log.read_text().count('"access.reloaded"')
    os.kill(replica.pids[0], signal.SIGHUP)
    until(
        lambda: replica.log.read_text().count('"access.reloaded"') >= before + PROCESSES, "not all read again"
    )
    assert pids == children(replica)


def test_a_stop_lets_associations_finish_and_leaves_no_process(replica: Replica, ct: list[Path]) -> None:
    association = associate(replica)
    assert store(association, ct[0]) == 0
    pids = children(replica)
    os.kill(replica.pids[0], signal.SIGTERM)
    until(lambda: "service.stopping" in replica.log.read_text(), "it does not stop")
    assert store(association, ct[0]) == 0
    association.release()
    until(lambda: not replica.alive, "it does not end")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "processes are left behind")
    assert "drain_timeout" not in replica.log.read_text()


def test_processes_do_not_outlive_their_supervisor(replica: Replica) -> None:
    pids = children(replica)
    os.kill(replica.pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/fd").exists() and alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes are left behind"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
