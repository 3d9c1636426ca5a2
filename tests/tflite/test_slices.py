"""What a slice holds, and what survives in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from har_edge.tflite.encode import encode
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import Slice, slice_model, write_slice
from tests.tflite import models


def _cut(content: bytes, *cuts: int) -> tuple[Model, list[Slice], list[Model]]:
    model = read_model(content)
    slices = slice_model(model, cuts)
    return model, slices, [read_model(bytes(write_slice(model, piece))) for piece in slices]


def _names(specs: Any) -> list[str]:
    return [spec.name for spec in specs]


def test_each_slice_takes_from_where_a_tensor_is_made() -> None:
    _, slices, written = _cut(models.skip(), 1, 2, 3, 4)
    assert [(piece.start, piece.stop) for piece in slices] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [_names(piece.inputs) for piece in slices] == [["image"], ["first"], ["second"], ["first", "third"], ["sum"]]
    assert [_names(piece.outputs) for piece in slices] == [["first"], ["second"], ["third"], ["sum"], ["result"]]
    for piece, model in zip(slices, written, strict=True):
        assert [model.main.tensors[i].name for i in model.main.inputs] == _names(piece.inputs)
        assert [model.main.tensors[i].name for i in model.main.outputs] == _names(piece.outputs)


def test_original_inputs_and_early_outputs_are_not_passed_on() -> None:
    _, slices, _ = _cut(models.many_ports(), 1, 3)
    assert [_names(piece.inputs) for piece in slices] == [["a"], ["a", "b", "early"], ["b", "scaled"]]
    # `early` is an output of the model and crosses too; `b`, an input that is an output, leaves with the last slice.
    assert [_names(piece.outputs) for piece in slices] == [["early"], ["scaled"], ["late", "b"]]


def test_dynamic_dimensions_survive() -> None:
    _, slices, written = _cut(models.chain(dynamic=True), 2)
    assert slices[1].inputs[0].shape == (-1, 5)
    graph = written[1].main
    assert graph.tensors[graph.inputs[0]].signature == (-1, 5)


def test_quantisation_survives() -> None:
    model, _, written = _cut(models.quantised(), 1)
    old = {tensor.name: tensor.raw for tensor in model.main.tensors}
    for tensor in (*written[0].main.tensors, *written[1].main.tensors):
        wanted, got = old[tensor.name].quantization, tensor.raw.quantization
        assert np.array_equal(wanted.scale, got.scale) and np.array_equal(wanted.zeroPoint, got.zeroPoint)
        assert got.zeroPoint.dtype == np.int64


def test_a_custom_operator_is_cut_around_and_keeps_its_options() -> None:
    _, _, written = _cut(models.custom(), 1, 2)
    assert [[operator.name for operator in model.main.operators] for model in written] == [
        ["ADD"],
        ["Mystery"],
        ["ADD", "MUL"],
    ]
    assert written[1].main.operators[0].raw.customOptions.tolist() == [0, 1, 2, 3, 4]
    assert [schema_code.customCode for schema_code in written[0].raw.operatorCodes] == [None]


def test_loops_bring_their_bodies_along_and_others_stay_behind() -> None:
    model, _, written = _cut(models.loop(), 1, 2)
    assert [graph.name for graph in model.graphs] == ["main", "unused", "condition", "body"]
    assert [[graph.name for graph in part.graphs] for part in written] == [
        ["main"],
        ["main", "condition", "body"],
        ["main"],
    ]
    assert written[1].main.operators[0].calls == (1, 2)


def test_only_what_a_slice_uses_is_kept_and_sharing_stays() -> None:
    size = 64 * 64 * 4
    model, _, written = _cut(models.shared_weights(), 2)
    assert len(write_slice(model, slice_model(model, [2])[0])) < size + 4000
    graph = written[0].main
    used = [graph.tensors[operator.inputs[1]].raw.buffer for operator in graph.operators]
    assert used == [1, 1]
    assert [data is None for data in written[0].buffers] == [True, False]


def test_every_buffer_is_aligned_to_16_bytes() -> None:
    for content in (models.chain(), models.quantised(), models.half_weights()):
        model = read_model(content)
        piece = slice_model(model, [len(model.main.operators) - 1])[1]
        written = bytes(write_slice(model, piece))
        start = np.frombuffer(written, np.uint8).ctypes.data
        again = read_model(written)
        offsets = [data.ctypes.data - start for data in again.buffers if data is not None]
        assert offsets and all(offset % 16 == 0 for offset in offsets)


def test_unpacked_weights_are_repeated_where_they_are_needed() -> None:
    _, slices, written = _cut(models.half_weights(), 4, 5)
    kinds = [[operator.name for operator in model.main.operators] for model in written]
    assert kinds == [["DEQUANTIZE", "FULLY_CONNECTED"]] * 3
    assert [(piece.start, piece.stop) for piece in slices] == [(0, 4), (4, 5), (5, 6)]


def test_signatures_are_rewritten_and_true_metadata_stays() -> None:
    model, _, written = _cut(models.described(), 1)

    def signature(part: Model) -> tuple[bytes, dict[bytes, str], dict[bytes, str]]:
        (raw,) = part.raw.signatureDefs
        ports = [{m.name: part.main.tensors[m.tensorIndex].name for m in maps} for maps in (raw.inputs, raw.outputs)]
        return raw.signatureKey, ports[0], ports[1]

    assert signature(written[0]) == (b"serving_default", {b"a": "serving_default_a:0"}, {b"score": "score"})
    assert signature(written[1]) == (
        b"serving_default",
        {b"score": "score"},
        {b"score": "StatefulPartitionedCall:0"},
    )
    assert [item.name for item in written[0].raw.metadata] == [b"min_runtime_version", b"CONVERSION_METADATA"]
    (version, _) = written[0].raw.metadata
    data = written[0].buffers[version.buffer]
    assert data is not None and data.tobytes() == b"1.5.0".ljust(16, b"\0")
    assert written[1].raw.description == model.raw.description == b"made by a test"


def test_a_crossing_tensor_may_not_take_the_name_of_an_output() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    early, crossing = graph.add(x, x, "early"), graph.mul(x, x, "score")
    graph.output(early, graph.add(crossing, crossing, "late"))
    draft.signature("s", {"x": x}, {"score": early, "late": graph.raw.outputs[1]})
    _, _, written = _cut(draft.build(), 2)
    outputs = {m.name: written[0].main.tensors[m.tensorIndex].name for m in written[0].raw.signatureDefs[0].outputs}
    assert outputs == {b"score": "early", b"score#2": "score"}


def test_no_cut_keeps_everything() -> None:
    model, slices, (written,) = _cut(models.described())
    assert len(slices) == 1
    assert [item.name for item in written.raw.metadata] == [item.name for item in model.raw.metadata]
    assert [item.signatureKey for item in written.raw.signatureDefs] == [b"serving_default", b"second"]
    assert [graph.name for graph in written.graphs] == ["main", "other"]
    assert [tensor.name for tensor in written.main.tensors] == [tensor.name for tensor in model.main.tensors]


def test_scales_in_tensors_of_their_own_come_along() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    first = graph.add(x, x, "first")
    scales = graph.const(np.ones(4, np.float16), name="scales")
    weights = graph.const(np.ones((4, 4), np.int8), name="weights", quantization=(1.0, 0))
    details = models.tflite.BlockwiseQuantizationT()
    details.scales, details.blockSize = scales, 4
    graph.raw.tensors[weights].quantization.details = details
    graph.raw.tensors[weights].quantization.detailsType = models.tflite.QuantizationDetails.BlockwiseQuantization
    result = graph.tensor([1, 4], "result")
    graph.op("FULLY_CONNECTED", [first, weights, -1], [result], models.tflite.FullyConnectedOptionsT())
    graph.output(result)
    _, _, written = _cut(draft.build(), 1)
    tensors = written[1].main.tensors
    (quantised,) = (tensor for tensor in tensors if tensor.name == "weights")
    assert tensors[quantised.raw.quantization.details.scales].name == "scales"
    assert "scales" not in [tensor.name for tensor in written[0].main.tensors]


def test_sparse_weights_stay_sparse() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    first, result = graph.add(x, x, "first"), graph.tensor([1, 4], "result")
    weights = graph.const(np.ones((4, 4), np.float32), name="weights")
    sparsity = models.tflite.SparsityParametersT()
    sparsity.traversalOrder = np.array([0, 1], np.int32)
    sparsity.dimMetadata = [models.tflite.DimensionMetadataT() for _ in range(2)]
    sparsity.dimMetadata[1].format = models.tflite.DimensionType.SPARSE_CSR
    segments = models.tflite.Uint8VectorT()
    segments.values = np.array([0, 2, 4, 6, 8], np.uint8)
    sparsity.dimMetadata[1].arraySegments = segments
    sparsity.dimMetadata[1].arraySegmentsType = models.tflite.SparseIndexVector.Uint8Vector
    graph.raw.tensors[weights].sparsity = sparsity
    graph.op("FULLY_CONNECTED", [first, weights, -1], [result], models.tflite.FullyConnectedOptionsT())
    graph.output(result)
    _, _, written = _cut(draft.build(), 1)
    (kept,) = (tensor for tensor in written[1].main.tensors if tensor.name == "weights")
    assert kept.raw.sparsity.traversalOrder.tolist() == [0, 1]
    assert kept.raw.sparsity.dimMetadata[1].arraySegments.values.tolist() == [0, 2, 4, 6, 8]


def test_intermediate_tensors_come_along() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    first = graph.add(x, x, "first")
    inner = graph.tensor([4], "inner", type=models.INT8, quantization=(0.5, 3))
    result = graph.tensor([1, 4], "result")
    graph.op("Recurrent", [first, -1], [result], custom=True).intermediates = np.array([inner], np.int32)
    graph.output(result)
    _, _, written = _cut(draft.build(), 1)
    operator = written[1].main.operators[0]
    assert [written[1].main.tensors[i].name for i in operator.inner] == ["inner"]
    assert operator.raw.inputs.tolist()[1] == -1


def test_large_custom_options_behind_the_flatbuffer_are_read() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x, result = graph.input([1, 4], "x"), graph.tensor([1, 4], "result")
    operator = graph.op("Big", [graph.add(x, x)], [result], custom=True)
    graph.output(result)
    operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize = 1 << 20, 3
    position = len(draft.build())
    operator.largeCustomOptionsOffset = position
    _, _, written = _cut(draft.build() + b"abc", 1)
    assert written[1].main.operators[0].raw.customOptions.tobytes() == b"abc"
    assert written[1].main.operators[0].raw.largeCustomOptionsOffset == 0


def test_weights_can_stand_behind_the_flatbuffer() -> None:
    model = read_model(models.chain())
    piece = slice_model(model, [2])[1]
    inside, behind = bytes(write_slice(model, piece)), bytes(encode(model, piece.part, large_bytes=0))
    raw = models.tflite.Model.GetRootAs(behind)
    stored = [(raw.Buffers(i).Offset(), raw.Buffers(i).Size()) for i in range(raw.BuffersLength())]
    assert stored[0] == (0, 0) and all(offset % 16 == 0 and size for offset, size in stored[1:])
    for a, b in zip(read_model(inside).buffers, read_model(behind).buffers, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and a.tobytes() == b.tobytes())


_MEMORY = """
import sys
from pathlib import Path
from har_edge.tflite.folder import write_folder
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model

def peak_bytes():  # not ru_maxrss: a process inherits that of its parent
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

before = peak_bytes()
model = read_model(Path(sys.argv[1]))
write_folder(model, slice_model(model, [int(sys.argv[3])]), Path(sys.argv[2]))
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_cutting_takes_at_most_about_twice_the_size_of_the_model(tmp_path: Path) -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 1500], "x")
    for _ in range(6):
        weights, result = graph.const(np.ones((1500, 1500), np.float32)), graph.tensor([1, 1500])
        graph.op("FULLY_CONNECTED", [x, weights, -1], [result], models.tflite.FullyConnectedOptionsT())
        x = result
    graph.output(x)
    path = tmp_path / "large.tflite"
    path.write_bytes(draft.build())
    command = [sys.executable, "-c", _MEMORY, str(path), str(tmp_path / "out"), "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    assert 0.5 * path.stat().st_size < int(output) < 2.2 * path.stat().st_size


@pytest.mark.parametrize("cuts", [[2, 1], [1, 2, 2]])
def test_order_and_repetition_of_cuts_do_not_matter(cuts: list[int]) -> None:
    assert [piece.start for piece in slice_model(read_model(models.chain()), cuts)] == [0, 1, 2]
