"""Scaling to comparable channels, from training data only; it ends up inside the first operators of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Recording, Samples, Source
from har_edge.data.windows import default_window

Array = npt.NDArray[np.float32]

# Full scale of a source with such channels, by data set and kind. An int8 input has one step size for all channels of a
# source; in mHealth its range has to be that of the accelerometer (22 m/s2: steps of 0.17), not of the magnetometer
# (600 units: steps of 5); what is beyond saturates.
FULL_SCALE = {("mhealth", "acc"): 22.0}
# Elsewhere full scale is what this share of the values keeps to.
MEASURED_SHARE = 0.999
# No channel is blown up beyond a tenth of full scale: rounding to int8 would be blown up with it, and so would the
# noise of channels that hold next to nothing (ECG and ankle gyroscope, truncated to integers in the recordings).
LEAST_SPREAD = 0.1
# A channel that keeps to less than this share of full scale would find int8 steps too large: each channel is
# then scaled by itself, in float32, before anything is rounded.
LEAST_SHARE = 0.05
# How many standard deviations the int8 range of such an input holds, to each side.
DEVIATIONS = 5.0


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Real values that an int8 input spans, -128 to 127."""

    low: float
    high: float

    @classmethod
    def of_code(cls, scale: float, zero: int) -> ValueRange:
        """Return what an int8 code with this scale and zero point spans."""
        return cls(scale * (-128 - zero), scale * (127 - zero))


@dataclass(frozen=True, slots=True)
class Scaling:
    """The scaling of inputs to comparable values: hold them in range, take `mean` away, divide by `spread`.

    By input; `mean` and `spread` are float32 [C], over the last dimension. `ranges` holds None for an input whose
    channels are too different for one int8 step: it is float32 in every model, and each channel is held within
    DEVIATIONS of its own. `grain` is the unit of noise that does not drown a channel, where windows are changed.
    """

    mean: Mapping[str, Array]
    spread: Mapping[str, Array]
    ranges: Mapping[str, ValueRange | None]
    grain: Mapping[str, Array] = field(default_factory=dict)

    def apply(self, samples: Mapping[str, Samples]) -> dict[str, Samples]:
        """Return scaled samples [..., C] by input."""
        return {name: self.scale(name, values, np.empty_like(values)) for name, values in samples.items()}

    def inputs(self, samples: dict[str, Samples]) -> list[Samples]:
        """Return the scaled samples of each input, in order, in the memory of the samples."""
        return [self.scale(name, values, values) for name, values in samples.items()]

    def scale(self, name: str, values: Samples, out: Samples) -> Samples:
        """Return the scaled values [..., C] of one input, written to `out`."""
        span = self.ranges[name]
        # Plain numbers for bounds: with one for each channel it takes five times as long.
        np.clip(values, *(self.bounds(name) if span is None else (span.low, span.high)), out=out)
        out -= self.mean[name]
        out *= np.float32(1) / self.spread[name]
        return out

    def bounds(self, name: str) -> tuple[Array, Array]:
        """Return the least and the largest value that an input tells from others: of all channels, or of each."""
        span = self.ranges[name]
        if span is None:
            reach = DEVIATIONS * self.spread[name]
            return self.mean[name] - reach, self.mean[name] + reach
        return np.array(span.low, np.float32), np.array(span.high, np.float32)

    def clip(self, name: str, values: Samples) -> Samples:
        """Return samples held within their bounds, as the input of a model holds them."""
        clipped: Samples = np.clip(values, *self.bounds(name))
        return clipped

    def merged(self, other: Scaling) -> Scaling:
        """Return the scaling of the inputs of both."""
        return Scaling(
            {**self.mean, **other.mean},
            {**self.spread, **other.spread},
            {**self.ranges, **other.ranges},
            {**self.grain, **other.grain},
        )


def measure_scaling(recordings: Sequence[Recording], description: StreamDescription) -> Scaling:
    """Return the scaling of windows of some recordings."""
    scaling = Scaling({}, {}, {})
    for source in description.sources:
        values = np.concatenate([recording.samples[source.name] for recording in recordings])
        limit = _known_limit(description, source)
        own = measure_values(source.name, values, None if limit is None else ValueRange(-limit, limit))
        if limit is None:
            # The differences between machines are often larger than the changes in a window.
            length = min(len(values), default_window(description.rate_hz)[0])
            pieces = values[: len(values) // length * length].reshape(-1, length, values.shape[1])
            grain = np.median(pieces.std(1), axis=0).astype(np.float32)
        else:
            grain = np.minimum(own.spread[source.name], 1.0)
        scaling = scaling.merged(replace(own, grain={source.name: grain}))
    return scaling


def measure_values(name: str, values: Samples, span: ValueRange | None = None) -> Scaling:
    """Return the scaling of one input from values [..., C]; `span` is its int8 range, measured where there is none.

    Nearly constant channels count as having LEAST_SPREAD of full scale.
    """
    rows = values.reshape(-1, values.shape[-1])
    if span is None:
        reach = np.quantile(np.abs(rows), MEASURED_SHARE, axis=0)
        limit = _round_up(float(reach.max()))
        moves = rows.std(0, dtype=np.float64)
        if (moves[moves > 0] < LEAST_SHARE * limit).any():
            mean, spread = rows.mean(0, dtype=np.float64), np.where(moves > 0, moves, 1.0)
            return Scaling({name: mean.astype(np.float32)}, {name: spread.astype(np.float32)}, {name: None})
        span = ValueRange(-limit, limit)
    held = np.clip(rows, span.low, span.high).astype(np.float64)
    least = LEAST_SPREAD * max(abs(span.low), abs(span.high))
    return Scaling(
        {name: held.mean(0).astype(np.float32)},
        {name: np.maximum(held.std(0), least).astype(np.float32)},
        {name: span},
    )


def _known_limit(description: StreamDescription, source: Source) -> float | None:
    for channel in source.channels:
        for word in channel.split("_"):
            if (description.name, word) in FULL_SCALE:
                return FULL_SCALE[description.name, word]
    return None


def _round_up(limit: float) -> float:
    """Return a limit of two digits, at least as large; 1 where there is nothing."""
    if limit <= 0:
        return 1.0
    unit = 10.0 ** (np.floor(np.log10(limit)) - 1)
    return float(np.ceil(limit / unit) * unit)
