"""What the runtime tests share."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from isocenter.common.service import Service
from isocenter.common.telemetry import Telemetry, recording

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def recorded_health() -> Callable[[Service], tuple[Service, Telemetry, Lines]]:
    """A service, its telemetry, and the log lines written so far."""

    def build(service: Service) -> tuple[Service, Telemetry, Lines]:
        stream = io.StringIO()
        telemetry = recording(service.name, InMemorySpanExporter(), stream)
        return service, telemetry, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    return build
