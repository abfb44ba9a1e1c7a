"""The child processes that parse headers, as the indexer has them."""

from __future__ import annotations

from isocenter.common.dicom.bounded import Loss, ParserPool
from isocenter.common.dicom.bounded_wire import Bounds
from isocenter.common.index.attributes import TOP_LEVEL
from isocenter.common.telemetry import Counter, LogEvent, Telemetry


def parser_pool(children: int, telemetry: Telemetry) -> ParserPool | None:
    """None without children: headers are then parsed where they are read."""
    if not children:
        return None

    def lost(how: Loss) -> None:
        telemetry.metrics.add(Counter.PARSERS_LOST, reason=how.value)
        telemetry.log.warning(LogEvent.PARSER_LOST, reason=how.value)

    return ParserPool(children, bounds=Bounds(tags=TOP_LEVEL), lost=lost)
