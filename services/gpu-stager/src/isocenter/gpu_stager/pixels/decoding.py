"""A frame's bytes become an array, equal to what pydicom makes of them.

pydicom's own decoders own every rule around a codec (unused bits, signedness, planes, colour spaces); only
the codec is exchanged: see `codecs`.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from isocenter.common.errors import IntegrityError
from isocenter.common.index.manifest import ManifestEntry
from isocenter.gpu_stager.pixels import attributes as a
from isocenter.gpu_stager.pixels import codecs
from isocenter.gpu_stager.pixels.facts import NotStageable, PixelFacts

Array = npt.NDArray[np.generic]

NATIVE: Final = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.98",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
    }
)
ENCAPSULATED_NATIVE: Final = "1.2.840.10008.1.2.1.98"
_YBR: Final = frozenset({"YBR_FULL", "YBR_FULL_422"})
_CODEC_RGB: Final = frozenset({"YBR_ICT", "YBR_RCT"})


def require_decoder(transfer_syntax_uid: str, pixels: PixelFacts) -> None:
    """Raises NotStageable: nobody here decodes it (video, for one)."""
    if transfer_syntax_uid in NATIVE:
        return
    if transfer_syntax_uid not in codecs.SUPPORTED or pixels.keyword != "PixelData":
        raise NotStageable("transfer-syntax-unsupported")
    if pixels.bits_allocated not in {8, 16, 32}:
        raise NotStageable("bits-or-samples-unsupported")


def decoded_dtype(pixels: PixelFacts) -> str:
    """Of a stored value, little endian."""
    if pixels.keyword == "FloatPixelData":
        return "<f4"
    if pixels.keyword == "DoubleFloatPixelData":
        return "<f8"
    size = max(1, pixels.bits_allocated // 8)
    code = "i" if pixels.pixel_representation and pixels.bits_allocated > 1 else "u"
    return f"{'|' if size == 1 else '<'}{code}{size}"


def decoded_photometric(transfer_syntax_uid: str, pixels: PixelFacts) -> str:
    """Colour comes out as RGB by pixel, as with pydicom."""
    said = pixels.photometric_interpretation
    if pixels.samples_per_pixel == 3 and (said in _YBR or said in _CODEC_RGB):
        return "RGB"
    return said


def is_lossy(entry: ManifestEntry) -> bool:
    return a.text(entry.metadata, "00282110") == "01" or entry.transfer_syntax_uid in codecs.LOSSY


def decode(transfer_syntax_uid: str, pixels: PixelFacts, data: bytes) -> Array:
    """One frame: (rows, columns) or (rows, columns, samples), of `decoded_dtype`.

    Args:
        transfer_syntax_uid: of the instance.
        pixels: of the instance.
        data: the frame's bytes, without items; of a single-bit frame beginning at its first bit; of big
            endian OW with 8 bits allocated, swapped already.

    Raises:
        IntegrityError: they do not make such a frame. The message never quotes the codec's, which may quote
            anything.
    """
    dtype = np.dtype(decoded_dtype(pixels))
    native = transfer_syntax_uid in NATIVE
    if native and (quick := _as_it_is(transfer_syntax_uid, pixels, data, dtype)) is not None:
        return quick
    uid = UID(transfer_syntax_uid)
    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": pixels.samples_per_pixel,
        "photometric_interpretation": pixels.photometric_interpretation,
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "number_of_frames": 1,
        "pixel_keyword": pixels.keyword,
    }
    if pixels.keyword == "PixelData":
        options["pixel_representation"] = pixels.pixel_representation
    if pixels.samples_per_pixel > 1:
        options["planar_configuration"] = pixels.planar_configuration
    try:
        if native:
            if uid == ExplicitVRBigEndian and pixels.bits_allocated > 8:
                options["pixel_vr"] = "OW"
            else:
                uid = ExplicitVRLittleEndian  # deflated and encapsulated are unpacked by now
            array, _ = get_decoder(uid).as_array(data, index=0, **options)
        else:
            codecs.install()
            whole = encapsulate([data], has_bot=False)
            array, _ = get_decoder(uid).as_array(
                whole, index=0, decoding_plugin=codecs.PLUGIN, validate=True, **options
            )
    except Exception as error:  # noqa: BLE001 - codecs raise what they like
        raise IntegrityError("a frame cannot be decoded", codec_error=type(error).__name__) from None
    return np.ascontiguousarray(array, dtype=dtype)


def _as_it_is(
    transfer_syntax_uid: str, pixels: PixelFacts, data: bytes, dtype: np.dtype[Any]
) -> Array | None:
    """The common case, without a copy: little endian, every bit in use, one sample. None: not that case."""
    plain = (
        transfer_syntax_uid != ExplicitVRBigEndian
        and sys.byteorder == "little"
        and pixels.samples_per_pixel == 1
        and pixels.bits_allocated > 1
        and (pixels.keyword != "PixelData" or pixels.bits_stored == pixels.bits_allocated)
        and len(data) == pixels.rows * pixels.columns * dtype.itemsize
    )
    return np.frombuffer(data, dtype).reshape(pixels.rows, pixels.columns) if plain else None
