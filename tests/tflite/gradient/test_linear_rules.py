"""Gradients of matrix products."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.harness import OperatorCase, W, X, check_differences, check_tensorflow, values


def _dense(activation: int = 0, keep: bool = False) -> tflite.FullyConnectedOptionsT:
    options = tflite.FullyConnectedOptionsT()
    options.fusedActivationFunction, options.keepNumDims = activation, keep
    return options


def _matmul(adj_x: bool, adj_y: bool) -> tflite.BatchMatMulOptionsT:
    options = tflite.BatchMatMulOptionsT()
    options.adjX, options.adjY = adj_x, adj_y
    return options


def matmul_case(lead_a: tuple[int, ...], lead_b: tuple[int, ...], adj_x: bool, adj_y: bool, kind: type) -> OperatorCase:
    """Return a [.., 2, 3] by [.., 3, 4] product; the second operand is a weight or also a sample."""
    a, b = (*lead_a, *((3, 2) if adj_x else (2, 3))), (*lead_b, *((4, 3) if adj_y else (3, 4)))
    lead = np.broadcast_shapes(lead_a, lead_b)
    name = f"{list(a)}-{list(b)}-{int(adj_x)}{int(adj_y)}-{kind.__name__}".replace(" ", "")
    return OperatorCase(
        name,
        "BATCH_MATMUL",
        (X(values(*a)), kind(values(*b, seed=1))),
        (1, *lead[1:], 2, 4),
        lambda tf, a, b: tf.matmul(a, b, transpose_a=adj_x, transpose_b=adj_y),
        _matmul(adj_x, adj_y),
    )


CASES = [
    OperatorCase(
        "plain",
        "FULLY_CONNECTED",
        (X(values(3, 5)), W(values(4, 5, seed=1)), W(values(4, seed=2))),
        (1, 4),
        lambda tf, x, w, b: tf.matmul(x, w, transpose_b=True) + b,
        _dense(),
    ),
    OperatorCase(
        "relu-no-bias",
        "FULLY_CONNECTED",
        (X(values(3, 5)), W(values(4, 5, seed=1)), None),
        (1, 4),
        lambda tf, x, w, b: tf.nn.relu(tf.matmul(x, w, transpose_b=True)),
        _dense(tflite.ActivationFunctionType.RELU),
        step=1e-3,
    ),
    OperatorCase(
        "rank-3",
        "FULLY_CONNECTED",
        (X(values(2, 3, 5)), W(values(4, 5, seed=1)), W(values(4, seed=2))),
        (1, 3, 4),
        lambda tf, x, w, b: tf.matmul(x, tf.broadcast_to(w, [2, 4, 5]), transpose_b=True) + b,
        _dense(keep=True),
    ),
    *(matmul_case((2,), (2,), *adjoint, X) for adjoint in product([False, True], repeat=2)),
    *(matmul_case((2, 3), (), *adjoint, W) for adjoint in product([False, True], repeat=2)),
    *(matmul_case((2, 3), (1, 3), *adjoint, W) for adjoint in product([False, True], repeat=2)),
    *(matmul_case((2, 1), (5,), *adjoint, W) for adjoint in product([False, True], repeat=2)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)
