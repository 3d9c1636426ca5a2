"""What a model says of itself goes with its slices, where it stays true."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.inference.interpreter import Interpreter
from har_edge.tflite import metadata
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model, write_slice
from tests.tflite import models


def sides(data: bytes | None) -> tuple[list[str], list[str]]:
    """Return the files that metadata names for inputs and for outputs."""
    assert data is not None
    return (
        list(metadata._files_of(data, inputs=True, outputs=False)),
        list(metadata._files_of(data, inputs=False, outputs=True)),
    )


def cut(model: Model, *places: int) -> list[tuple[metadata.Annotations, Model]]:
    made = [read_model(bytes(write_slice(model, piece))) for piece in slice_model(model, places)]
    return [(metadata.read_annotations(one), one) for one in made]


def test_labels_go_with_the_last_slice_and_what_is_said_of_inputs_with_the_first() -> None:
    model = read_model(models.annotated())
    assert metadata.read_labels(model) == {"scores": ("still", "moving")}
    first, middle, last = cut(model, 1, 2)
    assert sides(first[0].metadata) == (["window.txt"], []) and first[0].files == {"window.txt": b"w"}
    assert middle[0].metadata is None and middle[0].files == {}
    assert sides(last[0].metadata) == ([], ["labels.txt"]) and last[0].files == {"labels.txt": b"still\nmoving"}
    assert metadata.read_labels(last[1]) == {"scores": ("still", "moving")}
    assert metadata.read_labels(first[1]) == {}


def test_one_slice_keeps_everything() -> None:
    model = read_model(models.annotated(files={"extra.bin": b"x"}))
    ((notes, whole),) = cut(model)
    assert notes == metadata.read_annotations(model)
    assert sorted(notes.files) == ["extra.bin", "labels.txt", "window.txt"]
    assert metadata.read_labels(whole) == {"scores": ("still", "moving")}


def test_slices_with_files_run_and_are_the_same_each_time() -> None:
    model = read_model(models.annotated())
    values = {"c": np.random.default_rng(0).standard_normal((2, 8, 5)).astype(np.float32)}
    known = dict(values)
    for piece in slice_model(model, [1]):
        content = bytes(write_slice(model, piece))
        assert content == bytes(write_slice(read_model(models.annotated()), piece))
        known |= Interpreter(content).run({spec.name: known[spec.name] for spec in piece.inputs})
    assert known["scores"].tobytes() == Interpreter(models.annotated()).run(values)["scores"].tobytes()


def test_the_manifest_has_the_labels_where_its_readers_may_know_them() -> None:
    model = read_model(models.annotated())
    pieces = slice_model(model, [1])
    assert make_manifest(model, pieces, wire=3).labels == {"scores": ("still", "moving")}
    old = make_manifest(model, pieces, wire=1)
    assert (old.labels, old.version) == ({}, 1)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["one"], {}),
        (["a", "b", "c"], {}),
        (["same", "same"], {"scores": ("same 0", "same 1")}),
        (["", " b "], {"scores": ("class 0", "b")}),
    ],
)
def test_labels_are_one_a_class_and_each_its_own(labels: list[str], expected: dict[str, tuple[str, ...]]) -> None:
    assert metadata.read_labels(read_model(models.annotated(labels))) == expected


def test_a_table_that_shares_its_layout_changes_alone() -> None:
    """The builder gives tables with the same fields one layout; dropping a field of one must not touch the other."""
    data = models.metadata(["a.txt", "b.txt"], ["c.txt"])
    assert sides(metadata.keep_part(data, inputs=False, outputs=True)) == ([], ["c.txt"])
    assert sides(metadata.keep_part(data, inputs=True, outputs=False)) == (["a.txt", "b.txt"], [])
    assert sides(metadata.keep_part(data, inputs=False, outputs=False)) == ([], [])
    assert sides(metadata.keep_part(data, inputs=True, outputs=True)) == (["a.txt", "b.txt"], ["c.txt"])


def test_damage_is_said_and_left_out() -> None:
    content = models.annotated()
    start = content.index(models.metadata(["window.txt"], ["labels.txt"]))
    damaged = bytearray(content)
    struct.pack_into("<I", damaged, start, 2**31 - 1)
    model = read_model(bytes(damaged))
    notes = metadata.read_annotations(model)
    assert notes.metadata is None and notes.problem == "its metadata is damaged and left out"
    assert [one.metadata for one, _ in cut(model, 1)] == [None, None]
    end = content.rindex(b"PK\x05\x06")
    broken = content[: end + 12] + b"\xff\xff\xff\xff" + content[end + 16 :]  # the size of its directory
    notes = metadata.read_annotations(read_model(broken))
    assert notes.files == {} and notes.problem.startswith("the files behind it cannot be read and are left out (")


def test_more_than_may_be_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_FILES_BYTES", 100)
    notes = metadata.read_annotations(read_model(models.annotated(files={"large.bin": bytes(101)})))
    assert notes.files == {} and "are more than 64 or 100 bytes, and left out" in notes.problem


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_survived(data: st.DataObject) -> None:
    content = bytearray(models.metadata(["a.txt"], ["b.txt"]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    graph.output(graph.add(graph.add(x, x), x))
    draft.metadata("TFLITE_METADATA", bytes(content))
    model = read_model(draft.build())
    metadata.read_labels(model)
    for _, one in cut(model, 1):
        assert Interpreter(bytes(one.data)).inputs


def test_a_model_without_files_ends_where_it_ended() -> None:
    model = read_model(models.chain())
    (piece,) = slice_model(model, [])
    assert not zipfile.is_zipfile(io.BytesIO(write_slice(model, piece)))
