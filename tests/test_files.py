"""Files that people name: only a regular one of bounded size is read, and none makes a command wait or fall."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from har_edge import files
from har_edge.config.catalog import load_catalog
from har_edge.config.pipeline import load_pipeline
from har_edge.data.description import load_description
from har_edge.emulation.limits import UNLIMITED, read_layout
from har_edge.errors import ConfigError, HarEdgeError, ModelError
from har_edge.inference.interpreter import load_slice
from har_edge.planner.devices import load_devices
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.manifest import DTYPES, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.schema import DTYPES as MODEL_DTYPES

MANIFEST = (
    '{"version":1,"model":"m","model_sha256":"","slices":[{"file":"s","sha256":"","start":0,"stop":1,'
    '"inputs":[{"name":"x","shape":[1],"dtype":"quux"}],"outputs":[]}]}'
)
READERS: list[Callable[[Path], object]] = [
    load_pipeline,
    load_manifest,
    load_catalog,
    load_devices,
    read_model,
    lambda path: load_slice(path, "0"),
    lambda path: read_layout(path, UNLIMITED),
]


def named(tmp_path: Path, what: str) -> Path:
    """Make something that is no regular file; return its name."""
    path = tmp_path / "named"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        (path / "manifest.json").mkdir(parents=True)
        (path / "pipeline.toml").mkdir()
    return {"null": tmp_path / "a\0b", "long": tmp_path / ("a" * 300)}.get(what, path)


@pytest.mark.parametrize("what", ["fifo", "device", "null", "long", "folder", "missing"])
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, what: str, read: Callable[[Path], object]) -> None:
    with pytest.raises((ConfigError, ModelError), match="cannot read"):
        read(named(tmp_path, what))


def test_a_pipeline_file_that_is_a_fifo_is_not_called_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipeline.toml")
    (tmp_path / "manifest.json").write_text(MANIFEST)
    with pytest.raises(ConfigError, match=r"it is a FIFO, .*; name the file, or the folder, that"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("what", ["fifo", "device"])
def test_a_store_holds_no_fifo_and_no_device(tmp_path: Path, what: str) -> None:
    store, sha256 = Store(tmp_path / "store"), "0" * 64
    place = store._place(sha256)
    place.parent.mkdir(parents=True)
    named(tmp_path, what).rename(place)
    assert store.has(sha256) is False


def test_a_file_is_read_whole_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    assert files.read_regular(path, 1000) == b"x" * 1000
    with pytest.raises(OSError, match="it has 1000 bytes, expected at most 999"):
        files.read_regular(path, 999)
    # Files of /proc have no size, but content.
    assert files.read_regular(Path("/proc/self/status"), 100_000).startswith(b"Name:")
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        files.read_regular(Path("/proc/self/status"), 10)


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "epoch = " + "9" * 5000])
@pytest.mark.parametrize(
    "read", [load_pipeline, load_devices, load_description, lambda path: read_layout(path, UNLIMITED)]
)
def test_toml_that_the_parser_cannot_take_is_refused(tmp_path: Path, text: str, read: Callable[[Path], object]) -> None:
    (tmp_path / "file.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "file.toml"))):
        read(tmp_path / "file.toml")


@pytest.mark.parametrize("slices", ["\\u0000", "a" * 300])
def test_slices_that_no_folder_can_be_named_are_refused(tmp_path: Path, slices: str) -> None:
    (tmp_path / "pipeline.toml").write_text(
        f'slices = "{slices}"\n[task]\noutput = "y"\nlabels = ["a"]\nlabel_ids = [1]\n'
        '[task.stream]\ndescription = "mhealth"\nrate_hz = 50.0\nlength = 128\nhop = 64\n'
        '[task.inputs.chest]\ntensor = "x"\n'
    )
    with pytest.raises(ModelError, match=r"cannot read .*(name|long)"):
        load_pipeline(tmp_path)


def test_a_manifest_has_types_that_messages_have(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(MANIFEST)
    with pytest.raises(ModelError, match="gives tensor 'x' the type 'quux', expected one of float32, "):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(MANIFEST.replace("quux", "float32"))
    assert load_manifest(tmp_path).slices[0].inputs[0].dtype == "float32"
    assert {*DTYPES} == {*MODEL_DTYPES.values()}


@pytest.mark.parametrize("text", ['{"q":' + "[" * 100_000, "[" * 100_000])
@pytest.mark.parametrize("read", [load_manifest, load_catalog])
def test_a_manifest_that_is_nested_too_deep_is_refused(
    tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(HarEdgeError, match="is no manifest of"):
        read(tmp_path)


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    files.write_atomic(path, b"old")
    assert path.read_bytes() == b"old" and stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with files.replacing(path, 0o600) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.write_atomic(tmp_path / "file" / "below", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_atomic(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
