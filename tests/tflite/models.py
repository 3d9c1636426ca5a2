"""Small TFLite models for tests, written through the schema: no TensorFlow needed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tflite

FLOAT = tflite.TensorType.FLOAT32
INT32 = tflite.TensorType.INT32
INT8 = tflite.TensorType.INT8
BOOL = tflite.TensorType.BOOL

_TYPES = {
    "float32": FLOAT,
    "float16": tflite.TensorType.FLOAT16,
    "int32": INT32,
    "int64": tflite.TensorType.INT64,
    "int8": INT8,
    "uint8": tflite.TensorType.UINT8,
    "int16": tflite.TensorType.INT16,
    "bool": BOOL,
}


class Draft:
    """A model in the making; `graph` adds graphs, the first is the main one."""

    def __init__(self) -> None:
        self.raw = tflite.ModelT()
        self.raw.version = 3
        self.raw.description = b"made by a test"
        self.raw.buffers = [tflite.BufferT()]
        self.raw.operatorCodes = []
        self.raw.subgraphs = []
        self.raw.signatureDefs = []
        self.raw.metadata = []
        self.codes: dict[tuple[str, bool], int] = {}

    def graph(self, name: str = "main") -> GraphDraft:
        return GraphDraft(self, name)

    def buffer(self, data: bytes) -> int:
        buffer = tflite.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.raw.buffers.append(buffer)
        return len(self.raw.buffers) - 1

    def code(self, name: str, custom: bool, old: bool, version: int) -> int:
        if (name, custom) not in self.codes:
            code = tflite.OperatorCodeT()
            builtin = tflite.BuiltinOperator.CUSTOM if custom else getattr(tflite.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(builtin, 127)
            code.builtinCode = 0 if old else builtin
            code.customCode = name.encode() if custom else None
            code.version = version
            self.raw.operatorCodes.append(code)
            self.codes[name, custom] = len(self.raw.operatorCodes) - 1
        return self.codes[name, custom]

    def metadata(self, name: str, data: bytes) -> None:
        item = tflite.MetadataT()
        item.name, item.buffer = name, self.buffer(data)
        self.raw.metadata.append(item)

    def signature(self, key: str, inputs: dict[str, int], outputs: dict[str, int], graph: int = 0) -> None:
        signature = tflite.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, graph
        signature.inputs = [_tensor_map(name, index) for name, index in inputs.items()]
        signature.outputs = [_tensor_map(name, index) for name, index in outputs.items()]
        self.raw.signatureDefs.append(signature)

    def build(self) -> bytes:
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.raw.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class GraphDraft:
    """One graph in the making; every method that adds a tensor returns its index."""

    def __init__(self, draft: Draft, name: str) -> None:
        self.draft = draft
        self.raw = tflite.SubGraphT()
        self.raw.name, self.raw.tensors, self.raw.operators = name, [], []
        self.raw.inputs, self.raw.outputs = [], []
        draft.raw.subgraphs.append(self.raw)

    def tensor(
        self,
        shape: Sequence[int],
        name: str | bytes | None = None,
        *,
        type: int = FLOAT,
        signature: Sequence[int] | None = None,
        quantization: tuple[Any, Any] | None = None,
        axis: int = 0,
        variable: bool = False,
        buffer: int = 0,
    ) -> int:
        raw = tflite.TensorT()
        raw.shape, raw.type, raw.buffer, raw.isVariable = np.array(shape, np.int32), type, buffer, variable
        raw.name = f"t{len(self.raw.tensors)}" if name is None else name
        raw.shapeSignature = None if signature is None else np.array(signature, np.int32)
        raw.hasRank = True
        if quantization is not None:
            raw.quantization = tflite.QuantizationParametersT()
            raw.quantization.scale = np.atleast_1d(np.asarray(quantization[0], np.float32))
            raw.quantization.zeroPoint = np.atleast_1d(np.asarray(quantization[1], np.int64))
            raw.quantization.quantizedDimension = axis
        self.raw.tensors.append(raw)
        return len(self.raw.tensors) - 1

    def const(self, value: Any, **options: Any) -> int:
        array = np.ascontiguousarray(value)
        options.setdefault("buffer", self.draft.buffer(array.tobytes()))
        return self.tensor(np.shape(value), type=_TYPES[array.dtype.name], **options)

    def input(self, shape: Sequence[int], name: str | bytes | None = None, **options: Any) -> int:
        index = self.tensor(shape, name, **options)
        self.raw.inputs.append(index)
        return index

    def output(self, *indices: int) -> None:
        self.raw.outputs.extend(indices)

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        *,
        custom: bool = False,
        old: bool = False,
        version: int = 1,
    ) -> Any:
        raw = tflite.OperatorT()
        raw.opcodeIndex = self.draft.code(name, custom, old, version)
        raw.inputs, raw.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            raw.builtinOptionsType = getattr(tflite.BuiltinOptions, type(options).__name__[:-1])
            raw.builtinOptions = options
        self.raw.operators.append(raw)
        return raw

    # Layers: one operator and its weights each; `like` gives shape and signature of the result.

    def add(self, a: int, b: int, name: str | bytes | None = None) -> int:
        return self._binary("ADD", tflite.AddOptionsT(), a, b, name)

    def mul(self, a: int, b: int, name: str | None = None) -> int:
        return self._binary("MUL", tflite.MulOptionsT(), a, b, name)

    def _binary(self, kind: str, options: Any, a: int, b: int, name: str | bytes | None) -> int:
        like = self.raw.tensors[a]
        result = self.tensor(like.shape, name, type=like.type, signature=like.shapeSignature)
        self.op(kind, [a, b], [result], options)
        return result

    def dense(self, x: int, units: int, rng: np.random.Generator, name: str | None = None) -> int:
        like = self.raw.tensors[x]
        weights = self.const(rng.standard_normal((units, like.shape[-1])).astype(np.float32))
        bias = self.const(rng.standard_normal(units).astype(np.float32))
        signature = None if like.shapeSignature is None else [*like.shapeSignature[:-1], units]
        result = self.tensor([*like.shape[:-1], units], name, signature=signature)
        self.op("FULLY_CONNECTED", [x, weights, bias], [result], tflite.FullyConnectedOptionsT())
        return result

    def conv(self, x: int, filters: int, rng: np.random.Generator, name: str | None = None) -> int:
        like = self.raw.tensors[x]
        weights = self.const(rng.standard_normal((filters, 3, 3, like.shape[-1])).astype(np.float32))
        bias = self.const(rng.standard_normal(filters).astype(np.float32))
        result = self.tensor([*like.shape[:-1], filters], name, signature=like.shapeSignature)
        self.op("CONV_2D", [x, weights, bias], [result], conv_options())
        return result

    def conv_int8(self, x: int, filters: int, rng: np.random.Generator) -> int:
        like = self.raw.tensors[x]
        scales = rng.uniform(0.001, 0.02, filters).astype(np.float32)
        weights = self.const(
            rng.integers(-127, 128, (filters, 3, 3, like.shape[-1])).astype(np.int8),
            quantization=(scales, np.zeros(filters)),
        )
        bias = self.const(
            rng.integers(-500, 500, filters).astype(np.int32),
            quantization=(scales * like.quantization.scale[0], np.zeros(filters)),
        )
        result = self.tensor([*like.shape[:-1], filters], type=INT8, quantization=(0.1, 3))
        self.op("CONV_2D", [x, weights, bias], [result], conv_options(), version=3)
        return result


def _tensor_map(name: str, index: int) -> Any:
    raw = tflite.TensorMapT()
    raw.name, raw.tensorIndex = name, index
    return raw


def conv_options() -> Any:
    options = tflite.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = tflite.Padding.SAME, 1, 1
    options.fusedActivationFunction = tflite.ActivationFunctionType.RELU
    return options


def chain(seed: int = 0, *, dynamic: bool = False) -> bytes:
    """Four dense layers; one input, one output."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    x = graph.input([1, 6], "x", signature=[-1, 6] if dynamic else None)
    for units in (8, 5, 7, 3):
        x = graph.dense(x, units, rng)
    graph.output(x)
    return draft.build()


def skip(seed: int = 0) -> bytes:
    """Convolutions with a connection that skips two of them."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    first = graph.conv(graph.input([1, 8, 8, 3], "image"), 4, rng, "first")
    deep = graph.conv(graph.conv(first, 4, rng, "second"), 4, rng, "third")
    graph.output(graph.conv(graph.add(first, deep, "sum"), 2, rng, "result"))
    return draft.build()


def many_ports(seed: int = 0) -> bytes:
    """Two inputs and three outputs: one made early, one an input itself."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    a, b = graph.input([1, 4], "a"), graph.input([1, 4], "b")
    early = graph.dense(a, 4, rng, "early")
    mixed = graph.add(early, b, "mixed")
    late = graph.dense(graph.mul(mixed, a, "scaled"), 3, rng, "late")
    graph.output(late, early, b)
    return draft.build()


def quantised(seed: int = 0) -> bytes:
    """Full-int8 convolutions, quantised per channel."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    x = graph.input([1, 6, 6, 3], "x", type=INT8, quantization=(0.05, -1))
    for filters in (4, 8, 4):
        x = graph.conv_int8(x, filters, rng)
    graph.output(x)
    return draft.build()


def half_weights(seed: int = 0) -> bytes:
    """Float16 weights that operators at the start unpack, as the converter writes them."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    x = graph.input([1, 6], "x")
    unpacked = []
    for _ in range(3):
        packed = graph.const(rng.standard_normal((6, 6)).astype(np.float16))
        unpacked.append(graph.tensor([6, 6], type=FLOAT))
        graph.op("DEQUANTIZE", [packed], [unpacked[-1]], tflite.DequantizeOptionsT(), version=3)
    for weights in unpacked:
        result = graph.tensor([1, 6])
        graph.op("FULLY_CONNECTED", [x, weights, -1], [result], tflite.FullyConnectedOptionsT())
        x = result
    graph.output(x)
    return draft.build()


def old_file() -> bytes:
    """A file from before 2020: the operator stands in the one-byte field only."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    for value in (2.0, 3.0):
        result = graph.tensor([1, 4])
        graph.op("MUL", [x, graph.const(np.full((1, 4), value, np.float32))], [result], tflite.MulOptionsT(), old=True)
        x = result
    graph.output(x)
    return draft.build()


def custom() -> bytes:
    """An operator that no runtime knows, between known ones."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    one = graph.const(np.ones((1, 4), np.float32))
    before = graph.add(x, one, "before")
    middle = graph.tensor([1, 4], "middle")
    graph.op("Mystery", [before], [middle], custom=True).customOptions = np.arange(5, dtype=np.uint8)
    graph.output(graph.mul(graph.add(middle, one, "after"), one, "result"))
    return draft.build()


def recurrent(seed: int = 0, *, shared: bool = False) -> bytes:
    """Two SVDF layers with state, each with an absent bias; `shared` makes both use the same state."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    state = graph.tensor([1, 4 * 5], "state", variable=True)
    for number in range(2):
        if number and not shared:
            state = graph.tensor([1, 4 * 5], "state again", variable=True)
        feature = graph.const(rng.standard_normal((4, 4)).astype(np.float32))
        time = graph.const(rng.standard_normal((4, 5)).astype(np.float32))
        options = tflite.SVDFOptionsT()
        options.rank = 1
        result = graph.tensor([1, 4])
        graph.op("SVDF", [x, feature, time, -1, state], [result], options)
        x = graph.add(result, graph.const(np.ones((1, 4), np.float32)))
    graph.output(x)
    return draft.build()


def loop() -> bytes:
    """Doubles x until a counter is 3, between two dense layers; then a branch on the first score."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.dense(graph.input([1, 4], "x"), 4, rng, "first")
    count = graph.const(np.int32(0), name="zero")
    options = tflite.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 2, 3
    counted, doubled = graph.tensor([], type=INT32, name="counted"), graph.tensor([1, 4], "doubled")
    graph.op("WHILE", [count, x], [counted, doubled], options)
    graph.output(graph.dense(doubled, 3, rng, "last"))
    unused = draft.graph("unused")
    unused.output(unused.input([1]))
    condition = draft.graph("condition")
    i, _ = condition.input([], type=INT32), condition.input([1, 4])
    less = condition.tensor([], type=BOOL)
    condition.op("LESS", [i, condition.const(np.int32(3))], [less], tflite.LessOptionsT())
    condition.output(less)
    body = draft.graph("body")
    i, y = body.input([], type=INT32), body.input([1, 4])
    body.output(body.add(i, body.const(np.int32(1))), body.add(y, y))
    return draft.build()


def reshaped() -> bytes:
    """A tensor whose sizes the file does not know, so that they stand there as 1, before weights that want 8."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.input([1, 2, 4], "x", signature=[-1, 2, 4])
    shape = graph.tensor([3], "shape", type=INT32)
    options = tflite.ShapeOptionsT()
    options.outType = INT32
    graph.op("SHAPE", [x], [shape], options)
    wanted = graph.add(shape, graph.const(np.array([0, -1, 4], np.int32)), "wanted")
    flat = graph.tensor([1, 1, 1], "flat", signature=[-1, -1, -1])
    graph.op("RESHAPE", [x, wanted], [flat], tflite.ReshapeOptionsT())
    weights = graph.const(rng.standard_normal((3, 8)).astype(np.float32))
    result = graph.tensor([1, 3], "result", signature=[-1, 3])
    graph.op("FULLY_CONNECTED", [flat, weights, -1], [result], tflite.FullyConnectedOptionsT())
    graph.output(result)
    return draft.build()


def variable(*, apart: bool) -> bytes:
    """A resource variable: assigned, then read. `apart`: other operators stand between."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    one = graph.const(np.ones((1, 4), np.float32))
    x = graph.add(x, one, "start")
    _assign(graph, x)
    if apart:
        x = graph.add(x, one, "between")
    read = graph.tensor([1, 4], "read")
    graph.op("READ_VARIABLE", [_handle(graph)], [read], tflite.ReadVariableOptionsT())
    graph.output(graph.add(graph.add(read, x, "sum"), one, "end"))
    return draft.build()


def _handle(graph: GraphDraft) -> int:
    options = tflite.VarHandleOptionsT()
    options.container, options.sharedName = "", "v"
    handle = graph.tensor([], type=tflite.TensorType.RESOURCE)
    graph.op("VAR_HANDLE", [], [handle], options)
    return handle


def _assign(graph: GraphDraft, value: int) -> None:
    graph.op("ASSIGN_VARIABLE", [_handle(graph), value], [], tflite.AssignVariableOptionsT())


def initialised() -> bytes:
    """A variable that a graph called once fills, and that every run adds to."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    one = graph.const(np.ones((1, 4), np.float32))
    x = graph.mul(x, one, "start")
    options = tflite.CallOnceOptionsT()
    options.initSubgraphIndex = 1
    graph.op("CALL_ONCE", [], [], options)
    read = graph.tensor([1, 4], "read")
    graph.op("READ_VARIABLE", [_handle(graph)], [read], tflite.ReadVariableOptionsT())
    total = graph.add(read, x, "total")
    _assign(graph, total)
    graph.output(graph.add(graph.mul(total, one, "copy"), one, "end"))
    first = draft.graph("first")
    _assign(first, first.const(np.full((1, 4), 7, np.float32)))
    return draft.build()


def filled_once() -> bytes:
    """A variable that a graph called once fills and that is then only read: a weight, no state."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    options = tflite.CallOnceOptionsT()
    options.initSubgraphIndex = 1
    graph.op("CALL_ONCE", [], [], options)
    read = graph.tensor([1, 4], "read")
    graph.op("READ_VARIABLE", [_handle(graph)], [read], tflite.ReadVariableOptionsT())
    graph.output(graph.add(read, x, "total"))
    first = draft.graph("first")
    _assign(first, first.const(np.full((1, 4), 7, np.float32)))
    return draft.build()


def remembering_branch() -> bytes:
    """A variable that one of two branches assigns."""
    draft = Draft()
    graph = draft.graph()
    which, x = graph.input([1], "which", type=BOOL), graph.input([1, 4], "x")
    chosen = graph.tensor([1, 4], "chosen")
    options = tflite.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    graph.op("IF", [which, x], [chosen], options)
    graph.output(chosen)
    for name in ("plain", "remembering"):
        body = draft.graph(name)
        y = body.input([1, 4])
        if name == "remembering":
            _assign(body, y)
        body.output(body.add(y, y))
    return draft.build()


def recurrent_classifier(length: int, channels: int) -> bytes:
    """Windows "c" through a recurrent layer with state, a reshape and a dense layer to two "scores"."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.input([1, length, channels], "c")
    units = 4
    weights = [graph.const(rng.standard_normal((units, n)).astype(np.float32)) for n in (channels, units)]
    bias, state = graph.const(np.zeros(units, np.float32)), graph.tensor([1, units], "state", variable=True)
    options = tflite.SequenceRNNOptionsT()
    options.timeMajor, options.fusedActivationFunction = False, tflite.ActivationFunctionType.TANH
    hidden = graph.tensor([1, length, units], "hidden")
    graph.op("UNIDIRECTIONAL_SEQUENCE_RNN", [x, *weights, bias, state], [hidden], options)
    flat = graph.tensor([1, length * units], "flat")
    shape = graph.const(np.array([1, length * units], np.int32))
    graph.op("RESHAPE", [hidden, shape], [flat], tflite.ReshapeOptionsT())
    graph.output(graph.dense(flat, 2, rng, "scores"))
    return draft.build()


def averaging(
    ports: dict[str, tuple[int, ...]], classes: int = 2, input_type: str = "float32", shape: Sequence[int] = ()
) -> bytes:
    """Inputs of these shapes by name, each averaged over its time where it has one, joined, a dense layer: "scores".

    int8 inputs have the scale 0.25 and the zero point -3. The scores get the given shape, where one is given.
    """
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    parts = []
    for name, size in ports.items():
        scale = {"type": INT8, "quantization": (0.25, -3)} if input_type == "int8" else {}
        x = graph.input([1, *size], name, signature=[-1, *size], **scale)
        if input_type == "int8":
            real = graph.tensor([1, *size], signature=[-1, *size])
            graph.op("DEQUANTIZE", [x], [real], tflite.DequantizeOptionsT(), version=2)
            x = real
        if len(size) == 2:
            mean = graph.tensor([1, size[1]], signature=[-1, size[1]])
            graph.op("MEAN", [x, graph.const(np.array([1], np.int32))], [mean], tflite.ReducerOptionsT())
            x = mean
        parts.append(x)
    width = sum(size[-1] for size in ports.values())
    joined = graph.tensor([1, width], "joined", signature=[-1, width])
    options = tflite.ConcatenationOptionsT()
    options.axis = 1
    graph.op("CONCATENATION", parts, [joined], options)
    scores = graph.dense(joined, classes, rng, "scores")
    if shape:
        flat, scores = scores, graph.tensor([1, *shape], "shaped", signature=[-1, *shape])
        graph.op("RESHAPE", [flat, graph.const(np.array([-1, *shape], np.int32))], [scores], tflite.ReshapeOptionsT())
    graph.output(scores)
    return draft.build()


LENGTH, CHANNELS = 8, 5


def _reshape(graph: GraphDraft, x: int, shape: Sequence[int], planned: Sequence[int], name: str | None = None) -> int:
    result = graph.tensor(planned, name, signature=shape)
    graph.op("RESHAPE", [x, graph.const(np.array(shape, np.int32))], [result], tflite.ReshapeOptionsT())
    return result


def _scores(graph: GraphDraft, x: int, rng: np.random.Generator, classes: int = 2) -> int:
    """Add a dense layer that gives "scores"."""
    return graph.dense(x, classes, rng, "scores")


def dilated(batch: int = -1) -> bytes:
    """Windows "c" [batch, 8, 5] through a dilated layer: in between, the first dimension is that of blocks."""
    rng, draft = np.random.default_rng(1), Draft()
    graph = draft.graph()

    def tensor(first: int, *rest: int) -> int:
        return graph.tensor([first, *rest], signature=[batch, *rest] if batch == -1 else None)

    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[batch, LENGTH, CHANNELS] if batch == -1 else None)
    block, edges = graph.const(np.array([2], np.int32)), graph.const(np.zeros((1, 2), np.int32))
    # Converters plan one window here too, so that the planned size is too small.
    blocks = tensor(1 if batch == -1 else 2, LENGTH // 2, CHANNELS)
    graph.op("SPACE_TO_BATCH_ND", [x, block, edges], [blocks], tflite.SpaceToBatchNDOptionsT())
    scaled = graph.mul(blocks, graph.const(rng.standard_normal((1, 1, CHANNELS)).astype(np.float32)), "scaled")
    whole = tensor(1, LENGTH, CHANNELS)
    graph.op("BATCH_TO_SPACE_ND", [scaled, block, edges], [whole], tflite.BatchToSpaceNDOptionsT())
    mean = graph.tensor([1, CHANNELS], "mean", signature=[batch, CHANNELS] if batch == -1 else None)
    graph.op("MEAN", [whole, graph.const(np.array([1], np.int32))], [mean], tflite.ReducerOptionsT())
    graph.output(_scores(graph, mean, rng))
    return draft.build()


def dense_each_step() -> bytes:
    """Windows "c" through a dense layer for every step: rows of all steps of all windows, and their sizes as values."""
    rng, draft = np.random.default_rng(2), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    sizes = graph.tensor([3], "sizes", type=INT32)
    options = tflite.ShapeOptionsT()
    options.outType = INT32
    graph.op("SHAPE", [x], [sizes], options)
    rows = _reshape(graph, x, [-1, CHANNELS], [1, CHANNELS], "rows")
    each = graph.dense(rows, CHANNELS, rng, "each")
    again = graph.tensor([1, 1, 1], "again", signature=[-1, -1, -1])
    graph.op("RESHAPE", [each, sizes], [again], tflite.ReshapeOptionsT())
    flat = _reshape(graph, again, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    graph.output(_scores(graph, flat, rng))
    return draft.build()


def positive_places(threshold: float = 0.0, signed: bool = True) -> bytes:
    """A window "c", of which the places of large values are summed: as many rows as the values say, maybe none."""
    rng, draft = np.random.default_rng(3), Draft()
    graph = draft.graph()
    flat = _reshape(graph, graph.input([1, LENGTH, CHANNELS], "c"), [1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS])
    large = graph.tensor([1, LENGTH * CHANNELS], "large", type=BOOL)
    graph.op("GREATER", [flat, graph.const(np.float32(threshold))], [large], tflite.GreaterOptionsT())
    rows = {"signature": [-1, 2]} if signed else {}
    places = graph.tensor([1, 2], "places", type=tflite.TensorType.INT64, **rows)
    graph.op("WHERE", [large], [places], tflite.WhereOptionsT())
    real, total = graph.tensor([1, 2], "real", **rows), graph.tensor([1, 2], "total")
    graph.op("CAST", [places], [real], tflite.CastOptionsT())
    options = tflite.ReducerOptionsT()
    options.keepDims = True
    graph.op("SUM", [real, graph.const(np.array([0], np.int32))], [total], options)
    graph.output(_scores(graph, total, rng))
    return draft.build()


def chosen_class(classes: int = 2, type: int = INT32) -> bytes:
    """Windows "c" to the index of a class, "scores" [batch]."""
    rng, draft = np.random.default_rng(4), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    logits = graph.dense(flat, classes, rng, "logits")
    options = tflite.ArgMaxOptionsT()
    options.outputType = type
    chosen = graph.tensor([1], "scores", type=type, signature=[-1])
    graph.op("ARG_MAX", [logits, graph.const(np.int32(1))], [chosen], options, version=2)
    graph.output(chosen)
    return draft.build()


def unread_input() -> bytes:
    """Windows "c" through two layers, and an input "spare" that nothing reads."""
    rng, draft = np.random.default_rng(5), Draft()
    graph = draft.graph()
    x, _ = graph.input([1, LENGTH, CHANNELS], "c"), graph.input([1, 4], "spare")
    flat = _reshape(graph, x, [1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    graph.output(_scores(graph, graph.dense(flat, 4, rng), rng))
    return draft.build()


def laid_out(shape: Sequence[int], name: str = "c") -> bytes:
    """The values of a window, by default "c", of this shape, with its batch where it has one, to two "scores"."""
    rng, draft = np.random.default_rng(6), Draft()
    graph = draft.graph()
    planned = [max(1, n) for n in shape]
    x = graph.input(planned, name, signature=list(shape))
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    graph.output(_scores(graph, flat, rng))
    return draft.build()


def unsigned() -> bytes:
    """Layers over a dynamic batch, of which some tensors have no signature, as a quantiser inserts them."""
    rng, draft = np.random.default_rng(7), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    mean = graph.tensor([1, CHANNELS], "mean")
    graph.op("MEAN", [x, graph.const(np.array([1], np.int32))], [mean], tflite.ReducerOptionsT())
    graph.output(_scores(graph, graph.dense(mean, 3, rng, "middle"), rng))
    return draft.build()


def one_at_a_time() -> bytes:
    """An input with a dynamic batch, and a reshape that takes one window."""
    rng, draft = np.random.default_rng(9), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    graph.output(_scores(graph, flat, rng))
    return draft.build()


def mixes_windows() -> bytes:
    """Subtracts from each window "c" the mean over its batch: every tensor has the batch first, none means it."""
    rng, draft = np.random.default_rng(8), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    mean = graph.tensor([1, LENGTH * CHANNELS], "mean")
    options = tflite.ReducerOptionsT()
    options.keepDims = True
    graph.op("MEAN", [flat, graph.const(np.array([0], np.int32))], [mean], options)
    rest = graph.tensor([1, LENGTH * CHANNELS], "rest", signature=[-1, LENGTH * CHANNELS])
    graph.op("SUB", [flat, mean], [rest], tflite.SubOptionsT())
    graph.output(_scores(graph, rest, rng))
    return draft.build()


def branch() -> bytes:
    """One of two graphs runs, as an input says; then a layer."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    which, x = graph.input([1], "which", type=BOOL), graph.input([1, 4], "x")
    x = graph.dense(x, 4, rng, "first")
    chosen = graph.tensor([1, 4], "chosen")
    options = tflite.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    graph.op("IF", [which, x], [chosen], options)
    graph.output(graph.dense(chosen, 3, rng, "last"))
    for name in ("double", "square"):
        body = draft.graph(name)
        y = body.input([1, 4])
        body.output(body.add(y, y) if name == "double" else body.mul(y, y))
    return draft.build()


def odd_outputs() -> bytes:
    """A constant as an output, one output listed twice, and an input that nothing reads."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x, _ = graph.input([1, 4], "x"), graph.input([1, 2], "unused")
    fixed = graph.const(np.arange(3, dtype=np.float32), name="fixed")
    unpacked = graph.tensor([4, 4], "unpacked")
    packed = graph.const(rng.standard_normal((4, 4)).astype(np.float16))
    graph.op("DEQUANTIZE", [packed], [unpacked], tflite.DequantizeOptionsT(), version=3)
    early = graph.dense(x, 4, rng, "early")
    late = graph.tensor([1, 4], "late")
    graph.op("FULLY_CONNECTED", [early, unpacked, -1], [late], tflite.FullyConnectedOptionsT())
    graph.output(early, fixed, graph.add(late, early, "end"), early)
    return draft.build()


def of_type(type: int, *, custom: bool = True) -> bytes:
    """Two operators with a tensor of the given type between them."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    middle, result = graph.tensor([1, 4], "middle", type=type), graph.tensor([1, 4], "result")
    graph.op("First", [x], [middle], custom=custom)
    graph.op("Second", [middle], [result], custom=custom)
    graph.output(result)
    return draft.build()


def badly_named() -> bytes:
    """Tensors without a name, or with the name of another."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "same")
    y = graph.input([1, 4], "same")
    one = graph.const(np.ones((1, 4), np.float32), name="one")
    total = graph.add(graph.add(x, one, ""), y, "same")
    graph.output(graph.mul(graph.add(total, one, ""), y, "same"), total)
    return draft.build()


def named(first: bytes, middle: bytes, last: bytes) -> bytes:
    """Two sums over tensors with these names."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 4], first)
    one = graph.const(np.ones((1, 4), np.float32))
    graph.output(graph.add(graph.add(x, one, middle), one, last))
    return draft.build()


def resized(kind: str, **centers: bool) -> bytes:
    """An image through a convolution, made twice as large, and through another convolution."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    small = graph.conv(graph.input([1, 4, 4, 3], "image"), 4, rng, "small")
    large = graph.tensor([1, 8, 8, 4], "large")
    options = {
        "RESIZE_BILINEAR": tflite.ResizeBilinearOptionsT,
        "RESIZE_NEAREST_NEIGHBOR": tflite.ResizeNearestNeighborOptionsT,
    }[kind]()
    for name, value in centers.items():
        setattr(options, name, value)
    graph.op(kind, [small, graph.const(np.array([8, 8], np.int32))], [large], options, version=3)
    graph.output(graph.conv(large, 2, rng, "result"))
    return draft.build()


def described() -> bytes:
    """A model with two signatures and all kinds of metadata."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    a = graph.input([1, 4], "serving_default_a:0")
    middle = graph.dense(a, 4, rng, "score")
    result = graph.dense(middle, 2, rng, "StatefulPartitionedCall:0")
    graph.output(result)
    other = draft.graph("other")
    other.output(other.input([1]))
    draft.signature("serving_default", {"a": a}, {"score": result})
    draft.signature("second", {"q": 0}, {"r": 0}, graph=1)
    draft.metadata("min_runtime_version", b"1.5.0".ljust(16, b"\0"))
    draft.metadata("CONVERSION_METADATA", b"how it was made")
    draft.metadata("TFLITE_METADATA", b"what the inputs mean")
    return draft.build()


def annotated(labels: Sequence[str] = ("still", "moving"), *, files: dict[str, bytes] | None = None) -> bytes:
    """Windows "c" to two "scores", with TFLITE_METADATA that names a label file, and files behind the model."""
    rng, draft = np.random.default_rng(10), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    graph.output(_scores(graph, graph.dense(flat, 3, rng, "middle"), rng))
    draft.metadata("TFLITE_METADATA", metadata(["window.txt"], ["labels.txt"]))
    whole = io.BytesIO(draft.build())
    with zipfile.ZipFile(whole, "a") as archive:
        for name, data in ({"labels.txt": "\n".join(labels).encode(), "window.txt": b"w"} | (files or {})).items():
            archive.writestr(name, data)
    return whole.getvalue()


def metadata(input_files: Sequence[str], output_files: Sequence[str]) -> bytes:
    """Return a ModelMetadata with one input and one output, and the files that each names (as labels)."""
    builder = flatbuffers.Builder(1024)

    def table(fields: dict[int, int], byte: tuple[int, int] | None = None) -> int:
        builder.StartObject(10)
        for slot, offset in fields.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if byte is not None:
            builder.PrependInt8Slot(*byte, 0)
        return int(builder.EndObject())

    def vector(tables: Sequence[int]) -> int:
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def tensor(name: str, files: Sequence[str]) -> int:
        entries = [table({0: builder.CreateString(file)}, (2, 2)) for file in files]
        return table({6: vector(entries), 0: builder.CreateString(name)})

    sides = [vector([tensor("window", input_files)]), vector([tensor("class", output_files)])]
    subgraph = table({2: sides[0], 3: sides[1]})
    root = table({0: builder.CreateString("activities"), 3: vector([subgraph]), 5: builder.CreateString("MIT")})
    builder.Finish(root, file_identifier=b"M001")
    return bytes(builder.Output())


def shared_weights(size: int = 64) -> bytes:
    """Three dense layers with the same weights."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.input([1, size], "x")
    data = draft.buffer(rng.standard_normal((size, size)).astype(np.float32).tobytes())
    for _ in range(3):
        weights, result = graph.tensor([size, size], buffer=data), graph.tensor([1, size])
        graph.op("FULLY_CONNECTED", [x, weights, -1], [result], tflite.FullyConnectedOptionsT())
        x = result
    graph.output(x)
    return draft.build()


def random_graph(seed: int, operators: int) -> bytes:
    """A random graph of dense layers, sums and products over one shape, with random outputs."""
    rng, draft = np.random.default_rng(seed), Draft()
    graph = draft.graph()
    known = [graph.input([1, 4]) for _ in range(rng.integers(1, 4))]
    made = []
    for _ in range(operators):
        # Mostly what is recent, so that the graph is deep; sometimes what is old, so that it skips.
        a, b = (known[-1 - min(int(rng.geometric(0.5)) - 1, len(known) - 1)] for _ in range(2))
        kind = rng.integers(3)
        result = graph.dense(a, 4, rng) if kind == 0 else graph.add(a, b) if kind == 1 else graph.mul(a, b)
        known.append(result)
        made.append(result)
    extra = rng.choice(made, int(rng.integers(0, 3)))
    graph.output(*dict.fromkeys([made[-1], *(int(i) for i in extra)]))
    return draft.build()


def long_names(length: int, *, dynamic: bool = False) -> bytes:
    """Two dense layers; the name of what passes between them has this length."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.input([1, 6], "x", signature=[-1, 6] if dynamic else None)
    graph.output(graph.dense(graph.dense(x, 4, rng, "n" * length), 3, rng, "scores"))
    return draft.build()


def fan(width: int, *, dynamic: bool = False) -> bytes:
    """A vector split into its elements, which are put together again: so many tensors pass between two operators."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, width], "x", signature=[-1, width] if dynamic else None)
    split, joined = tflite.SplitOptionsT(), tflite.ConcatenationOptionsT()
    split.numSplits, joined.axis = width, 1
    one = [-1, 1] if dynamic else None
    pieces = [graph.tensor([1, 1], signature=one) for _ in range(width)]
    scores = graph.tensor([1, width], "scores", signature=[-1, width] if dynamic else None)
    graph.op("SPLIT", [graph.const(np.int32(1)), x], pieces, split)
    graph.op("CONCATENATION", pieces, [scores], joined)
    graph.output(scores)
    return draft.build()


def layer_norm(*, square: str = "SQUARE", reduction: str = "MEAN") -> bytes:
    """A dense layer, its values squared, a scale, the mean or sum of the squares, and a product that reads both."""
    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    x = graph.dense(graph.input([1, 64], "x"), 64, rng, "features")
    if square == "SQUARE":
        squares = graph.tensor([1, 64], "squares")
        graph.op("SQUARE", [x], [squares], tflite.SquareOptionsT())
    else:
        squares = graph.mul(x, x if square == "MUL" else graph.const(np.full((1, 64), 2, np.float32)), "squares")
    scaled = graph.mul(x, graph.const(rng.standard_normal((1, 64)).astype(np.float32)), "scaled")
    options, total = tflite.ReducerOptionsT(), graph.tensor([1, 1], "total")
    options.keepDims = True
    graph.op(reduction, [squares, graph.const(np.array([1], np.int32))], [total], options)
    graph.output(graph.mul(scaled, total, "scores"))
    return draft.build()


def types() -> dict[str, int]:
    """Every type of a tensor that the schema names."""
    return {name: value for name, value in vars(tflite.TensorType).items() if not name.startswith("_")}


def typed(
    *, entering: int = FLOAT, crossing: int = FLOAT, answering: int = FLOAT, beside: int | None = None, scales: int = 0
) -> bytes:
    """The mean of a window "c" of a type, cast to another one, "mean", and to "scores" of a third.

    `beside` is the type of a second output, "beside"; `scales` says how many the input has.
    """
    rng, draft = np.random.default_rng(11), Draft()
    graph = draft.graph()
    scale = (np.full(scales, 0.05), np.zeros(scales)) if scales else None
    shape, batched = [1, LENGTH, CHANNELS], [-1, LENGTH, CHANNELS]
    x = graph.input(shape, "c", type=entering, signature=batched, quantization=scale)
    real = x if entering == FLOAT else graph.tensor(shape, "real", signature=batched)
    if scales:
        graph.op("DEQUANTIZE", [x], [real], tflite.DequantizeOptionsT(), version=2)
    elif real != x:
        graph.op("CAST", [x], [real], tflite.CastOptionsT())
    mean = graph.tensor([1, CHANNELS], "sum", signature=[-1, CHANNELS])
    graph.op("SUM", [real, graph.const(np.array([1], np.int32))], [mean], tflite.ReducerOptionsT())
    mean = _scores(graph, _cast(graph, _cast(graph, mean, crossing, "mean"), FLOAT), rng)
    graph.raw.tensors[mean].name = "real scores"
    scores = _cast(graph, mean, answering, "scores")
    graph.output(scores)
    if beside is not None:
        graph.output(_cast(graph, mean, beside, "beside"))
    return draft.build()


def _cast(graph: GraphDraft, x: int, type: int, name: str | None = None) -> int:
    """Cast to another type, by way of those that the runtime's kernels have."""
    like, types = graph.raw.tensors[x], tflite.TensorType

    def made(kind: int, name: str | None = None) -> int:
        return graph.tensor(like.shape, name, type=kind, signature=like.shapeSignature)

    if types.UINT64 in (type, like.type):
        other = types.INT64
        x = x if like.type == types.UINT64 else _cast(graph, x, other)
        result = made(type if type == types.UINT64 else other, name)
        graph.op("BITCAST", [x], [result], tflite.BitcastOptionsT())
        return result if type in (types.UINT64, other) else _cast(graph, result, type, name)
    if type == types.STRING:  # the names of two rows
        index = _cast(graph, x, INT32)
        result = made(type, name)
        words = graph.tensor([2], type=type, buffer=graph.draft.buffer(_strings(b"no", b"yes")))
        zero = graph.const(np.zeros((), np.int32))
        clipped = made(INT32)
        graph.op("MUL", [index, zero], [clipped], tflite.MulOptionsT())
        graph.op("GATHER", [words, clipped], [result], tflite.GatherOptionsT())
        return result
    if like.type == types.STRING:
        word = graph.tensor([1], type=types.STRING, buffer=graph.draft.buffer(_strings(b"no")))
        same = made(BOOL)
        graph.op("EQUAL", [x, word], [same], tflite.EqualOptionsT())
        return _cast(graph, same, type, name)
    result = made(type, name)
    graph.op("CAST", [x], [result], tflite.CastOptionsT())
    return result


def _strings(*words: bytes) -> bytes:
    """Return strings as TFLite keeps them: how many, where each begins, where the last ends, and all of them."""
    ends = np.cumsum([4 * (len(words) + 2), *map(len, words)])
    return np.array([len(words), *ends], "<i4").tobytes() + b"".join(words)


def undefined(*, first: bool) -> bytes:
    """The logarithm of minus the squares of a window, no number, before a layer; `first`: before all."""
    rng, draft = np.random.default_rng(12), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    before = flat if first else graph.dense(flat, 4, rng, "before")
    negative = graph.tensor(
        graph.raw.tensors[before].shape, "negative", signature=[-1, *graph.raw.tensors[before].shape[1:]]
    )
    graph.op("NEG", [graph.mul(before, before, "square")], [negative], tflite.NegOptionsT())
    logarithm = graph.tensor(
        graph.raw.tensors[before].shape, "log", signature=[-1, *graph.raw.tensors[before].shape[1:]]
    )
    graph.op("LOG", [negative], [logarithm])
    graph.output(_scores(graph, logarithm, rng))
    return draft.build()


def without_elements(*, planned: bool = True) -> bytes:
    """Windows "c" whose mean crosses together with "none", a tensor [windows, 0] that is joined to it; then "scores".

    Unless `planned`, the file says of "mean" that it has no elements, which is not so.
    """
    rng, draft = np.random.default_rng(13), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    mean = graph.tensor([1, CHANNELS], "mean", signature=[-1, CHANNELS])
    graph.op("MEAN", [x, graph.const(np.array([1], np.int32))], [mean], tflite.ReducerOptionsT())
    none = graph.tensor([1, 0], "none", signature=[-1, 0])
    begin, size = (graph.const(np.array(ends, np.int32)) for ends in ([0, 0], [-1, 0]))
    graph.op("SLICE", [mean, begin, size], [none], tflite.SliceOptionsT())
    joined = graph.tensor([1, CHANNELS], "joined", signature=[-1, CHANNELS])
    options = tflite.ConcatenationOptionsT()
    options.axis = 1
    graph.op("CONCATENATION", [mean, none], [joined], options)
    graph.output(_scores(graph, joined, rng))
    if not planned:
        graph.raw.tensors[mean].shape = np.zeros(2, np.int32)
        graph.raw.tensors[mean].shapeSignature = None
    return draft.build()


def mixes_few(*, place: bool) -> bytes:
    """Windows "c" [windows, 8, 5] to 41 "scores", of which the last takes a little of other windows of the batch.

    Or, with `place`, of the window's place in the batch.
    """
    rng, draft = np.random.default_rng(14), Draft()
    graph = draft.graph()
    x = graph.input([1, LENGTH, CHANNELS], "c", signature=[-1, LENGTH, CHANNELS])
    flat = _reshape(graph, x, [-1, LENGTH * CHANNELS], [1, LENGTH * CHANNELS], "flat")
    hidden = graph.dense(flat, 40, rng, "hidden")
    one = graph.tensor([1, 1], "one", signature=[-1, 1])
    graph.op("SUM", [flat, graph.const(np.array([1], np.int32))], [one], _keep_dims())
    if place:  # 1 in each row, summed up from the first on
        one = graph.add(
            graph.mul(one, graph.const(np.zeros((1, 1), np.float32))), graph.const(np.ones((1, 1), np.float32))
        )
    small = graph.mul(one, graph.const(np.full((1, 1), 0.01, np.float32)))
    last = graph.tensor([1, 1], "last", signature=[-1, 1])
    graph.op("CUMSUM", [small, graph.const(np.int32(0))], [last], tflite.CumsumOptionsT())
    scores = graph.tensor([1, 41], "scores", signature=[-1, 41])
    options = tflite.ConcatenationOptionsT()
    options.axis = 1
    graph.op("CONCATENATION", [hidden, last], [scores], options)
    graph.output(scores)
    return draft.build()


def _keep_dims() -> Any:
    options = tflite.ReducerOptionsT()
    options.keepDims = True
    return options


def ranked(dimensions: int) -> bytes:
    """A tensor "wide" of so many dimensions between two layers."""
    rng, draft = np.random.default_rng(15), Draft()
    graph = draft.graph()
    hidden = graph.dense(graph.input([1, 4], "x"), 6, rng, "hidden")
    wide = _reshape(graph, hidden, [1] * (dimensions - 1) + [6], [1] * (dimensions - 1) + [6], "wide")
    graph.output(graph.dense(_reshape(graph, wide, [1, 6], [1, 6], "flat"), 3, rng, "scores"))
    return draft.build()


def pictures(classes: int = 3) -> bytes:
    """A classifier of images [1, 8, 6, 3], in two layers: "scores"."""
    rng, draft = np.random.default_rng(8), Draft()
    graph = draft.graph()
    flat = _reshape(graph, graph.input([1, 8, 6, 3], "image", signature=[-1, 8, 6, 3]), [-1, 144], [1, 144], "flat")
    graph.output(graph.dense(graph.dense(flat, 16, rng), classes, rng, "scores"))
    return draft.build()


def wide(rows: int) -> bytes:
    """Windows "c" to two "scores", one window at a time; the tensor "wide" between has that many rows of all values."""
    rng, draft = np.random.default_rng(11), Draft()
    graph, width = draft.graph(), LENGTH * CHANNELS
    x = graph.input([1, LENGTH, CHANNELS], "c")
    flat = _reshape(graph, x, [1, 1, width], [1, 1, width], "flat")
    made = graph.tensor([1, rows, width], "wide")
    graph.op("MUL", [flat, graph.const(np.ones((1, rows, 1), np.float32))], [made], tflite.MulOptionsT())
    mean, options = graph.tensor([1, width], "mean"), tflite.ReducerOptionsT()
    options.keepDims = False
    graph.op("MEAN", [made, graph.const(np.array([1], np.int32))], [mean], options)
    graph.output(_scores(graph, mean, rng))
    return draft.build()
