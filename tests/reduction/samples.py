"""Windows that tests of reducers share."""

import numpy as np


def some_window(length=250, channels=9, seed=0):
    """Return waves, steps and noise of several sizes, one of them in each channel."""
    rng = np.random.default_rng(seed)
    time = np.arange(length)[:, np.newaxis]
    waves = np.sin(time / rng.uniform(2, 20, channels)) * rng.uniform(0.5, 10, channels)
    steps = np.cumsum(rng.random((length, channels)) < 0.02, axis=0)
    return (waves + steps + rng.normal(0, 0.3, (length, channels)) + rng.normal(0, 20, channels)).astype(np.float32)
