"""`har-edge adapt`: the output, the files, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import find_model, load_catalog
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.interpreter import Interpreter
from har_edge.resources import find_folder

HEAD = "bottleneck-float-split"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapt(*options, model=HEAD, subject="zoe"):
    return main(["adapt", model, "--subject", subject, "--out", "mine/zoe.tflite", *options])


def test_a_model_for_one_person(here, capsys):
    # A made person; the real ones are in bench/adapt.py.
    assert adapt("--windows", "1", "--epochs", "20") in (0, 1)
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith("model      bottleneck-float-split (sha256 b9aea96f59f6)")
    assert lines[1] == "person     zoe: synthetic data"
    assert lines[2].startswith("labelled   12 windows of 12 activities; ")
    assert lines[3] == "trained    38,460 weights (all layers), 20 passes (a fixed number)"
    assert lines[4].startswith("accuracy   0.") or lines[4].startswith("accuracy   1.")
    assert lines[-1].startswith("written    mine/zoe.tflite and its entry 'zoe' in mine/manifest.json")
    assert "the recordings are synthetic; the figures say nothing about people" in output.err
    assert "no recordings found: using synthetic data" in output.err


def test_the_result_is_listed_with_its_encoders_and_can_be_cut(here, capsys):
    adapt("--windows", "1", "--epochs", "2")
    (entry,) = load_catalog(Path("mine")).models
    base = find_model(HEAD).entry
    assert (entry.name, entry.task, entry.real) == ("zoe", base.task, False)
    assert entry.trained_on == sorted([*base.trained_on, "zoe"])
    assert entry.command.startswith("har-edge adapt bottleneck-float-split --out zoe.tflite --subject zoe --windows 1")
    assert "adapted to 12 windows of zoe, SYNTHETIC" in entry.data
    for name in base.task.files:
        assert (Path("mine") / name).read_bytes() == (find_folder("models") / name).read_bytes()
    assert main(["slice", "mine/zoe.tflite", "--stages", "2", "--out", "cut"]) == 0
    assert sorted(path.name for path in Path("cut").glob("slice-*.tflite")) == ["slice-0.tflite", "slice-1.tflite"]
    capsys.readouterr()
    assert main(["evaluate", "--model", "mine/zoe.tflite", "--subjects", "zoe"]) == 0
    assert "zoe" in capsys.readouterr().out


def test_the_figures_are_of_the_files_that_were_and_are(here, capsys):
    adapt("--windows", "1", "--epochs", "20")
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    from har_edge.data.synthetic import synthesize
    from har_edge.inference.codecs import FolderFiles
    from har_edge.learning.personal.windows import cut_personal, share_out

    task = find_model(HEAD).entry.task
    (recording,) = synthesize(["zoe"])
    held_out = share_out(cut_personal(recording, task), 250, 1).held_out
    right = []
    for path in (find_model(HEAD).path, Path("mine/zoe.tflite")):
        interpreter = Interpreter(path)
        channels = {name: values.shape[1] for name, values in recording.samples.items()}
        files = FolderFiles(find_folder("models"), task.files)
        classifier = Classifier(interpreter.run, interpreter.inputs, task, channels=channels, files=files)
        predictions = [classifier.predict(window) for window in held_out]
        right.append(np.mean([one.answer == one.truth for one in predictions]))
    assert said == f"accuracy   {right[0]:.4f} before, {right[1]:.4f} after, on the held-out ones"


def test_a_worse_model_is_said_aloud(here, capsys):
    assert adapt("--windows", "1", "--epochs", "30", "--rate", "1000") == 1
    assert (
        "WORSE: the adapted model answers fewer held-out windows rightly; do not deploy it" in capsys.readouterr().err
    )


def test_no_gain_is_said_aloud(here, capsys):
    assert adapt("--windows", "1", "--epochs", "1", "--rate", "1e-9") == 0
    assert "NO GAIN: adapting changed nothing for the better" in capsys.readouterr().err


def test_a_person_whom_the_model_has_seen_is_told(here, capsys):
    adapt("--windows", "1", "--epochs", "1", subject="subject1")
    assert "note: bottleneck-float-split has seen subject1 in training" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "master"), [("bottleneck", "bottleneck-float"), ("int8-split", "float-split")])
def test_an_int8_model_is_refused_with_its_master(capsys, model, master):
    assert adapt(model=model) == 2
    assert f"expected a float model to train on: take its float master: {master}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--windows", "50"], "of which 6 do not overlap; expected 50: record more of it, or ask for fewer"),
        (["--out", "x.bin"], "--out x.bin came; expected a file that ends in .tflite"),
        (["--rate", "0"], "expected a number above 0 and at most 1000"),
    ],
)
def test_what_cannot_be_is_refused(capsys, options, message):
    try:
        code = adapt(*options)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("mine").exists()


def test_several_people_must_be_told_apart(capsys):
    assert main(["adapt", HEAD, "--out", "mine/a.tflite"]) == 2
    assert "name the person to adapt to with --subject" in capsys.readouterr().err


def test_a_full_disk_is_told_and_loses_no_model(here, capsys, monkeypatch):
    import errno

    from har_edge.learning import model_entry

    def full(path, content, mode=None):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(model_entry, "write_atomic", full)
    Path("mine").mkdir()
    shutil.copy(find_model(HEAD).path, "mine/zoe.tflite")
    before = Path("mine/zoe.tflite").read_bytes()
    assert adapt("--windows", "1", "--epochs", "1") == 2
    assert "No space left on device; make room, or take another folder with --out" in capsys.readouterr().err
    assert Path("mine/zoe.tflite").read_bytes() == before


@pytest.mark.dataset
def test_a_real_person_is_answered_better(here, dataset, monkeypatch, capsys):
    monkeypatch.setenv("HAR_EDGE_DATA", str(dataset))
    assert adapt(model="float-split", subject="subject8") == 0
    output = capsys.readouterr()
    assert "accuracy   0.9209 before, 1.0000 after" in output.out
    assert "climbing stairs: 3 of 17 right before, 17 after" in output.out
    assert output.err == ""
