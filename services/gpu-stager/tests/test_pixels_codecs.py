"""Every compressed transfer syntax with every kind of pixel: what went in comes out, and pylibjpeg agrees."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import get_encoder

from isocenter.common.errors import IntegrityError
from isocenter.gpu_stager.pixels.codecs import SUPPORTED
from isocenter.gpu_stager.pixels.decoding import decode, require_decoder
from isocenter.gpu_stager.pixels.facts import NotStageable, PixelFacts

LOSSLESS = [
    uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless,
    uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL,
]  # fmt: skip
KINDS = {"u8": ("u1", 8), "u12": ("<u2", 12), "i12": ("<i2", 12), "u16": ("<u2", 16), "i16": ("<i2", 16)}


def facts(pixels: npt.NDArray[Any], bits_stored: int, photometric: str = "MONOCHROME2") -> PixelFacts:
    return PixelFacts(
        keyword="PixelData",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=pixels.shape[2] if pixels.ndim > 2 else 1,
        photometric_interpretation=photometric,
        bits_allocated=8 * pixels.itemsize,
        bits_stored=bits_stored,
        pixel_representation=int(pixels.dtype.kind == "i"),
        planar_configuration=0,
        number_of_frames=1,
        value_representation="OB",
    )


def made(kind: str, shape: tuple[int, ...] = (37, 53)) -> npt.NDArray[Any]:
    code, bits = KINDS[kind]
    low, high = (-(1 << bits - 1), 1 << bits - 1) if "i" in code else (0, 1 << bits)
    random = np.random.default_rng(5)
    ramp = np.linspace(low, high - 1, int(np.prod(shape))).reshape(shape)
    return np.clip(ramp + random.normal(0, 2, shape), low, high - 1).astype(code)


def encoded(syntax: uid.UID, pixels: npt.NDArray[Any], bits: int) -> bytes:
    """What a codec without a sign gets is the two's complement, cut to its bits."""
    unsigned = pixels.view(f"<u{pixels.itemsize}") & ((1 << bits) - 1)
    unsigned = unsigned.astype(pixels.dtype.str.replace("i", "u"))
    if syntax == uid.RLELossless:
        options = facts(pixels, bits, "RGB" if pixels.ndim > 2 else "MONOCHROME2")
        data = get_encoder(syntax).encode(
            pixels.tobytes(), rows=options.rows, columns=options.columns, number_of_frames=1,
            samples_per_pixel=options.samples_per_pixel, bits_allocated=options.bits_allocated,
            bits_stored=bits, pixel_representation=options.pixel_representation, planar_configuration=0,
            photometric_interpretation=options.photometric_interpretation, encoding_plugin="pydicom",
        )  # fmt: skip
        return bytes(data)
    if syntax in {uid.JPEGLossless, uid.JPEGLosslessSV1}:
        return bytes(imagecodecs.ljpeg_encode(unsigned, bitspersample=bits))
    if syntax == uid.JPEGLSLossless:
        # This encoder writes a precision of 16, so the sign goes along.
        return bytes(imagecodecs.jpegls_encode(pixels.view(unsigned.dtype)))
    if syntax == uid.JPEG2000Lossless:
        colour = pixels.ndim > 2
        return bytes(
            imagecodecs.jpeg2k_encode(
                pixels, codecformat="j2k", reversible=True, level=0, bitspersample=bits, mct=colour
            )
        )
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_what_went_in_comes_out(syntax: uid.UID, kind: str) -> None:
    pixels, bits = made(kind), KINDS[kind][1]
    data = encoded(syntax, pixels, bits)
    got = decode(str(syntax), facts(pixels, bits), data)
    np.testing.assert_array_equal(got, pixels)
    assert got.dtype == pixels.dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_pylibjpeg_agrees(syntax: uid.UID, kind: str) -> None:
    pixels, bits = made(kind), KINDS[kind][1]
    data = encoded(syntax, pixels, bits)
    its = facts(pixels, bits)
    options: dict[str, Any] = {
        "rows": its.rows,
        "columns": its.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": its.bits_allocated,
        "bits_stored": bits,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_representation": its.pixel_representation,
    }
    whole = encapsulate([data])
    other, _ = get_decoder(syntax).as_array(whole, index=0, decoding_plugin="pylibjpeg", **options)
    np.testing.assert_array_equal(decode(str(syntax), its, data), other)


@pytest.mark.parametrize(
    "syntax",
    [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless],
    ids=lambda syntax: syntax.keyword,
)
def test_colour_comes_out_by_pixel(syntax: uid.UID) -> None:
    pixels = made("u8", (37, 53, 3))
    photometric = "YBR_RCT" if syntax == uid.JPEG2000Lossless else "RGB"
    got = decode(str(syntax), facts(pixels, 8, photometric), encoded(syntax, pixels, 8))
    np.testing.assert_array_equal(got, pixels)


def test_near_lossless_stays_within_its_bound() -> None:
    pixels = made("u12")
    data = bytes(imagecodecs.jpegls_encode(pixels, level=2))
    got = decode(str(uid.JPEGLSNearLossless), facts(pixels, 12), data)
    assert 0 < np.abs(got.astype(int) - pixels.astype(int)).max() <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", sorted(SUPPORTED))
def test_bytes_that_are_no_image_are_refused_without_quoting_them(syntax: str) -> None:
    pixels = made("u8")
    with pytest.raises(IntegrityError) as refused:
        decode(syntax, facts(pixels, 8), b"DOE^JANE" * 40)
    assert "DOE" not in str(refused.value)


def test_a_frame_of_another_size_is_refused() -> None:
    pixels = made("u12")
    data = encoded(uid.JPEGLSLossless, pixels[:-1], 12)
    with pytest.raises(IntegrityError):
        decode(str(uid.JPEGLSLossless), facts(pixels, 12), data)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102"])
def test_video_is_not_staged(syntax: str) -> None:
    with pytest.raises(NotStageable, match="transfer-syntax-unsupported"):
        require_decoder(syntax, facts(made("u8"), 8))
