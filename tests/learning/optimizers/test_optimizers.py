"""Optimizers against hand-worked values, a float64 reference, and their own restored state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from har_edge.errors import ConfigError, ModelError
from har_edge.learning.optimizers.optimizers import METHODS, make_optimizer
from har_edge.learning.optimizers.schedules import RateSchedule

SPECS = (
    "sgd:lr=0.05",
    "momentum:lr=0.05,beta=0.8",
    "momentum:lr=0.05,nesterov=1,decay=0.01",
    "adam:lr=0.01",
    "adamw:lr=0.01,decay=0.1",
    "adam:lr=0.01,schedule=cosine,steps=7,floor=0.1,warmup=3",
    "momentum:lr=0.01,schedule=step,every=4,factor=0.5",
)


def run(spec: str, *gradients: float) -> list[float]:
    """Return a weight that begins at 1 after each step."""
    optimizer, weight, seen = make_optimizer(spec, 1), np.ones(1, np.float32), []
    for gradient in gradients:
        optimizer.step(weight, np.array([gradient], np.float32))
        seen.append(float(weight[0]))
    return seen


@pytest.mark.parametrize(
    ("spec", "gradients", "expected"),
    [
        ("sgd:lr=0.5", (1, -2), (0.5, 1.5)),
        # velocity -0.5, then 0.5 * -0.5 - 0.5 = -0.75
        ("momentum:lr=0.5,beta=0.5", (1, 1), (0.5, -0.25)),
        # w += 0.5 * velocity - 0.5: 1 - 0.25 - 0.5, then 0.25 - 0.375 - 0.5
        ("momentum:lr=0.5,beta=0.5,nesterov=1", (1, 1), (0.25, -0.625)),
        # Decay is part of the gradient: 1 + 0.2 * 1, then -2 + 0.2 * 0.4
        ("sgd:lr=0.5,decay=0.2", (1, -2), (0.4, 1.36)),
        # velocity -0.5 * (1 + 0.2), then 0.5 * -0.6 - 0.5 * (1 + 0.2 * 0.4)
        ("momentum:lr=0.5,beta=0.5,decay=0.2", (1, 1), (0.4, -0.44)),
        # A constant gradient has mean / sqrt(variance) = 1 after the corrections, whatever its size.
        ("adam:lr=0.1", (3, 3, 3), (0.9, 0.8, 0.7)),
        # 1 - 1 * 0.1 * 0.5 = 0.95, then the step of 0.1
        ("adamw:lr=0.1,decay=0.5", (3,), (0.85,)),
    ],
)
def test_hand_worked_values(spec: str, gradients: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert run(spec, *gradients) == pytest.approx(expected, abs=1e-6)


def test_adam_against_the_formulas_of_the_paper_in_float64() -> None:
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((40, 50)) * 10.0 ** rng.integers(-3, 2, 50)
    weights = start = rng.standard_normal(50)
    mean, variance = np.zeros(50), np.zeros(50)
    optimizer, ours = make_optimizer("adam:lr=0.003,beta1=0.8,beta2=0.99,epsilon=1e-8", 50), start.astype(np.float32)
    for count, gradient in enumerate(gradients, 1):
        mean = 0.8 * mean + 0.2 * gradient
        variance = 0.99 * variance + 0.01 * gradient**2
        rate = 0.003 * math.sqrt(1 - 0.99**count) / (1 - 0.8**count)
        weights = weights - rate * mean / (np.sqrt(variance) + 1e-8)
        optimizer.step(ours, gradient.astype(np.float32))
    np.testing.assert_allclose(ours, weights, rtol=0, atol=3e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_a_restored_state_goes_on_to_the_same_numbers(spec: str) -> None:
    rng = np.random.default_rng(5)
    gradients = rng.standard_normal((12, 30)).astype(np.float32)
    whole, weights = make_optimizer(spec, 30), np.ones(30, np.float32)
    for gradient in gradients[:5]:
        whole.step(weights, gradient)
    state, saved = whole.state(), weights.copy()
    for gradient in gradients[5:]:
        whole.step(weights, gradient)
    again = make_optimizer(spec, 30)
    again.load_state(state)
    for gradient in gradients[5:]:
        again.step(saved, gradient)
    assert saved.tobytes() == weights.tobytes()
    assert state["step"] == 5, "the state is a copy"


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_stays_as_it_is(spec: str) -> None:
    gradient = np.array([1, -2, 3], np.float32)
    optimizer = make_optimizer(spec, 3)
    for _ in range(3):
        optimizer.step(np.zeros(3, np.float32), gradient)
    assert gradient.tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": None}, r"a state of \['step', 'variance'\], expected \['mean', 'step', 'variance'\]"),
        ({"velocity": np.zeros(3, np.float32)}, "go on with the optimizer that the checkpoint was made with"),
        ({"step": -1}, "step is -1, expected a whole number from 0"),
        ({"step": 1.5}, "step is 1.5"),
        ({"mean": np.zeros(4, np.float32)}, r"mean is float32 \[4\], expected float32 \[3\]"),
        ({"mean": np.zeros(3)}, r"mean is float64 \[3\]"),
        ({"mean": 7}, r"mean is 7, expected float32 \[3\]"),
        ({"mean": np.array([1, np.nan, 0], np.float32)}, "mean has other values than finite values;"),
        ({"variance": np.array([1, -1, 0], np.float32)}, "variance has other values than finite values from 0"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change: dict[str, object], says: str) -> None:
    optimizer = make_optimizer("adam:lr=0.1", 3)
    optimizer.step(np.zeros(3, np.float32), np.ones(3, np.float32))
    before = optimizer.state()
    state = {name: value for name, value in ({**before, **change}).items() if value is not None}
    with pytest.raises(ModelError, match=says):
        optimizer.load_state(state)  # type: ignore[arg-type]
    np.testing.assert_equal(optimizer.state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_of_another_size_is_refused(method: str) -> None:
    optimizer = make_optimizer(f"{method}:lr=0.1", 3)
    with pytest.raises(ModelError, match=r"gradient is float32 \[4\], expected float32 \[3\]"):
        optimizer.step(np.zeros(3, np.float32), np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (RateSchedule("constant", 2.0), [2, 2, 2, 2, 2, 2]),
        (RateSchedule("constant", 2.0, warmup=4), [0.5, 1, 1.5, 2, 2, 2]),
        (RateSchedule("step", 1.0, every=2, factor=0.5), [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (RateSchedule("step", 1.0, every=2, factor=0.5, warmup=1), [1, 1, 1, 0.5, 0.5, 0.25]),
        (RateSchedule("cosine", 1.0, steps=4), [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0, 0]),
        (RateSchedule("cosine", 4.0, steps=2, floor=0.5, warmup=2), [2, 4, 4, 3, 2, 2]),
    ],
)
def test_schedules(schedule: RateSchedule, rates: list[float]) -> None:
    assert [schedule.rate(step) for step in range(6)] == pytest.approx(rates)


def test_the_schedule_sets_the_rate_of_each_step() -> None:
    assert run("sgd:lr=1,schedule=step,every=1,factor=0.5", 1, 1, 1) == [0, -0.5, -0.75]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "method '', expected one of sgd, momentum, adam, adamw"),
        ("rmsprop:lr=1", "method 'rmsprop', expected one of sgd"),
        ("adam", "lr= is missing, expected a number above 0 and at most 1000, such as lr=0.01"),
        ("sgd:lr", "'lr' is no option, expected OPTION=VALUE of schedule, lr"),
        ("sgd:lr=0.1,beta=0.9", "'beta=0.9' is no option"),
        ("sgd:lr=0.1,lr=0.2", "'lr=0.2' is given twice"),
        ("sgd:lr=0", "lr=0, expected a number above 0 and at most 1000"),
        ("sgd:lr=nan", "lr=nan, expected a number above 0"),
        ("sgd:lr=fast", "lr=fast, expected a number above 0"),
        ("momentum:lr=1,beta=1", "beta=1, expected a number of at least 0 and at most 1"),
        ("adam:lr=1,epsilon=0", "epsilon=0, expected"),
        ("sgd:lr=1,warmup=2.5", "warmup=2.5, expected a whole number of at least 0"),
        ("sgd:lr=1,schedule=cos", "schedule 'cos', expected one of constant, step, cosine"),
        ("sgd:lr=1,schedule=cosine", "schedule=cosine needs steps=, a number of steps"),
        ("sgd:lr=1,schedule=cosine,steps=0", "steps=0, expected a whole number of at least 1"),
        ("sgd:lr=1,schedule=step,every=3,floor=1", "floor= is of schedule=cosine, not of schedule=step"),
        ("sgd:lr=1,steps=3", "steps= is of schedule=cosine, not of schedule=constant"),
    ],
)
def test_errors_say_what_is_legal(spec: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer(spec, 3)
    assert f"optimizer {spec!r}: " in str(error.value) and says in str(error.value)
