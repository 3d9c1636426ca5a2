"""Gradients of CONV_3D and LOCAL_RESPONSE_NORMALIZATION."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.harness import OperatorCase, W, X, check_differences, check_tensorflow, values

SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
TEXTS = {SAME: "SAME", VALID: "VALID"}


def volume_case(
    size: tuple[int, int, int], channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: int
) -> OperatorCase:
    options = tflite.Conv3DOptionsT()
    options.padding = padding
    options.strideD, options.strideH, options.strideW = stride
    options.dilationDFactor = options.dilationHFactor = options.dilationWFactor = 1
    sizes = zip(size, kernel, stride, strict=True)
    out = [-(-n // s) if padding == SAME else (n - k) // s + 1 for n, k, s in sizes]

    def reference(tf: Any, x: Any, w: Any, b: Any) -> Any:
        return tf.nn.conv3d(x, w, [1, *stride, 1], TEXTS[padding]) + b

    inputs = (X(values(2, *size, channels)), W(values(*kernel, channels, 3, seed=1)), W(values(3, seed=2)))
    parts = ("x".join(map(str, one)) for one in (size, kernel, stride))
    name = "-".join((*parts, str(channels), TEXTS[padding]))
    return OperatorCase(name, "CONV_3D", inputs, (1, *out, 3), reference, options)


def response_case(channels: int, radius: int, bias: float, alpha: float, beta: float) -> OperatorCase:
    options = tflite.LocalResponseNormalizationOptionsT()
    options.radius, options.bias, options.alpha, options.beta = radius, bias, alpha, beta

    def reference(tf: Any, x: Any) -> Any:
        return tf.nn.local_response_normalization(x, radius, bias, alpha, beta)

    x = values(2, 3, 2, channels, low=-3, high=3)
    name = f"c{channels}-r{radius}-{bias}-{alpha}-{beta}"
    return OperatorCase(name, "LOCAL_RESPONSE_NORMALIZATION", (X(x),), (1, 3, 2, channels), reference, options)


CASES = [
    *(
        volume_case((3, 4, 5), channels, kernel, stride, padding)
        for channels, kernel, stride, padding in product(
            [1, 4], [(1, 1, 1), (2, 3, 3)], [(1, 1, 1), (1, 2, 3), (2, 2, 2)], [SAME, VALID]
        )
    ),
    response_case(7, 2, 1.0, 1e-1, 0.75),
    response_case(5, 5, 2.0, 0.3, 0.5),
    response_case(1, 1, 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)
