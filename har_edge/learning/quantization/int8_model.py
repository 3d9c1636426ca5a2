"""Make an int8 model of a float one, by ai-edge-quantizer, with ranges that devices measured on their own samples."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np

from har_edge.errors import ModelError
from har_edge.extras import require
from har_edge.learning.quantization.tensor_ranges import TensorRanges

LIBRARY = "ai_edge_quantizer"


def require_quantizer() -> None:
    """Raise ConfigError where ai-edge-quantizer is not installed."""
    require("an int8 model of a training", LIBRARY)


def quantize(content: bytes, ranges: TensorRanges) -> bytes:
    """Return a float model with int8 weights and activations (static range quantisation).

    Raises ConfigError where ai-edge-quantizer is not installed, ModelError where it does not take the model.
    """
    require_quantizer()
    from ai_edge_quantizer import quantizer, recipe

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints sizes of its own
            warnings.simplefilter("ignore")
            made = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
            found = made.quantize(statistics(ranges)).quantized_model
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"ai-edge-quantizer cannot quantise this model: {error}; take the float32 one") from error
    if found is None:
        raise ModelError("ai-edge-quantizer gave no model; take the float32 one")
    return bytes(found)


def statistics(ranges: TensorRanges) -> dict[str, dict[str, Any]]:
    """Return ranges as ai-edge-quantizer takes them: by tensor, each value with the tensor's number of axes."""
    return {
        name: {"min": np.full((1,) * rank, low, np.float32), "max": np.full((1,) * rank, high, np.float32)}
        for name, rank, low, high in zip(ranges.graph.names, ranges.graph.ranks, ranges.lows, ranges.highs, strict=True)
    }
