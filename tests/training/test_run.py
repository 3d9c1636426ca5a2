"""From recordings to files and entries: figures first, then what is shipped."""

from __future__ import annotations

import hashlib

import pytest

pytest.importorskip("tensorflow")

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Interpreter
from har_edge.training.fit import Recipe
from har_edge.training.run import ModelBuilder, ModelFile, Split

pytestmark = pytest.mark.training


def builder(
    recordings: list[Recording], description: StreamDescription, said: list[str], train: list[str], test: list[str]
) -> ModelBuilder:
    recipe = Recipe(epochs=1, windows_a_length=2)
    return ModelBuilder(recordings, description, Split(train, test), recipe, command="har-edge train", log=said.append)


@pytest.fixture(scope="module")
def made(recordings: list[Recording], description: StreamDescription) -> tuple[list[ModelFile], list[str]]:
    said: list[str] = []
    shop = builder(recordings, description, said, ["subject1", "subject2"], ["subject3"])
    return shop.make(final=True, baseline=True), said


def test_all_files_have_honest_entries(made: tuple[list[ModelFile], list[str]]) -> None:
    files = {file.entry.name: file for file in made[0]}
    assert list(files) == ["float", "int8", "float-split", "int8-split"]
    for name, file in files.items():
        entry = file.entry
        assert entry.sha256 == hashlib.sha256(file.content).hexdigest()
        assert not entry.real
        assert "SYNTHETIC" in entry.data
        assert entry.split.test == ["subject3"]
        assert entry.split.windows > 20
        assert entry.trained_on == ["subject1", "subject2"] + ["subject3"] * (not name.endswith("-split"))
        split = files[name if name.endswith("-split") else f"{name}-split"]
        assert entry.split.model == split.entry.sha256
        assert entry.baselines[0].accuracy > 0.5


def test_figures_are_said_before_the_shipped_weights_are_trained(made: tuple[list[ModelFile], list[str]]) -> None:
    told = [line.split(",")[0] for line in made[1] if not line.startswith("  ")]
    assert told == [
        "training on subject1",
        "float",
        "int8",
        "extra-trees on hand-made features",
        "training on subject1",
    ]


def test_the_sensor_quantises_to_what_the_model_takes(made: tuple[list[ModelFile], list[str]]) -> None:
    int8 = next(file for file in made[0] if file.entry.name == "int8")
    for port in Interpreter(int8.content).inputs:
        assert int8.entry.task.inputs[port.name].reducer == f"q8:{port.scale!r}:{port.zero_point}"
    floats = next(file for file in made[0] if file.entry.name == "float")
    assert {entry.reducer for entry in floats.entry.task.inputs.values()} == {"none"}


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        (["subject1"], ["subject1"], "subject1 named twice; a stream is for training or for testing"),
        (
            ["subject1"],
            ["subject9"],
            "split of subject1 against subject9: expected both to name some of subject1, subj",
        ),
        (["subject1"], [], "split of subject1 against nothing"),
    ],
)
def test_a_leaky_or_empty_split_is_refused(
    recordings: list[Recording], description: StreamDescription, train: list[str], test: list[str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        builder(recordings, description, [], train, test)
