"""Shares of the inputs of the linear operators: which weights belong to a range of input channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from har_edge.errors import CutError
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.linear_rules import check_weights
from har_edge.tflite.split.ranges import AxisRange, reshaped
from har_edge.tflite.split.shares import FLOATS, OperatorView


class SumKind(Enum):
    """How a shard computes its summand.

    FLOAT: by the operator itself. INTEGER: by a BATCH_MATMUL of 8-bit numbers with 32-bit results. EXACT: by the
    operator in float32, on integers so small that no sum is rounded.
    """

    FLOAT = "float"
    INTEGER = "integer"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class LinearInputs:
    """The positions of the values, the weights and the bias (-1: it never has one) of a linear operator, the axes of
    the values and the weights along which the products are added, and the axis of the weights that belongs to the
    output's channels.
    """

    values: int
    weights: int
    bias: int
    values_axis: int
    weights_axis: int
    filters_axis: int = 0


_Find: TypeAlias = Callable[[OperatorView], LinearInputs]


def _dense(view: OperatorView) -> LinearInputs:
    check_weights(view)
    return LinearInputs(0, 1, 2, len(view.shape(0)) - 1, 1)


def _convolution(view: OperatorView) -> LinearInputs:
    if view.shape(1)[3] != view.shape(0)[3]:
        raise CutError("has groups of channels, which its outputs share")
    return LinearInputs(0, 1, 2, 3, 3)


def _transposed(view: OperatorView) -> LinearInputs:
    return LinearInputs(2, 1, 3, 3, 3)


def _convolution_3d(view: OperatorView) -> LinearInputs:
    return LinearInputs(0, 1, 2, 4, 3, 4)


def _product(view: OperatorView) -> LinearInputs:
    first, second = len(view.shape(0)), len(view.shape(1))
    return LinearInputs(0, 1, -1, first - (2 if view.options.adjX else 1), second - (1 if view.options.adjY else 2))


_FIND: dict[str, _Find] = {
    "FULLY_CONNECTED": _dense,
    "CONV_2D": _convolution,
    "TRANSPOSE_CONV": _transposed,
    "CONV_3D": _convolution_3d,
    "BATCH_MATMUL": _product,
}
# Activations that can follow a sum.
ACTIVATIONS: dict[int, tuple[float, float]] = {
    tflite.ActivationFunctionType.NONE: (-np.inf, np.inf),
    tflite.ActivationFunctionType.RELU: (0.0, np.inf),
    tflite.ActivationFunctionType.RELU6: (0.0, 6.0),
    tflite.ActivationFunctionType.RELU_N1_TO_1: (-1.0, 1.0),
}


class LinearView(OperatorView):
    """A linear operator of which each shard takes some input channels.

    Raises CutError, with the operator's index and name, for an operator whose products cannot be added elsewhere.
    """

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        try:
            if operator.name not in _FIND or operator.custom or len(operator.outputs) != 1:
                raise CutError(f"adds no products of input channels; {', '.join(_FIND)} do")
            self.places = _FIND[operator.name](self)
            self.kind = self._kind()
            if self.activation not in ACTIVATIONS:
                raise CutError("has a fused activation that no operator after the sum can compute")
        except CutError as error:
            raise CutError(f"operator {operator.index} ({operator.name}) {error}") from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise CutError(
                f"operator {operator.index} ({operator.name}) lacks inputs, dimensions or options that it should have; "
                "check the model"
            ) from None

    @property
    def activation(self) -> int:
        return int(getattr(self.options, "fusedActivationFunction", 0))

    @property
    def extent(self) -> int:
        """The number of input channels (or units)."""
        return self.shape(self.places.weights)[self.places.weights_axis]

    def values_range(self, share: AxisRange) -> AxisRange:
        """Return the range of the values that has these input channels."""
        shape = self.shape(self.places.values)
        if self.operator.name == "FULLY_CONNECTED" and shape[-1] != self.extent:
            elements = int(np.prod(shape))
            return reshaped(shape, (elements // self.extent, self.extent), share.on(1))
        return share.on(self.places.values_axis)

    def weights_range(self, share: AxisRange) -> AxisRange:
        """Return the range of the weights that has these input channels."""
        return share.on(self.places.weights_axis)

    def _kind(self) -> SumKind:
        values, weights = self.tensor(self.places.values), self.tensor(self.places.weights)
        if values.dtype in FLOATS and weights.dtype in FLOATS:
            return SumKind.FLOAT
        if values.dtype in FLOATS:
            raise CutError("rounds its input to 8 bits by the largest value, which no shard has")
        if values.dtype not in ("int8", "uint8") or weights.dtype != values.dtype or not weights.constant:
            raise CutError(
                f"takes {values.type_name} and {weights.type_name}, whose sums have more than 32 bits or no scale"
            )
        scales = [_count_scales(tensor.raw) for tensor in (values, self.output, weights)]
        if scales[:2] != [1, 1] or scales[2] not in (1, self.output.shape[-1]):
            raise CutError(f"has {scales} scales for values, result and weights; expected one, or one a channel")
        if self.operator.name not in ("FULLY_CONNECTED", "CONV_2D", "TRANSPOSE_CONV"):
            raise CutError("has no sums of 32 bits for integers")
        if weights.dtype == "int8" and np.any(weights.raw.quantization.zeroPoint):
            raise CutError(
                "has 8-bit signed weights with a zero point, which XNNPACK leaves to kernels that round otherwise"
            )
        plain = weights.dtype == "int8" and self.operator.name == "FULLY_CONNECTED"
        return SumKind.INTEGER if plain else SumKind.EXACT


def zero_of(raw: Any) -> int:
    """Return the zero point of a quantised tensor; all channels of one have the same."""
    points = raw.quantization.zeroPoint
    return 0 if points is None or len(points) == 0 else int(points[0])


def _count_scales(raw: Any) -> int:
    scales = None if raw.quantization is None else raw.quantization.scale
    return 0 if scales is None else len(scales)
