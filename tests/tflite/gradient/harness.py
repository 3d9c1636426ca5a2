"""Check the gradients of one operator: against TensorFlow's, and against central differences of LiteRT's own run.

A case is a model of one operator. Its loss is the sum of its output times fixed random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from har_edge.inference.interpreter import Interpreter
from har_edge.inference.training_step import TrainingResult, TrainingStep
from har_edge.tflite.gradient.training_graph import write_backward_graph
from har_edge.tflite.model import Model, read_model
from tests.tflite.models import Draft

# Of the largest of a tensor. Float32 rounds a difference of two sums to about 1e-4 of it with this step.
STEP = 1e-2
DIFFERENCE_TOLERANCE = 3e-3
TENSORFLOW_TOLERANCE = 1e-5


@dataclass(frozen=True)
class X:
    """Samples [batch, ...] that enter; they get a gradient where they are float32."""

    values: Any


@dataclass(frozen=True)
class W:
    """A weight; it gets a gradient."""

    values: Any


@dataclass(frozen=True)
class C:
    """A constant without a gradient, such as axes."""

    values: Any


@dataclass(frozen=True)
class OperatorCase:
    """One operator.

    `inputs` are X, W, C, or None for an absent one. `shape` is that of the output for one sample as the model plans it,
    so its first dimension is 1 (the batch). `reference` gets tensorflow and the tensors of all inputs, and returns the
    output. `steps` is the step of the central differences.
    """

    name: str
    operator: str
    inputs: tuple[X | W | C | None, ...]
    shape: tuple[int, ...]
    reference: Callable[..., Any]
    options: Any = None
    version: int = 1
    step: float = STEP
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.operator}-{self.name}"


def values(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Return numbers of this shape, evenly spaced in random order: no two of them are equal, none is 0."""
    count = int(np.prod(shape))
    spaced = low + (high - low) * (np.arange(count) + 0.5 + 0.1 * (count % 2)) / count
    return np.random.default_rng(seed).permutation(spaced).reshape(shape).astype(np.float32)


def model_of(case: OperatorCase, *, enter: bool = False) -> Model:
    """Return the model of one operator with an open batch; with `enter` its weights are inputs, too."""
    draft = Draft()
    graph = draft.graph()
    inputs = []
    for number, operand in enumerate(case.inputs):
        if operand is None:
            inputs.append(-1)
        elif isinstance(operand, X):
            array = np.asarray(operand.values)
            planned = (1, *array.shape[1:])
            kind = graph.const(array[:1]) if array.dtype != np.float32 else None
            options = {} if kind is None else {"type": graph.raw.tensors[kind].type}
            inputs.append(graph.input(planned, f"x{number}", signature=(-1, *array.shape[1:]), **options))
        elif isinstance(operand, W) and enter:
            inputs.append(graph.input(np.asarray(operand.values).shape, f"w{number}"))
        else:
            inputs.append(graph.const(np.asarray(operand.values), name=f"{type(operand).__name__.lower()}{number}"))
    output = graph.tensor(case.shape, "output", signature=(-1, *case.shape[1:]))
    graph.op(case.operator, inputs, [output], case.options, version=case.version)
    graph.output(output)
    return read_model(draft.build())


def samples(case: OperatorCase) -> dict[str, np.ndarray]:
    """Return the arrays that enter the model, by name."""
    return {f"x{i}": np.asarray(one.values) for i, one in enumerate(case.inputs) if isinstance(one, X)}


def weights(case: OperatorCase) -> dict[str, np.ndarray]:
    """Return the weights of the model, by name."""
    return {f"w{i}": np.asarray(one.values) for i, one in enumerate(case.inputs) if isinstance(one, W)}


def forward(model: Model, x: dict[str, np.ndarray]) -> np.ndarray:
    """Return what LiteRT computes with the model itself."""
    return next(iter(Interpreter(bytes(model.data)).run(x).values()))


def output_gradient(shape: Sequence[int]) -> np.ndarray:
    """Return the fixed numbers that the output is multiplied by."""
    return np.random.default_rng(7).uniform(-1, 1, tuple(shape)).astype(np.float32)


def own_gradients(case: OperatorCase) -> tuple[np.ndarray, TrainingResult]:
    """Return the gradient that comes in, and what the training graph makes of it."""
    model, x, w = model_of(case), samples(case), weights(case)
    dy = output_gradient(forward(model, x).shape)
    batch = len(next(iter(x.values())))
    count = len(model.main.operators)
    graph = write_backward_graph(model, batch=batch, start=0, stop=count, trainable=list(w), input_gradients=True)
    return dy, TrainingStep(graph.data, graph.spec).backward(w, x, dy)


def check_differences(case: OperatorCase) -> None:
    """Compare each gradient with (f(v + step) - f(v - step)) / (2 step) for each value v."""
    entering = {**samples(case), **weights(case)}
    dy, found = own_gradients(case)
    # Weights enter, so that one interpreter runs for all values of all of them.
    interpreter = Interpreter(bytes(model_of(case, enter=True).data))
    for name, array in entering.items():
        if array.dtype != np.float32:
            continue

        def total(new: np.ndarray, name: str = name) -> float:
            output = next(iter(interpreter.run({**entering, name: new}).values()))
            return float((output.astype(np.float64) * dy).sum())

        given = found.dx[name] if name in found.dx else found.gradients[name]
        assert_near(given, _differences(array, total, case.step), DIFFERENCE_TOLERANCE, f"{case}: {name}")


def check_tensorflow(case: OperatorCase) -> None:
    """Compare each gradient with TensorFlow's."""
    import tensorflow as tf

    dy, found = own_gradients(case)
    tensors = [
        None if one is None else tf.constant(one.values) if isinstance(one, C) else tf.Variable(one.values)
        for one in case.inputs
    ]
    with tf.GradientTape() as tape:
        output = case.reference(tf, *tensors)
        total = tf.reduce_sum(output * dy)
    np.testing.assert_allclose(output.numpy(), forward(model_of(case), samples(case)), rtol=1e-4, atol=1e-5)
    asked = {
        i: tensors[i]
        for i, one in enumerate(case.inputs)
        if isinstance(one, X | W) and np.asarray(one.values).dtype == np.float32
    }
    for (number, _), gradient in zip(asked.items(), tape.gradient(total, list(asked.values())), strict=True):
        given = found.dx[f"x{number}"] if isinstance(case.inputs[number], X) else found.gradients[f"w{number}"]
        dense = np.zeros_like(given) if gradient is None else tf.convert_to_tensor(gradient).numpy()
        assert_near(given, dense, TENSORFLOW_TOLERANCE, f"{case}: input {number}")


def assert_near(found: np.ndarray, wanted: np.ndarray, tolerance: float, what: str) -> None:
    """Assert that no value differs by more than the tolerance times the largest of the tensor."""
    assert found.shape == wanted.shape, what
    assert np.isfinite(found).all(), what
    largest = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
    off = float(np.abs(found - wanted).max(initial=0.0)) / largest
    assert off <= tolerance, f"{what}: off by {off:.2e} of the largest, {largest:.3g}"


def _differences(array: np.ndarray, f: Callable[[np.ndarray], float], step: float) -> np.ndarray:
    found = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        ends = []
        for sign in (1, -1):
            moved = array.copy()
            moved[place] += sign * step
            ends.append((f(moved), float(moved[place])))
        found[place] = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
    return found
