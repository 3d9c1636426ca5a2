"""Gradients of matrix products."""

from __future__ import annotations

import pytest
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.harness import OperatorCase, W, X, check_differences, check_tensorflow, values


def _dense(activation: int = 0, keep: bool = False) -> tflite.FullyConnectedOptionsT:
    options = tflite.FullyConnectedOptionsT()
    options.fusedActivationFunction, options.keepNumDims = activation, keep
    return options


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
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_central_differences(case: OperatorCase) -> None:
    check_differences(case)


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_tensorflow(case: OperatorCase) -> None:
    check_tensorflow(case)
