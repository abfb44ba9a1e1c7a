"""What one service tells of the whole process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from isocenter.common.telemetry import Gauge, Histogram, noop
from isocenter.common.telemetry.names import SHARED
from isocenter.common.telemetry.process import ProcessMetrics


async def test_a_blocked_loop_shows() -> None:
    telemetry = noop()
    process = ProcessMetrics(telemetry.metrics, Path("/"), every=0.01)
    await asyncio.sleep(0.05)

    time.sleep(0.3)  # noqa: ASYNC251 - this is the fault
    await asyncio.sleep(0.05)

    await process.close()
    (data,) = [each for each in telemetry.metrics.collect() if each.name == Histogram.LOOP_DELAY.value]
    (point,) = data.data.data_points
    assert point.max > 0.2  # type: ignore[union-attr]
    assert point.count > 2  # type: ignore[union-attr]


async def test_free_space_is_that_of_the_data_directory(tmp_path: Path) -> None:
    telemetry = noop()
    process = ProcessMetrics(telemetry.metrics, tmp_path)

    free, size = telemetry.metrics.value(Gauge.DISK_FREE), telemetry.metrics.value(Gauge.DISK_SIZE)

    await process.close()
    assert 0 < free <= size


async def test_a_process_without_a_data_directory_has_no_disk_to_tell_of(tmp_path: Path) -> None:
    telemetry = noop()
    process = ProcessMetrics(telemetry.metrics, tmp_path / "none")

    names = {each.name for each in telemetry.metrics.collect()}

    await process.close()
    assert Gauge.DISK_FREE.value not in names


def test_whatever_replicas_share_says_how_to_read_it() -> None:
    """Added up over replicas it would be counted several times."""
    for gauge in Gauge:
        assert (gauge in SHARED) == ("take the maximum" in gauge.meaning), gauge
