"""One cluster for the tests that only look; a test that breaks things starts its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from testbed.cache import must_be_available
from testbed.cluster import Cluster
from testbed.otlp import OtlpSink
from testbed.server import ServerUnavailable

from isocenter.cli.synth import write_ct


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve slices of the synthesised CT: one study, one series."""
    return write_ct(tmp_path_factory.mktemp("ct"), slices=12, seed=3)


@pytest.fixture(scope="session")
def new_cluster() -> Callable[..., AbstractContextManager[Cluster]]:
    """`with new_cluster(folder, ingest=2, ...) as cluster`: skips loudly where a server cannot be had."""
    from contextlib import contextmanager  # noqa: PLC0415 - beside its one use

    @contextmanager
    def build(folder: Path, **options: Any) -> Iterator[Cluster]:
        cluster = Cluster(folder, **options)
        try:
            cluster.start_engines()
        except ServerUnavailable as error:
            cluster.close()
            if must_be_available():
                pytest.fail(f"NOT RUN: {error}")
            pytest.skip(f"NOT RUN: {error}")
        with cluster:
            yield cluster

    return build


@pytest.fixture(scope="session")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as running:
        yield running


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory,
    new_cluster: Callable[..., AbstractContextManager[Cluster]],
    sink: OtlpSink,
) -> Iterator[Cluster]:
    """Two replicas of ingest and of the indexer, one gateway, on Apache Kafka, mongod and radosgw."""
    environment = {"ISOCENTER_OTLP_ENDPOINT": sink.url}
    with new_cluster(tmp_path_factory.mktemp("cluster"), environment=environment) as running:
        yield running
