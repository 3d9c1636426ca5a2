"""What cannot be differentiated is refused by operator, with why and what to do; what stands in front of it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.training_graph import write_backward_graph
from har_edge.tflite.model import Model, read_model
from tests.tflite.gradient.cases import options
from tests.tflite.gradient.check import differentiate
from tests.tflite.models import BOOL, INT8, INT32, Draft, GraphDraft

Grow = Callable[[GraphDraft, int], int]


def _behind_dense(grow: Grow) -> Model:
    """Return a model whose operator 0 is a dense layer; what `grow` adds stands behind it."""
    draft = Draft()
    graph = draft.graph()
    graph.output(grow(graph, graph.dense(graph.input([2, 4], "x"), 4, np.random.default_rng(0))))
    return read_model(draft.build())


def _op(name: str, shape: list[int], *constants: Any, kind: Any = None, type: int = 0, **given: Any) -> Grow:
    """Return an operator of the dense layer's output and constants."""

    def grow(graph: GraphDraft, x: int) -> int:
        y = graph.tensor(shape, type=type)
        graph.op(name, [x, *(graph.const(np.asarray(one)) for one in constants)], [y], kind, **given)
        return y

    return grow


def _computed(name: str, shape: list[int], kind: Any) -> Grow:
    """Return an operator whose second input, integers, is an input of the model."""

    def grow(graph: GraphDraft, x: int) -> int:
        y = graph.tensor(shape)
        graph.op(name, [x, graph.input([1], "chosen", type=INT32)], [y], kind)
        return y

    return grow


def _top_values(graph: GraphDraft, x: int) -> int:
    best, places = graph.tensor([2, 2]), graph.tensor([2, 2], type=INT32)
    graph.op("TOPK_V2", [x, graph.const(np.array(2, np.int32))], [best, places], options("TopKV2"))
    return best


def _back_from_integers(graph: GraphDraft, x: int) -> int:
    whole, y = graph.tensor([2, 4], type=INT8, quantization=(0.1, 0)), graph.tensor([2, 4])
    graph.op("QUANTIZE", [x], [whole], options("Quantize"))
    graph.op("DEQUANTIZE", [whole], [y], options("Dequantize"))
    return y


REFUSED: dict[str, tuple[Grow, str]] = {
    "no rule": (_op("FLOOR", [2, 4]), r"operator 1 \(FLOOR\).*no rule"),
    "custom": (_op("Own", [2, 4], custom=True), r"operator 1 \(Own\).*no rule"),
    "best values": (_top_values, r"operator 1 \(TOPK_V2\).*no rule"),
    "integers on the way": (_back_from_integers, r"operator 1 \(QUANTIZE\).*through integers"),
    "computed axes": (_computed("SUM", [2], options("Reducer")), r"operator 1 \(SUM\).*input 1 is computed.*constant"),
    "computed indices": (
        _computed("GATHER", [2, 1], options("Gather", axis=1)),
        r"operator 1 \(GATHER\).*input 1 is computed.*constant",
    ),
    "computed order": (
        _computed("REVERSE_V2", [2, 4], options("ReverseV2")),
        r"operator 1 \(REVERSE_V2\).*input 1 is computed",
    ),
    "gathered in batches": (
        _op("GATHER", [2, 1], np.zeros((2, 1), np.int32), kind=options("Gather", axis=1, batchDims=1)),
        r"operator 1 \(GATHER\).*batch dimensions; expected none",
    ),
    "a fused activation without gradient": (
        _op("ADD", [2, 4], np.ones(4, np.float32), kind=options("Add", fusedActivationFunction=5)),
        r"operator 1 \(ADD\).*fused activation 5 has no gradient",
    ),
    "a large matrix": (
        _op("GATHER", [2, 2_000_000], np.zeros(2_000_000, np.int32), kind=options("Gather", axis=1)),
        r"operator 1 \(GATHER\).*2000000 x 4; expected at most 4194304 elements",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusal_names_the_operator_and_what_to_do(what: str) -> None:
    grow, text = REFUSED[what]
    with pytest.raises(GradientError, match=text) as caught:
        model = _behind_dense(grow)
        write_backward_graph(model, batch=2, start=0, stop=len(model.main.operators))
    assert "train the slice behind it, or convert the model without it" in str(caught.value)


def test_trained_padding_is_refused() -> None:
    draft = Draft()
    graph = draft.graph()
    y = graph.tensor([2, 5])
    inputs = [graph.input([2, 4], "x"), graph.const(np.array([[0, 0], [0, 1]], np.int32))]
    graph.op("PADV2", [*inputs, graph.const(np.array(1, np.float32), name="value")], [y], options("PadV2"))
    graph.output(y)
    with pytest.raises(GradientError, match=r"operator 0 \(PADV2\).*value that it pads with.*expected a constant"):
        write_backward_graph(read_model(draft.build()), batch=2, start=0, stop=1, trainable=["value"])


def _in_front(grow: Grow, type: int = 0) -> Model:
    """Return a model whose last operator is a dense layer of two units behind what `grow` adds; both are outputs."""
    draft = Draft()
    graph = draft.graph()
    entering = grow(graph, graph.input((2, 4), "x", type=type))
    graph.output(graph.dense(entering, 2, np.random.default_rng(0)), entering)
    return read_model(draft.build())


def _floor(graph: GraphDraft, x: int) -> int:
    return _op("FLOOR", [2, 4])(graph, x)


def _cast(type: int) -> Grow:
    return _op("CAST", [2, 4], kind=options("Cast", inDataType=type, outDataType=0))


def _best_place(graph: GraphDraft, x: int) -> int:
    place, y = graph.tensor([2], type=INT32), graph.tensor([2, 1])
    graph.op("ARG_MAX", [x, graph.const(np.array(1, np.int32))], [place], options("ArgMax", outputType=INT32))
    flat = graph.tensor([2])
    graph.op("CAST", [place], [flat], options("Cast", inDataType=INT32, outDataType=0))
    graph.op("RESHAPE", [flat, graph.const(np.array([2, 1], np.int32))], [y], options("Reshape", newShape=[2, 1]))
    return y


FRONT: dict[str, tuple[Grow, int]] = {
    "best values": (_top_values, 0),
    "through integers": (_back_from_integers, 0),
    "floor": (_floor, 0),
    "cast of integers": (_cast(INT32), INT32),
    "cast of booleans": (_cast(BOOL), BOOL),
    "best place": (_best_place, 0),
}


@pytest.mark.parametrize("what", FRONT)
def test_what_stands_in_front_of_the_weights_runs_and_is_not_differentiated(what: str) -> None:
    grow, type = FRONT[what]
    model = _in_front(grow, type)
    rng = np.random.default_rng(1)
    x = {0: rng.standard_normal((2, 4)).astype(np.float32), INT32: rng.integers(-5, 6, (2, 4)).astype(np.int32)}.get(
        type, rng.random((2, 4)) < 0.5
    )
    dy = rng.standard_normal((2, 2)).astype(np.float32)
    graph = write_backward_graph(model, batch=2, start=0, stop=len(model.main.operators))
    assert graph.spec.dx == ()  # no gradient reaches the samples
    weights = {f"weight/{i}": np.ones(one.shape, np.float32) for i, one in enumerate(graph.spec.weights)}
    found = Interpreter(bytes(graph.data)).run({"x/0": x, "dy/0": dy, **weights})
    _, entering = Interpreter(bytes(model.data)).run({"x": x}).values()
    np.testing.assert_allclose(found["gradient/0"], dy.T @ entering, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["gradient/1"], dy.sum(0), rtol=1e-6, atol=1e-6)


def test_a_tensor_that_is_read_three_times_gets_the_sum_of_three_gradients() -> None:
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 3], "x")
    y = graph.tensor([1, 9], "y")
    graph.op("CONCATENATION", [x, graph.mul(x, x), x], [y], options("Concatenation", axis=1))
    graph.output(y)
    values = {"x": np.array([[1, -2, 3]], np.float32)}
    dy = np.arange(1, 10, dtype=np.float32).reshape(1, 9)
    found = differentiate(read_model(draft.build()), values, {"y": dy}, batch=1)
    np.testing.assert_array_equal(found["x"], dy[:, :3] + 2 * values["x"] * dy[:, 3:6] + dy[:, 6:])


def test_an_input_that_is_an_output_as_well_gets_its_own_gradient_added() -> None:
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 3], "x")
    middle = graph.mul(x, x, "middle")
    graph.output(middle, graph.mul(middle, x, "y"))
    values = {"x": np.array([[1, -2, 3]], np.float32)}
    dy = {"middle": np.array([[5, 6, 7]], np.float32), "y": np.array([[1, 2, 3]], np.float32)}
    found = differentiate(read_model(draft.build()), values, dy, batch=1)
    np.testing.assert_array_equal(found["x"], dy["middle"] * 2 * values["x"] + dy["y"] * 3 * values["x"] ** 2)
