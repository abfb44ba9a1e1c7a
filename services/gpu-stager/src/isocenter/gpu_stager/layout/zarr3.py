"""Zarr v3 metadata and the index of a shard, as the specification has them.

One shard holds the array: its inner chunks are the blocks, uncompressed and in order, and its index stands at
the end. So the file begins with the volume in C order, and every Zarr reader opens it.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

import numpy as np

from isocenter.gpu_stager.layout.spec import ArraySpec

_POLYNOMIAL: Final = 0x82F63B78
"""CRC-32C (Castagnoli), bits reversed."""
AXES: Final = ("slice", "row", "column", "sample")


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """For an index of some hundred bytes: nothing here needs a fast one."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def shard_index(spec: ArraySpec) -> bytes:
    """What ends the file. Blocks of zeros are there, too: a reader may leave none out."""
    pairs = b"".join(
        struct.pack("<QQ", number * spec.block_bytes, spec.block_bytes) for number in range(spec.blocks)
    )
    return pairs + struct.pack("<I", crc32c(pairs))


def array_document(spec: ArraySpec, attributes: dict[str, Any] | None = None) -> bytes:
    """`zarr.json` of an array. Its chunk is the whole shard, whose last block may reach past the shape."""
    inner = [spec.block_frames, *spec.shape[1:]]
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = {"name": "bytes"} if np.dtype(spec.dtype).itemsize == 1 else little
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": np.dtype(spec.dtype).name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [spec.blocks * spec.block_frames, *spec.shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": inner,
                    "codecs": [plain],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": list(AXES[: len(spec.shape)]),
        "attributes": attributes or {},
    }
    return json.dumps(document, indent=1).encode()


def group_document(attributes: dict[str, Any] | None = None) -> bytes:
    return json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}, indent=1
    ).encode()


def shard_path(path: str, spec: ArraySpec) -> str:
    """The only chunk of the array, below the group."""
    return "/".join((path, "c", *("0" for _ in spec.shape)))
