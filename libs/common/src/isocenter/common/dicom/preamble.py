"""The 128 bytes in front of a Part 10 file that DICOM leaves to applications (PS3.10 section 7.1).

A file can be a DICOM instance and a program at the same time (CVE-2019-11687). Preambles of zeros, of TIFF
(whole slide images that are both) and of writers with a habit of their own exist and are kept as they came;
those that begin a program, a script, an archive or a document that browsers run are not taken.
"""

from __future__ import annotations

from typing import Final

_BEGINNINGS: Final = (
    b"MZ",  # DOS, Windows, UEFI
    b"ZM",
    b"\x7fELF",
    b"\xfe\xed\xfa\xce",  # Mach-O, and with swapped bytes
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",  # Mach-O for several machines; Java class
    b"\xca\xfe\xba\xbf",
    b"dex\n",  # Android
    b"\0asm",
    b"L\0\0\0\x01\x14\x02\0",  # Windows shortcut
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",  # Office, installers
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"Rar!",
    b"7z\xbc\xaf\x27\x1c",
    b"\x1f\x8b",
    b"%PDF-",
    b"%!",
    b"{\\rtf",
    b"#!",
    b"@echo",
)
_ANYWHERE: Final = (b"<!doctype", b"<html", b"<script", b"<svg", b"<?", b"<%", b"javascript:", b"%pdf-")


def is_unsafe(preamble: bytes | bytearray | memoryview) -> bool:
    """True if something else than a DICOM or TIFF reader would run or render the file."""
    text = bytes(preamble[:128])
    if not text.strip(b"\0"):
        return False
    lowered = text.lower()
    return (
        text.startswith(_BEGINNINGS)
        or lowered.lstrip(b"\xef\xbb\xbf \t\r\n\0").startswith((b"<", b"@echo", b"#!"))
        or any(mark in lowered for mark in _ANYWHERE)
    )
