"""Outputs that results carry as arrays: their sizes, and their real values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.config.task import ArrayOutput
from har_edge.errors import ConfigError, MessageError
from har_edge.tflite.manifest import TensorSpec

Array = npt.NDArray[Any]
# Values that one result carries, in all its arrays: as JSON they take at most 1.6 MB.
MAX_VALUES = 65_536


def check_arrays(outputs: Sequence[TensorSpec], what: str) -> None:
    """Raise ConfigError, which begins with `what`, for outputs that no result can carry."""
    odd = next((spec for spec in outputs if spec.dtype.startswith("complex")), None)
    if odd is not None:
        raise ConfigError(f"{what}: output {odd.name!r} is {odd.dtype}, which JSON has no numbers for; leave it out")
    sizes = {spec.name: math.prod(max(1, size) for size in spec.shape) for spec in outputs}
    if sum(sizes.values()) > MAX_VALUES:
        listed = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"{what}: the arrays of a result have {sum(sizes.values())} values ({listed}); expected at most "
            f"{MAX_VALUES}: name fewer under [[task.arrays]], or convert the model with a smaller output (ARG_MAX, "
            "pooling)"
        )


def split_windows(name: str, values: Array, count: int) -> list[Array]:
    """Return the part of each of `count` windows of an output, without the batch dimension.

    Raises MessageError where it has no row for each.
    """
    if values.ndim and values.shape[0] == count:
        return list(values)
    if count == 1:
        return [values]
    raise MessageError(
        f"output {name!r} came as {values.dtype} {list(values.shape)} for {count} windows; expected a row for each"
    )


def dequantize(output: ArrayOutput, values: Array) -> Array:
    """Return the real values of an output in its shape: float32 where it is quantised, else the values as they are."""
    if output.scale <= 0:
        return values
    real: Array = ((values.astype(np.float64) - output.zero) * output.scale).astype(np.float32)
    return real


def real_values(output: ArrayOutput, values: Array) -> list[float | int | bool | None]:
    """Return the values of an output in their order, real ones where it is quantised; None stands for NaN or infinity.

    Floats have the fewest digits that give back the float32, or whatever the output is.
    """
    flat = dequantize(output, values).reshape(-1)
    if flat.dtype.kind != "f":
        listed: list[float | int | bool | None] = flat.tolist()
        return listed
    # The text of a NumPy scalar has the fewest digits that give it back.
    numbers = [float(str(value)) for value in flat]
    return [value if math.isfinite(value) else None for value in numbers]
