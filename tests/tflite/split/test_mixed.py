"""Blocks of every method after each other, with other shares each, against the whole model."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import read_model
from har_edge.tflite.split.methods import block_methods, share_extent
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.compare import check, lay_out, whole
from tests.tflite.split.layers import SAME, UINT8, Layers


def network(seed, kind):
    """Convolutions of several kinds, a sum over two of them, a pool, and all values in a row."""
    model = Layers(seed, (1, 14, 9, 4), kind)
    first = model.conv(model.x, 6, 3, 1)
    second = model.depthwise(first, 3, 1)
    third = model.conv(model.add(second, model.conv(first, 6, 5)), 8, 3, 2)
    return model, model.build(model.scores(model.conv(model.pool(third, "MAX", 2, 1, SAME), 5, 1)))


@st.composite
def plans(draw, content, shards):
    """Blocks of one to three operators, each by a method that it allows."""
    model = read_model(content)
    flow, count, at, blocks = trace_dataflow(model), len(model.main.operators) - 1, 0, []
    while at < count:
        stop = min(count, at + draw(st.integers(1, 3)))
        legal = [one for one, reason in block_methods(model, flow, at, stop).items() if reason is None]
        method = draw(st.sampled_from(legal))
        if method is SplitMethod.WHOLE:
            blocks.append(whole(at, stop, shards, draw(st.integers(0, shards - 1))))
        else:
            extent = share_extent(model, flow, at, stop, method)
            inner = sorted(draw(st.lists(st.integers(0, extent), min_size=shards - 1, max_size=shards - 1)))
            blocks.append(Block(at, stop, method, (0, *inner, extent)))
        at = stop
    last = draw(st.integers(0, shards - 1))
    assume(all(k == last or any(b.bounds[k] < b.bounds[k + 1] for b in blocks) for k in range(shards)))
    return [*blocks, whole(count, count + 1, shards, last)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 9), st.sampled_from([FLOAT, INT8, UINT8]), st.integers(2, 5))
def test_blocks_of_all_methods_give_the_results_of_the_whole(data, seed, kind, shards):
    model, content = network(seed, kind)
    layout = lay_out(content, *data.draw(plans(content, shards)))
    check(content, layout, {"x": model.window()})
