"""Weights as one vector and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import ModelError
from har_edge.learning.updates.vectors import flatten, unflatten, vector_size


@dataclass(frozen=True)
class Weight:
    name: str
    shape: tuple[int, ...]


WEIGHTS = (Weight("kernel", (2, 3)), Weight("scale", ()), Weight("bias", (3,)))


def test_the_order_is_that_of_the_description_and_c_order() -> None:
    arrays = {
        "bias": np.array([7, 8, 9], np.float32),
        "kernel": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not in C order in memory
        "scale": np.array(5.5, np.float32),
    }
    vector = flatten(arrays, WEIGHTS)
    assert vector.tolist() == [0, 2, 4, 1, 3, 5, 5.5, 7, 8, 9]
    assert vector_size(WEIGHTS) == 10


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_round_trip(shapes: list[list[int]]) -> None:
    weights = [Weight(str(number), tuple(shape)) for number, shape in enumerate(shapes)]
    rng = np.random.default_rng(1)
    arrays = {one.name: rng.standard_normal(one.shape).astype(np.float32) for one in weights}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    again = unflatten(flatten(arrays, weights), weights)
    assert list(again) == [one.name for one in weights]
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, strict=True)


def test_the_arrays_are_views_of_the_vector() -> None:
    vector = np.zeros(10, np.float32)
    arrays = unflatten(vector, WEIGHTS)
    vector[6:] = 4
    assert arrays["bias"].tolist() == [4, 4, 4] and arrays["scale"] == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bias": None}, "weights: 'bias' missing and none unknown, expected the 3 weights"),
        ({"more": np.zeros(1, np.float32)}, "weights: none missing and 'more' unknown"),
        ({"bias": np.zeros(4, np.float32)}, r"weight 'bias' is float32 \[4\], expected float32 \[3\]"),
        ({"bias": np.zeros(3)}, r"weight 'bias' is float64 \[3\], expected float32 \[3\]"),
    ],
)
def test_other_weights_are_refused(change: dict[str, np.ndarray | None], says: str) -> None:
    arrays = {one.name: np.zeros(one.shape, np.float32) for one in WEIGHTS} | change
    with pytest.raises(ModelError, match=says):
        flatten({name: array for name, array in arrays.items() if array is not None}, WEIGHTS)


@pytest.mark.parametrize("vector", [np.zeros(9, np.float32), np.zeros((10, 1), np.float32), np.zeros(10)])
def test_another_vector_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"expected float32 \[10\]"):
        unflatten(vector, WEIGHTS)
