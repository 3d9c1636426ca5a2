"""A data set that is none of people, by its description alone: a model for it works from any folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import Catalog, load_catalog, store_catalog
from har_edge.config.pipeline import load_pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from tests.tflite import models

DATA = Path(__file__).parents[2] / "data"
LABELS = ["normal", "imbalance", "worn bearing", "blocked filter"]


@pytest.fixture(scope="module")
def fans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three fans."""
    folder = tmp_path_factory.mktemp("fans")
    command = [
        sys.executable,
        str(DATA / "make_machine.py"),
        "--machines",
        "3",
        "--seconds",
        "12",
        "--out",
        str(folder),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with neither data nor model."""
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def write_model(folder: Path, description: str = "machine.toml") -> Path:
    """Write an untrained model, its manifest and the description into a folder, as `har-edge train` does."""
    folder.mkdir()
    content = models.averaging({"in_motor": (200, 4), "in_bearing": (200, 4)}, classes=4)
    (folder / "fans.tflite").write_bytes(content)
    task = Task(
        stream=StreamTask(description, 100.0, 200, 100),
        inputs={source: SourceInput(f"in_{source}", "paa:5") for source in ("motor", "bearing")},
        output="scores",
        labels=LABELS,
        label_ids=[1, 2, 3, 4],
    )
    sha256 = hashlib.sha256(content).hexdigest()
    entry = msgspec.structs.replace(
        load_catalog().models[0],
        name="fans",
        file="fans.tflite",
        sha256=sha256,
        task=task,
        trained_on=["fan1"],
        real=False,
    )
    store_catalog(Catalog(1, [entry]), folder)
    shutil.copy(DATA / "machine.toml", folder)
    return folder / "fans.tflite"


def test_slices_have_the_description_beside_them(tmp_path: Path) -> None:
    path = write_model(tmp_path / "models")
    assert main(["slice", str(path), "--at", "2", "--out", "slices"]) == 0
    assert Path("slices/machine.toml").read_bytes() == (DATA / "machine.toml").read_bytes()
    shutil.rmtree(path.parent)  # the folder of the slices is enough
    assert load_pipeline(Path("slices")).described.name == "machine"


def test_a_cut_by_another_reducer_has_it_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "models")
    assert main(["slice", str(path), "--at", "2", "--out", "slices", "--reducer", "paa:10+q8"]) == 0
    pipeline = load_pipeline(Path("slices"))
    assert (pipeline.task.inputs["motor"].reducer, pipeline.described.name) == ("paa:10+q8", "machine")


def test_a_model_is_scored_whole_and_cut_from_another_folder(
    tmp_path: Path, fans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "models")
    assert main(["evaluate", "--model", str(path), "--data", str(fans), "--at", "2", "--json", "figures.json"]) == 0
    figures = msgspec.json.decode(Path("figures.json").read_bytes())
    # Every condition comes twice for 6 s a fan: 5 windows of 2 s each, every second.
    assert figures["windows"] == 3 * 4 * 2 * 5 and figures["agreement"]["slices"]["identical"]
    said = capsys.readouterr().out
    assert "synthetic data from" in said and "worn bearing" in said


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_the_demo_takes_all_its_streams(tmp_path: Path, fans: Path) -> None:
    path = write_model(tmp_path / "models")
    options = ["--data", str(fans), "--windows", "3", "--speed", "max", "--stages", "2", "--json", "out.json"]
    assert main(["demo", "--model", str(path), *options]) == 0
    summary = msgspec.json.decode(Path("out.json").read_bytes())
    assert (summary["windows_in"], summary["windows_out"], summary["lost"]) == (9, 9, 0)
    assert summary["subjects"] == "fan1, fan2, fan3" and not summary["real"]


@pytest.mark.parametrize(
    "command", [["evaluate", "--model"], ["demo", "--model"], ["slice", "--at", "2", "--out", "S"]]
)
def test_a_missing_description_is_named(
    command: list[str], tmp_path: Path, fans: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "models")
    (path.parent / "machine.toml").rename(elsewhere / "machine.toml")  # the current folder is not the place
    data = [] if command[0] == "slice" else ["--data", str(fans)]
    assert main([*command, str(path), *data]) == 2
    assert (
        f"no stream description '{path.parent}/machine.toml': the task names 'machine.toml'; expected mhealth, or a "
        "TOML file beside the model or pipeline file; copy it there"
    ) in capsys.readouterr().err
    assert not Path("S").exists()


@pytest.mark.parametrize("name", ["../machine.toml", "pipeline.toml", "manifest.json"])
def test_a_description_that_cannot_lie_beside_slices_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "models", name)
    if not (path.parent / name).exists():
        shutil.copy(DATA / "machine.toml", path.parent / name)
    assert main(["slice", str(path), "--at", "2", "--out", "slices"]) == 2
    assert (
        f"the task names the stream description '{name}'; expected the plain name of a .toml file beside the model, "
        "other than pipeline.toml"
    ) in capsys.readouterr().err
    assert not Path("slices").exists()


@pytest.mark.parametrize("option", ["--stream", "--description"])
def test_data_info_takes_the_description_under_both_names(
    option: str, fans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", option, str(DATA / "machine.toml"), "--data", str(fans)]) == 0
    said = capsys.readouterr().out
    assert "fan3" in said and "blocked filter" in said


@pytest.mark.training
@pytest.mark.usefixtures("mosquitto")
def test_a_model_is_trained_sliced_scored_and_run(
    tmp_path: Path, fans: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch, so the figures are worth nothing."""
    pytest.importorskip("tensorflow")
    shutil.copy(DATA / "machine.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(fans), "--reducer", "paa:5", "--epochs", "1", "--split-only"]
    assert main(["train", "--stream", "machine.toml", "--out", "models", *options]) == 0
    (tmp_path / "machine.toml").unlink()
    monkeypatch.chdir(elsewhere)
    (entry,) = load_catalog(tmp_path / "models").models
    path = str(tmp_path / "models" / entry.file)
    assert entry.file == "machine-paa-split.tflite"
    assert main(["evaluate", "--model", path, "--data", str(fans), "--subjects", "fan3", "--at", "2"]) == 0
    assert main(["slice", path, "--at", "2", "--out", "slices"]) == 0
    assert load_pipeline(Path("slices")).described.name == "machine"
    assert main(["demo", "--model", path, "--data", str(fans), "--windows", "3", "--speed", "max"]) == 0
    assert "9 in, 9 out, 0 lost" in capsys.readouterr().out
