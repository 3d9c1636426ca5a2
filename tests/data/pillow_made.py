"""Pictures for tests, made by Pillow from random pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

LOSSLESS = ("BMP", "PNG", "PPM", "TIFF")
ALL = (*LOSSLESS, "GIF", "JPEG", "WEBP")


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random pixels, uint8 [height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def file_of(values: npt.NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """Return a file with these pixels, uint8 [height, width, 3 or 1]."""
    made = io.BytesIO()
    Image.fromarray(values if values.shape[2] == 3 else values[:, :, 0]).save(made, kind, **options)
    return made.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header says this size, and that holds next to no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data
