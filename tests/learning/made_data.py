"""Small data sets for tests, as arrays and as files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from har_edge.learning.data.datasets import Dataset

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(values: Any) -> bytes:
    """Return an array as an idx file."""
    head = struct.pack(f">HBB{values.ndim}I", 0, CODES[values.dtype.name], values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def pictures(count: int = 40, side: int = 6, classes: int = 4, seed: int = 0) -> Dataset:
    """Return uint8 pictures whose class shows: a bright row at its number."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = generator.integers(0, 60, (count, side, side)).astype(np.uint8)
    x[np.arange(count), y] += 180
    return Dataset(x, y, tuple(map(str, range(classes))), "rows", real=False, scale=1 / 255)


def write_mnist(folder: Path, train: Dataset, test: Dataset | None = None, *, packed: bool = True) -> Path:
    """Write data sets under the names of MNIST's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, data in (("train", train), ("t10k", test)):
        if data is not None:
            for kind, values in (("images-idx3", data.x), ("labels-idx1", data.y.astype(np.uint8))):
                path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    return folder
