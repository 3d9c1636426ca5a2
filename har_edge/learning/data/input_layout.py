"""How the inputs of a model stand side by side in one sample: a job of a training has one shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from har_edge.inference.interpreter import Array
from har_edge.tflite.gradient.spec import TrainingSpec


@dataclass(frozen=True, slots=True)
class InputLayout:
    """The inputs of a model in the order of its training graph, with their shapes without the batch.

    A sample holds them along its last axis where they differ in no other, else flat, one after the other.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def _joined(self) -> bool:
        """Whether the inputs differ in their last axis alone."""
        return all(self.shapes) and len({shape[:-1] for shape in self.shapes}) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        if self._joined:
            return (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))
        return (sum(map(math.prod, self.shapes)),)

    @property
    def widths(self) -> tuple[tuple[str, int], ...]:
        """The inputs along the last axis, each with its channels; none where a sample is one input, or flat."""
        if len(self.shapes) == 1 or not self._joined:
            return ()
        return tuple((name, shape[-1]) for name, shape in zip(self.names, self.shapes, strict=True))

    def split(self, x: Array) -> dict[str, Array]:
        """Return samples [n, ...] by input."""
        if len(self.names) == 1:
            return {self.names[0]: x}
        sizes = [shape[-1] if self._joined else math.prod(shape) for shape in self.shapes]
        parts = np.split(x, np.cumsum(sizes)[:-1], axis=-1)
        return {
            name: np.ascontiguousarray(part).reshape(len(x), *shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def join(self, inputs: Mapping[str, Array]) -> Array:
        """Return inputs [n, ...] by name as samples."""
        parts = [inputs[name] for name in self.names]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([one if self._joined else one.reshape(len(one), -1) for one in parts], axis=-1)


def layout_of(spec: TrainingSpec) -> InputLayout:
    """Return the layout of the samples that a training graph takes."""
    return InputLayout(tuple(port.name for port in spec.x), tuple(tuple(port.shape[1:]) for port in spec.x))
