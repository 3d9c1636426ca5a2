"""All weights of a network, or all gradients, as one flat float32 vector.

The order is that of the training graph's description (the name and shape of each weight), each weight in C order.
Optimizers, compression, masks and messages work on this one vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError

Vector: TypeAlias = NDArray[np.float32]


class WeightLike(Protocol):
    """The name and shape of one weight, as the training graph's description has them."""

    @property
    def name(self) -> str:
        """The name of the weight's tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


def vector_size(weights: Sequence[WeightLike]) -> int:
    """Return how many values the vector of these weights has."""
    return sum(math.prod(weight.shape) for weight in weights)


def flatten(arrays: Mapping[str, NDArray[np.float32]], weights: Sequence[WeightLike]) -> Vector:
    """Copy one array a weight into a vector.

    Raises ModelError for a weight that is missing, one too many, or one of another shape or type.
    """
    names = [weight.name for weight in weights]
    if len(names) != len(arrays) or set(names) != set(arrays):
        missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise ModelError(
            f"weights: {_listed(missing)} missing and {_listed(unknown)} unknown, expected the "
            f"{len(names)} weights of the training graph; take both from the same model"
        )
    vector = np.empty(vector_size(weights), np.float32)
    start = 0
    for weight in weights:
        array = arrays[weight.name]
        if array.shape != tuple(weight.shape) or array.dtype != np.float32:
            raise ModelError(
                f"weight {weight.name!r} is {array.dtype} {list(array.shape)}, expected float32 "
                f"{list(weight.shape)}; take weights and training graph from the same model"
            )
        vector[start : start + array.size] = array.reshape(-1)
        start += array.size
    return vector


def unflatten(vector: Vector, weights: Sequence[WeightLike]) -> dict[str, NDArray[np.float32]]:
    """Return one array a weight: views of the vector, which change with it. Raises ModelError for another size."""
    expected = vector_size(weights)
    if vector.shape != (expected,) or vector.dtype != np.float32:
        raise ModelError(
            f"a vector of {vector.dtype} {list(vector.shape)}, expected float32 [{expected}]; "
            "take weights and training graph from the same model"
        )
    arrays = {}
    start = 0
    for weight in weights:
        size = math.prod(weight.shape)
        arrays[weight.name] = vector[start : start + size].reshape(weight.shape)
        start += size
    return arrays


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "none"
