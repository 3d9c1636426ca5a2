"""Blocks split by rows against the whole model: equal to the bit for integers."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.compare import check, lay_out, rows, whole
from tests.tflite.split.layers import INT16, SAME, UINT8, VALID, Layers

TYPES = st.sampled_from([FLOAT, INT8, UINT8, INT16])


@st.composite
def shares(draw, size, shards):
    """Bounds of so many shards over `size` rows; some may be empty."""
    inner = sorted(draw(st.lists(st.integers(0, size), min_size=shards - 1, max_size=shards - 1)))
    return (0, *inner, size)


@st.composite
def chains(draw):
    """A model of random layers, the operators after which its blocks end, and shares for each."""
    model = Layers(draw(st.integers(0, 99)), (1, draw(st.integers(9, 33)), draw(st.integers(7, 12)), 3), draw(TYPES))
    x, ends, sizes = model.x, [], []
    for _ in range(draw(st.integers(1, 6))):
        x = draw_layer(draw, model, x)
        height = model.shape(x)[1]
        if draw(st.booleans()) and height > 1:
            ends.append(len(model.graph.raw.operators))
            sizes.append(height)
        if height < 3:
            break
    if model.shape(x)[1] > 1 and (not ends or ends[-1] < len(model.graph.raw.operators)):
        ends.append(len(model.graph.raw.operators))
        sizes.append(model.shape(x)[1])
    shards = draw(st.integers(2, 8))
    content = model.build(model.scores(x))
    blocks, at = [], 0
    for end, size in zip(ends, sizes, strict=True):
        blocks.append(rows(at, end, *draw(shares(size, shards))))
        at = end
    last = draw(st.integers(0, shards - 1))
    assume(all(k == last or any(b.bounds[k] < b.bounds[k + 1] for b in blocks) for k in range(shards)))
    blocks.append(whole(at, len(model.graph.raw.operators), shards, last))
    return model, content, blocks


def draw_layer(draw, model, x):
    _, height, width, _ = model.shape(x)
    kind = draw(st.sampled_from(["conv", "depthwise", "max", "mean", "residual", "branches", "pad"]))
    padding = draw(st.sampled_from([SAME, VALID]))
    stride = draw(st.integers(1, 3))
    dilation = draw(st.sampled_from([1, 1, 2])) if stride == 1 else 1
    largest = 7 if padding == SAME else min(7, (min(height, width) - 1) // dilation + 1)
    kernel = draw(st.integers(1, max(1, largest)))
    if kind == "conv":
        return model.conv(x, draw(st.integers(1, 9)), kernel, stride, padding, dilation)
    if kind == "depthwise":
        return model.depthwise(x, kernel, stride, padding, dilation)
    if kind in ("max", "mean"):
        # LiteRT 2.3 with XNNPACK gives memory that nothing wrote for two pools of 1 x 1 with stride 1 at the end of a
        # model, split or not; a block may end with them.
        stride = max(stride, 2) if kernel == 1 else stride
        return model.pool(x, {"max": "MAX", "mean": "AVERAGE"}[kind], kernel, stride, padding)
    if kind == "residual":
        return model.add(x, model.conv(x, model.shape(x)[3], kernel))
    if kind == "branches":
        return model.concat(model.conv(x, 3, kernel, stride), model.conv(x, 2, 1, stride))
    return model.pad(x, (0, 0), (draw(st.integers(0, 2)), draw(st.integers(0, 2))), (1, 0), (0, 0))


@settings(max_examples=100, deadline=None)
@given(chains(), st.booleans())
def test_random_chains_give_the_results_of_the_whole(drawn, border_first):
    model, content, blocks = drawn
    layout = lay_out(content, *blocks, border_first=border_first)
    check(content, layout, {"x": model.window()})
