"""The folder of slices and its manifest."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import ConfigError, CutError, ModelError
from har_edge.tflite.folder import make_manifest, write_folder
from har_edge.tflite.manifest import ModelState, SliceManifest, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models


def _write(folder: Path, *cuts: int) -> SliceManifest:
    model = read_model(models.chain(dynamic=True))
    return write_folder(model, slice_model(model, cuts), folder)


def _hashes_hold(manifest: SliceManifest, folder: Path) -> bool:
    return all(
        hashlib.sha256((folder / entry.file).read_bytes()).hexdigest() == entry.sha256 for entry in manifest.slices
    )


@pytest.mark.parametrize(
    ("content", "cuts", "states"),
    [
        (models.recurrent(), [1, 2], ["tensors", "none", "tensors"]),
        (models.variable(apart=True), [1], ["none", "resources"]),
        (models.initialised(), [1], ["none", "resources"]),
        (models.loop(), [1], ["none", "none"]),
        (models.filled_once(), [], ["none"]),
        (models.remembering_branch(), [], ["resources"]),
    ],
)
def test_the_manifest_says_which_slices_remember(
    tmp_path: Path, content: bytes, cuts: list[int], states: list[str]
) -> None:
    model = read_model(content)
    manifest = write_folder(model, slice_model(model, cuts), tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert [entry.state.value for entry in manifest.slices] == states
    assert [entry.stateful for entry in manifest.slices] == [state != "none" for state in states]
    written = msgspec.json.decode((tmp_path / "manifest.json").read_bytes())["slices"]
    assert [entry.get("state", "none") for entry in written] == states


def test_a_manifest_from_before_states_still_loads(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    assert b"state" not in (tmp_path / "manifest.json").read_bytes()
    assert {entry.state for entry in load_manifest(tmp_path).slices} == {ModelState.NONE}


def test_manifest_says_what_the_folder_holds(tmp_path: Path) -> None:
    manifest = _write(tmp_path / "new" / "out", 1, 3)
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "slice-0.tflite",
        "slice-1.tflite",
        "slice-2.tflite",
    ]
    assert load_manifest(folder) == load_manifest(folder / "manifest.json") == manifest
    assert _hashes_hold(manifest, folder)
    assert manifest.model_sha256 == hashlib.sha256(models.chain(dynamic=True)).hexdigest()
    assert [(entry.start, entry.stop) for entry in manifest.slices] == [(0, 1), (1, 3), (3, 4)]
    first = msgspec.json.decode((folder / "manifest.json").read_bytes())["slices"][0]
    assert first["inputs"] == [{"name": "x", "shape": [-1, 6], "dtype": "float32"}]


def test_a_second_cut_replaces_the_first(tmp_path: Path) -> None:
    _write(tmp_path, 1, 2, 3)
    manifest = _write(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "slice-0.tflite", "slice-1.tflite"]
    assert _hashes_hold(manifest, tmp_path)


def test_what_an_interrupted_cut_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "slice-0.tflite").write_bytes(b"half")
    (tmp_path / "slice-7.tflite").write_bytes(b"stale")
    (tmp_path / "slice-1.tflite.part").write_bytes(b"less")
    (tmp_path / ".slice-1.tflite.0123abcd.part").write_bytes(b"less")
    assert _hashes_hold(_write(tmp_path, 1), tmp_path)
    (tmp_path / ".manifest.json.0123abcd.part").write_bytes(b"le")
    assert _hashes_hold(_write(tmp_path, 1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "slice-0.tflite", "slice-1.tflite"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("months of work")
    with pytest.raises(ConfigError, match="is not empty and holds no manifest of slices, so nothing is written"):
        _write(tmp_path, 1)
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        _write(tmp_path / "thesis.txt", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_malformed_manifests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(ModelError, match="make it with 'har-edge slice'"):
        load_manifest(tmp_path / "none.json")
    good = _write(tmp_path, 1)
    model = read_model(models.chain(dynamic=True))
    numbered = make_manifest(model, slice_model(model, [1]), wire=3)
    bad = {
        b"{": "is no manifest of slices",
        msgspec.json.encode({**msgspec.to_builtins(good), "extra": 1}): "unknown field `extra`",
        msgspec.json.encode({**msgspec.to_builtins(good), "version": 5}): "has version 5, expected 1, 2, 3, 4; cut",
        msgspec.json.encode({**msgspec.to_builtins(good), "wire": 4}): "messages of wire version 4, expected at most 3",
        msgspec.json.encode({**msgspec.to_builtins(good), "wire": 0}): "Expected `int` >= 1",
        msgspec.json.encode(numbered).replace(b'"id":3', b'"id":0'): "the id 0 to 'x' and 't3', expected it once",
        msgspec.json.encode(numbered).replace(b'"id":3', b'"id":9', 1): "gives tensor 't3' the ids 9 and 3, expected",
        msgspec.json.encode(numbered).replace(b'"id":3', b'"id":4294967296'): "Expected `int` <= 4294967295",
        msgspec.json.encode(good).replace(b"slice-0", b"slice\\u0000"): "expected a plain file name in the same folder",
        msgspec.json.encode(good).replace(b"slice-0", b"../slice-0"): "expected a plain file name in the same folder",
        msgspec.json.encode(good).replace(
            b"slice-0", rb"slice\u0000-0"
        ): "expected a plain file name in the same folder",
    }
    first, last = msgspec.to_builtins(good)["slices"]
    for slices, text in (
        ([{**first, "start": -5}, last], "Expected `int` >= 0"),
        ([first, {**last, "stop": 2**70}], "Integer value out of range|Expected `int`"),
        ([], "names no slice, expected one or more"),
        ([first, first], r"gives slice 1 the operators \[0, 1\), expected some from 1 on; cut the model again"),
        ([first, {**last, "stop": last["start"]}], r"gives slice 1 the operators \[1, 1\), expected some from 1 on"),
    ):
        bad[json.dumps({**msgspec.to_builtins(good), "slices": slices}).encode()] = text
    for content, text in bad.items():
        path.write_bytes(content)
        with pytest.raises(ModelError, match=text):
            load_manifest(path)


def test_short_ids_are_the_same_in_every_slice_and_every_cut(tmp_path: Path) -> None:
    model = read_model(models.skip())
    for cuts in ([1], [2], [1, 2, 3]):
        manifest = write_folder(model, slice_model(model, cuts), tmp_path / str(cuts), wire=3)
        assert load_manifest(tmp_path / str(cuts)) == manifest
        assert (manifest.version, manifest.wire) == (2, 3)
        names = {tensor.index: tensor.name for tensor in model.main.tensors}
        assert {number: name for name, number in manifest.ids.items()}.items() <= names.items()
        assert {spec.name for spec in manifest.tensors} == manifest.ids.keys()


def test_a_manifest_without_news_is_as_it_always_was(tmp_path: Path) -> None:
    model = read_model(models.chain())
    for wire in (None, 1):
        manifest = write_folder(model, slice_model(model, [2]), tmp_path, wire=wire)
        assert (manifest.version, manifest.wire, manifest.ids) == (1, 1, {})
        written = msgspec.json.decode((tmp_path / "manifest.json").read_bytes())
        assert set(written) == {"version", "model", "model_sha256", "slices"}
        assert set(written["slices"][0]["inputs"][0]) == {"name", "shape", "dtype"}


def test_what_version_1_cannot_carry_gets_version_3() -> None:
    long, wide = read_model(models.long_names(1025)), read_model(models.fan(65))
    for model, text in ((long, "has 1025 characters, and a message of"), (wide, "65 tensors leave slice 0, and a mes")):
        slices = slice_model(model, [len(model.main.operators) // 2])
        manifest = make_manifest(model, slices)
        assert (manifest.version, manifest.wire) == (2, 3) and manifest.ids
        with pytest.raises(CutError, match=f"wire version 1 came, but .*{text}.*; expected wire version 3"):
            make_manifest(model, slices, wire=1)
    for model in (read_model(models.long_names(1024)), read_model(models.fan(64))):
        assert make_manifest(model, slice_model(model, [len(model.main.operators) // 2])).wire == 1


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Let every write beyond so many bytes fail, without a file's name, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_leaves_no_new_folder_and_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(ConfigError) as caught, files_of_at_most(100):
        _write(folder, 1)
    assert str(caught.value) == f"cannot write {folder / 'slice-0.tflite'}: File too large; give another --out"
    assert not folder.exists()


def test_a_disk_that_is_full_leaves_a_folder_that_was_there(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"slice-0\.tflite: File too large"), files_of_at_most(100):
        _write(tmp_path, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
