"""Blocks of samples that devices fetch: a data set in a shuffled order, cut into pieces, each packed with msgpack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from har_edge.errors import DataError
from har_edge.learning.data.datasets import MAX_CLASSES, Dataset, Fingerprint, check_labels

BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 64 << 20
VERSION = 1

_Size = Annotated[int, msgspec.Meta(ge=1, le=65536)]
_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Bytes = Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK_BYTES)]


class SampleBlock(msgspec.Struct, frozen=True):
    """One piece of a data set, as it travels. `x` and `y` hold the values little-endian; a label has two bytes."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    name: _Text
    real: bool
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(min_length=1, max_length=4)]
    dtype: Literal["uint8", "float32"]
    scale: float
    offset: float
    classes: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    x: _Bytes
    y: _Bytes
    sources: Annotated[tuple[tuple[_Text, _Size], ...], msgspec.Meta(max_length=64)] = ()


_decoder = msgspec.msgpack.Decoder(SampleBlock)


def samples_a_block(dataset: Dataset, target: int = BLOCK_BYTES) -> int:
    """Return how many samples make a block of about `target` bytes, at least one."""
    return max(1, target // (math.prod(dataset.shape) * dataset.x.itemsize))


def cut_blocks(dataset: Dataset, seed: int, count: int | None = None) -> Iterator[Dataset]:
    """Yield the data set in pieces of `count` samples (by default of BLOCK_BYTES), in an order that the seed gives.

    The same data set, seed and count give the same pieces. Every sample is in one piece.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    step = samples_a_block(dataset) if count is None else count
    for start in range(0, len(dataset), step):
        yield dataset.take(order[start : start + step])


def write_block(dataset: Dataset) -> bytes:
    """Return a piece of a data set as bytes. The groups of its samples stay behind. DataError where it is too large."""
    if dataset.x.nbytes > MAX_BLOCK_BYTES:
        raise DataError(
            f"{dataset.name}: a block of {dataset.x.nbytes} bytes, expected at most {MAX_BLOCK_BYTES}; use fewer "
            "samples a block"
        )
    x = dataset.x if dataset.x.dtype == np.uint8 else dataset.x.astype("<f4", copy=False)
    block = SampleBlock(
        version=VERSION,
        name=dataset.name,
        real=dataset.real,
        count=len(dataset),
        shape=dataset.shape,
        dtype="uint8" if dataset.x.dtype == np.uint8 else "float32",
        scale=dataset.scale,
        offset=dataset.offset,
        classes=dataset.classes,
        x=x.tobytes(),
        y=dataset.y.astype("<u2").tobytes(),
        sources=dataset.sources,
    )
    return msgspec.msgpack.encode(block)


def read_block(content: bytes | memoryview, expected: Fingerprint | None = None) -> Dataset:
    """Return the samples of a block.

    Raises DataError for bytes that are no block, a block of a newer version, sizes that do not agree, labels out of
    range, values that are no finite numbers, and another shape or other classes than `expected`.
    """
    try:
        block = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"a block of samples cannot be read: {error}; send it anew") from error
    name = f"a block of {block.name}"
    if block.version != VERSION:
        raise DataError(f"{name} has version {block.version}, expected {VERSION}; install the same har-edge everywhere")
    dtype = np.dtype("u1" if block.dtype == "uint8" else "<f4")
    sizes = block.count * math.prod(block.shape) * dtype.itemsize, block.count * 2
    if (len(block.x), len(block.y)) != sizes:
        raise DataError(
            f"{name} announces {block.count} samples {list(block.shape)} of {block.dtype}, {sizes[0]} and {sizes[1]} "
            f"bytes, and holds {len(block.x)} and {len(block.y)}; send it anew"
        )
    if expected is not None and (difference := expected.difference(Fingerprint(block.shape, block.classes))):
        raise DataError(f"{name}: {difference}")
    y = np.frombuffer(block.y, "<u2").astype(np.int64)
    check_labels(y, len(block.classes), name)
    x = np.frombuffer(block.x, dtype).reshape(block.count, *block.shape)
    return Dataset(
        x if dtype == np.uint8 else x.astype(np.float32, copy=False),
        y,
        block.classes,
        block.name,
        block.real,
        block.scale,
        block.offset,
        block.sources,
    )


def epoch_order(seed: int, epoch: int, block: int, samples: int) -> NDArray[np.int64]:
    """Return the order of a block's samples in an epoch, int64 [samples]: the same on every device.

    NumPy keeps the streams of RandomState for ever (NEP 19); those of its newer generators may change, and then two
    devices would mean different samples by one range.
    """
    words = np.array([seed >> 32, seed & 0xFFFFFFFF, epoch, block], np.uint32)
    return np.random.RandomState(words).permutation(samples).astype(np.int64)
