"""How the codes of a sensor enter a model: as they are where they are its input, else restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import ConfigError, DataError, MessageError
from har_edge.inference.interpreter import Port
from har_edge.reduction.catalog import make_reducer
from har_edge.reduction.reducer import Reducer

Array = npt.NDArray[Any]
Feed = Callable[[Array], Array]

_QUANTIZERS = {"int8": "q8", "int16": "q16"}


def make_feed(source: str, reducer: Reducer, port: Port, length: int, channels: int) -> Feed:
    """Return the function from codes [count, ...] of one source to the input tensor [count, length, channels].

    A code that equals the input (reducer `none` for a float32 model, the model's own quantisation for an integer one)
    passes untouched; any other is restored, and quantised where the model wants integers. Raises ConfigError when
    windows of that shape do not fit the port; the function raises MessageError for codes that the reducer did not make.
    """
    if port.shape[1:] != (length, channels):
        raise ConfigError(
            f"source {source!r} gives windows [{length}, {channels}], but the input {port.name!r} of the model takes "
            f"{list(port.shape[1:])}; use the window, channels and model that belong together"
        )
    own = _own_quantizer(port, length, channels)
    expected, dtype, passes = reducer.code_shape, np.dtype(reducer.code_dtype), reducer.spec == own.spec

    def feed(codes: Array) -> Array:
        fits = codes.ndim == len(expected) + 1 and all(
            wanted in (None, got) for wanted, got in zip(expected, codes.shape[1:], strict=False)
        )
        if not fits or codes.dtype != dtype or not len(codes):
            raise MessageError(
                f"the code of source {source!r} is {codes.dtype} {list(codes.shape)}; expected {dtype} "
                f"[windows, {', '.join('any' if size is None else str(size) for size in expected)}] "
                f"as {reducer.spec!r} makes it; give sensor and stage the same reducer"
            )
        if passes:
            return codes
        try:
            return np.stack([own.encode(reducer.decode(code)) for code in codes])
        except DataError as error:  # the data came over the network: its sender can act on it, not the person here
            raise MessageError(f"the code of source {source!r} holds no window: {error}") from None

    return feed


def _own_quantizer(port: Port, length: int, channels: int) -> Reducer:
    """Return the reducer whose codes are this input: `none` for float32, its affine quantisation for integers."""
    if port.dtype == np.float32:
        return make_reducer("none", length, channels)
    method = _QUANTIZERS.get(port.dtype.name)
    if method is None or port.scale <= 0:
        raise ConfigError(
            f"input {port.name!r} of the model is {port.dtype}; windows can enter float32, or int8 and int16 with one "
            "scale for the tensor; convert the model with such inputs"
        )
    return make_reducer(f"{method}:{port.scale!r}:{port.zero_point}", length, channels)
