"""Reading .tflite files, sound and broken ones."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import ModelError
from har_edge.tflite import schema
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model, write_slice
from tests.tflite import models

SOUND = {
    "chain": models.chain(),
    "quantised": models.quantised(),
    "recurrent": models.recurrent(),
    "loop": models.loop(),
    "described": models.described(),
}


def test_reads_operators_tensors_and_ports() -> None:
    graph = read_model(models.many_ports()).main
    assert [operator.name for operator in graph.operators] == ["FULLY_CONNECTED", "ADD", "MUL", "FULLY_CONNECTED"]
    assert [graph.tensors[i].name for i in graph.inputs] == ["a", "b"]
    assert [graph.tensors[i].name for i in graph.outputs] == ["late", "early", "b"]
    assert graph.tensors[graph.inputs[0]].bytes == 16


def test_weights_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(models.chain())
    model = read_model(path)
    weights = [data for data in model.buffers if data is not None]
    whole = np.frombuffer(model.data, np.uint8)
    assert weights and all(np.shares_memory(data, whole) for data in weights)


def test_old_file_takes_the_operator_from_the_one_byte_field() -> None:
    model = read_model(models.old_file())
    assert [code.builtinCode for code in model.raw.operatorCodes] == [0]
    assert [operator.name for operator in model.main.operators] == ["MUL", "MUL"]


def test_absent_optional_inputs_are_left_out_and_dynamic_dimensions_kept() -> None:
    operator = read_model(models.recurrent()).main.operators[0]
    assert -1 in operator.raw.inputs and -1 not in operator.inputs
    graph = read_model(models.chain(dynamic=True)).main
    assert graph.tensors[graph.inputs[0]].signature == (-1, 6)


def test_names_become_unique_in_a_fixed_way() -> None:
    names = [tensor.name for tensor in read_model(models.badly_named()).main.tensors]
    assert names == ["same", "same#1", "one", "tensor#3", "same#4", "tensor#5", "same#6"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no TFLite model: 0 bytes"),
        (b"PK\x03\x04 a zip file", "bytes 4 to 8 are"),
        (b"\x18\0\0\0TFL3", "broken or truncated"),
        (b"\xff\xff\xff\xffTFL3" + bytes(100), "broken or truncated"),
    ],
)
def test_what_is_no_model_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        read_model(content)
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=text):
        read_model(path)


def test_missing_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot read model nowhere.tflite: No such file"):
        read_model(Path("nowhere.tflite"))


@pytest.mark.parametrize("name", SOUND)
def test_every_truncation_is_refused_or_harmless(name: str) -> None:
    content = SOUND[name]
    refused = sum(not _cuttable(content[:size]) for size in range(0, len(content), 7))
    # What stands at the very end of these files may be padding, nothing more.
    assert refused >= len(range(0, len(content), 7)) - 3


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SOUND)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_bytes_never_crash(name: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(SOUND[name])
    for where, value in changes:
        content[8 + int(where * (len(content) - 8))] = value
    _cuttable(bytes(content))


def _cuttable(content: bytes) -> bool:
    """Return whether a file can be read and cut everywhere; anything but a ModelError fails the test."""
    try:
        model = read_model(content)
        for cut in list_cuts(model):
            if cut.refusal is None:
                for piece in slice_model(model, [cut.index]):
                    write_slice(model, piece)
    except ModelError:
        return False
    return True


def test_vectors_that_share_memory_are_refused_before_they_are_read() -> None:
    # A list of graphs that says it has more entries than the file has words.
    content = bytearray(models.chain())
    root = struct.unpack_from("<I", content)[0]
    vtable = root - struct.unpack_from("<i", content, root)[0]
    field = root + struct.unpack_from("<H", content, vtable + 8)[0]
    vector = field + struct.unpack_from("<I", content, field)[0]
    struct.pack_into("<I", content, vector, 1 << 30)
    with pytest.raises(ModelError, match="a vector of 1073741824 entries does not fit"):
        read_model(bytes(content))


def test_fields_that_the_schema_does_not_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4])
    graph.output(graph.add(x, x))
    graph.raw.operators[0].debugMetadataIndex = 7  # the last field of an operator
    content = draft.build()
    assert read_model(content)
    monkeypatch.delattr(models.tflite, "OperatorAddDebugMetadataIndex")  # as in a schema before that field
    schema._count_fields.cache_clear()
    monkeypatch.setattr(schema, "_count_fields", schema._count_fields.__wrapped__)
    with pytest.raises(ModelError, match="operator 0 has fields that the installed TFLite schema does not know"):
        read_model(content)


@pytest.mark.parametrize("centers", [{"halfPixelCenters": True}, {"alignCorners": True}, {}])
@pytest.mark.parametrize("kind", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_deprecated_fields_take_a_place_and_are_no_unknown_ones(kind: str, centers: dict[str, bool]) -> None:
    model = read_model(models.resized(kind, **centers))
    for piece in slice_model(model, [1, 2]):
        again = read_model(bytes(write_slice(model, piece)))
        kept = [operator.raw.builtinOptions for operator in again.main.operators if operator.name == kind]
        for options in kept:
            assert {name: getattr(options, name) for name in centers} == centers


def test_every_field_of_the_schema_counts() -> None:
    """Against the attributes of the generated objects, which leave deprecated fields out."""
    for name, kind in vars(models.tflite).items():
        if name.endswith("T") and hasattr(kind, "Pack"):
            assert schema._count_fields(name[:-1]) >= len(vars(kind())), name
    assert schema._count_fields("ResizeBilinearOptions") == 4  # new_height and new_width are deprecated


def test_names_that_are_no_text_are_escaped() -> None:
    model = read_model(models.named(b"in\xff", b"mid\xfe\0dle", b"out\xc3"))
    assert [tensor.name for tensor in model.main.tensors if not tensor.constant] == [
        "in\\xff",
        "mid\\xfe\\x00dle",
        "out\\xc3",
    ]


def _rejected(change) -> str:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4])
    first = graph.add(x, x)
    graph.output(graph.add(first, first))
    change(draft, graph)
    with pytest.raises(ModelError) as caught:
        read_model(draft.build())
    return str(caught.value)


def test_indices_outside_the_file_are_refused() -> None:
    def tensor(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.operators[0].inputs = np.array([0, 99], np.int32)

    def buffer(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.tensors[0].buffer = 9

    def code(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.operators[0].opcodeIndex = 5

    assert "tensor index outside 0 to 2" in _rejected(tensor)
    assert "tensor 0 uses buffer 9 of 1" in _rejected(buffer)
    assert "broken or truncated" in _rejected(code)


def test_graphs_that_make_no_sense_are_refused() -> None:
    def order(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.operators.reverse()

    def version(draft: models.Draft, graph: models.GraphDraft) -> None:
        draft.raw.version = 2

    def empty(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.operators = []

    def recursive(draft: models.Draft, graph: models.GraphDraft) -> None:
        options = models.tflite.CallOptionsT()
        options.subgraph = 0
        graph.op("CALL", [0], [graph.tensor([1, 4])], options)

    def outside(draft: models.Draft, graph: models.GraphDraft) -> None:
        graph.raw.tensors[0].externalBuffer = 1

    assert re.search("operator 0 .ADD. reads tensor t1 before operator 1 makes it", _rejected(order))
    assert "schema version 2, expected 3" in _rejected(version)
    assert "has no operators" in _rejected(empty)
    assert "an operator calls graph 0" in _rejected(recursive)
    assert "tensor 0 has its data in another file" in _rejected(outside)
