"""The slices of a folder against the whole model, on the runtime that will run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.slice_check import SHARD_ERROR, check_slices
from har_edge.tflite.folder import write_folder
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from har_edge.tflite.split.folder import write_split
from tests.tflite import models
from tests.tflite.split.compare import lay_out, rows, whole
from tests.tflite.split.layers import Layers


@pytest.fixture
def cut(tmp_path: Path) -> tuple[Path, Path]:
    path, folder = tmp_path / "model.tflite", tmp_path / "slices"
    path.write_bytes(models.chain(dynamic=True))
    model = read_model(path)
    write_folder(model, slice_model(model, [1]), folder)
    return path, folder


def test_the_runtime_says_whether_it_delegates() -> None:
    content, value = models.chain(), np.full((1, 6), 0.5, np.float32)
    plain, quick = Interpreter(content, delegate=Delegate.NONE), Interpreter(content)
    assert (plain.delegate, quick.delegate) == (Delegate.NONE, Delegate.XNNPACK)
    (one,), (other,) = plain.run({"x": value}).values(), quick.run({"x": value}).values()
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("delegate", [None, "none", "xnnpack"])
def test_slices_that_were_cut_are_equal(cut: tuple[Path, Path], delegate: str | None) -> None:
    proof = check_slices(*cut, delegate=delegate)
    assert (proof.slices, proof.runs, proof.difference) == (2, 6, None)
    assert proof.delegate is (Delegate.NONE if delegate == "none" else Delegate.XNNPACK)


def test_one_other_weight_is_found(cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = cut
    real = Interpreter.run

    def run(self: Interpreter, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = real(self, values)
        if [port.name for port in self.inputs] != ["x"]:  # the second slice
            results = {name: np.nextafter(value, np.float32(np.inf)) for name, value in results.items()}
        return results

    monkeypatch.setattr(Interpreter, "run", run)
    difference = check_slices(path, folder).difference
    assert difference is not None
    assert difference.startswith("output ")
    assert "elements differ, by " in difference


def test_the_folder_of_another_model_is_refused(cut: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(models.skip())
    with pytest.raises(ModelError, match=r"holds slices of a model with sha256 .* expected the model that was cut"):
        check_slices(other, cut[1])
    with pytest.raises(ModelError, match="cannot read model"):
        check_slices(tmp_path / "none.tflite", cut[1])


def test_a_slice_that_was_changed_is_refused(cut: tuple[Path, Path]) -> None:
    path, folder = cut
    piece = sorted(folder.glob("*.tflite"))[0]
    piece.write_bytes(piece.read_bytes() + b"x")
    with pytest.raises(ModelError, match="was expected; the file was changed"):
        check_slices(path, folder)


def test_the_command_needs_no_schema(cut: tuple[Path, Path]) -> None:
    path, folder = cut
    script = (
        "import sys\nsys.modules['ai_edge_litert.schema_py_generated'] = None\n"
        "from har_edge.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    asked = ["slice", str(path), "--check", "--slices", str(folder), "--delegate", "none"]
    ended = subprocess.run([sys.executable, "-c", script, *asked], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "check: 2 slices compared with the whole model in 6 runs: equal, bit for bit" in ended.stdout
    assert "delegate of the whole: none" in ended.stdout


def test_a_folder_goes_with_a_check_alone(cut: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = cut
    assert main(["slice", str(path), "--list", "--slices", str(folder)]) == 2
    assert "--slices proves the slices of a folder: it goes with --check" in capsys.readouterr().err


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Path]:
    """Three shards of a model of floats, split by rows."""
    model = Layers(0, (1, 12, 6, 3))
    content = model.build(model.scores(model.conv(model.conv(model.x, 4), 4)))
    path, folder = tmp_path / "model.tflite", tmp_path / "shards"
    path.write_bytes(content)
    write_split(lay_out(content, rows(0, 1, 0, 4, 8, 12), rows(1, 2, 0, 3, 6, 12), whole(2, 3, 3)), folder)
    return path, folder


def test_shards_are_compared_with_the_whole(
    shards: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = check_slices(*shards)
    assert (proof.slices, proof.runs, proof.difference) == (3, 3, None)
    assert 0 <= proof.error <= SHARD_ERROR
    assert main(["slice", str(shards[0]), "--check", "--slices", str(shards[1])]) == 0
    assert "3 slices compared with the whole model in 3 runs" in capsys.readouterr().out
    real, change = Interpreter.run, [1e-7]

    def run(self: Interpreter, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = real(self, values)
        if [port.name for port in self.outputs] == ["t3"]:  # rows of the first layer
            results = {name: value + np.float32(change[0]) for name, value in results.items()}
        return results

    monkeypatch.setattr(Interpreter, "run", run)
    rounded = check_slices(*shards)
    assert rounded.difference is None and 0 < rounded.error <= SHARD_ERROR
    main(["slice", str(shards[0]), "--check", "--slices", str(shards[1])])
    assert "integers equal, floats within " in capsys.readouterr().out
    change[0] = 0.01
    difference = check_slices(*shards).difference
    assert difference is not None and "elements differ, by " in difference


def test_a_shard_with_another_hash_is_refused(shards: tuple[Path, Path]) -> None:
    (shards[1] / "slice-0.tflite").write_bytes(b"\0\0\0\0TFL3 other")
    with pytest.raises(ModelError, match="was expected"):
        check_slices(*shards)
