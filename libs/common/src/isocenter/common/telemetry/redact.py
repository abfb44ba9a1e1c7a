"""What no log line and no span may hold, whoever wrote it."""

from __future__ import annotations

import re

STANDARD_ROOT = "1.2.840.10008."
"""UIDs under this root name classes and encodings (PS3.6 annex A), never somebody's study."""
MAX_CHARS = 512

# Five components or more: versions and IPv4 addresses have fewer. PS3.5 section 9.1 allows 64 characters.
_UID = re.compile(r"(?<![\w.])[0-2](?:\.\d{1,62}){4,}(?![\w.]*\w)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def safe_text(text: str, limit: int = MAX_CHARS) -> str:
    """Text with UIDs of patients' objects replaced, control characters replaced, cut at `limit`.

    A net under the rule that such values are not passed in the first place.
    """
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[: limit * 2])
    return _UID.sub(_replaced, text)[:limit]


def _replaced(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith(STANDARD_ROOT) else "{uid}"
