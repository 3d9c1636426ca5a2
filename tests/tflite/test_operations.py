"""Arithmetic of a model: counted by hand, and by the loops that the definitions spell out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from har_edge.config.catalog import find_model
from har_edge.errors import ModelError
from har_edge.tflite import operations, schema
from har_edge.tflite.model import read_model
from har_edge.tflite.operations import count_operations
from tests.tflite import models
from tests.tflite.models import Draft


def test_every_operator_of_the_tables_is_one() -> None:
    assert set(schema.OPERATOR_NAMES.values()) >= operations._COUNTS.keys() | operations._MOVES
    assert not operations._COUNTS.keys() & operations._MOVES


@pytest.mark.parametrize("dynamic", [False, True])
def test_dense_layers(dynamic: bool) -> None:
    widths = [6, 8, 5, 7, 3]
    by_hand = sum(units * (2 * values + 1) for values, units in pairwise(widths))
    assert count_operations(read_model(models.chain(dynamic=dynamic))) == by_hand


def test_convolutions_with_bias_and_activation_and_a_sum() -> None:
    def conv(channels: int, filters: int) -> int:
        macs = 0
        for _row in range(8):
            for _column in range(8):
                for _filter in range(filters):
                    macs += 3 * 3 * channels
        return 2 * macs + 2 * 8 * 8 * filters  # bias and the activation fused into it

    assert count_operations(read_model(models.skip())) == conv(3, 4) + 2 * conv(4, 4) + 8 * 8 * 4 + conv(4, 2)


def test_integer_convolutions_count_as_float_ones() -> None:
    per_pixel = [2 * 9 * channels * filters + 2 * filters for channels, filters in ((3, 4), (4, 8), (8, 4))]
    assert count_operations(read_model(models.quantised())) == 36 * sum(per_pixel)


def test_depthwise_transposed_pooled_and_reduced() -> None:
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 10, 1, 4], "x")
    weights = graph.const(np.ones((1, 3, 1, 4), np.float32))
    deep = graph.tensor([1, 8, 1, 4])
    graph.op("DEPTHWISE_CONV_2D", [x, weights], [deep], tflite.DepthwiseConv2DOptionsT())
    options = tflite.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = 2, 1
    pooled = graph.tensor([1, 4, 1, 4])
    graph.op("AVERAGE_POOL_2D", [deep], [pooled], options)
    shape = graph.const(np.array([1, 8, 1, 5], np.int32))
    filters, bias = graph.const(np.ones((5, 2, 1, 4), np.float32)), graph.const(np.ones(5, np.float32))
    wide = graph.tensor([1, 8, 1, 5])
    graph.op("TRANSPOSE_CONV", [shape, filters, pooled, bias], [wide], tflite.TransposeConvOptionsT())
    axes, mean = graph.const(np.array([1, 2], np.int32)), graph.tensor([1, 5])
    graph.op("MEAN", [wide, axes], [mean], tflite.ReducerOptionsT())
    scores = graph.tensor([1, 5])
    graph.op("SOFTMAX", [mean], [scores], tflite.SoftmaxOptionsT())
    graph.output(scores)
    depthwise, pool, transposed = 8 * 4 * 2 * 3, 4 * 4 * 2, 2 * 16 * 5 * 2 + 40
    assert count_operations(read_model(draft.build())) == depthwise + pool + transposed + 40 + 25


def test_the_largest_values() -> None:
    """The five largest of each row of nine, kept in a heap of three levels."""
    draft = Draft()
    graph = draft.graph()
    values, indices = graph.tensor([2, 5]), graph.tensor([2, 5], type=tflite.TensorType.INT32)
    five = graph.const(np.int32(5))
    graph.op("TOPK_V2", [graph.input([2, 9], "x"), five], [values, indices], tflite.TopKV2OptionsT())
    graph.output(values)
    assert count_operations(read_model(draft.build())) == 2 * 9 * 3


def test_what_moves_data_or_is_known_beforehand_is_free() -> None:
    draft = Draft()
    graph = draft.graph()
    x = graph.input([2, 3], "x")
    stored = graph.const(np.ones((2, 3), np.float16))
    weights = graph.tensor([2, 3])
    graph.op("DEQUANTIZE", [stored], [weights], tflite.DequantizeOptionsT())
    flat = graph.tensor([6])
    graph.op("RESHAPE", [graph.add(x, weights), graph.const(np.array([6], np.int32))], [flat], tflite.ReshapeOptionsT())
    graph.output(flat)
    assert count_operations(read_model(draft.build())) == 6


@pytest.mark.parametrize(("model", "name"), [(models.loop(), "WHILE"), (models.recurrent(), "SVDF")])
def test_what_cannot_be_counted_is_an_error(model: bytes, name: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot count the arithmetic of operator \d+ \({name}\); expected those of"):
        count_operations(read_model(model))


@pytest.mark.parametrize("kind", sorted(operations._COUNTS))
def test_operators_without_what_they_need_are_an_error_or_a_figure(kind: str) -> None:
    """One input of no dimensions, no weights, no options."""
    draft = Draft()
    graph = draft.graph()
    result = graph.tensor([], "result")
    graph.op(kind, [graph.input([], "x")], [result])
    graph.output(result)
    model = read_model(draft.build())
    if operations._COUNTS[kind] in (operations._each_input, operations._each_output):
        assert count_operations(model) == 1
    elif operations._COUNTS[kind] is operations._twice:
        assert count_operations(model) == 2
    elif kind == "SOFTMAX":
        assert count_operations(model) == 5
    else:
        with pytest.raises(ModelError, match=rf"cannot count the arithmetic of operator 0 \({kind}\) with inputs \[\]"):
            count_operations(model)


def test_the_shipped_model() -> None:
    """Two convolutions a source, one over all of them, a dense layer: multiply-accumulates by hand."""
    macs = sum(49 * 16 * 10 * channels + 23 * 16 * 5 * 16 for channels in (5, 9, 9)) + 21 * 32 * 3 * 48 + 12 * 64
    outputs = 3 * (49 + 23) * 16 + 21 * 32  # of convolutions: each has a bias and a fused activation
    rest = 12 + 2 * 32 * 21 + 5 * 12
    assert count_operations(read_model(find_model("int8").path)) == 2 * macs + 2 * outputs + rest
