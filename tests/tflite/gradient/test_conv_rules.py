"""Gradients of CONV_2D: strides, dilations, paddings, groups, odd sizes, in both forms."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from har_edge.tflite.gradient import rules_conv
from tests.tflite.gradient.harness import OperatorCase, W, X, check_differences, check_tensorflow, values

SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
RELU, NONE = tflite.ActivationFunctionType.RELU, tflite.ActivationFunctionType.NONE


def conv_case(
    size: tuple[int, int],
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padding: int = SAME,
    groups: int = 1,
    activation: int = NONE,
    batch: int = 2,
) -> OperatorCase:
    """Return a convolution; its name says all of it."""
    options = tflite.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = padding, activation
    options.strideH, options.strideW = stride
    options.dilationHFactor, options.dilationWFactor = dilation
    out = [_out(*one, padding) for one in zip(size, kernel, stride, dilation, strict=True)]

    def reference(tf: Any, x: Any, w: Any, b: Any) -> Any:
        text = "SAME" if padding == SAME else "VALID"
        xs, ws = tf.split(x, groups, axis=3), tf.split(w, groups, axis=0)
        parts = [
            # TensorFlow has no stride together with dilation: dilate the filter by hand.
            tf.nn.conv2d(part, _dilated(tf, table, dilation), stride, text)
            for part, table in zip(xs, ws, strict=True)
        ]
        y = tf.concat(parts, 3)
        return tf.nn.relu(y + b) if activation == RELU else y + b

    x = X(values(batch, *size, channels, low=-1, high=1))
    w = W(values(filters, *kernel, channels // groups, seed=1))
    name = f"{size}-{channels}to{filters}-k{kernel}-s{stride}-d{dilation}-{'same' if padding == SAME else 'valid'}"
    name = f"{name}-g{groups}-a{activation}".replace(", ", "x").replace("(", "").replace(")", "")
    inputs = (x, w, W(values(filters, seed=2)))  # LiteRT takes no CONV_2D without a bias
    step = 1e-3 if activation else 1e-2
    return OperatorCase(name, "CONV_2D", inputs, (1, *out, filters), reference, options, step=step)


def _out(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    if padding == SAME:
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def _dilated(tf: Any, w: Any, dilation: tuple[int, int]) -> Any:
    """Return the filter [filters, h, w, channels] as [h, w, channels, filters] with zeros between its values."""
    height, width = w.shape[1:3]
    w = tf.transpose(w, [1, 2, 3, 0])
    for axis, (n, d) in enumerate(zip((height, width), dilation, strict=True)):
        spread = np.zeros(((n - 1) * d + 1, n), np.float32)
        spread[np.arange(n) * d, np.arange(n)] = 1
        w = tf.einsum("ab,bjcf->ajcf" if axis == 0 else "ab,ibcf->iacf", spread, w)
    return w


CASES = [
    *(
        conv_case(size, channels, 3, kernel, stride=stride, padding=padding)
        for size, channels, kernel, stride, padding in product(
            [(6, 6), (7, 5)], [1, 5], [(1, 1), (3, 3), (2, 3)], [(1, 1), (2, 2), (3, 1)], [SAME, VALID]
        )
    ),
    *(
        conv_case((9, 8), channels, 2, (3, 2), dilation=dilation, stride=stride, padding=padding)
        for channels, dilation, stride, padding in product([2, 4], [(2, 2), (3, 1)], [(1, 1), (2, 3)], [SAME, VALID])
    ),
    conv_case((5, 5), 8, 4, (3, 3), groups=2),
    conv_case((5, 6), 6, 6, (3, 3), groups=3, stride=(2, 2), padding=VALID),
    conv_case((6, 6), 10, 4, (3, 3), groups=2, stride=(2, 2)),
    conv_case((5, 5), 3, 4, (3, 3), activation=RELU),
    conv_case((5, 5), 6, 4, (3, 3), activation=RELU, stride=(2, 2)),
    conv_case((5, 1), 6, 4, (5, 1), padding=VALID),
    conv_case((4, 4), 5, 3, (7, 7), padding=SAME),
    conv_case((11, 11), 3, 2, (5, 5), stride=(4, 4), padding=VALID),
    conv_case((8, 8), 5, 3, (1, 1), stride=(3, 3)),
    conv_case((5, 5), 4, 2, (3, 3), batch=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)


@pytest.mark.parametrize("few", [1, 99])
@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_both_forms_give_the_gradients(case: OperatorCase, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_conv, "FEW_CHANNELS", few)
    check_differences(case)
