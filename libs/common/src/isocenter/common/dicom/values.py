"""One element's bytes as DICOM JSON (PS3.18 annex F.2), without ever failing for the whole instance.

pydicom's dictionary names the VRs and its tables the character sets. A value that cannot be converted is
left out.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, private_dictionary_VR

DEFAULT_ENCODINGS: Final = ("iso8859",)
BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})

_ESCAPE: Final = 0x1B
_DELIMITERS: Final = {0x09, 0x0A, 0x0C, 0x0D, 0x5C}
_NAME_DELIMITERS: Final = _DELIMITERS | {0x3D, 0x5E}
_NUMBERS: Final = {
    "FD": ("d", 8), "FL": ("f", 4), "SL": ("i", 4), "SS": ("h", 2), "SV": ("q", 8),
    "UL": ("I", 4), "US": ("H", 2), "UV": ("Q", 8),
}  # fmt: skip
_WORDS: Final = {"OD": 8, "OF": 4, "OL": 4, "OV": 8, "OW": 2}
_ASCII: Final = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI"})
_SINGLE_TEXT: Final = frozenset({"LT", "ST", "UR", "UT"})
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")


Convert = Callable[[bytes, bool, Sequence[str]], list[Any]]
"""Bytes, whether they are little endian, character sets -> values. Raises BadValue."""


class BadValue(ValueError):
    """The bytes are no value of this VR. Carries nothing of them."""


def element_json(vr: str, raw: bytes, *, little: bool, encodings: Sequence[str]) -> dict[str, Any]:
    """The JSON object of one element that is no sequence and not kept as bulk data.

    Raises:
        BadValue: the element is to be left out.
    """
    if vr in BINARY_VRS:
        if not raw:
            return {"vr": vr}
        # JSON carries little endian whatever the object's transfer syntax (PS3.18 F.2.7).
        ordered = raw if little else swapped(vr, raw)
        return {"vr": vr, "InlineBinary": base64.b64encode(ordered).decode()}
    values = CONVERTERS.get(vr, _texts)(raw, little, encodings)
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def swapped(vr: str, raw: bytes) -> bytes:
    """Big endian words of this VR as little endian. Raises BadValue where half a word is left."""
    width = _WORDS.get(vr, 1)
    if len(raw) % width:
        raise BadValue
    if width == 1:
        return raw
    result = bytearray(len(raw))
    for offset in range(width):
        result[offset::width] = raw[width - 1 - offset :: width]
    return bytes(result)


def text_encodings(raw: bytes) -> tuple[str, ...]:
    """Python codecs for Specific Character Set (0008,0005). Unknown terms read as the default repertoire."""
    terms = raw.decode("ascii", "replace").strip("\0 ").split("\\")
    codecs = [_codec(term.strip()) for term in terms]
    return tuple(codecs) or DEFAULT_ENCODINGS


def _codec(term: str) -> str:
    for spelling in (term, "ISO_IR" + term[6:], "ISO 2022 IR " + term[12:]):
        # The second and third forgive `ISO-IR 100` and `ISO-2022-IR-87`.
        if re.sub(r"[-_ ]", "", spelling) == re.sub(r"[-_ ]", "", term) and spelling in python_encoding:
            return str(python_encoding[spelling])
    return DEFAULT_ENCODINGS[0]


def decode_text(raw: bytes, encodings: Sequence[str], delimiters: set[int] = _DELIMITERS) -> str:
    """Text in the given character sets; what they do not know becomes U+FFFD."""
    if _ESCAPE in raw:
        try:
            return str(decode_bytes(raw, list(encodings), delimiters))
        except Exception:  # noqa: BLE001, S110 - pydicom meets hostile bytes here; the plain way follows
            pass
    return raw.decode(encodings[0], "replace")


def _texts(raw: bytes, _little: bool, encodings: Sequence[str]) -> list[Any]:
    text = decode_text(raw, encodings).rstrip(" \0")
    if "\\" in text:
        return [part.rstrip(" \0") or None for part in text.split("\\")]
    return [text] if text else []


def _text(raw: bytes, _little: bool, encodings: Sequence[str]) -> list[Any]:
    text = decode_text(raw, encodings).rstrip(" \0")
    return [text] if text else []


def _names(raw: bytes, _little: bool, encodings: Sequence[str]) -> list[Any]:
    text = decode_text(raw, encodings, _NAME_DELIMITERS).rstrip(" \0")
    return [_person_name(name) for name in text.split("\\")] if text else []


def _parts(raw: bytes) -> list[str]:
    text = raw.decode("latin-1").strip(" \0")
    if "\\" in text:
        return [part.strip(" \0") for part in text.split("\\")]
    return [text] if text else []


def _ascii(raw: bytes, _little: bool, _encodings: Sequence[str]) -> list[Any]:
    return [part or None for part in _parts(raw)]


def _decimals(raw: bytes, _little: bool, _encodings: Sequence[str]) -> list[Any]:
    return [_decimal(part) if part else None for part in _parts(raw)]


def _integers(raw: bytes, _little: bool, _encodings: Sequence[str]) -> list[Any]:
    return [_integer(part) if part else None for part in _parts(raw)]


def _tags(raw: bytes, little: bool, _encodings: Sequence[str]) -> list[Any]:
    if len(raw) % 4:
        raise BadValue
    halves = struct.unpack(f"{'<' if little else '>'}{len(raw) // 2}H", raw)
    return [f"{halves[i]:04X}{halves[i + 1]:04X}" for i in range(0, len(halves), 2)]


def _numbers(code: str, width: int) -> Convert:
    small, big = struct.Struct(f"<{code}"), struct.Struct(f">{code}")
    is_float = code in "df"

    def convert(raw: bytes, little: bool, _encodings: Sequence[str]) -> list[Any]:
        if len(raw) == width:
            numbers = (small if little else big).unpack(raw)
        elif len(raw) % width:
            raise BadValue
        else:
            numbers = struct.unpack(f"{'<' if little else '>'}{len(raw) // width}{code}", raw)
        if is_float and not all(map(math.isfinite, numbers)):
            raise BadValue  # JSON has no NaN and no infinity
        return list(numbers)

    return convert


def _decimal(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not math.isfinite(number := float(text)):
        raise BadValue
    return number


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise BadValue
    return int(text)


def _person_name(text: str) -> dict[str, str] | None:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {name: stripped for name, part in groups if (stripped := part.rstrip(" \0"))} or None


CONVERTERS: Final[dict[str, Convert]] = {
    **{vr: _numbers(code, width) for vr, (code, width) in _NUMBERS.items()},
    **dict.fromkeys(_ASCII, _ascii),
    **dict.fromkeys(_SINGLE_TEXT, _text),
    **dict.fromkeys(("LO", "SH", "UC"), _texts),
    "AT": _tags,
    "DS": _decimals,
    "IS": _integers,
    "PN": _names,
}
"""By VR. Whatever is not here and not binary reads as text of several values."""


@lru_cache(maxsize=8192)
def dictionary_vr(tag: int, creator: str | None) -> str | None:
    """The VR in PS3.6 or pydicom's dictionary of private elements; may be ambiguous like `US or SS`."""
    group, element = tag >> 16, tag & 0xFFFF
    if element == 0:
        return "UL"
    try:
        if group % 2 == 0:
            return dictionary_VR(tag)
        if 0x10 <= element <= 0xFF:
            return "LO"
        return private_dictionary_VR(tag, creator) if creator else None
    except KeyError:
        return None


def unambiguous(vr: str, tag: int, *, signed: bool) -> str:
    """One VR for those that depend on other elements (PS3.5 annex A.1: implicit VR holds OW, not OB)."""
    if vr == "US or SS":
        return "SS" if signed else "US"
    if " or " in vr:
        return "OW"
    return vr
