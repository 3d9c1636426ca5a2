"""Optimizers and schedules against those of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.schedules import RateSchedule

pytestmark = pytest.mark.training

PAIRS = {
    "sgd:lr=0.05": lambda: keras.optimizers.SGD(0.05),
    "momentum:lr=0.05,beta=0.8": lambda: keras.optimizers.SGD(0.05, momentum=0.8),
    "momentum:lr=0.05,nesterov=1": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam:lr=0.01": lambda: keras.optimizers.Adam(0.01),
    "adam:lr=0.01,beta1=0.7,beta2=0.9,epsilon=0.001": lambda: keras.optimizers.Adam(0.01, 0.7, 0.9, 0.001),
    "adamw:lr=0.01": lambda: keras.optimizers.AdamW(0.01),
    "adamw:lr=0.01,decay=0.3": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.3),
    "sgd:lr=0.1,schedule=cosine,steps=20,floor=0.1": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 20, alpha=0.1)
    ),
}


@pytest.mark.parametrize("spec", PAIRS)
def test_forty_steps_as_keras_takes_them(spec: str) -> None:
    rng = np.random.default_rng(11)
    start = rng.standard_normal(200).astype(np.float32)
    gradients = (rng.standard_normal((40, 200)) * 10.0 ** rng.integers(-4, 2, 200)).astype(np.float32)
    variable, theirs = keras.Variable(start), PAIRS[spec]()
    ours, optimizer = start.copy(), make_optimizer(spec, 200)
    for gradient in gradients:
        theirs.apply_gradients([(gradient, variable)])
        optimizer.step(ours, gradient)
    change = np.max(np.abs(ours - start))
    np.testing.assert_allclose(ours, variable.numpy(), rtol=0, atol=3e-6 * max(1, change))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (RateSchedule("cosine", 0.3, steps=10, floor=0.2), keras.optimizers.schedules.CosineDecay(0.3, 10, alpha=0.2)),
        (
            RateSchedule("step", 0.3, every=4, factor=0.3),
            keras.optimizers.schedules.ExponentialDecay(0.3, 4, 0.3, staircase=True),
        ),
    ],
)
def test_rates_as_keras_has_them(ours: RateSchedule, theirs: keras.optimizers.schedules.LearningRateSchedule) -> None:
    for step in range(15):
        assert ours.rate(step) == pytest.approx(float(theirs(step)), rel=1e-5, abs=1e-7)
