"""Gradients of DEPTHWISE_CONV_2D and TRANSPOSE_CONV."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.harness import C, OperatorCase, W, X, check_differences, check_tensorflow, values

SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
RELU6, NONE = tflite.ActivationFunctionType.RELU6, tflite.ActivationFunctionType.NONE
TEXTS = {SAME: "SAME", VALID: "VALID"}


def _out(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    if padding == SAME:
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def depthwise_case(
    size: tuple[int, int],
    channels: int,
    multiplier: int,
    kernel: tuple[int, int],
    *,
    stride: int = 1,
    dilation: tuple[int, int] = (1, 1),
    padding: int = SAME,
    activation: int = NONE,
) -> OperatorCase:
    options = tflite.DepthwiseConv2DOptionsT()
    options.padding, options.fusedActivationFunction, options.depthMultiplier = padding, activation, multiplier
    options.strideH = options.strideW = stride
    options.dilationHFactor, options.dilationWFactor = dilation
    filters = channels * multiplier
    out = [_out(n, k, stride, d, padding) for n, k, d in zip(size, kernel, dilation, strict=True)]

    def reference(tf: Any, x: Any, w: Any, b: Any) -> Any:
        table = tf.reshape(w, [*kernel, channels, multiplier])
        y = tf.nn.depthwise_conv2d(x, table, [1, stride, stride, 1], TEXTS[padding], dilations=dilation) + b
        return tf.nn.relu6(y) if activation == RELU6 else y

    scale = 6.0 if activation else 1.0
    inputs = (
        X(values(2, *size, channels)),
        W(values(1, *kernel, filters, seed=1, low=-scale, high=scale)),
        W(values(filters, seed=2)),
    )
    name = f"{size[0]}x{size[1]}-{channels}times{multiplier}-k{kernel[0]}x{kernel[1]}-s{stride}-d{dilation[0]}"
    name += f"x{dilation[1]}-{TEXTS[padding]}-a{activation}"
    step = 1e-3 if activation else 1e-2
    return OperatorCase(name, "DEPTHWISE_CONV_2D", inputs, (1, *out, filters), reference, options, step=step)


def transposed_case(
    size: tuple[int, int],
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    *,
    stride: int = 1,
    padding: int = SAME,
    bias: bool = True,
    extra: int = 0,
    activation: int = NONE,
) -> OperatorCase:
    """Return a TRANSPOSE_CONV; its output may be `extra` larger than it must be, where a stride leaves room."""
    options = tflite.TransposeConvOptionsT()
    options.padding, options.strideH, options.strideW = padding, stride, stride
    options.fusedActivationFunction = activation
    wide = [n * stride if padding == SAME else (n - 1) * stride + k + extra for n, k in zip(size, kernel, strict=True)]

    def reference(tf: Any, shape: Any, w: Any, x: Any, b: Any = None) -> Any:
        table = tf.transpose(w, [1, 2, 0, 3])
        y = tf.nn.conv2d_transpose(x, table, [2, *wide, filters], stride, TEXTS[padding])
        y = y if b is None else y + b
        return tf.nn.relu6(y) if activation == RELU6 else y

    inputs: list[Any] = [
        C(np.array([2, *wide, filters], np.int32)),
        W(values(filters, *kernel, channels, seed=1)),
        X(values(2, *size, channels)),
    ]
    if bias:
        inputs.append(W(values(filters, seed=2)))
    name = f"{size[0]}x{size[1]}-{channels}to{filters}-k{kernel[0]}x{kernel[1]}-s{stride}-{TEXTS[padding]}"
    name += f"-b{int(bias)}-plus{extra}-a{activation}"
    version, step = (4 if activation else 3 if bias else 1), 1e-3 if activation else 1e-2
    shape = (1, *wide, filters)
    return OperatorCase(name, "TRANSPOSE_CONV", tuple(inputs), shape, reference, options, version, step)


CASES = [
    *(
        depthwise_case((6, 7), 2, multiplier, kernel, stride=stride, padding=padding)
        for multiplier, kernel, stride, padding in product([1, 3], [(3, 3), (2, 4), (1, 1)], [1, 2, 3], [SAME, VALID])
    ),
    depthwise_case((7, 7), 3, 1, (3, 3), dilation=(2, 2)),
    depthwise_case((8, 8), 2, 2, (3, 2), dilation=(2, 2), padding=VALID),
    depthwise_case((5, 5), 3, 1, (3, 3), activation=RELU6),
    depthwise_case((5, 5), 1, 4, (3, 3), stride=2),
    *(
        transposed_case(size, 3, filters, kernel, stride=stride, padding=padding)
        for size, filters, kernel, stride, padding in product(
            [(3, 4)], [1, 4], [(3, 3), (2, 2), (4, 3)], [1, 2], [SAME, VALID]
        )
    ),
    transposed_case((3, 3), 2, 2, (3, 3), stride=3, padding=VALID),
    transposed_case((3, 3), 2, 2, (2, 2), stride=3, padding=SAME),
    transposed_case((3, 3), 2, 2, (3, 3), stride=2, padding=VALID, extra=1),
    transposed_case((3, 3), 2, 3, (3, 3), stride=2, bias=False),
    transposed_case((3, 3), 2, 3, (3, 3), stride=2, activation=RELU6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)
