"""Every rule against TensorFlow's gradients, within 1e-5 of the tensor's largest value; ties and corners too."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.model import read_model
from tests.tflite.gradient.cases import Array, Case, W, X, options
from tests.tflite.gradient.check import assert_close, gradients_of
from tests.tflite.gradient.elementwise_cases import ELEMENTWISE, FUSED_PRODUCTS
from tests.tflite.gradient.shape_cases import SHAPED
from tests.tflite.gradient.tensorflow_graph import TensorFlowGraph

pytestmark = pytest.mark.training

TOLERANCE = 1e-5
_CORNERS = np.array([[-6, -3, -1, -0.0, 0, 1, 3, 6, 7, 2]], np.float32)
_LEFT = np.array([[1, 2, 3, -1, 0, 5, 5, 2, -3, 0]], np.float32)
_RIGHT = np.array([[1, 3, 2, -1, 0, 5, 4, 2, -3, 1]], np.float32)
_EQUALS = np.array([[[3, 1, 3], [2, 2, 2]], [[0, 0, -1], [5, 4, 5]]], np.float32)
_TIES = [
    *(
        Case(name, (X((1, 10)),), options(kind) if kind else None, values=(_CORNERS,), note="corners")
        for name, kind in (
            ("RELU", ""),
            ("RELU6", ""),
            ("RELU_N1_TO_1", ""),
            ("RELU_0_TO_1", ""),
            ("ELU", ""),
            ("HARD_SWISH", "HardSwish"),
            ("ABS", "Abs"),
        )
    ),
    Case("LEAKY_RELU", (X((1, 10)),), options("LeakyRelu", alpha=0.3), values=(_CORNERS,), note="corners"),
    Case("PRELU", (X((1, 10)), W((10,))), values=(_CORNERS, None), note="corners"),
    *(
        Case(name, (X((1, 10)), X((1, 10))), options("MaximumMinimum"), values=(_LEFT, _RIGHT), note="ties")
        for name in ("MAXIMUM", "MINIMUM")
    ),
    *(
        Case(name, (X((2, 2, 3)), axes), options("Reducer", keepDims=keep), values=(_EQUALS, None), note="ties")
        for name in ("REDUCE_MAX", "REDUCE_MIN")
        for axes in ([2], [1, 2], [0])
        for keep in (False, True)
    ),
    Case(
        "L2_NORMALIZATION",
        (X((2, 3)),),
        options("L2Norm"),
        values=(np.array([[0, 0, 0], [1e-7, 0, 2e-7]], np.float32),),
    ),
    Case(
        "POW",
        (X((1, 4)), W(())),
        options("Pow"),
        values=(np.array([[0, 1, 2, 3]], np.float32), np.array(2, np.float32)),
        note="zero",
    ),
    Case(
        "POW",
        (X((1, 4)), W(())),
        options("Pow"),
        values=(np.array([[-2, 1, 2, -3]], np.float32), np.array(3, np.float32)),
        note="below",
    ),
    Case(
        "GELU", (X((1, 8)),), options("Gelu"), values=(np.array([[0, 1e-4, -1e-3, 0.01, -0.02, 4, -4, 9]], np.float32),)
    ),
]


def against_tensorflow(case: Case, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the gradients of the training graph and of TensorFlow, after both ran forward to the same values."""
    values, dy, found = gradients_of(case, seed)
    data = case.build(weights=values)
    model = read_model(data)
    x = {model.main.tensors[index].name: values[model.main.tensors[index].name] for index in model.main.inputs}
    outputs, wanted = TensorFlowGraph(model).gradients(x, dy)
    for name, value in Interpreter(data).run(x).items():
        np.testing.assert_allclose(value, outputs[name], rtol=1e-5, atol=2e-6)
    return found, {name: value for name, value in wanted.items() if name in values}


@pytest.mark.parametrize("case", [*ELEMENTWISE, *FUSED_PRODUCTS, *SHAPED, *_TIES], ids=str)
def test_gradients_are_tensorflows(case: Case) -> None:
    found, wanted = against_tensorflow(case)
    assert set(found) == set(wanted)
    assert_close(found, wanted, TOLERANCE)
