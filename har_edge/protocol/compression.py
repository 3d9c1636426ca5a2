"""Lossless compression of tensors: Zstandard (RFC 8878) at level 1, behind an order of bytes that compresses better.

The values are put channel by channel (the last dimension first), and then byte by byte: the lowest byte of every value,
the next byte of every value, and so on. Neighbours in a channel are alike, and so are the high bytes of all values.
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.extras import install_line, is_installed

Array = npt.NDArray[Any]
LEVEL = 1  # level 3 gains nothing on activations (docs/results.md)
_BUILT_IN = (3, 14)  # Python has Zstandard itself from there on


def is_available() -> bool:
    """Return whether this machine can compress and expand tensors."""
    return sys.version_info >= _BUILT_IN or is_installed("zstandard")


def known_packings() -> tuple[str, ...]:
    """Return the parts of packings (tflite/packing.py) that this machine can read and write."""
    return ("f2", "q8", *(("zstd",) if is_available() else ()))


def missing_reason() -> str:
    """Return what to do on a machine that cannot."""
    return f"this node has no Zstandard; {install_line('zstandard')}, or cut the model again without zstd"


def compress(array: Array) -> bytes:
    """Return a frame with the bytes of an array (little-endian, C order). Raises MessageError without Zstandard."""
    planes = _arrange(array)
    if sys.version_info >= _BUILT_IN:
        frame: bytes = _built_in().compress(planes, LEVEL)
        return frame
    made: bytes = _library().ZstdCompressor(level=LEVEL).compress(planes)
    return made


def expand(frame: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return the array of a frame; the caller has checked that an array of this type and shape is not too large.

    Raises MessageError for anything but one frame that says, and has, exactly as many bytes, before more are allocated.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        content = _expand_built_in(frame, size) if sys.version_info >= _BUILT_IN else _expand(frame, size)
    except ValueError as error:
        raise MessageError(f"a frame of {len(frame)} bytes came that cannot be expanded: {error}") from None
    if len(content) != size:
        raise MessageError(f"a frame came that expands to {len(content)} bytes; expected {size}")
    return _rearrange(content, dtype, shape)


def _expand(frame: bytes | memoryview, size: int) -> bytes:
    library = _library()
    try:
        said = library.get_frame_parameters(frame).content_size  # unknown is the largest number of 64 bits
        if said != size:
            raise ValueError(f"it says that it holds {said} bytes, expected {size}")
        made: bytes = library.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except library.ZstdError as error:
        raise ValueError(str(error)) from None
    return made


def _expand_built_in(frame: bytes | memoryview, size: int) -> bytes:
    zstd = _built_in()
    try:
        said = zstd.get_frame_info(frame).decompressed_size
        if said != size:
            raise ValueError(f"it says that it holds {said} bytes, expected {size}")
        stream = zstd.ZstdDecompressor()
        made: bytes = stream.decompress(frame, max(1, size))
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("it ends too early" if not stream.eof else "bytes follow its end")
    return made


def _built_in() -> Any:
    return importlib.import_module("compression.zstd")


def _library() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MessageError(f"a tensor travels compressed: {missing_reason()}") from None
    return zstandard


def _arrange(array: Array) -> bytes | memoryview:
    values = np.ascontiguousarray(np.moveaxis(array, -1, 0) if array.ndim > 1 else array)
    if values.itemsize > 1:
        values = np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T)
    return values.data.cast("B") if values.size else b""


def _rearrange(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Undo `_arrange`; the array is read-only, as those that come as they are."""
    flat: Array = np.frombuffer(content, np.uint8) if content else np.zeros(0, np.uint8)
    if dtype.itemsize > 1:
        flat = np.ascontiguousarray(flat.reshape(dtype.itemsize, -1).T).reshape(-1)
    values = flat.view(dtype)
    if len(shape) > 1:
        values = np.ascontiguousarray(np.moveaxis(values.reshape(shape[-1], *shape[:-1]), 0, -1))
    values = values.reshape(shape)
    values.flags.writeable = False
    return values
