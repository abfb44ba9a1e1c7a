"""What goes wrong in a round: each fault is there inside its `with` block and gone after it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from testbed import network
from testbed.cluster import Cluster
from testbed.radosgw import USER
from testbed.server import Server

Fault = Callable[[Cluster, random.Random], AbstractContextManager[None]]

OUTAGE_SECONDS = (0.5, 4.0)
SESSION_SECONDS = 6.0
"""The cluster of the tests sets the consumers' session time-out to this."""


@contextmanager
def killed(server: Server, rng: random.Random) -> Iterator[None]:
    """kill -9, and a while later the same data and ports again."""
    server.kill()
    time.sleep(rng.uniform(*OUTAGE_SECONDS))
    yield
    server.start()


@contextmanager
def paused(server: Server, seconds: float) -> Iterator[None]:
    """SIGSTOP: connections stay open, nobody answers, and afterwards it goes on as if nothing had been."""
    server.pause()
    try:
        time.sleep(seconds)
        yield
    finally:
        server.resume()


def kill_service(service: str) -> Fault:
    return lambda cluster, rng: killed(rng.choice(cluster.of(service)), rng)


def kill_both(service: str) -> Fault:
    """No replica is left."""

    @contextmanager
    def fault(cluster: Cluster, rng: random.Random) -> Iterator[None]:
        replicas = cluster.of(service)
        for replica in replicas:
            replica.kill()
        time.sleep(rng.uniform(*OUTAGE_SECONDS))
        yield
        for replica in replicas:
            replica.launch()
        for replica in replicas:
            replica.wait_ready()

    return fault


@contextmanager
def kill_gateway_of_s3(cluster: Cluster, rng: random.Random) -> Iterator[None]:
    cluster.s3.kill_gateway()
    time.sleep(rng.uniform(*OUTAGE_SECONDS))
    yield
    cluster.s3.start_gateway()


@contextmanager
def no_space(cluster: Cluster, rng: random.Random) -> Iterator[None]:
    """The object store takes nothing more: its user's quota is used up."""
    admin = cluster.s3.admin
    admin("quota", "set", "--quota-scope=user", f"--uid={USER}", "--max-size=4096")
    admin("quota", "enable", "--quota-scope=user", f"--uid={USER}")
    try:
        time.sleep(rng.uniform(2.0, 5.0))
        yield
    finally:
        admin("quota", "disable", "--quota-scope=user", f"--uid={USER}")


def cut_off(ports: Callable[[Cluster], tuple[int, ...]], longest: float = 8.0) -> Fault:
    """Packets to and from an engine vanish."""

    @contextmanager
    def fault(cluster: Cluster, rng: random.Random) -> Iterator[None]:
        with network.cut(*ports(cluster)):
            time.sleep(rng.uniform(2.0, longest))
            yield

    return fault


def pause_service(service: str, shortest: float, longest: float) -> Fault:
    return lambda cluster, rng: paused(rng.choice(cluster.of(service)), rng.uniform(shortest, longest))


FAULTS: dict[str, tuple[int, Fault]] = {
    "kill ingest": (3, kill_service("ingest")),
    "kill indexer": (3, kill_service("indexer")),
    "kill gateway": (1, kill_service("gateway")),
    "kill all of ingest": (1, kill_both("ingest")),
    "kill all of indexer": (1, kill_both("indexer")),
    "kill broker": (3, lambda cluster, rng: killed(cluster.kafka, rng)),
    "kill mongod": (3, lambda cluster, rng: killed(cluster.mongo, rng)),
    "kill radosgw": (2, kill_gateway_of_s3),
    "kill object store": (1, lambda cluster, rng: killed(cluster.s3, rng)),
    "object store full": (2, no_space),
    "broker cut off": (2, cut_off(lambda cluster: (cluster.kafka.port,), SESSION_SECONDS * 2)),
    "mongod cut off": (2, cut_off(lambda cluster: (cluster.mongo.port,))),
    "object store cut off": (2, cut_off(lambda cluster: (cluster.s3.port,))),
    "indexer paused beyond its session": (
        2,
        pause_service("indexer", SESSION_SECONDS + 1, SESSION_SECONDS + 5),
    ),
    "ingest paused": (1, pause_service("ingest", 1.0, 6.0)),
    "broker paused": (1, lambda cluster, rng: paused(cluster.kafka, rng.uniform(1.0, SESSION_SECONDS + 3))),
}
"""Name -> how often relative to the others, and what it does."""


def schedule(rounds: int, rng: random.Random) -> list[str]:
    """Every fault at least once as far as the rounds reach, then by weight, in random order."""
    names = list(FAULTS)
    rng.shuffle(names)
    chosen = names[:rounds]
    weights = [FAULTS[name][0] for name in names]
    chosen += rng.choices(names, weights, k=max(0, rounds - len(names)))
    rng.shuffle(chosen)
    return chosen
