"""`har-edge evaluate` from the outside, on synthetic data."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.cli.reports.evaluation import _classes
from har_edge.config.catalog import find_model
from har_edge.evaluation import prediction
from har_edge.evaluation.report import ClassRow
from har_edge.resources import find_folder
from har_edge.tflite.folder import write_folder
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data."""
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*options: str) -> int:
    return main(["evaluate", "--subjects", "7", *options])


def test_it_says_what_the_figures_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate() == 0
    said = capsys.readouterr()
    assert "using synthetic data; get the real ones with: har-edge data fetch" in said.err
    sha256 = find_model("bottleneck").sha256
    assert said.out.startswith(
        f"model      bottleneck (sha256 {sha256[:12]})\ndata       synthetic data\nwindows    132 of one"
    )
    assert "on synthetic data: says nothing about people" in said.out
    assert "jump front and back" in said.out


def test_slices_are_scored_too(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    found = find_model("float")
    model = read_model(found.path)
    write_folder(model, slice_model(model, [5, 10]), nowhere / "slices")
    for options in (["--slices", "slices"], ["--at", "5,10"], ["--stages", "3"]):
        assert evaluate("--model", "float", *options, "--json", "figures.json") == 0
        assert "slices: 143 outputs, all identical to those of the whole model" in capsys.readouterr().out
        content = msgspec.json.decode((nowhere / "figures.json").read_bytes())
        assert content["agreement"]["slices"] == {
            "identical": True,
            "equal": 143,
            "different": 0,
            "missing": 0,
            "extra": 0,
        }


def test_slices_that_differ_are_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = prediction.Classifier.predict
    calls: list[int] = []

    def lying(self: prediction.Classifier, window: prediction.Window, *rest: object) -> prediction.Prediction:
        answer = run(self, window)
        calls.append(window.seq)
        if len(calls) == 143 + 5:  # the fifth window of the second pass, that of the slices
            answer.scores[0] ^= 1
        return answer

    monkeypatch.setattr(prediction.Classifier, "predict", lying)
    assert evaluate("--at", "3") == 1
    assert "slices: DIFFERS from the whole model: 142 identical, 1 different, 0 missing" in capsys.readouterr().out


def test_a_model_without_entry_is_refused(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    stranger = nowhere / "stranger.tflite"
    stranger.write_bytes((find_folder("models") / "har-int8.tflite").read_bytes() + b"\0")
    assert evaluate("--model", "stranger.tflite") == 2
    error = capsys.readouterr().err
    assert "stranger.tflite: no manifest says which windows this model takes" in error
    assert "name the stream with --stream" in error and "--labels" in error and "--input NAME=SOURCE" in error


def stranger(folder: Path, labels: list[str] | None = None) -> Path:
    """Return a shipped model as a file that no manifest knows, with labels in a zip behind it where they are given."""
    path = folder / "stranger.tflite"
    path.write_bytes((find_folder("models") / "har-float.tflite").read_bytes() + b"\0\0\0\0")
    if labels is not None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("labels.txt", "\n".join(labels))
    return path


def test_a_model_without_manifest_is_measured_with_what_flags_say(
    capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    """All is found by the shapes: three inputs, of which two look alike and are told apart by their names."""
    stranger(nowhere)
    assert evaluate("--model", "stranger.tflite", "--stream", "mhealth", "--subjects", "7", "--json", "o.json") == 0
    said = capsys.readouterr().out
    figures = msgspec.json.decode((nowhere / "o.json").read_bytes())
    assert evaluate("--model", "float", "--subjects", "7", "--json", "known.json") == 0
    known = msgspec.json.decode((nowhere / "known.json").read_bytes())
    assert figures["accuracy"] == known["accuracy"] and figures["confusion"] == known["confusion"]
    assert (figures["trained_on"], figures["split"], figures["seen"]) == (None, None, [])
    assert known["trained_on"] and "trained on" not in said.replace("on synthetic data", "")


def test_labels_come_from_the_file_of_the_model_or_a_flag(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    found = find_model("float")
    assert found.entry is not None
    labels = found.entry.task.labels
    stranger(nowhere, labels[::-1])
    assert evaluate("--model", "stranger.tflite", "--stream", "mhealth", "--subjects", "7", "--json", "o.json") == 0
    assert msgspec.json.decode((nowhere / "o.json").read_bytes())["labels"] == labels[::-1]
    (nowhere / "mine.txt").write_text("\n".join(labels) + "\n\n")
    command = ("--model", "stranger.tflite", "--stream", "mhealth", "--subjects", "7", "--labels", "mine.txt")
    assert evaluate(*command, "--json", "p.json") == 0
    assert msgspec.json.decode((nowhere / "p.json").read_bytes())["labels"] == labels
    capsys.readouterr()
    (nowhere / "mine.txt").write_text("\n".join(labels[:11]))
    assert evaluate(*command) == 2
    assert "11 labels came for 12 scores" in capsys.readouterr().err
    (nowhere / "mine.txt").write_text("\n".join([*labels[:11], "dancing"]))
    assert evaluate(*command) == 2
    assert "the classes dancing are no labels of stream mhealth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "float", "--labels", "x"], "--labels came, but a manifest says what float is for"),
        (["--model", "stranger.tflite", "--stream", "mhealth", "--input", "x=chest"], "--input names 'x'; expected an"),
        (["--model", "stranger.tflite", "--stream", "mhealth", "--input", "chest=leg"], "has no source 'leg'"),
        (
            ["--model", "stranger.tflite", "--stream", "mhealth", "--top-k", "13"],
            "--top-k 13 came; expected at",
        ),
        (["--model", "stranger.tflite", "--stream", "mhealth", "--labels", "none"], "cannot read the labels none"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], nowhere: Path, options: list[str], text: str
) -> None:
    stranger(nowhere)
    assert evaluate(*options) == 2
    assert text in capsys.readouterr().err


def test_nothing_scored_is_no_accuracy(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    (nowhere / "one.toml").write_text(
        'name = "one"\nrate_hz = 50.0\n[files]\n[[sources]]\nname = "all"\ncolumns = ["a", "b", "c", "d", "e"]\n'
    )
    (nowhere / "data").mkdir()
    (nowhere / "data" / "anna.csv").write_text("a,b,c,d,e\n" + "0.5,1.5,2.5,3.5,4.5\n" * 100)
    (nowhere / "m.tflite").write_bytes(models.laid_out([-1, models.LENGTH, models.CHANNELS]))
    (nowhere / "l.txt").write_text("still\nmoving\n")
    command = ("--model", "m.tflite", "--stream", "one.toml", "--data", "data", "--json", "o.json", "--labels", "l.txt")
    code = main(["evaluate", *command])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "accuracy   none: no window has one known activity, so nothing was scored" in said.out
    windows = (100 - models.LENGTH) // (models.LENGTH // 2) + 1
    figures = msgspec.json.decode((nowhere / "o.json").read_bytes())
    assert (figures["accuracy"], figures["macro_f1"], figures["windows"], figures["mixed"]) == (None, None, 0, windows)


def test_slices_of_another_model_are_refused(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    model = read_model(find_model("float").path)
    write_folder(model, slice_model(model, [5]), nowhere / "slices")
    assert evaluate("--model", "int8", "--slices", "slices") == 2
    assert "slices holds slices of a model with sha256" in capsys.readouterr().err


def test_the_confusion_is_drawn(nowhere: Path) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate("--png", "confusion.png") == 0
    assert (nowhere / "confusion.png").stat().st_size > 10_000


def test_missing_sources_get_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--model", "int8", "--missing") == 0
    said = capsys.readouterr().out
    whole = float(re.search(r"accuracy   (\d\.\d+)", said)[1])  # type: ignore[index]
    lines = re.findall(r"^(chest|ankle|arm) +132 +(0\.\d+) ", said, re.MULTILINE)
    assert [name for name, _ in lines] == ["chest", "ankle", "arm"]
    assert all(float(figure) < whole for _, figure in lines)


@pytest.mark.parametrize("option", ["--protocol", "--mqtt-version"])
def test_the_version_of_mqtt_has_two_names(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there were studies, --protocol was the version of MQTT here as it is everywhere else."""
    asked: list[str] = []
    monkeypatch.setattr("har_edge.cli.commands.evaluate._measure_model", lambda args: asked.append(args.protocol) or 0)
    assert evaluate(option, "3.1.1") == 0
    assert asked == ["3.1.1"]


@pytest.mark.dataset
def test_seen_subjects_get_the_split_figure_beside(
    capsys: pytest.CaptureFixture[str], dataset: Path, nowhere: Path
) -> None:
    shutil.copy(find_model("float").path, nowhere / "copy.tflite")
    assert evaluate("--data", str(dataset), "--model", "copy.tflite") == 0
    said = capsys.readouterr().out
    assert "trained on subject7: not a generalisation figure; the split figure is" in said
    assert evaluate("--data", str(dataset), "--model", "int8-split") == 0
    assert "on none of these subjects" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.usefixtures("mosquitto")
def test_every_window_of_two_subjects_is_answered_over_mqtt_as_by_the_whole_model(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    command = ["evaluate", "--data", str(dataset), "--subjects", "7,8", "--mqtt", "--json", str(file)]
    assert main([*command, "--model", "int8-split"]) == 0
    assert "mqtt: 536 outputs, all identical to those of the whole model" in capsys.readouterr().out
    figures = msgspec.json.decode(file.read_bytes())
    assert figures["windows"] + figures["mixed"] == 536
    assert figures["accuracy"] >= 0.95


@pytest.mark.slow
def test_an_input_that_nothing_reads_needs_no_source(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    (nowhere / "one.toml").write_text(
        'name = "one"\nrate_hz = 50.0\n[files]\n[[sources]]\nname = "win"\ncolumns = ["a", "b", "c", "d", "e"]\n'
    )
    (nowhere / "data").mkdir()
    (nowhere / "data" / "anna.csv").write_text("a,b,c,d,e\n" + "0.5,1.5,2.5,3.5,4.5\n" * 100)
    (nowhere / "m.tflite").write_bytes(models.unread_input())
    (nowhere / "l.txt").write_text("still\nmoving\n")
    command = ["evaluate", "--model", "m.tflite", "--stream", "one.toml", "--data", "data", "--labels", "l.txt"]
    windows = (100 - models.LENGTH) // (models.LENGTH // 2) + 1
    for given in ([], ["--input", "c=win"]):
        assert main([*command, "--stages", "2", *given]) == 0
        assert f"slices: {windows} outputs, all identical to those of the whole model" in capsys.readouterr().out
    for given in (["--input", "spare=win"], ["--input", "c=win", "--input", "spare=win"]):
        assert main([*command, *given]) == 2
        said = capsys.readouterr().err
        assert "--input names 'spare', which nothing reads; expected no source for it: leave it out" in said
    assert main(["demo", *command[1:], "--stages", "2", "--speed", "max"]) == 0
    assert f"{windows} in, {windows} out, 0 lost" in capsys.readouterr().out


def test_a_class_that_no_window_has_gets_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_classes([ClassRow("cat", 2, 0.5, 1.0, 0.667), ClassRow("dog", 0, 0.0, 0.0, 0.0)]))
    cat, dog = text.splitlines()[1:]
    assert cat.split() == ["cat", "2", "0.5000", "1.0000", "0.6670"] and dog.split() == ["dog", "0", "-", "-", "-"]


def test_an_answer_that_is_the_number_of_a_class_asks_for_the_names(
    capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    (nowhere / "m.tflite").write_bytes(models.chosen_class(3))
    (nowhere / "one.toml").write_text(
        'name = "one"\nrate_hz = 50.0\n[files]\n[[sources]]\nname = "win"\ncolumns = ["a", "b", "c", "d", "e"]\n'
    )
    assert main(["evaluate", "--model", "m.tflite", "--stream", "one.toml"]) == 2
    said = capsys.readouterr().err
    assert "the model answers with the number of a class, and nothing says which classes there are" in said
    assert "the class of number 0 first: give --labels FILE, one name a line" in said
