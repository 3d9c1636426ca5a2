"""Every kind of operator of the zoo's networks, cut out of them, against TensorFlow.

A whole network of many ReLU6 has no gradient to compare: where the samples move by a last bit, some value crosses a
corner, and TensorFlow's own gradient of MobileNetV2 moves by 9 % of its largest value. One operator at a time has such
values too rarely to matter. The networks are made at their smallest size, with weights drawn at random.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.gradient.training_graph import write_backward_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model, Operator, read_model
from har_edge.tflite.slices import make_slice, write_slice
from har_edge.training.zoo.catalog import find_network
from tests.tflite.gradient.check import assert_close, run_backward
from tests.tflite.gradient.tensorflow_graph import TensorFlowGraph

pytestmark = pytest.mark.training

TOLERANCE = 1e-5


def _kinds(model: Model) -> Iterator[Operator]:
    """Yield the first operator of each kind: name, shapes and options."""
    seen = set()
    for operator in model.main.operators:
        shapes = tuple(model.main.tensors[index].shape for index in operator.inputs)
        key = (operator.name, shapes, repr(vars(operator.raw.builtinOptions or object)))
        if key not in seen:
            seen.add(key)
            yield operator


def _check(piece: Model, what: str) -> None:
    """Compare all gradients of one operator, for one sample and a random gradient behind it."""
    rng = np.random.default_rng(zlib.crc32(what.encode()))
    inputs = [piece.main.tensors[index] for index in piece.main.inputs]
    x = {one.name: rng.standard_normal((1, *one.shape[1:])).astype(np.float32) for one in inputs}
    graph = write_backward_graph(piece, batch=1, start=0, stop=len(piece.main.operators), input_gradients=True)
    dy = {one.name: rng.standard_normal(one.shape).astype(np.float32) for one in graph.spec.dy}
    weights = read_weights(piece) if graph.spec.weights else {}
    found = run_backward(graph, {**weights, **x}, dy)
    _, wanted = TensorFlowGraph(piece).gradients(x, dy)
    assert found, what
    assert_close(found, {name: wanted[name] for name in found}, TOLERANCE)


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "mobilenetv2"])
def test_operators_of_a_network(name: str) -> None:
    from har_edge.training.zoo.convert import make

    network = find_network(name)
    model = read_model(make(network, int8=False, size=network.smallest, classes=6, seed=0, log=lambda text: None))
    flow = trace_dataflow(model)
    checked = 0
    for operator in _kinds(model):
        if operator.index not in flow.folded:
            piece = make_slice(model, flow, operator.index, operator.index + 1)
            _check(read_model(bytes(write_slice(model, piece))), f"{operator.index} {operator.name}")
            checked += 1
    assert checked > 5
