"""Summands of input channels against the whole: floats within a bound, integers bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from har_edge.errors import CutError
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.split.plan import SplitMethod
from tests.tflite.layers import RELU, RELU6, LayerDraft, options
from tests.tflite.models import chain
from tests.tflite.splits import agreement, even, model_of, split, uneven

INPUT = SplitMethod.INPUT
FLOAT_BOUND = 1e-5


def dense(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 12]), 37, act=RELU)


def dense_without_bias(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 12]), 9, bias=False)


def dense_of_rows(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 5, 12]), 7, keepNumDims=True, act=RELU6)


def conv(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 12]), 5, act=RELU6)


def conv_stride(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 12]), 5, 5, stride=2, act=RELU)


def conv_point(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 12]), 5, 1)


def transposed(draft: LayerDraft) -> int:
    return draft.transposed(draft.input([1, 4, 5, 12]), 3)


def conv_3d(draft: LayerDraft) -> int:
    return draft.conv_3d(draft.input([1, 4, 5, 6, 12]), 3, act=RELU)


def product(draft: LayerDraft) -> int:
    return draft.product(draft.input([1, 2, 5, 12], "a"), draft.input([1, 2, 12, 7], "b"), [1, 2, 5, 7])


def product_transposed(draft: LayerDraft) -> int:
    a, b = draft.input([1, 2, 12, 5], "a"), draft.input([1, 2, 7, 12], "b")
    return draft.product(a, b, [1, 2, 5, 7], x=True, y=True)


FLOATS: list[Callable[[LayerDraft], int]] = [
    *(dense, dense_without_bias, dense_of_rows, conv, conv_stride, conv_point, transposed, conv_3d, product),
    product_transposed,
]
INTEGERS = FLOATS[:6]
SHARES = (even(12, 2), even(12, 3), even(12, 5), even(12, 12), uneven(12, 4), (0, 1, 12), (0, 0, 7, 12))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layer", FLOATS)
def test_summands_of_floats_give_the_whole_within_a_bound(layer: Callable[[LayerDraft], int], dtype: str) -> None:
    draft = LayerDraft(dtype)
    model = model_of(draft.build(layer(draft)))
    first = sum(operator.name == "DEQUANTIZE" for operator in model.main.operators)
    for bounds in SHARES:
        assert agreement(model, INPUT, bounds, first).error < FLOAT_BOUND, bounds


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("layer", [*INTEGERS, transposed])
def test_summands_of_integers_give_the_bits_of_the_whole(layer: Callable[[LayerDraft], int], dtype: str) -> None:
    draft = LayerDraft(dtype)
    model = model_of(draft.build(layer(draft)))
    for bounds in SHARES:
        assert agreement(model, INPUT, bounds, runs=10).equal, bounds
