"""Every operator that can be split by rows, in uneven shares and row by row, against the whole model."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from har_edge.errors import CutError
from har_edge.tflite.model import read_model
from har_edge.tflite.split.geometry import RowGeometry
from tests.tflite import models
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.compare import check, lay_out, rows, whole
from tests.tflite.split.layers import INT16, SAME, UINT8, VALID, Layers

ALL, REAL_AND_INT8, REAL = (FLOAT, INT8, UINT8, INT16), (FLOAT, INT8), (FLOAT,)


def options(kind, **values):
    made = getattr(tflite, f"{kind}OptionsT")()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def numbers(model, *values):
    return model.graph.const(np.array(values, np.int32))


def operator(model, name, inputs, shape, made=None, version=2):
    result = model.tensor(shape)
    model.graph.op(name, inputs, [result], made, version=version)
    return result


def shuffle(model):
    """Channels in another order, as ShuffleNet has it."""
    parts = model.reshape(model.x, [1, 18, 10, 2, 4])
    order = numbers(model, 0, 1, 2, 4, 3)
    turned = operator(model, "TRANSPOSE", [parts, order], [1, 18, 10, 4, 2], options("Transpose"))
    return model.conv(model.reshape(turned, [1, 18, 10, 8]), 4)


def squeeze_and_excite(model):
    """All rows with a factor that all rows give: every shard computes the factor."""
    factor = model.conv(model.pool(model.x, "AVERAGE", (18, 10), 1), 8, 1)
    scaled = operator(model, "MUL", [model.x, factor], model.shape(model.x), options("Mul"))
    return model.conv(scaled, 4)


def slices(model):
    part = operator(
        model,
        "STRIDED_SLICE",
        [model.conv(model.x, 8), numbers(model, 0, 0, 1, 0), numbers(model, 1, 18, 9, 8), numbers(model, 1, 1, 1, 2)],
        [1, 18, 8, 4],
        options("StridedSlice"),
    )
    sizes = [numbers(model, 0, 0, 1, 1), numbers(model, 1, 18, 7, 3)]
    return model.conv(operator(model, "SLICE", [part, *sizes], [1, 18, 7, 3], options("Slice")), 3)


def padded_with_a_value(model):
    value = model.graph.const({FLOAT: np.float32(7), INT8: np.int8(9)}[model.type], quantization=model.scale())
    sizes = model.graph.const(np.array([[0, 0], [1, 2], [1, 1], [0, 0]], np.int32))
    padded = operator(model, "PADV2", [model.x, sizes, value], [1, 21, 12, 8], options("PadV2"))
    return model.conv(padded, 4, 3, 1, VALID)


def values_of_each_row(model):
    """Constants that differ from row to row: a position, and slopes."""
    place = model.graph.const(model.rng.standard_normal((1, 18, 1, 8)).astype(np.float32))
    slopes = model.graph.const(model.rng.standard_normal((18, 10, 8)).astype(np.float32))
    moved = operator(model, "ADD", [model.x, place], model.shape(model.x), options("Add"))
    return model.conv(operator(model, "PRELU", [moved, slopes], model.shape(model.x), None, 1), 4)


def classes(model):
    """The class of each pixel."""
    best = model.graph.tensor([1, 18, 10], type=models.INT32)
    made = options("ArgMax", outputType=models.INT32)
    model.graph.op("ARG_MAX", [model.conv(model.x, 5), numbers(model, -1)], [best], made, version=2)
    return best


def halves(model):
    first, second = model.tensor([1, 18, 10, 4]), model.tensor([1, 18, 10, 4])
    model.graph.op("SPLIT", [numbers(model, 3), model.x], [first, second], options("Split", numSplits=2))
    return model.add(model.conv(first, 4), second)


def mean_of_columns(model):
    return operator(
        model, "MEAN", [model.conv(model.x, 8), numbers(model, 2)], [1, 18, 8], options("Reducer", keepDims=False)
    )


def volume(model):
    weights = model.graph.const((model.rng.standard_normal((3, 3, 3, 8, 4)) / 10).astype(np.float32))
    bias = model.graph.const(model.rng.standard_normal(4).astype(np.float32))
    made = options("Conv3D", padding=SAME, strideD=1, strideH=1, strideW=1)
    made.dilationDFactor = made.dilationHFactor = made.dilationWFactor = 1
    return operator(model, "CONV_3D", [model.x, weights, bias], [1, 4, 18, 6, 4], made, 1)


def frames(model):
    """3-D pooling by 2-D pooling of reshaped frames; rows stay an axis of their own."""
    x = model.pool(model.conv(model.x, 4), "MAX", 2, 2, SAME)
    x = model.pool(model.reshape(x, [2, 2, 9, 12]), "MAX", (2, 1), (2, 1), VALID)
    return model.reshape(x, [1, 2, 9, 3, 4])


def over_time(model):
    """1-D convolutions over time: rows are the third axis."""
    return model.conv(model.pool(model.conv(model.x, 6, (1, 5)), "MAX", (1, 2), (1, 2)), 7, (1, 3), (1, 2))


def resized(factor, linear, half):
    return lambda m: m.conv(m.resize(m.conv(m.x, 4), factor, linear=linear, half=half), 3)


CASES = {
    "mean pool": (lambda m: m.pool(m.x, "AVERAGE", 3, 1, SAME), ALL),
    "mean pool with stride": (lambda m: m.pool(m.x, "AVERAGE", 5, 2, SAME), ALL),
    "mean pool with gaps": (lambda m: m.pool(m.x, "AVERAGE", 2, 3, SAME), ALL),
    "maximum": (lambda m: m.pool(m.x, "MAX", 5, 2, SAME), ALL),
    "nearest": (resized(2, False, False), REAL_AND_INT8),
    "nearest of centres": (resized(3, False, True), REAL_AND_INT8),
    "linear": (resized(2, True, False), (FLOAT, INT8, UINT8)),
    "linear of centres": (resized(4, True, True), (FLOAT, INT8, UINT8)),
    "transposed 3/2": (lambda m: m.transposed(m.x, 4, 3, 2), REAL_AND_INT8),
    "transposed 2/2": (lambda m: m.conv(m.transposed(m.x, 4, 2, 2), 3), REAL_AND_INT8),
    "transposed 5/3": (lambda m: m.transposed(m.x, 4, 5, 3), REAL_AND_INT8),
    "transposed 5/2 valid": (lambda m: m.transposed(m.x, 4, 5, 2, VALID), REAL_AND_INT8),
    "dilated": (lambda m: m.depthwise(m.conv(m.x, 6, 3, 1, SAME, 3), 3, 1, VALID, 2), ALL),
    "activation": (lambda m: m.unary(m.x, "RELU6"), ALL),
    "depth to space": (
        lambda m: m.conv(m.unary(m.x, "DEPTH_TO_SPACE", options("DepthToSpace", blockSize=2), [1, 36, 20, 2]), 3),
        REAL_AND_INT8,
    ),
    "space to depth": (
        lambda m: m.conv(m.unary(m.x, "SPACE_TO_DEPTH", options("SpaceToDepth", blockSize=2), [1, 9, 5, 32]), 3),
        REAL_AND_INT8,
    ),
    "local response": (
        lambda m: m.unary(
            m.conv(m.x, 6),
            "LOCAL_RESPONSE_NORMALIZATION",
            options("LocalResponseNormalization", radius=2, bias=2.0, alpha=1e-4, beta=0.75),
        ),
        REAL,
    ),
    "softmax": (lambda m: m.unary(m.conv(m.x, 6), "SOFTMAX", options("Softmax", beta=1.0)), REAL),
    "shuffle": (shuffle, REAL_AND_INT8),
    "squeeze and excite": (squeeze_and_excite, REAL_AND_INT8),
    "slices": (slices, REAL_AND_INT8),
    "padding with a value": (padded_with_a_value, REAL_AND_INT8),
    "values of each row": (values_of_each_row, REAL),
    "classes": (classes, REAL_AND_INT8),
    "halves": (halves, REAL_AND_INT8),
    "mean of columns": (mean_of_columns, REAL_AND_INT8),
    "volume": (volume, REAL),
    "frames": (frames, REAL_AND_INT8),
    "over time": (over_time, ALL),
}
SHAPES = {"volume": (1, 4, 18, 6, 8), "frames": (4, 18, 6, 8), "over time": (1, 1, 50, 9)}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_split_by_rows_gives_the_bits_of_the_whole(name):
    build, types = CASES[name]
    for kind in types:
        model = Layers(0, SHAPES.get(name, (1, 18, 10, 8)), kind)
        result = build(model)
        shape, count = model.shape(result), len(model.graph.raw.operators)
        size = shape[{"volume": 2, "frames": 2, "over time": 2}.get(name, 1)]
        kind_of_result = model.graph.raw.tensors[result].type
        scores = model.scores(result)
        model.graph.raw.tensors[scores].type = kind_of_result
        content = model.build(scores)
        for bounds in ((0, size // 3, size // 3 + 1, size), (0, 1, size - 1, size), (0, 2, 3, 3, 5, size)):
            shards = len(bounds) - 1
            blocks = (rows(0, count, *bounds), whole(count, count + 1, shards, 2))
            assert check(content, lay_out(content, *blocks), {"x": model.window()}), (name, kind, bounds)


def test_fp16_weights_are_carried():
    draft, rng = models.Draft(), np.random.default_rng(0)
    graph = draft.graph()
    x = graph.input([1, 12, 8, 3], "x")
    for filters, channels in ((5, 3), (4, 5)):
        packed = graph.const(rng.standard_normal((filters, 3, 3, channels)).astype(np.float16))
        weights, bias = graph.tensor([filters, 3, 3, channels]), graph.const(np.ones(filters, np.float32))
        graph.op("DEQUANTIZE", [packed], [weights], tflite.DequantizeOptionsT(), version=3)
        result = graph.tensor([1, 12, 8, filters])
        graph.op("CONV_2D", [x, weights, bias], [result], models.conv_options())
        x = result
    flat = graph.tensor([1, 12 * 8 * 4])
    graph.op("RESHAPE", [x, graph.const(np.array([1, 384], np.int32))], [flat], tflite.ReshapeOptionsT())
    graph.output(flat)
    content = draft.build()
    layout = lay_out(content, rows(0, 4, 0, 3, 7, 12), whole(4, 5, 3))
    assert all(len(step.write()) < len(content) + 2048 for step in layout.files.values())
    check(content, layout, {"x": rng.standard_normal((1, 12, 8, 3)).astype(np.float32)})


def test_rows_that_are_needed_are_counted_through_the_layers():
    model = Layers(0, (1, 40, 12, 3))
    first = model.conv(model.x, 4, 5, 2)  # SAME: 20 rows, 1 row of padding before
    content = model.build(model.add(first, model.conv(first, 4, 3)))
    whole_model = read_model(content)
    geometry = RowGeometry(whole_model, 0, 3)
    middle, top = geometry.share(5, 8), geometry.share(0, 1)
    assert [(one.start, one.stop) for one in middle.inputs.values()] == [(7, 20)]
    assert [(one.start, one.stop) for one in top.inputs.values()] == [(0, 6)]
    # Five rows of the first layer for three of the second, a sum for each element.
    assert middle.macs == 5 * 6 * 4 * 75 + 3 * 6 * 4 * 36 + 3 * 6 * 4
    assert geometry.share(0, 20).macs == 20 * 6 * 4 * (75 + 36 + 1)


def refused(build, index, shape=(1, 18, 10, 8)):
    model = Layers(0, shape)
    with pytest.raises(CutError) as error:
        RowGeometry(read_model(model.build(build(model))), index, index + 1)
    return str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: m.scores(m.x), "operator 0 (RESHAPE) cannot be split by rows: its result t1 [1, 1440] has no rows"),
        (
            lambda m: m.concat(m.x, m.x, axis=1),
            "operator 0 (CONCATENATION) cannot be split by rows: it puts rows behind",
        ),
        (lambda m: m.resize(m.x, 3, linear=True, half=True), "it makes 3 rows of one; expected a power of two"),
        (lambda m: m.transposed(m.x, 4, 2, 3), "operator 0 (TRANSPOSE_CONV) cannot be split by rows: its kernel of 2"),
        (lambda m: m.reshape(m.x, [1, 9, 20, 8]), "it mixes rows: [1, 18, 10, 8] becomes [1, 9, 20, 8]"),
        (
            lambda m: operator(m, "REVERSE_V2", [m.x, numbers(m, 1)], m.shape(m.x)),
            "operator 0 (REVERSE_V2) cannot be split by rows: each row of its result needs all rows; let one shard",
        ),
    ],
)
def test_operators_that_mix_rows_are_refused_by_name(build, message):
    assert message in refused(build, 0)


def test_legal_operators_and_ranges():
    model = Layers(0, (1, 18, 10, 8))
    content = read_model(model.build(model.conv(model.x, 4)))
    geometry = RowGeometry(content, 0, 1)
    with pytest.raises(CutError, match=r"rows \[4, 19\) of t3 came; expected some of its 18"):
        geometry.share(4, 19)
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 1, 8, 3], "x", signature=[1, -1, 8, 3])
    graph.output(graph.conv(x, 4, np.random.default_rng(0)))
    with pytest.raises(CutError, match="has dimensions of any size; split it by output or input channels"):
        RowGeometry(read_model(draft.build()), 0, 1)
