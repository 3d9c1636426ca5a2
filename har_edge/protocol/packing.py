"""Round tensors for the way, and bring them back: float16, or int8 by a scale (har_edge/tflite/packing.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.tflite.packing import QUANTISED_HIGH, QUANTISED_LOW, Rounding, TensorPacking

Array = npt.NDArray[Any]
FLOAT16_MOST = float(np.finfo(np.float16).max)
WIRE_DTYPES = {Rounding.FLOAT16: np.dtype("<f2"), Rounding.INT8: np.dtype("i1")}


def pack(array: Array, packing: TensorPacking) -> tuple[Array, int]:
    """Return the rounded values of float32 or float64, and how many were clipped: finite, but beyond the range.

    float16 carries infinity and NaN as they are; its nearest value is given to an even one of two. int8 clips infinity,
    too. Raises MessageError for NaN where it should travel as int8.
    """
    if packing.rounding is Rounding.NONE:
        return array, 0
    if packing.rounding is Rounding.FLOAT16:
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16)
        # Only where something has become infinite are the values looked at again.
        beyond = np.isinf(rounded) & np.isfinite(array)
        clipped = int(np.count_nonzero(beyond))
        if clipped:
            rounded[beyond] = np.copysign(FLOAT16_MOST, array[beyond])
        return rounded, clipped
    # In the tensor's own type, so that every NumPy gives the same bits.
    kind = array.dtype.type
    with np.errstate(over="ignore"):
        values = np.rint(array / kind(packing.scale)) + kind(packing.zero)
    inside = (values >= QUANTISED_LOW) & (values <= QUANTISED_HIGH)
    clipped = values.size - int(np.count_nonzero(inside))
    if clipped and np.isnan(values).any():
        raise MessageError(
            f"{int(np.count_nonzero(np.isnan(values)))} of {values.size} values are no number, which {packing.text} "
            "cannot carry; expected numbers: cut the model again without q8 there"
        )
    return np.clip(values, QUANTISED_LOW, QUANTISED_HIGH).astype(np.int8), clipped


def unpack(array: Array, packing: TensorPacking, dtype: np.dtype[Any]) -> Array:
    """Return the values of a tensor in the type that the slice takes.

    Raises MessageError for a tensor of another type than the packing's: its sender has another manifest.
    """
    if packing.rounding is Rounding.NONE:
        return array
    if array.dtype != WIRE_DTYPES[packing.rounding]:
        raise MessageError(
            f"{array.dtype} came; expected {WIRE_DTYPES[packing.rounding]}, since it travels as {packing.text}: slices "
            "of one cut on all nodes"
        )
    if packing.rounding is Rounding.FLOAT16:
        return array.astype(dtype)
    values: Array = array.astype(dtype)
    values -= dtype.type(packing.zero)
    values *= dtype.type(packing.scale)
    return values
