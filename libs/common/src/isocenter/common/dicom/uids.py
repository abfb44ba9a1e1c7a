"""UIDs: their form (PS3.5 section 9.1), and what a transfer syntax says about the bytes (section 10)."""

from __future__ import annotations

import re
from typing import Final

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG_BASELINE_8BIT: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED_12BIT: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS: Final = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
JPIP_REFERENCED: Final = "1.2.840.10008.1.2.4.94"
JPIP_REFERENCED_DEFLATE: Final = "1.2.840.10008.1.2.4.95"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL: Final = "1.2.840.10008.1.2.4.202"
HTJ2K: Final = "1.2.840.10008.1.2.4.203"
JPIP_HTJ2K_REFERENCED: Final = "1.2.840.10008.1.2.4.204"
JPIP_HTJ2K_REFERENCED_DEFLATE: Final = "1.2.840.10008.1.2.4.205"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
DEFLATED_IMAGE_FRAME: Final = "1.2.840.10008.1.2.8.1"

_DEFLATED: Final = frozenset(
    {DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, JPIP_REFERENCED_DEFLATE, JPIP_HTJ2K_REFERENCED_DEFLATE}
)
_JPIP: Final = frozenset(
    {
        JPIP_REFERENCED,
        JPIP_REFERENCED_DEFLATE,
        JPIP_HTJ2K_REFERENCED,
        JPIP_HTJ2K_REFERENCED_DEFLATE,
    }
)
# PS3.6 table A-1 gives every encapsulated transfer syntax one of these stems: JPEG family, JPEG XL and video
# under .4, RLE .5, frame-wise deflate .8.
_ENCAPSULATED_STEMS: Final = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.8.")
_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")
_MAX_UID_LENGTH: Final = 64


def is_valid_uid(text: str) -> bool:
    """True for 1 to 64 characters of decimal components without leading zeros, joined by dots."""
    return len(text) <= _MAX_UID_LENGTH and _UID.fullmatch(text) is not None


def is_deflated(transfer_syntax_uid: str) -> bool:
    """The whole data set is a raw deflate stream (RFC 1951). Frame-wise deflate is encapsulated instead."""
    return transfer_syntax_uid in _DEFLATED


def is_big_endian(transfer_syntax_uid: str) -> bool:
    return transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN


def is_implicit(transfer_syntax_uid: str) -> bool:
    """Unknown and private transfer syntaxes read as explicit VR little endian (PS3.5 annex A.4)."""
    return transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN


def is_encapsulated(transfer_syntax_uid: str) -> bool:
    """Pixel Data is a sequence of fragments. False for transfer syntaxes the standard does not name."""
    if transfer_syntax_uid in _JPIP:
        return False
    return transfer_syntax_uid in {
        RLE_LOSSLESS,
        ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN,
    } or transfer_syntax_uid.startswith(_ENCAPSULATED_STEMS)


def is_native(transfer_syntax_uid: str) -> bool:
    """Pixel Data is one run of samples, frame after frame (in the inflated stream if deflated)."""
    return not is_encapsulated(transfer_syntax_uid) and transfer_syntax_uid not in _JPIP
