"""The platform with a real trace store behind a real collector, and a real Prometheus in front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from benchmarks.embedded import Embedded
from testbed.cache import must_be_available
from testbed.server import ServerUnavailable
from tests.flows.helpers import ENVIRONMENT, isocenter_json, settled

from isocenter.cli.synth import write_ct

if TYPE_CHECKING:
    from testbed.traces import Collector, TraceStore

OBSERVABILITY = Path(__file__).parents[2] / "deploy" / "observability"


def unavailable(error: ServerUnavailable) -> None:
    """A failure where it should have been there, else a loud skip."""
    reason = f"NOT RUN: {error}"
    if must_be_available():
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def trace_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceStore]:
    from testbed.traces import TraceStore  # noqa: PLC0415 - only these tests need it

    store = TraceStore(tmp_path_factory.mktemp("traces"))
    try:
        store.start()
    except ServerUnavailable as error:
        unavailable(error)
    try:
        yield store
    finally:
        store.discard()


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory, trace_store: TraceStore) -> Iterator[Collector]:
    """The collector with the configuration that the repository ships."""
    from testbed.traces import Collector  # noqa: PLC0415

    environment = {"ISOCENTER_TRACES_OTLP": trace_store.otlp}
    with Collector(
        tmp_path_factory.mktemp("collector"), OBSERVABILITY / "collector.yaml", environment
    ) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Traced:
    """A site whose platform has ended, and the one study it received."""

    data_dir: Path
    study: str


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Traced:
    """It exported to the collector, and kept its spans, too. All it had to export is out."""
    folder = tmp_path_factory.mktemp("traced")
    with Embedded(folder / "site", {**ENVIRONMENT, "ISOCENTER_OTLP_ENDPOINT": collector.otlp}) as platform:
        study = send_study(platform, folder / "ct")
    return Traced(platform.data_dir, study)


def send_study(platform: Embedded, folder: Path, *, seed: int = 1, slices: int = 6) -> str:
    """Sends a CT over C-STORE and waits until it has settled. Returns its Study Instance UID."""
    write_ct(folder, slices=slices, seed=seed)
    sent = isocenter_json("send", folder, data_dir=platform.data_dir)
    (study,) = sent["studies"]
    settled(platform.data_dir, [study])
    return str(study)
