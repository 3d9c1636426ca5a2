"""`har-edge train --task anomaly` from the outside, on small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.anomaly import read_anomaly_note
from har_edge.data.pictures import AspectRule
from har_edge.tflite.model import read_model
from tests.learning.anomaly_pictures import stripes, with_spot


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return pictures of two classes: stripes, and stripes with a black square."""
    train, test = stripes(40), stripes(20, seed=1)
    path = tmp_path / "pictures.npz"
    np.savez(
        path,
        x_train=np.concatenate([train, with_spot(train[:5])]),
        y_train=np.array([0] * 40 + [1] * 5),
        x_test=np.concatenate([test[:10], with_spot(test[10:])]),
        y_test=np.array([0] * 10 + [1] * 10),
        classes=np.array(["striped", "spotted"]),
        real=False,
    )
    return path


def test_it_writes_a_detector_and_its_figures(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--normal", "striped", "--epochs", "12", "--filters", "4", "--code", "3", "--quantile", "0.9"]
    optimizer = ["--optimizer", "adam:lr=0.005", "--batch", "8", "--run-name", "lines"]
    assert main(["train", "--task", "anomaly", "--data", str(labelled), "--out", str(out), *words, *optimizer]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "pictures, class striped (synthetic): 40 normal pictures, 20 test pictures, 10 of them anomalous"
    )
    report = json.loads((out / "lines.json").read_text())
    note = read_anomaly_note(read_model(out / "lines.tflite"))
    assert note is not None
    assert (note.method, note.held_out, note.fit, note.real) == ("autoencoder", 8, AspectRule.STRETCH, False)
    assert note.threshold == pytest.approx(report["threshold"])
    assert (report["method"], report["normal_pictures"], report["held_out"]) == ("autoencoder", 32, 8)
    assert report["test"]["image_auroc"] > 0.95
    assert f"image AUROC {report['test']['image_auroc']:.4f} on 20 test pictures (synthetic)" in lines
    assert f"chosen: autoencoder; threshold {note.threshold:.4g}, quantile 0.9 of 8 held-out normal scores" in lines
    assert sorted(file.suffix for file in (out / "lines-worst").iterdir()) == [".png"] * 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--task anomaly needs --data PATH"),
        (["--data", "{data}", "--normal", "dotted"], "'dotted' came as the normal one"),
        (
            ["--data", "{data}", "--normal", "striped", "--method", "padim"],
            "--method padim needs --features FILE.tflite",
        ),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "{data}", "--normal", "striped", "--int8"], "--int8, --deploy int8 or --own-data came"),
        (["--data", "{data}", "--normal", "striped", "--method", "padim", "--features", "none"], "cannot read model"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("{data}", str(labelled)) for word in words]
    assert main(["train", "--task", "anomaly", "--out", str(tmp_path / "out"), *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
