"""Gradients of MAX_POOL_2D and AVERAGE_POOL_2D; the first of equal values gets all."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.harness import (
    OperatorCase,
    X,
    check_differences,
    check_tensorflow,
    output_gradient,
    own_gradients,
    values,
)

SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
TEXTS = {SAME: "SAME", VALID: "VALID"}
RELU, NONE = tflite.ActivationFunctionType.RELU, tflite.ActivationFunctionType.NONE


def pool_case(
    operator: str,
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: int = VALID,
    *,
    activation: int = NONE,
    x: Any = None,
) -> OperatorCase:
    options = tflite.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = window
    options.strideH, options.strideW = stride
    options.padding, options.fusedActivationFunction = padding, activation
    out = [-(-n // s) if padding == SAME else (n - k) // s + 1 for n, k, s in zip(size, window, stride, strict=True)]

    def reference(tf: Any, x: Any) -> Any:
        pool = tf.nn.max_pool2d if operator == "MAX_POOL_2D" else tf.nn.avg_pool2d
        y = pool(x, window, stride, TEXTS[padding])
        return tf.nn.relu(y) if activation else y

    x = values(2, *size, 3) if x is None else x
    name = f"{size[0]}x{size[1]}-k{window[0]}x{window[1]}-s{stride[0]}x{stride[1]}-{TEXTS[padding]}-a{activation}"
    # Values of a permutation are apart by 2 / count, so that no step changes which one is the largest.
    step = 0.4 / x.size if operator == "MAX_POOL_2D" else 1e-3 if activation else 1e-2
    return OperatorCase(name, operator, (X(x),), (1, *out, x.shape[-1]), reference, options, step=step)


CASES = [
    pool_case(operator, size, window, stride, padding, activation=activation)
    for operator, (size, window, stride), padding, activation in product(
        ["MAX_POOL_2D", "AVERAGE_POOL_2D"],
        [
            ((4, 6), (2, 2), (2, 2)),
            ((5, 7), (2, 2), (2, 2)),
            ((7, 5), (3, 3), (2, 2)),
            ((6, 6), (3, 2), (1, 1)),
            ((6, 5), (2, 3), (3, 1)),
            ((5, 1), (5, 1), (5, 1)),
            ((4, 4), (4, 4), (1, 1)),
            ((7, 7), (1, 1), (2, 3)),
        ],
        [SAME, VALID],
        [NONE, RELU],
    )
    if activation == NONE or size == (7, 5)
]
# Whole numbers: many windows have several largest values.
TIES = [
    pool_case(
        "MAX_POOL_2D",
        size,
        window,
        stride,
        padding,
        x=np.random.default_rng(3).integers(-1, 2, (2, *size, 3)).astype("f4"),
    )
    for (size, window, stride), padding in product(
        [((6, 6), (2, 2), (2, 2)), ((7, 7), (3, 3), (2, 2)), ((5, 5), (3, 3), (1, 1)), ((5, 1), (5, 1), (5, 1))],
        [SAME, VALID],
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", [*CASES, *TIES], ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)


def test_the_first_of_equal_values_gets_the_gradient() -> None:
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, :, 2:, 0] = [[1, 2], [2, 2]]
    case = pool_case("MAX_POOL_2D", (2, 4), (2, 2), (2, 2), x=x)
    dy, found = own_gradients(case)
    wanted = np.zeros_like(x)
    wanted[0, 0, 0, 0], wanted[0, 0, 3, 0] = dy[0, 0, 0, 0], dy[0, 0, 1, 0]
    assert np.array_equal(found.dx["x0"], wanted)
    assert np.array_equal(dy, output_gradient((1, 1, 2, 1)))
