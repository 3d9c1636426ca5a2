"""Summands of input channels against the whole: floats within a bound, integers bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import CutError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import run_split
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import read_model
from har_edge.tflite.split.input_rules import LinearView
from har_edge.tflite.split.methods import share_bounds
from har_edge.tflite.split.partial_file import cut_exactly
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import split_model
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.writer import constant_data
from tests.tflite.split.agreement import agreement, even, model_of, split, uneven
from tests.tflite.split.compare import check
from tests.tflite.split.typed_layers import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, LayerDraft, options

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


def conv_dilated(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 12]), 5, dilation=2)


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
    *(dense, dense_without_bias, dense_of_rows, conv, conv_stride, conv_dilated, conv_point, transposed, conv_3d),
    *(product, product_transposed),
]
INTEGERS = FLOATS[:7]
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


def conv_wide(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 4, 4, 400]), 4, act=RELU)


def dense_long(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 5000]), 4)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("layer", "extent"), [(conv_wide, 400), (dense_long, 5000)])
def test_long_sums_stay_exact(layer: Callable[[LayerDraft], int], extent: int, dtype: str) -> None:
    """A float32 does not hold the sum of all products, so that it is made of several."""
    draft = LayerDraft(dtype)
    model = model_of(draft.build(layer(draft)))
    for bounds in (even(extent, 2), (0, extent // 7, extent)):
        assert agreement(model, INPUT, bounds).equal, bounds


def test_exact_sums_have_as_many_parts_as_their_weights_ask_for() -> None:
    draft = LayerDraft("uint8")
    view = LinearView(model := model_of(draft.build(conv_wide(draft))), model.main.operators[0])
    parts = cut_exactly(view, AxisRange(0, 10, 390))
    assert parts[0].start == 10 and parts[-1].stop == 390 and len(parts) > 1
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    weights = constant_data(model, view.tensor(1)).astype(np.int64) - 131
    largest = 255 - 120 if 120 < 128 else 120
    sums = [np.abs(weights[..., part.start : part.stop]).sum((1, 2, 3)).max() * largest for part in parts]
    assert max(sums) <= 1 << 24
    # One channel more would be too much.
    for part in parts[:-1]:
        assert np.abs(weights[..., part.start : part.stop + 1]).sum((1, 2, 3)).max() * largest > 1 << 24


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("scale", [4.0, 1.0, 0.8])
def test_the_limit_of_an_activation_between_two_steps_is_rounded_as_the_kernel_does(dtype: str, scale: float) -> None:
    """6 / 4 is as far from 1 as from 2: the zero point decides which of them is even."""
    draft = LayerDraft(dtype)
    x = draft.input([1, 6, 6, 8])
    weights, result = draft.weights((5, 1, 1, 8), 0), draft.result([1, 6, 6, 5], scale)
    made = options("Conv2D", padding=SAME, strideH=1, strideW=1, fusedActivationFunction=RELU6)
    draft.graph.op("CONV_2D", [x, weights, draft.bias(5, x, weights)], [result], made, version=5)
    assert agreement(model_of(draft.build(result)), INPUT, (0, 3, 8), runs=5).equal


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_treats_channels_alone_goes_along_before_the_sum(dtype: str) -> None:
    draft = LayerDraft(dtype)
    x = draft.pool(draft.depthwise(draft.input([1, 8, 8, 12]), act=RELU6))
    x = draft.conv(x, 5, act=RELU)
    model = model_of(draft.build(x))
    for bounds in (even(12, 2), uneven(12, 4)):
        found = agreement(model, INPUT, bounds)
        assert found.equal if dtype == "int8" else found.error < FLOAT_BOUND
    (partial, added) = split(model, INPUT, (0, 4, 12)).steps(1)
    assert [(spec.of, spec.shape) for spec in partial.inputs] == [("x", (1, 8, 8, 8))]
    assert [spec.shape for spec in added.inputs] == [(1, 4, 4, 3)] * 2
    assert partial.macs == 64 * 8 * 9 + 16 * 8 * 4 + 16 * 5 * 9 * 8


def test_units_of_flattened_rows_are_rows() -> None:
    draft = LayerDraft("float32")
    x = draft.input([1, 6, 4, 3])
    flat = draft.graph.tensor([1, 72], type=0)
    shape = draft.graph.const(np.array([1, 72], np.int32))
    draft.graph.op("RESHAPE", [x, shape], [flat], options("Reshape"))
    model = model_of(draft.build(draft.dense(flat, 7)))
    assert agreement(model, INPUT, (0, 24, 72)).error < FLOAT_BOUND
    (step, _) = split(model, INPUT, (0, 24, 72)).steps(1)
    assert [(spec.region.axis, spec.region.start, spec.region.stop) for spec in step.inputs if spec.region] == [
        (1, 2, 6)
    ]
    with pytest.raises(CutError, match=r"operator 0 \(RESHAPE\).* multiples of 12"):
        split(model, INPUT, (0, 20, 72))


def test_the_bias_and_the_activation_come_once() -> None:
    draft = LayerDraft("float32")
    model = model_of(draft.build(dense(draft)))
    shared = split(model, INPUT, even(12, 3))
    store = run_split(shared, {"x": np.zeros((1, 12), np.float32)})
    (output,) = split(model, SplitMethod.WHOLE, (0, 1)).steps(0)[0].outputs
    bias = constant_data(model, model.main.tensors[model.main.operators[0].inputs[2]])
    assert np.array_equal(store.get(output)[0], np.maximum(bias, 0))


def hybrid() -> bytes:
    draft = LayerDraft("float32")
    x = draft.input([1, 12])
    weights = LayerDraft("int8")
    weights.graph, weights.draft = draft.graph, draft.draft
    result = draft.result([1, 5])
    draft.graph.op("FULLY_CONNECTED", [x, weights.weights((5, 12), 0), -1], [result], options("FullyConnected"))
    return draft.build(result)


def signed_zero() -> bytes:
    """Weights of int8 whose zero point is not 0."""
    draft = LayerDraft("int8")
    x, result = draft.input([1, 12]), draft.result([1, 5])
    weights = draft.graph.const(np.ones((5, 12), np.int8), quantization=(0.1, 3))
    draft.graph.op("FULLY_CONNECTED", [x, weights, -1], [result], options("FullyConnected"))
    return draft.build(result)


def without_scale() -> bytes:
    draft = LayerDraft("int8")
    x, result = draft.input([1, 12]), draft.result([1, 5])
    weights = draft.graph.const(np.ones((5, 12), np.int8))
    draft.graph.op("FULLY_CONNECTED", [x, weights, -1], [result], options("FullyConnected"))
    return draft.build(result)


def layer(make: Callable[[LayerDraft], int], dtype: str) -> bytes:
    draft = LayerDraft(dtype)
    return draft.build(make(draft))


@pytest.mark.parametrize(
    ("content", "bounds", "said"),
    [
        (layer(dense, "int16"), (0, 6, 12), "operator 0 (FULLY_CONNECTED) takes INT16 and INT8, whose sums have more"),
        (layer(product, "int8"), (0, 6, 12), "operator 0 (BATCH_MATMUL) takes INT8 and INT8"),
        (hybrid(), (0, 6, 12), "operator 0 (FULLY_CONNECTED) rounds its input to 8 bits"),
        (signed_zero(), (0, 6, 12), "operator 0 (FULLY_CONNECTED) has 8-bit signed weights with a zero point"),
        (without_scale(), (0, 6, 12), "operator 0 (FULLY_CONNECTED) has [1, 1, 0] scales for values, result and"),
        (layer(dense, "float32"), (0, 6, 13), "has 12 input channels; expected shares that add up to 12"),
        (layer(lambda d: d.depthwise(d.input([1, 4, 4, 12])), "float32"), (0, 6, 12), "adds no products of input"),
        (layer(lambda d: d.conv(d.input([1, 4, 4, 8]), 8, groups=2), "float32"), (0, 2, 4), "has groups of channels"),
    ],
)
def test_what_cannot_be_added_up_is_refused(content: bytes, bounds: tuple[int, ...], said: str) -> None:
    with pytest.raises(CutError) as error:
        split(model_of(content), INPUT, bounds)
    assert said in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_shards_of_units_and_then_of_inputs_exchange_nothing_between(dtype: str) -> None:
    """Each has the units that it takes (Megatron-LM, arXiv 1909.08053, section 3)."""
    draft = LayerDraft(dtype)
    x = draft.dense(draft.input([1, 16]), 12, act=RELU)
    content = draft.build(draft.dense(draft.dense(x, 16), 8))
    bounds = (0, 3, 7, 12)
    model = read_model(content)
    units, inputs = Block(0, 1, SplitMethod.OUTPUT, bounds), Block(1, 2, INPUT, bounds)
    layout = split_model(model, [SplitPlan(3, (units, inputs, Block(2, 3, SplitMethod.WHOLE, (0, 1, 1, 1))))])
    hidden = model.main.tensors[model.main.operators[0].outputs[0]].name
    assert not [spec for program in layout.programs for spec in program.outputs if spec.of == hidden]
    check(content, layout, sample(Interpreter(content).inputs, np.random.default_rng(0)))


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_blocks_of_different_methods_follow_each_other(dtype: str) -> None:
    draft = LayerDraft(dtype)
    x = draft.pool(draft.conv(draft.input([1, 8, 8, 6]), 12, act=RELU))
    content = draft.build(draft.conv(draft.conv(x, 10, act=RELU), 7))
    model = read_model(content)
    flow = trace_dataflow(model)
    for methods in ((SplitMethod.OUTPUT, INPUT), (SplitMethod.ROWS, SplitMethod.OUTPUT), (INPUT, SplitMethod.ROWS)):
        places = zip(((0, 2) if methods[0] is not INPUT else (0, 1), (2, 3)), methods, strict=True)
        blocks = [
            Block(start, stop, method, share_bounds(model, flow, start, stop, method, (1, 2, 3)))
            for (start, stop), method in places
        ]
        if blocks[0].stop == 1:
            bounds = share_bounds(model, flow, 1, 2, SplitMethod.OUTPUT, (1, 2, 3))
            blocks.insert(1, Block(1, 2, SplitMethod.OUTPUT, bounds))
        layout = split_model(model, [SplitPlan(3, (*blocks, Block(3, 4, SplitMethod.WHOLE, (0, 0, 1, 1))))])
        check(content, layout, sample(Interpreter(content).inputs, np.random.default_rng(0)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_summands_of_any_integers_give_the_bits_of_the_whole(data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from(["int8", "uint8"]))
    limits = np.iinfo(dtype)
    draft = LayerDraft(dtype, draw(st.integers(0, 99)), draw(st.integers(limits.min, limits.max)))
    channels, filters, scale = draw(st.integers(2, 40)), draw(st.integers(1, 9)), draw(st.floats(0.02, 5.0))
    act = draw(st.sampled_from([NONE, RELU, RELU6, RELU_N1_TO_1]))
    if draw(st.booleans()):
        x = draft.input([1, channels])
        weights, result = draft.weights((filters, channels), 0), draft.result([1, filters], scale)
        made, kind = options("FullyConnected", fusedActivationFunction=act), "FULLY_CONNECTED"
    else:
        size, kernel = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        x = draft.input([1, size, size, channels])
        weights = draft.weights((filters, kernel, kernel, channels), 0)
        result = draft.result([1, size, size, filters], scale)
        made = options("Conv2D", padding=SAME, strideH=1, strideW=1, fusedActivationFunction=act)
        kind = "CONV_2D"
    draft.graph.op(kind, [x, weights, draft.bias(filters, x, weights)], [result], made, version=5)
    cuts = sorted(draw(st.lists(st.integers(0, channels), max_size=5)))
    assert agreement(model_of(draft.build(result)), INPUT, (0, *cuts, channels), runs=2).equal
