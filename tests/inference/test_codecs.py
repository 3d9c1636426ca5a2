"""Files of fitted reducers: nothing is loaded before its hash is right, and nothing large or malformed after it."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import ConfigError, MessageError, ModelError
from har_edge.inference import codecs
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from tests.tflite import models


def put(folder: Path, name: str, content: bytes) -> FolderFiles:
    """Write a file; return the files that know its hash."""
    (folder / name).write_bytes(content)
    return FolderFiles(folder, {name: hashlib.sha256(content).hexdigest()})


def packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    mean, levels = np.linspace(0, 1, 7, dtype=np.float32), np.arange(6, dtype=np.int8).reshape(2, 3)
    arrays = put(tmp_path, "pca.npz", packed(mean=mean, levels=levels)).arrays("pca.npz")
    assert sorted(arrays) == ["levels", "mean"]
    assert arrays["mean"].tobytes() == mean.tobytes() and np.array_equal(arrays["levels"], levels)


def test_a_model_runs_one_window_as_the_interpreter_does(tmp_path: Path) -> None:
    content = models.chain(dynamic=True)
    codec = put(tmp_path, "encoder.tflite", content).model("encoder.tflite")
    assert (codec.input_shape, codec.input_dtype, codec.input_scale, codec.input_zero) == ((6,), "float32", 0.0, 0)
    assert (codec.output_shape, codec.output_dtype) == ((3,), "float32")
    whole = Interpreter(content)
    value = np.random.default_rng(1).normal(size=6).astype(np.float32)
    expected = whole.run({whole.inputs[0].name: value[None]})[whole.outputs[0].name][0]
    assert codec.run(value).tobytes() == expected.tobytes()
    assert codec.operations == 8 * 13 + 5 * 17 + 7 * 11 + 3 * 15
    with pytest.raises(MessageError, match=re.escape("has shape [1, 7], expected [-1, 6]")):
        codec.run(np.zeros(7, np.float32))


def test_a_quantised_model_says_its_scales(tmp_path: Path) -> None:
    codec = put(tmp_path, "q.tflite", models.quantised()).model("q.tflite")
    assert (codec.input_shape, codec.input_dtype, codec.input_zero) == ((6, 6, 3), "int8", -1)
    assert codec.input_scale == pytest.approx(0.05) and codec.output_scale == pytest.approx(0.1)
    assert (codec.output_shape, codec.output_dtype, codec.output_zero) == ((6, 6, 4), "int8", 3)


def test_other_bytes_than_the_hash_says_are_never_loaded(tmp_path: Path) -> None:
    for name, load in (("a.npz", "arrays"), ("a.tflite", "model")):
        files = put(tmp_path, name, packed(x=np.zeros(3)))
        (tmp_path / name).write_bytes(b"other")
        found = hashlib.sha256(b"other").hexdigest()
        with pytest.raises(
            ModelError, match=rf"{re.escape(name)} has sha256 {found}, expected [0-9a-f]{{64}}; the fil"
        ):
            getattr(files, load)(name)


def test_a_file_without_a_hash_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path, {"b.npz": "0" * 64})
    for name in ("a.npz", "../b.npz", str(tmp_path / "b.npz")):
        with pytest.raises(ConfigError, match=r"whose hash is not known here; expected one of: b.npz; put it beside"):
            files.arrays(name)
    with pytest.raises(ModelError, match=r"cannot read .*b.npz: No such file or directory; a fitted reducer's"):
        files.arrays("b.npz")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(2_000_000))
    monkeypatch.setattr(codecs, "MAX_ARRAYS_BYTES", 1_000_000)
    files = put(tmp_path, "bomb.npz", content.getvalue())
    with pytest.raises(ModelError, match="arrays of 2000000 bytes, expected at most 1000000"):
        files.arrays("bomb.npz")
    monkeypatch.setattr(codecs, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelError, match="bytes, expected at most 1000"):
        files.arrays("bomb.npz")


MALFORMED = {
    "text": b"hello",
    "empty": b"",
    "objects": packed(x=np.array([{}], dtype=object)),
    "truncated": packed(x=np.zeros(100))[:-40],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_arrays_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ModelError, match=r"no arrays as .npz: .*; fit the reducer again"):
        put(tmp_path, "a.npz", MALFORMED[case]).arrays("a.npz")


def test_models_with_other_ports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 inputs and 3 outputs; an encoder or decoder has one of each"):
        put(tmp_path, "many.tflite", models.many_ports()).model("many.tflite")
    with pytest.raises(ModelError, match=r"expected b'TFL3'; give a .tflite file"):
        put(tmp_path, "text.tflite", b"hello").model("text.tflite")


def test_litert_is_loaded_for_models_only(tmp_path: Path) -> None:
    files = put(tmp_path, "a.npz", packed(x=np.zeros(3)))
    code = f"""
import sys
from pathlib import Path
from har_edge.inference.codecs import FolderFiles
import har_edge.inference.input_adapter, har_edge.runtime.build
FolderFiles(Path({str(tmp_path)!r}), {files._hashes!r}).arrays("a.npz")
print([name for name in ("ai_edge_litert", "tflite_runtime", "flatbuffers") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
