"""What is true of a whole process, told by one of its services: the delay of its event loop, and its disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from isocenter.common.telemetry.metrics import Metrics, Reading
from isocenter.common.telemetry.names import Gauge, Histogram
from isocenter.common.telemetry.spans import SpanStore

LOOK_SECONDS = 0.5


class ProcessMetrics:
    """Begins when it is made, in a running loop; ends with `close`."""

    def __init__(
        self,
        metrics: Metrics,
        data_dir: Path,
        spans: SpanStore | None = None,
        *,
        every: float = LOOK_SECONDS,
    ) -> None:
        if spans is not None:
            metrics.observe(Gauge.SPANS_LOST, lambda: [(spans.lost, {})])
        metrics.observe(Gauge.DISK_FREE, lambda: _space(data_dir, free=True))
        metrics.observe(Gauge.DISK_SIZE, lambda: _space(data_dir, free=False))
        self._task = asyncio.get_running_loop().create_task(_watch(metrics, every), name="loop-delay")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def _watch(metrics: Metrics, every: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        await asyncio.sleep(every)
        metrics.record(Histogram.LOOP_DELAY, max(0.0, loop.time() - due))


def _space(path: Path, *, free: bool) -> Reading:
    """Nothing where there is no data directory: such a process keeps nothing on this machine."""
    try:
        found = os.statvfs(path)
    except OSError:
        return []
    blocks = found.f_bavail if free else found.f_blocks
    return [(blocks * found.f_frsize, {})]
