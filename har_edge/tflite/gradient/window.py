"""A window that slides over the space dimensions of a tensor: its taps, and their way back.

Tap k of a tensor x is what the window sees at its place k, for each place where the window stands: the values
x[stride * o + dilation * k - pad] for each output o. Convolutions and pools are sums or choices over taps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.schema import tflite

Tap = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One space dimension: sizes of the input, the output and the kernel, and how the window moves."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int  # zeros in front of the input; those behind follow from the rest

    @property
    def rows(self) -> int:
        """Number of whole strides that cover all that the window sees, and all of the input."""
        seen = max((self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1, self.before + self.size)
        return -(-seen // self.stride)

    @property
    def after(self) -> int:
        """Zeros behind the input, up to a whole stride."""
        return self.rows * self.stride - self.before - self.size

    def place(self, tap: int) -> tuple[int, int]:
        """Return the phase of a tap within a stride, and the strides that it is ahead."""
        return tap * self.dilation % self.stride, tap * self.dilation // self.stride

    def counts(self) -> NDArray[np.int64]:
        """Return how many taps of each output lie inside the input."""
        starts = np.arange(self.out)[:, None] * self.stride - self.before
        seen = starts + np.arange(self.kernel)[None] * self.dilation
        inside: NDArray[np.int64] = ((seen >= 0) & (seen < self.size)).sum(axis=1)
        return inside


def make_axis(size: int, out: int, kernel: int, stride: int, dilation: int, padding: int) -> Axis:
    """Return the dimension of an operator with SAME or VALID padding (the schema's number)."""
    before = 0
    if padding == tflite.Padding.SAME:
        before = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size) // 2
    return Axis(size, out, kernel, stride, dilation, before)


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """A window over the dimensions 1, 2, ... of tensors [batch, ..., channels]."""

    axes: tuple[Axis, ...]

    @property
    def taps(self) -> Iterator[Tap]:
        """The places of the window, row by row."""
        return itertools.product(*(range(axis.kernel) for axis in self.axes))

    @property
    def out(self) -> Shape:
        """Sizes of the output."""
        return tuple(axis.out for axis in self.axes)

    def padded(self, builder: GraphBuilder, x: int, value: float = 0.0) -> int:
        """Return the input with what the window sees around it."""
        amounts = [(0, 0), *((axis.before, axis.after) for axis in self.axes), (0, 0)]
        # `tap` cuts off the rest behind the last place of the window.
        return builder.pad(x, amounts) if value == 0.0 else pad_with(builder, x, amounts, value)

    def tap(self, builder: GraphBuilder, padded: int, tap: Tap) -> int:
        """Return one tap of a padded input, [batch, *out, channels]."""
        if all(axis.stride == 1 for axis in self.axes):
            shape = builder.shape(padded)
            begin = [0, *(axis.place(k)[1] for axis, k in zip(self.axes, tap, strict=True)), 0]
            return builder.slice(padded, begin, (shape[0], *self.out, shape[-1]))
        for number, (axis, k) in enumerate(zip(self.axes, tap, strict=True), start=1):
            padded = _every(builder, padded, number, axis, k)
        return padded

    def back(self, builder: GraphBuilder, dy: int, channels: int, give: Callable[[Tap, int], int]) -> int:
        """Return the gradient of the input, [batch, *sizes, channels].

        `give` returns what one tap gives back, [batch, ..., channels], for a shifted copy of dy,
        [batch, ..., channels of dy]. Each phase of a stride is the sum of its taps.
        """
        return self._back(builder, lambda tap: dy, channels, give)

    def back_each(self, builder: GraphBuilder, given: dict[Tap, int], channels: int) -> int:
        """Return the gradient of the input from what each tap gives back, [batch, *out, channels]."""
        return self._back(builder, given.__getitem__, channels, lambda tap, shifted: shifted)

    def _back(
        self, builder: GraphBuilder, of: Callable[[Tap], int], channels: int, give: Callable[[Tap, int], int]
    ) -> int:
        first = of((0,) * len(self.axes))
        batch, last = builder.shape(first)[0], builder.shape(first)[-1]
        most = [axis.place(axis.kernel - 1)[1] for axis in self.axes]
        rows = [axis.rows for axis in self.axes]
        amounts = [(ahead, n - axis.out) for ahead, n, axis in zip(most, rows, self.axes, strict=True)]
        wide: dict[int, int] = {}
        phases: dict[Tap, int] = {}
        for tap in self.taps:
            places = [axis.place(k) for axis, k in zip(self.axes, tap, strict=True)]
            phase = tuple(place[0] for place in places)
            begin = [0, *(top - place[1] for top, place in zip(most, places, strict=True)), 0]
            source = of(tap)
            if source not in wide:
                wide[source] = builder.pad(source, [(0, 0), *amounts, (0, 0)])
            given = give(tap, builder.slice(wide[source], begin, (batch, *rows, last)))
            phases[phase] = builder.plus(phases[phase], given) if phase in phases else given
        return self._joined(builder, phases, (batch, *rows, channels))

    def _joined(self, builder: GraphBuilder, phases: dict[Tap, int], shape: Shape) -> int:
        """Return the phases woven into one tensor, without what was padded."""
        batch, channels = shape[0], shape[-1]

        def weave(phase: Tap) -> int | None:
            if len(phase) == len(self.axes):
                return phases.get(phase)
            return _interleave(builder, [weave((*phase, b)) for b in range(self.axes[len(phase)].stride)], len(phase))

        whole = weave(())
        assert whole is not None  # tap 0 is in phase 0
        begin = [0, *(axis.before for axis in self.axes), 0]
        return builder.slice(whole, begin, (batch, *(axis.size for axis in self.axes), channels))


def _interleave(builder: GraphBuilder, parts: list[int | None], axis: int) -> int | None:
    """Return the elements of the parts in turn along a space dimension; None is a part of zeros, never the first."""
    if parts[0] is None or len(parts) == 1:
        return parts[0]
    sizes = builder.shape(parts[0])
    rest = reduce(int.__mul__, sizes[axis + 2 :], 1)
    lead = reduce(int.__mul__, sizes[: axis + 2], 1)
    blocks: list[int] = []
    for number, part in enumerate(parts):
        if part is not None:
            zeros = next((n for n, one in enumerate(parts[number + 1 :]) if one is not None), len(parts) - number - 1)
            blocks.append(builder.pad(builder.reshape(part, (lead, rest)), [(0, 0), (0, zeros * rest)]))
    woven = builder.concat(blocks, 1)
    return builder.reshape(woven, (*sizes[: axis + 1], sizes[axis + 1] * len(parts), *sizes[axis + 2 :]))


def _every(builder: GraphBuilder, x: int, number: int, axis: Axis, tap: int) -> int:
    """Return the elements of one dimension that a tap sees; strides become a dimension, so that a block is cut."""
    shape = builder.shape(x)
    phase, ahead = axis.place(tap)
    lead = reduce(int.__mul__, shape[:number], 1)
    rest = reduce(int.__mul__, shape[number + 1 :], 1)
    table = builder.reshape(x, (lead, axis.rows, axis.stride * rest))
    block = builder.slice(table, (0, ahead, phase * rest), (lead, axis.out, rest))
    return builder.reshape(block, (*shape[:number], axis.out, *shape[number + 1 :]))


def pad_with(builder: GraphBuilder, x: int, amounts: list[tuple[int, int]], value: float) -> int:
    """Return x with a number around it."""
    if not any(before or after for before, after in amounts):
        return x
    shape = [n + before + after for n, (before, after) in zip(builder.shape(x), amounts, strict=True)]
    table = builder.constant(np.array(amounts, np.int32))
    filler = builder.constant(np.array(value, np.float32).reshape(1))
    return builder.add("PADV2", [x, table, filler], shape, tflite.PadV2OptionsT())


def conv_window(x: Shape, y: Shape, kernel: Shape, options: object) -> SlidingWindow:
    """Return the window of a convolution of [batch, height, width, ...]."""
    return _window(x, y, kernel, options, ("H", "W"))


def volume_window(x: Shape, y: Shape, kernel: Shape, options: object) -> SlidingWindow:
    """Return the window of a convolution of [batch, depth, height, width, ...]."""
    return _window(x, y, kernel, options, ("D", "H", "W"))


def _window(x: Shape, y: Shape, kernel: Shape, options: object, letters: tuple[str, ...]) -> SlidingWindow:
    padding = int(getattr(options, "padding", 0))
    axes = []
    for number, letter in enumerate(letters):
        stride = int(getattr(options, f"stride{letter}"))
        dilation = int(getattr(options, f"dilation{letter}Factor", 1) or 1)
        axes.append(make_axis(x[number + 1], y[number + 1], kernel[number], stride, dilation, padding))
    return SlidingWindow(tuple(axes))
