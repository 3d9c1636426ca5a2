"""Random networks: chains, branches, tensors that are read several times or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from har_edge.inference.interpreter import Interpreter
from tests.tflite.gradient.check import assert_close, differentiate, upstream
from tests.tflite.gradient.random_networks import CORNERED, SMOOTH, Network, grow

# Along random directions in all values at once, of the length of the gradient times that of the direction.
STEP, TOLERANCE = 2.0**-7, 2e-3
_SEEDS = st.integers(0, 2**32 - 1)


def _network(steps: list[str], seed: int) -> Network:
    net = grow(steps, seed)
    assume(net.operators)
    return net


@settings(max_examples=150)
@given(st.lists(st.sampled_from(sorted(SMOOTH)), min_size=1, max_size=7), _SEEDS)
def test_gradients_are_central_differences(steps: list[str], seed: int) -> None:
    net = _network(steps, seed)
    model = net.finish()
    dy = upstream(model, seed)
    found = differentiate(model, net.values, dy, batch=2)
    interpreter = Interpreter(bytes(model.data))

    def score(direction: dict[str, np.ndarray], offset: float) -> float:
        got = interpreter.run(
            {name: value + np.float32(offset) * direction[name] for name, value in net.values.items()}
        )
        return sum(float(np.vdot(got[name].astype(np.float64), gradient)) for name, gradient in dy.items())

    for _ in range(3):
        direction = {name: net.rng.uniform(-1, 1, v.shape).astype(np.float32) for name, v in net.values.items()}
        near = score(direction, STEP) - score(direction, -STEP)
        far = score(direction, 2 * STEP) - score(direction, -2 * STEP)
        wanted = (8 * near - far) / (12 * STEP)
        slope = sum(float(np.vdot(found[name].astype(np.float64), direction[name])) for name in found)
        length = _length(found) * _length(direction)
        assert abs(slope - wanted) <= TOLERANCE * max(length, 1.0), (net.operators, slope, wanted, length)


def _length(values: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.square(value.astype(np.float64)).sum()) for value in values.values())))


@pytest.mark.training
@settings(max_examples=150)
@given(st.lists(st.sampled_from(sorted(SMOOTH | CORNERED)), min_size=1, max_size=7), _SEEDS)
def test_gradients_are_tensorflows(steps: list[str], seed: int) -> None:
    from tests.tflite.gradient.tensorflow_graph import TensorFlowGraph

    net = _network(steps, seed)
    model = net.finish()
    dy = upstream(model, seed)
    _, wanted = TensorFlowGraph(model).gradients(net.values, dy)
    found = differentiate(model, net.values, dy, batch=2)
    assert not any(wanted[name].any() for name in net.values if name not in found)  # nothing reads these inputs
    # A sum of many terms near 1 may come near 0, and keeps their rounding.
    assert_close(found, {name: wanted[name] for name in found}, 1e-5, least=1.0)
