"""`har-edge train` from the outside, on synthetic data."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import find_model, load_catalog

FANS = """
name = "fans"
rate_hz = 10.0
labels = ["calm", "worn"]
[files]
label = "state"
[[sources]]
name = "motor"
columns = ["shake", "sway"]
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data."""
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_tensorflow_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["train", "--out", "models"]) == 2
    assert (
        "error: training needs TensorFlow, which is not installed; pip install 'har-edge[training]'"
        in capsys.readouterr().err
    )


@pytest.mark.training
def test_it_writes_models_that_evaluate_knows(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    pytest.importorskip("tensorflow")
    split = ["--train-subjects", "1", "--test-subjects", "2", "--split-only", "--epochs", "1"]
    assert main(["train", "--out", "deep/models", *split]) == 0
    said = capsys.readouterr()
    assert "using synthetic data" in said.err
    lines = said.out.splitlines()
    assert lines[:2] == ["synthetic data: subject1, subject2", "training on subject1"]
    assert any(line.startswith("int8, tested on subject2: accuracy") for line in lines)
    catalog = load_catalog(nowhere / "deep/models")
    assert [entry.name for entry in catalog.models] == ["float-split", "int8-split"]
    assert catalog.models[0].command == (
        "har-edge train --out models --train-subjects subject1 --test-subjects subject2 --seed 0 --epochs 1"
        " --split-only"
    )
    assert not catalog.models[0].real
    found = find_model("deep/models/har-int8-split.tflite")
    assert found.entry == catalog.models[1]
    assert main(["evaluate", "--model", "deep/models/har-int8-split.tflite", "--subjects", "2"]) == 0


@pytest.mark.training
def test_codes_of_another_data_set(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    pytest.importorskip("tensorflow")
    (nowhere / "fans.toml").write_text(FANS)
    random = np.random.default_rng(0)
    for fan in ("left", "middle", "right"):
        rows = np.arange(600)
        level = random.normal(0, 1 + 3 * (rows >= 300))
        lines = (f"{value:.3f},{9.8 - value:.3f},{row // 300}" for row, value in zip(rows, level, strict=True))
        (nowhere / f"{fan}.csv").write_text("\n".join(["shake,sway,state", *lines]))
    options = ["--stream", "fans.toml", "--data", ".", "--split-only", "--epochs", "1"]
    assert main(["train", "--out", "models", *options, "--reducer", "bottleneck:1"]) == 0
    said = capsys.readouterr().out
    assert "training on left, middle\n" in said
    assert "bottleneck, tested on right: accuracy" in said
    assert main(["train", "--out", "models", *options, "--reducer", "stats"]) == 0
    catalog = load_catalog(nowhere / "models")
    assert [entry.name for entry in catalog.models] == ["bottleneck-split", "stats-split"]
    first = catalog.models[0]
    assert first.file == "fans-bottleneck-split.tflite"
    assert first.task.inputs["motor"].reducer == "bottleneck:fans-bottleneck-split-motor.tflite"
    assert list(first.task.files) == ["fans-bottleneck-split-motor.tflite"]
    for name, sha256 in first.task.files.items():
        assert hashlib.sha256((nowhere / "models" / name).read_bytes()).hexdigest() == sha256
    assert first.task.stream.description == "fans.toml"
    assert (nowhere / "models/fans.toml").read_text() == FANS
    assert (
        "--stream fans.toml --train-subjects left,middle --test-subjects right --reducer bottleneck:1" in first.command
    )


@pytest.mark.training
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "float"], "--precision and --downstream say what to train for a --reducer; name one"),
        (["--train-subjects", "1-3", "--test-subjects", "3"], "subject3 named twice; a stream is for training or for"),
    ],
)
def test_senseless_options_are_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    pytest.importorskip("tensorflow")
    assert main(["train", "--out", "models", *options]) == 2
    assert message in capsys.readouterr().err
