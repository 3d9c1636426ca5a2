"""Names and paths to models; every way a manifest can be wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from har_edge.config.catalog import Catalog, LosoScore, find_model, load_catalog, merge_catalog, store_catalog
from har_edge.errors import ModelError
from har_edge.resources import find_folder

SHIPPED = find_folder("models")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped models in a folder of their own."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "models"))


def test_a_catalog_survives_writing(folder: Path) -> None:
    catalog = load_catalog(folder)
    before = (folder / "manifest.json").read_bytes()
    assert store_catalog(catalog, folder) == folder / "manifest.json"
    assert (folder / "manifest.json").read_bytes() == before


def test_entries_of_a_name_are_replaced_and_others_stay(folder: Path) -> None:
    known = load_catalog(folder).models
    loso = LosoScore("loso", 8, [0, 1], 0.9658, 0.0318, 0.9617, 120.5, "har-edge evaluate --protocol loso")
    newer = msgspec.structs.replace(known[1], seed=7, loso=loso)
    other = msgspec.structs.replace(known[0], name="another")
    merged = merge_catalog(folder, [other, newer])
    assert merged.models == [known[0], newer, *known[2:], other]
    store_catalog(merged, folder)
    assert load_catalog(folder) == merged
    assert merge_catalog(folder / "none", [newer]).models == [newer]


def test_a_name_and_a_path_lead_to_the_same_entry(folder: Path) -> None:
    named = find_model("int8")
    assert named.entry is not None
    assert named.path == SHIPPED / "har-int8.tflite"
    by_path = find_model(str(folder / "har-int8.tflite"))
    assert by_path.path == folder / "har-int8.tflite"
    assert (by_path.entry, by_path.sha256) == (named.entry, named.sha256)


def test_a_copy_is_known_by_its_hash_and_a_stranger_is_not(tmp_path: Path) -> None:
    copy = tmp_path / "mine.tflite"
    shutil.copy(SHIPPED / "har-float.tflite", copy)
    found = find_model(str(copy))
    assert found.entry is not None
    assert found.entry.name == "float"
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert find_model(str(copy)).entry is None


def test_the_manifest_of_slices_beside_a_model_is_not_taken_for_a_catalog(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "har-float.tflite", tmp_path / "slice-0.tflite")
    (tmp_path / "manifest.json").write_text('{"version": 1, "model": "x", "model_sha256": "", "slices": []}')
    found = find_model(str(tmp_path / "slice-0.tflite"))
    assert found.entry is not None
    assert found.entry.name == "float"


def test_an_unknown_name_lists_the_known_ones() -> None:
    message = "no model 'int4': expected one of float, int8, float-split, int8-split, bottleneck, "
    with pytest.raises(ModelError, match=re.escape(message)):
        find_model("int4")


def test_changed_or_missing_files_are_refused(folder: Path) -> None:
    (folder / "har-int8.tflite").write_bytes(b"other")
    with pytest.raises(
        ModelError, match=r"model int8: .* has sha256 \w{64}, expected \w{64}; restore the file, or make it"
    ):
        find_model("int8", folder)
    (folder / "har-int8.tflite").unlink()
    with pytest.raises(
        ModelError, match=r"model int8: .*har-int8.tflite is missing; make it again with: har-edge train"
    ):
        find_model("int8", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no manifest of models: Input data was truncated"),
        ('{"version": 1, "models": [], "more": 1}', "contains unknown field `more`"),
        ('{"version": 2, "models": []}', "has version 2, expected 1; make it with 'har-edge train'"),
        ("\xff", "is no manifest of models"),
    ],
)
def test_malformed_manifests_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=re.escape(message)):
        load_catalog(tmp_path)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*manifest.json: No such file .*; make it with 'har-edge train"):
        load_catalog(tmp_path)


@pytest.mark.parametrize("file", ["../har.tflite", "", "/tmp/har.tflite"])
def test_files_outside_the_folder_are_refused(folder: Path, file: str) -> None:
    catalog = load_catalog(folder)
    moved = msgspec.structs.replace(catalog.models[0], file=file)
    store_catalog(Catalog(1, [moved]), folder)
    with pytest.raises(ModelError, match=re.escape(f"names the file {file!r}, expected one beside the manifest")):
        load_catalog(folder)
