"""Compare the gradients of a training graph with central differences, which need nothing but the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.gradient.spec import gradient_port, weight_port
from har_edge.tflite.gradient.training_graph import TrainingGraph, write_backward_graph
from har_edge.tflite.model import Model, read_model
from tests.tflite.gradient.cases import Case

Floats = NDArray[np.float32]
# A step of 2^-5 in a float32 pass: rounding gives up to 1e-5 for values near 1, the fourth power of the step as much.
STEP, TOLERANCE = 2.0**-5, 5e-4


def differentiate(
    model: Model, values: Mapping[str, Floats], dy: Mapping[str, Floats], *, batch: int, trainable: Any = ()
) -> dict[str, Floats]:
    """Return the gradients of sum(output * dy) for every input and each trainable weight of a model, by name."""
    stop = len(model.main.operators)
    graph = write_backward_graph(model, batch=batch, start=0, stop=stop, trainable=trainable, input_gradients=True)
    return run_backward(graph, values, dy)


def run_backward(graph: TrainingGraph, values: Mapping[str, Floats], dy: Mapping[str, Floats]) -> dict[str, Floats]:
    """Run a backward graph with inputs, weights and upstream gradients by the names of the model."""
    spec = graph.spec
    feeds = {weight_port(number): values[weight.name] for number, weight in enumerate(spec.weights)}
    feeds |= {one.port: values[one.name] for one in spec.x} | {one.port: dy[one.name] for one in spec.dy}
    got = Interpreter(bytes(graph.data)).run(feeds)
    found = {one.name: got[one.port] for one in spec.dx}
    return found | {weight.name: got[gradient_port(number)] for number, weight in enumerate(spec.weights)}


def check_case(case: Case, seed: int = 0) -> dict[str, Floats]:
    """Return the gradients of a case by central differences, after those of its training graph proved equal."""
    values, dy, found = gradients_of(case, seed)
    wanted = central_differences(case, values, dy)
    assert set(found) == set(wanted)
    assert_close(found, wanted, TOLERANCE)
    return wanted


def gradients_of(case: Case, seed: int = 0) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, Floats]]:
    """Return the values of a case, random upstream gradients, and the gradients of its training graph."""
    values = case.draw(seed)
    model = read_model(case.build(weights=values))
    dy = upstream(model, seed)
    names = {model.main.tensors[index].name for index in model.main.inputs}
    found = differentiate(model, values, dy, batch=case.batch, trainable=set(values) - names)
    return values, dy, found


def upstream(model: Model, seed: int) -> dict[str, Floats]:
    """Return a random gradient of every float output, by name."""
    rng = np.random.default_rng(seed + 1000)
    outputs = [model.main.tensors[index] for index in model.main.outputs]
    return {one.name: rng.standard_normal(one.shape).astype(np.float32) for one in outputs if one.dtype == "float32"}


def central_differences(case: Case, values: Mapping[str, Floats], dy: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the derivatives of sum(output * dy) by the five-point stencil, for each value of input and weight."""
    interpreter = Interpreter(case.build(weights=None))

    def score(name: str, place: int, offset: float) -> float:
        moved = values[name].copy()
        moved.reshape(-1)[place] += offset
        got = interpreter.run({**values, name: moved})
        return sum(float(np.vdot(got[key].astype(np.float64), gradient)) for key, gradient in dy.items())

    found = {}
    for name, value in values.items():
        flat = [
            (8 * (score(name, i, STEP) - score(name, i, -STEP)) - score(name, i, 2 * STEP) + score(name, i, -2 * STEP))
            / (12 * STEP)
            for i in range(value.size)
        ]
        found[name] = np.array(flat, np.float32).reshape(value.shape)
    return found


def assert_close(
    found: Mapping[str, Floats], wanted: Mapping[str, Floats], tolerance: float, *, least: float = 1e-3
) -> None:
    """Fail where a tensor differs by more than `tolerance` of its largest value, or of `least` if that is larger."""
    for name, value in wanted.items():
        assert found[name].shape == value.shape, (name, found[name].shape, value.shape)
        error = np.abs(found[name] - value).max(initial=0.0) / max(least, np.abs(value).max(initial=0.0))
        assert error <= tolerance, f"{name}: {error:.2e} of the largest; found {found[name]}, wanted {value}"
