"""Measure what each way to pack activations saves and costs on this machine, on activations of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.planner.profile import PackingFigures
from har_edge.protocol.compression import compress, expand, is_available
from har_edge.protocol.packing import pack, unpack
from har_edge.tflite.packing import ROUNDED, Rounding, TensorPacking

Array = npt.NDArray[Any]
REPEATS = 5
_WAYS = tuple(
    TensorPacking(rounding, zstd=zstd)
    for rounding in Rounding
    for zstd in (False, True)
    if zstd or rounding is not Rounding.NONE
)


def measure_packings(
    tensors: Sequence[Array], data: str, clock: Callable[[], float] = time.thread_time
) -> tuple[PackingFigures, ...]:
    """Return the figures of each packing over all of these tensors; `data` says in words what they were made from.

    Integers are not rounded. The figures lack packings that this machine cannot do.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    return tuple(_measure(tensors, total, packing, data, clock) for packing in _possible(tensors)) if total else ()


def _possible(tensors: Sequence[Array]) -> Iterator[TensorPacking]:
    rounds = any(tensor.dtype.name in ROUNDED for tensor in tensors)
    for packing in _WAYS:
        if (rounds or packing.rounding is Rounding.NONE) and (is_available() or not packing.zstd):
            yield packing


def _measure(
    tensors: Sequence[Array], total: int, packing: TensorPacking, data: str, clock: Callable[[], float]
) -> PackingFigures:
    sent, best = 0, [float("inf")] * len(tensors)
    for number, tensor in enumerate(tensors):
        rounding = packing.rounding if tensor.dtype.name in ROUNDED else Rounding.NONE
        finite = tensor[np.isfinite(tensor)] if rounding is Rounding.INT8 else tensor
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        own = TensorPacking(rounding, zstd=packing.zstd).calibrated(low, high)
        for _ in range(REPEATS):
            began = clock()
            packed, _clipped = pack(tensor, own)
            nbytes = packed.nbytes
            if own.zstd:
                frame = compress(packed)
                if len(frame) < nbytes:
                    nbytes, packed = len(frame), expand(frame, packed.dtype, packed.shape)
            unpack(packed, own, tensor.dtype)
            best[number] = min(best[number], clock() - began)
        sent += nbytes
    return PackingFigures(
        packing.text if packing.is_calibrated else _name(packing), total / sent, sum(best) / total, data
    )


def _name(packing: TensorPacking) -> str:
    return "q8+zstd" if packing.zstd else "q8"
