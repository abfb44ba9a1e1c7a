"""HTTP byte ranges (RFC 9110 section 14) for single-part representations."""

from __future__ import annotations

import re

from isocenter.gateway.domain import Problem

_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,19})\s*-\s*([0-9]{0,19})\s*", re.IGNORECASE)


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """The half-open byte range asked for; None where the whole representation is to be sent.

    Several ranges, other units and malformed fields are answered with the whole (RFC 9110 allows it).

    Raises:
        Problem: 416 if the range begins past the end.
    """
    found = _RANGE.fullmatch(text) if text else None
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
        if found[2] and end <= start:
            return None
    if start >= size:
        raise Problem(
            416,
            "range-not-satisfiable",
            f"The representation has {size} bytes.",
            parameter="Range",
            headers=(("content-range", f"bytes */{size}"),),
        )
    return start, min(end, size)
