"""Shares of output channels, units and batches against the whole, for every operator and type that has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import CutError, MessageError, ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.tflite.split.plan import SplitMethod
from tests.tflite.models import chain, quantised, skip
from tests.tflite.split.agreement import agreement, even, model_of, split, uneven
from tests.tflite.split.typed_layers import RELU, RELU6, LayerDraft, options

OUTPUT, HEADS = SplitMethod.OUTPUT, SplitMethod.HEADS
NUMBERS = ["float32", "float16", "int8", "uint8", "int16"]


def dense(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 37]), 12, act=RELU)


def dense_of_rows(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 5, 16]), 12, keepNumDims=True)


def conv(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 5]), 12, act=RELU6)


def conv_stride(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 5]), 12, 5, stride=2)


def conv_dilated(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 5]), 12, dilation=2)


def conv_groups(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 6, 6, 8]), 12, groups=4, act=RELU)


def conv_of_one(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 9, 1]), 12, 5)


def conv_groups_of_one(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 6, 6, 4]), 12, groups=4)


def depthwise(draft: LayerDraft) -> int:
    return draft.depthwise(draft.input([1, 6, 6, 12]), act=RELU6)


def depthwise_twice(draft: LayerDraft) -> int:
    return draft.depthwise(draft.input([1, 6, 6, 6]), 2)


def depthwise_of_one(draft: LayerDraft) -> int:
    return draft.depthwise(draft.input([1, 6, 6, 1]), 12)


def transposed(draft: LayerDraft) -> int:
    return draft.transposed(draft.input([1, 4, 5, 6]), 12)


def conv_3d(draft: LayerDraft) -> int:
    return draft.conv_3d(draft.input([1, 4, 5, 6, 3]), 12, act=RELU)


def columns(draft: LayerDraft) -> int:
    a, b = draft.input([1, 2, 5, 8], "a"), draft.input([1, 2, 8, 12], "b")
    return draft.product(a, b, [1, 2, 5, 12])


def columns_transposed(draft: LayerDraft) -> int:
    a, b = draft.input([1, 2, 8, 5], "a"), draft.input([1, 2, 12, 8], "b")
    return draft.product(a, b, [1, 2, 5, 12], x=True, y=True)


LAYERS: list[Callable[[LayerDraft], int]] = [
    *(dense, dense_of_rows, conv, conv_stride, conv_dilated, conv_groups, conv_of_one, conv_groups_of_one),
    *(depthwise, depthwise_twice, depthwise_of_one, transposed, conv_3d, columns, columns_transposed),
]
# No kernel of LiteRT takes these types.
ABSENT = {
    *((conv_3d, dtype) for dtype in ("int8", "uint8", "int16")),
    *((layer, "uint8") for layer in (columns, columns_transposed)),
}


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_shares_of_channels_give_the_bits_of_the_whole(layer: Callable[[LayerDraft], int], dtype: str) -> None:
    draft = LayerDraft(dtype)
    content = draft.build(layer(draft))
    if (layer, dtype) in ABSENT:
        with pytest.raises((MessageError, ModelError)):
            whole = Interpreter(content)
            whole.run(sample(whole.inputs, np.random.default_rng(0)))
        return
    model = model_of(content)
    first = sum(operator.name == "DEQUANTIZE" for operator in model.main.operators)
    for bounds in (even(12, 2), even(12, 3), even(12, 5), even(12, 12), uneven(12, 4), (0, 1, 12), (0, 0, 7, 12)):
        assert agreement(model, OUTPUT, bounds, first).equal, bounds


def separable_block(draft: LayerDraft) -> tuple[int, ...]:
    """A convolution whose channels go on through all that treats each channel by itself."""
    x = draft.conv(draft.input([1, 8, 8, 3]), 12, act=RELU)
    x = draft.pool(draft.depthwise(draft.pool(x), act=RELU6), "AVERAGE_POOL_2D")
    x = draft.binary("MUL", x, draft.constant([12]))
    x = draft.binary("ADD", x, draft.constant([1, 1, 1, 12]), act=RELU)
    pads = draft.graph.const(np.array([[0, 0], [1, 1], [1, 2], [0, 0]], np.int32))
    x = draft.unary("PAD", x, options("Pad"), pads, shape=[1, 4, 5, 12])
    size = draft.graph.const(np.array([8, 10], np.int32))
    x = draft.unary("RESIZE_NEAREST_NEIGHBOR", x, options("ResizeNearestNeighbor"), size, shape=[1, 8, 10, 12])
    axes = draft.graph.const(np.array([1, 2], np.int32))
    mean = draft.unary("MEAN", x, options("Reducer"), axes, shape=[1, 12])
    shape = draft.graph.const(np.array([1, 1, 1, 12], np.int32))
    return (draft.unary("RESHAPE", mean, options("Reshape"), shape, shape=[1, 1, 1, 12]),)


def residual_block(draft: LayerDraft) -> tuple[int, ...]:
    """Channels that come from outside, some as a whole and some as a share, and two results."""
    x = draft.input([1, 6, 6, 12])
    made = draft.conv(x, 12)
    return made, draft.binary("ADD", x, made, act=RELU)


def joined_block(draft: LayerDraft) -> tuple[int, ...]:
    """Branches that stand side by side in one tensor."""
    x = draft.input([1, 6, 6, 3])
    parts = [draft.conv(x, filters, kernel) for filters, kernel in ((5, 1), (4, 3), (3, 5))]
    result = draft.result([1, 6, 6, 12], 4.0)
    draft.graph.op("CONCATENATION", parts, [result], options("Concatenation", axis=3), version=2)
    return (result,)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("block", [separable_block, residual_block, joined_block])
def test_what_treats_channels_alone_goes_along(block: Callable[[LayerDraft], tuple[int, ...]], dtype: str) -> None:
    draft = LayerDraft(dtype)
    model = model_of(draft.build(*block(draft)))
    first = next(o.index for o in model.main.operators if o.name == "CONV_2D")
    for bounds in (even(12, 2), even(12, 5), uneven(12, 4), (0, 1, 12)):
        assert agreement(model, OUTPUT, bounds, first).equal, bounds


def test_a_share_takes_only_the_channels_that_it_needs() -> None:
    draft = LayerDraft("float32")
    model = model_of(draft.build(*residual_block(draft)))
    (step,) = split(model, OUTPUT, (0, 4, 12)).steps(1)
    assert [(spec.of, spec.shape, spec.region and spec.region.start) for spec in step.inputs] == [
        ("x", (1, 6, 6, 12), None),
        ("x", (1, 6, 6, 8), 4),
    ]
    assert [spec.shape for spec in step.outputs] == [(1, 6, 6, 8)] * 2
    assert step.macs == 36 * 8 * (9 * 12 + 1)
    assert len(step.write()) < len(model.data)


def test_a_channel_takes_its_neighbours_for_normalisation() -> None:
    draft = LayerDraft("float32")
    x = draft.unary(
        "LOCAL_RESPONSE_NORMALIZATION",
        draft.input([1, 6, 6, 12]),
        options("LocalResponseNormalization", radius=2, bias=1.0, alpha=0.3, beta=0.75),
    )
    model = model_of(draft.build(x))
    (step,) = split(model, OUTPUT, (0, 5, 7, 12)).steps(1)
    assert [(spec.region.start, spec.region.stop) for spec in step.inputs if spec.region] == [(3, 9)]
    for bounds in (even(12, 2), even(12, 12), (0, 5, 7, 12)):
        assert agreement(model, OUTPUT, bounds).error < 1e-6


def attention(draft: LayerDraft, tokens: int = 5, heads: int = 4, size: int = 6) -> int:
    """Scaled products of heads, from projections to the result, without the last projection."""
    width = heads * size
    x = draft.input([1, tokens, width])
    split_shape = draft.graph.const(np.array([1, tokens, heads, size], np.int32))
    order = draft.graph.const(np.array([0, 2, 1, 3], np.int32))
    parts = []
    for _ in range(3):
        made = draft.dense(x, width, keepNumDims=True)
        made = draft.unary("RESHAPE", made, options("Reshape"), split_shape, shape=[1, tokens, heads, size])
        parts.append(draft.unary("TRANSPOSE", made, options("Transpose"), order, shape=[1, heads, tokens, size]))
    scores = draft.product(parts[0], parts[1], [1, heads, tokens, tokens], y=True)
    scores = draft.binary("MUL", scores, draft.constant([1]))
    weights = draft.graph.tensor(
        [1, heads, tokens, tokens], **({"type": 9, "quantization": (1 / 256, -128)} if draft.integer else {"type": 0})
    )
    draft.graph.op("SOFTMAX", [scores], [weights], options("Softmax", beta=1.0), version=2)
    mixed = draft.product(weights, parts[2], [1, heads, tokens, size])
    mixed = draft.unary("TRANSPOSE", mixed, options("Transpose"), order, shape=[1, tokens, heads, size])
    joined = draft.graph.const(np.array([1, tokens, width], np.int32))
    return draft.unary("RESHAPE", mixed, options("Reshape"), joined, shape=[1, tokens, width])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_each_shard_computes_some_heads_from_projection_to_result(dtype: str) -> None:
    draft = LayerDraft(dtype)
    model = model_of(draft.build(attention(draft)))
    for bounds in (even(4, 2), even(4, 3), even(4, 4), (0, 3, 4)):
        assert agreement(model, HEADS, bounds).equal, bounds
    (step,) = split(model, HEADS, (0, 3, 4)).steps(1)
    assert [(spec.region.axis, spec.region.start, spec.region.stop) for spec in step.outputs if spec.region] == [
        (2, 18, 24)
    ]


def softmax() -> bytes:
    draft = LayerDraft("float32")
    return draft.build(draft.unary("SOFTMAX", draft.input([1, 8]), options("Softmax", beta=1.0)))


def two_widths() -> bytes:
    draft = LayerDraft("float32")
    x = draft.input([1, 6])
    return draft.build(draft.dense(x, 4), draft.dense(x, 5))


def flattened() -> bytes:
    draft = LayerDraft("float32")
    shape = draft.graph.const(np.array([1, 48], np.int32))
    return draft.build(draft.unary("RESHAPE", draft.input([1, 4, 4, 3]), options("Reshape"), shape, shape=[1, 48]))


@pytest.mark.parametrize(
    ("content", "method", "bounds", "said"),
    [
        (chain(), OUTPUT, (0, 1, 3), "a later operator of the block needs all of; end the block before operator 3"),
        (softmax(), OUTPUT, (0, 4, 8), "operator 0 (SOFTMAX) needs all elements of the last axis"),
        (skip(), OUTPUT, (0, 1, 3), "expected shares that add up to 2"),
        (two_widths(), OUTPUT, (0, 2, 4), "give tensors of [4, 5] channels; expected one number"),
        (flattened(), OUTPUT, (0, 10, 48), "operator 0 (RESHAPE) makes [1, 48] of [1, 4, 4, 3], so that shares have"),
        (chain(), HEADS, (0, 1, 3), "have no BATCH_MATMUL"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    content: bytes, method: SplitMethod, bounds: tuple[int, ...], said: str
) -> None:
    with pytest.raises(CutError) as error:
        split(model_of(content), method, bounds)
    assert said in str(error.value)


def test_per_channel_scales_are_cut_with_the_weights() -> None:
    """With the scales of other channels, the results would be others."""
    model = model_of(quantised())
    assert agreement(model, OUTPUT, (0, 3, 8), 1, 2).equal


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shares_of_any_convolution_give_the_bits_of_the_whole(data: st.DataObject) -> None:
    draw = data.draw
    draft = LayerDraft(draw(st.sampled_from(["float32", "int8", "uint8"])), seed=draw(st.integers(0, 99)))
    groups, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    filters = groups * draw(st.integers(1, 6))
    x = draft.input([1, height, width, groups * draw(st.integers(1, 5))])
    kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    model = model_of(draft.build(draft.conv(x, filters, kernel, groups=groups, stride=stride)))
    cuts = sorted(draw(st.lists(st.integers(0, filters), max_size=5)))
    assert agreement(model, OUTPUT, (0, *cuts, filters), runs=1).equal
