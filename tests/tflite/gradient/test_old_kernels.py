"""Training graphs keep to what the kernels of tflite-runtime 2.14 take, with XNNPACK and without.

Measured there: a MUL or POW that broadcasts five dimensions, or a comparison of them with a number, ends the process;
PAD, SLICE and STRIDED_SLICE take five dimensions, TRANSPOSE six; REVERSE_V2 over two axes turns one of them, and
BATCH_MATMUL that transposes its left operand and repeats the right one gives wrong values, both without an error.
"""

from __future__ import annotations

import pytest

from har_edge.tflite.gradient.training_graph import write_backward_graph
from har_edge.tflite.model import Model, Operator, read_model
from tests.tflite.gradient import harness, test_linear_rules
from tests.tflite.gradient.cases import Case
from tests.tflite.gradient.elementwise_cases import ELEMENTWISE
from tests.tflite.gradient.shape_cases import SHAPED

_RANKS = {"PAD": 5, "SLICE": 5, "STRIDED_SLICE": 5, "TRANSPOSE": 6}
_BROADCAST = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "GREATER", "LESS", "EQUAL")


def _broken(model: Model, operator: Operator) -> bool:
    tensors = [model.main.tensors[index] for index in operator.inputs]
    shapes = [tensor.shape for tensor in tensors]
    if operator.name in _BROADCAST:
        return shapes[0] != shapes[1] and max(map(len, shapes)) > 4
    if operator.name == "REVERSE_V2":
        return tensors[1].elements != 1
    if operator.name == "BATCH_MATMUL":
        left, right = (shape[:-2] for shape in shapes)
        return bool(operator.raw.builtinOptions.adjX) and len(right) > 0 and left != right
    return len(shapes[0]) > _RANKS.get(operator.name, 8)


def _refused(data: memoryview) -> list[str]:
    model = read_model(bytes(data))
    return [
        f"{operator.name} {[model.main.tensors[i].shape for i in operator.inputs]}"
        for operator in model.main.operators
        if _broken(model, operator)
    ]


@pytest.mark.parametrize("case", [*ELEMENTWISE, *SHAPED], ids=str)
def test_gradients_of_each_operator(case: Case) -> None:
    values = case.draw()
    model = read_model(case.build(weights=values))
    names = {model.main.tensors[index].name for index in model.main.inputs}
    graph = write_backward_graph(
        model, batch=case.batch, start=0, stop=1, trainable=set(values) - names, input_gradients=True
    )
    assert _refused(graph.data) == []


@pytest.mark.parametrize("case", test_linear_rules.CASES, ids=str)
def test_gradients_of_matrix_products(case: harness.OperatorCase) -> None:
    batch = len(next(iter(harness.samples(case).values())))
    graph = write_backward_graph(
        harness.model_of(case),
        batch=batch,
        start=0,
        stop=1,
        trainable=list(harness.weights(case)),
        input_gradients=True,
    )
    assert _refused(graph.data) == []
