"""Windows, and files of fitted reducers, that tests of reducers share."""

from dataclasses import dataclass

import numpy as np

from har_edge.errors import ConfigError


def some_window(length=250, channels=9, seed=0):
    """Return waves, steps and noise of several sizes, one of them in each channel."""
    rng = np.random.default_rng(seed)
    time = np.arange(length)[:, np.newaxis]
    waves = np.sin(time / rng.uniform(2, 20, channels)) * rng.uniform(0.5, 10, channels)
    steps = np.cumsum(rng.random((length, channels)) < 0.02, axis=0)
    return (waves + steps + rng.normal(0, 0.3, (length, channels)) + rng.normal(0, 20, channels)).astype(np.float32)


def some_basis(length=250, channels=9, waves=3):
    """Return the arrays of a basis: in each channel the constant and the slowest waves of a cosine transform."""
    time = np.arange(length) + 0.5
    cosines = np.cos(np.pi * np.outer(np.arange(waves), time) / length)
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    components = np.einsum("wt,cd->wctd", cosines, np.eye(channels)).reshape(-1, length, channels)
    return {
        "mean": np.full((length, channels), 0.25, np.float32),
        "spread": np.linspace(0.5, 2, channels, dtype=np.float32),
        "components": components.astype(np.float32),
        "scale": np.full(len(components), 10, np.float32),
    }


@dataclass
class Linear:
    """A Codec that averages, or repeats, over time: real values in, real values out, quantised at its ports."""

    matrix: np.ndarray
    input_shape: tuple
    output_shape: tuple
    input_dtype: str = "int8"
    input_scale: float = 1.0
    input_zero: int = 3
    output_dtype: str = "int8"
    output_scale: float = 0.5
    output_zero: int = -7

    @property
    def operations(self):
        return 2 * self.matrix.size * self.input_shape[-1]

    def run(self, value):
        assert value.shape == self.input_shape and value.dtype.name == self.input_dtype
        if self.input_dtype != "float32":
            value = (value.astype(np.float32) - self.input_zero) * np.float32(self.input_scale)
        made = (self.matrix @ value).astype(np.float32)
        if self.output_dtype == "float32":
            return made
        limits = np.iinfo(self.output_dtype)
        levels = np.rint(made / self.output_scale) + self.output_zero
        return np.clip(levels, limits.min, limits.max).astype(self.output_dtype)


@dataclass
class SampleFiles:
    """Files that fit windows [length, channels]: basis.npz, enc.tflite and dec.tflite."""

    length: int
    channels: int

    def arrays(self, name):
        if name != "basis.npz":
            raise ConfigError(f"no file {name!r}")
        return some_basis(self.length, self.channels)

    def model(self, name):
        pieces = 5
        owner = np.minimum(np.arange(self.length) * pieces // self.length, pieces - 1)
        spread = (owner[:, np.newaxis] == np.arange(pieces)).astype(np.float32)
        window, code = (self.length, self.channels), (pieces, self.channels)
        if name == "enc.tflite":
            return Linear(spread.T / spread.sum(axis=0)[:, np.newaxis], window, code)
        if name == "dec.tflite":
            return Linear(spread, code, window, "int8", 0.5, -7, "float32", 0.0, 0)
        raise ConfigError(f"no file {name!r}")
