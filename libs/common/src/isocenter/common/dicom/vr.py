"""Value representations as the element header encodes them (PS3.5 section 7.1.2)."""

from __future__ import annotations

from typing import Final

SHORT_LENGTH_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
"""PS3.5 table 7.1-2: a 16-bit length follows. All others, known or not: 2 reserved bytes, 32 bits."""

LONG_LENGTH_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

KNOWN_VRS: Final = SHORT_LENGTH_VRS | LONG_LENGTH_VRS

UNDEFINED_LENGTH: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_DELIMITATION: Final = 0xFFFEE00D
SEQUENCE_DELIMITATION: Final = 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010

MAX_DEPTH: Final = 32
"""Nesting of sequences above which a data set is refused. Real ones stay below 10."""
MAX_ELEMENTS: Final = 1_000_000
"""Elements and items above which a data set is refused."""
