"""Models of which no manifest knows: what flags and files say of them, and what nodes get of that."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from har_edge.cli.arguments.model_task import assignment
from har_edge.cli.commands.coordinator import _find_model, _prepare
from har_edge.cli.main import build_parser
from har_edge.config.unlisted_model import derive_task, packed_labels, read_labels
from har_edge.data.description import StreamDescription, parse_description
from har_edge.errors import ConfigError
from har_edge.protocol.topics import Topics
from har_edge.runtime.status_publisher import Identity
from har_edge.tflite.model import Model, read_model
from tests.tflite import models

LENGTH, CHANNELS = models.LENGTH, models.CHANNELS
COLUMNS = ", ".join(f'"c{number}"' for number in range(CHANNELS))
TOML = f"""
name = "gym"
rate_hz = 25.0
{{labels}}
[files]
[[sources]]
name = "wrist"
columns = [{COLUMNS}]
"""
TWO = '[[sources]]\nname = "hip"\ncolumns = ["h0", "h1", "h2", "h3", "h4"]\n'


def describe(labels: str = 'labels = ["still", "moving"]', more: str = "") -> StreamDescription:
    return parse_description(TOML.format(labels=labels) + more)


def model_of(folder: Path, content: bytes) -> Model:
    path = folder / "m.tflite"
    path.write_bytes(content)
    return read_model(path)


@pytest.mark.parametrize(
    "shape",
    [[-1, LENGTH, CHANNELS], [1, LENGTH, CHANNELS, 1], [-1, CHANNELS, LENGTH], [-1, LENGTH * CHANNELS]],
)
def test_one_input_and_one_source_need_no_flag(tmp_path: Path, shape: list[int]) -> None:
    task = derive_task(model_of(tmp_path, models.laid_out(shape)), describe(), "gym.toml", inputs={})
    assert {source: enters.tensor for source, enters in task.inputs.items()} == {"wrist": "c"}
    assert (task.stream.length, task.stream.hop, task.stream.rate_hz) == (LENGTH, LENGTH // 2, 25.0)
    assert (task.output, task.labels, task.label_ids) == ("scores", ["still", "moving"], [0, 1])
    hopped = derive_task(model_of(tmp_path, models.laid_out(shape)), describe(), "gym.toml", inputs={}, hop=3)
    assert hopped.stream.hop == 3


@pytest.mark.parametrize("source", ["wrist", "hip"])
def test_the_name_that_keras_gave_an_input_finds_its_source(tmp_path: Path, source: str) -> None:
    model = model_of(tmp_path, models.laid_out([-1, LENGTH, CHANNELS], f"serving_default_{source}:0"))
    task = derive_task(model, describe(more=TWO), "gym.toml", inputs={})
    assert {name: enters.tensor for name, enters in task.inputs.items()} == {source: f"serving_default_{source}:0"}


def test_two_sources_that_fit_must_be_told_apart(tmp_path: Path) -> None:
    model = model_of(tmp_path, models.laid_out([-1, LENGTH, CHANNELS]))
    with pytest.raises(ConfigError, match=r"nothing says which source enters input 'c' .*give --input c=SOURCE"):
        derive_task(model, describe(more=TWO), "gym.toml", inputs={})
    task = derive_task(model, describe(more=TWO), "gym.toml", inputs={"c": "hip"})
    assert list(task.inputs) == ["hip"]


def test_null_labels_are_no_classes(tmp_path: Path) -> None:
    labels = 'labels = ["nothing", "still", "moving"]\nnull_label = 0'
    model = model_of(tmp_path, models.laid_out([-1, LENGTH, CHANNELS]))
    task = derive_task(model, describe(labels), "gym.toml", inputs={})
    assert (task.labels, task.label_ids) == (["still", "moving"], [1, 2])


@pytest.mark.parametrize("labels", ["", 'labels = ["a", "b", "c"]'])
def test_classes_that_nobody_names_are_asked_for(tmp_path: Path, labels: str) -> None:
    model = model_of(tmp_path, models.laid_out([-1, LENGTH, CHANNELS]))
    with pytest.raises(ConfigError, match=r"answers with 2 scores, .*; give --labels FILE"):
        derive_task(model, describe(labels), "gym.toml", inputs={})


def test_labels_of_the_model_get_the_numbers_of_the_stream(tmp_path: Path) -> None:
    model = model_of(tmp_path, models.laid_out([-1, LENGTH, CHANNELS]))
    described = describe('labels = ["a", "moving", "b", "still"]')
    task = derive_task(model, described, "gym.toml", inputs={}, labels=["still", "moving"])
    assert task.label_ids == [3, 1]
    with pytest.raises(ConfigError, match="the classes run are no labels of stream gym"):
        derive_task(model, described, "gym.toml", inputs={}, labels=["still", "run"])


def test_a_model_that_answers_with_a_class_takes_any_number_of_labels(tmp_path: Path) -> None:
    model = model_of(tmp_path, models.chosen_class())
    task = derive_task(model, describe(""), "gym.toml", inputs={}, labels=["still", "moving"])
    assert task.labels == ["still", "moving"]
    with pytest.raises(ConfigError, match="answers with the number of a class"):
        derive_task(model, describe(""), "gym.toml", inputs={})


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcrane\r\nmaillot\r\ncrane\r\n\r\n".encode())
    assert read_labels(path) == ["crane", "maillot", "crane (2)"]
    for content in (b"", b"a\n\nb\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="expected"):
            read_labels(path)


def test_labels_behind_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(models.laid_out([-1, LENGTH, CHANNELS]))
    assert packed_labels(path) is None
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.md", "no")
        archive.writestr("labelmap.txt", "still\nmoving\n")
    assert packed_labels(path) == ["still", "moving"]


def test_an_input_may_have_an_equals_sign_in_its_name() -> None:
    assert assignment("serving=c:0=wrist") == ("serving=c:0", "wrist")


def test_a_coordinator_carries_the_description_to_its_nodes(tmp_path: Path) -> None:
    model, elsewhere, kept = tmp_path / "m.tflite", tmp_path / "elsewhere", tmp_path / "kept"
    model.write_bytes(models.laid_out([-1, LENGTH, CHANNELS]))
    for folder in (elsewhere, kept):
        folder.mkdir()
    (elsewhere / "gym.toml").write_text(TOML.format(labels='labels = ["still", "moving"]'))
    words = ["coordinator", "--model", str(model), "--stream", str(elsewhere / "gym.toml")]
    args = build_parser().parse_args(words)
    identity = Identity(Topics("har", "har"), "coordinator", "coordinator", "paho")
    setup, _ = _prepare(args, identity, _find_model(args, kept))
    assert setup.config.task.stream.description == "gym.toml"
    assert setup.files["gym.toml"] == (elsewhere / "gym.toml").read_bytes()
    assert setup.config.task.labels == ["still", "moving"]
