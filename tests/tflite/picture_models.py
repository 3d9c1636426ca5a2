"""Small models of pictures, written without TensorFlow: classifiers of each type, and one with several outputs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.models import Draft, GraphDraft

HEIGHT, WIDTH = 8, 6
TYPES = {
    "float32": tflite.TensorType.FLOAT32,
    "float16": tflite.TensorType.FLOAT16,
    "int8": tflite.TensorType.INT8,
    "uint8": tflite.TensorType.UINT8,
}


def classifier(
    dtype: str = "uint8",
    *,
    quantization: tuple[float, int] | None = (1 / 128, 128),
    shape: Sequence[int] = (1, HEIGHT, WIDTH, 3),
    classes: int = 7,
    dynamic: bool = False,
    meta: bytes | None = None,
    files: dict[str, bytes] | None = None,
) -> bytes:
    """Pictures "image" to "scores"; the first operator makes floats of them, two layers follow."""
    rng, draft = np.random.default_rng(4), Draft()
    graph = draft.graph()
    own = None if dtype.startswith("float") else quantization
    signature = [-1, *shape[1:]] if dynamic else None
    x = graph.input(shape, "image", type=TYPES[dtype], quantization=own, signature=signature)
    if dtype != "float32":
        real = graph.tensor(shape, "real", signature=signature)
        graph.op("DEQUANTIZE", [x], [real], version=2)
        x = real
    values = int(np.prod(shape[1:]))
    flat = reshape(graph, x, [-1 if dynamic else 1, values], [1, values])
    graph.output(graph.dense(graph.dense(flat, 16, rng), classes, rng, "scores"))
    if meta is not None:
        draft.metadata("TFLITE_METADATA", meta)
    return behind(draft.build(), files or {})


def many_outputs() -> bytes:
    """Pictures to "boxes" [1, 2, 4] after operator 3, "scores" [1, 3] after 5, and "mask" int8 [1, 12] after 6."""
    rng, draft = np.random.default_rng(5), Draft()
    graph = draft.graph()
    x = graph.input([1, HEIGHT, WIDTH, 3], "image")
    hidden = graph.dense(reshape(graph, x, [1, HEIGHT * WIDTH * 3], [1, HEIGHT * WIDTH * 3]), 16, rng, "hidden")
    boxes = reshape(graph, graph.dense(hidden, 8, rng), [1, 2, 4], [1, 2, 4], "boxes")
    deep = graph.dense(hidden, 12, rng, "deep")
    scores = graph.dense(deep, 3, rng, "scores")
    mask = graph.tensor([1, 12], "mask", type=tflite.TensorType.INT8, quantization=(0.5, -3))
    graph.op("QUANTIZE", [deep], [mask])
    graph.output(boxes, scores, mask)
    return draft.build()


def reshape(graph: GraphDraft, x: int, shape: Sequence[int], planned: Sequence[int], name: str | None = None) -> int:
    """Add a RESHAPE."""
    signature = list(shape) if -1 in shape else None
    result = graph.tensor(planned, name, signature=signature)
    graph.op("RESHAPE", [x, graph.const(np.array(shape, np.int32))], [result])
    return result


def behind(content: bytes, files: dict[str, bytes]) -> bytes:
    """Return a model with files in a zip behind it."""
    whole = io.BytesIO(content)
    if files:
        with zipfile.ZipFile(whole, "a") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return whole.getvalue()


def normalized(mean: Sequence[float], std: Sequence[float], labels: str = "labels.txt", kind: int = 1) -> bytes:
    """Return a ModelMetadata whose input has a unit of this kind with these figures, and whose output names a file."""
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

    def floats(values: Sequence[float]) -> int:
        return int(builder.CreateNumpyVector(np.asarray(values, np.float32)))

    options: Any = table({0: floats(mean), 1: floats(std)})
    image = table({4: vector([table({1: options}, (0, kind))]), 0: builder.CreateString("image")})
    scores = table({6: vector([table({0: builder.CreateString(labels)}, (2, 2))]), 0: builder.CreateString("scores")})
    subgraph = table({2: vector([image]), 3: vector([scores])})
    builder.Finish(table({3: vector([subgraph])}), file_identifier=b"M001")
    return bytes(builder.Output())
