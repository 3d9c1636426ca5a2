"""Models by name and path: cuts, slices, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import har_edge
from har_edge.api.arguments import python_words
from har_edge.config.pipeline import load_pipeline
from har_edge.errors import ConfigError, CutError, DataError, MessageError, ModelError
from har_edge.inference.slice_check import check_slices
from tests.tflite import models


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.tflite"
    path.write_bytes(models.pictures())
    return path


def test_cuts_are_those_that_the_slicer_allows() -> None:
    model = har_edge.load_model("float")
    assert [cut.index for cut in model.cuts] == [cut.index for cut in model.cuts if cut.refusal is None]
    assert {cut.index for cut in model.cuts} | {cut.index for cut in model.refused_cuts} == set(
        range(1, len(model.graph.main.operators))
    )
    assert all(cut.refusal for cut in model.refused_cuts)
    assert model.name == "float" and [port.dtype for port in model.inputs] == ["float32"] * 3
    assert [port.shape for port in model.outputs] == [(-1, 12)]


def test_a_split_folder_is_proven_equal_and_loads(tmp_path: Path) -> None:
    model = har_edge.load_model("int8")
    made = har_edge.split(model, tmp_path / "slices", stages=2, name="two")
    assert load_pipeline(tmp_path / "slices").config.name == made.config.name == "two"
    assert len(made.manifest.slices) == 2
    assert check_slices(model.path, tmp_path / "slices").difference is None


def test_a_model_of_pictures_needs_the_names_of_its_classes(picture: Path, tmp_path: Path) -> None:
    bare = har_edge.load_model(picture)
    assert bare.task is None and bare.cuts
    with pytest.raises(ConfigError, match=r"nobody says what picture.tflite is for; give load_model\(\.\.\., labels"):
        har_edge.split(bare, tmp_path / "slices")
    with pytest.raises(ConfigError, match="2 labels came; expected 3"):
        har_edge.load_model(picture, labels=["cat", "dog"])
    with pytest.raises(ConfigError, match="labels came for int8, whose manifest names its classes"):
        har_edge.load_model("int8", labels=["a"])
    named = har_edge.load_model(picture, labels=["cat", "dog", "bird"])
    pipeline = har_edge.split(named, tmp_path / "slices")
    assert pipeline.task.labels == ["cat", "dog", "bird"] and len(pipeline.manifest.slices) == 2
    assert sorted(path.name for path in picture.parent.iterdir()) == ["picture.tflite", "slices"]


def test_a_model_of_pictures_takes_bytes(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input 'image' is float32.*give normalize=\(mean, std\): 127.5"):
        har_edge.load_model(picture, pictures=True)
    with pytest.raises(ConfigError, match="normalize or fit came without pictures=True"):
        har_edge.load_model(picture, labels=["cat", "dog", "bird"], normalize=(0, 255))
    with pytest.raises(ConfigError, match="fit='wide' came; expected one of stretch, crop, pad"):
        har_edge.load_model(picture, pictures=True, normalize=(0, 255), fit="wide")
    with pytest.raises(ConfigError, match="pictures=True came for int8, whose manifest"):
        har_edge.load_model("int8", pictures=True)
    model = har_edge.load_model(picture, pictures=True, normalize=((1, 2, 3), (4, 5, 6)), fit="pad")
    task = har_edge.split(model, tmp_path / "slices").task
    assert task.image is not None and (task.image.mean, task.image.std) == ((1, 2, 3), (4, 5, 6))
    assert task.image.fit.value == "pad" and [one.tensor for one in task.arrays] == ["scores"]


def test_it_runs_here(picture: Path) -> None:
    model = har_edge.load_model(picture)
    values = {"image": np.ones((1, 8, 6, 3), np.float32)}
    (scores,) = model.run(values).values()
    assert scores.shape == (1, 3) and np.isfinite(scores).all()
    assert np.array_equal(scores, next(iter(model.run(values).values())))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model 'nothing': expected one of"):
        har_edge.load_model("nothing")
    with pytest.raises(CutError, match="cut 99 is out of range"):
        har_edge.split("int8", tmp_path / "a", cuts=[99])
    with pytest.raises(CutError, match="cut 99 is out of range"):
        har_edge.load_model("int8").verify([99])
    with pytest.raises(ConfigError, match=r"stages=2 came with cuts=\[4\]"):
        har_edge.split("int8", tmp_path / "a", stages=2, cuts=[4])
    with pytest.raises(ConfigError, match="stages=0 came; expected at least 1"):
        har_edge.split("int8", tmp_path / "a", stages=0)
    with pytest.raises(ConfigError, match="name of the pipeline is 'my/home'; expected 1 to 128 letters"):
        har_edge.split("int8", tmp_path / "a", cuts=[4], name="my/home")
    assert not (tmp_path / "a").exists()


def test_it_runs_only_on_values_that_its_inputs_hold() -> None:
    model = har_edge.load_model("int8")
    values = {port.name: np.full((1, *port.shape[1:]), -7) for port in model.inputs}
    assert model.run(values)["activity"].shape == (1, 12)
    for wrong in ({"chest": values["chest"]}, {**values, "leg": values["arm"]}, np.zeros((250, 23))):
        with pytest.raises(DataError, match="came; expected a mapping with an array for each of chest, ankle, arm"):
            model.run(wrong)
    for number in (0.5, 128, float("nan")):
        with pytest.raises(DataError, match="values of arm came that int8 does not hold"):
            model.run({**values, "arm": np.full((1, 250, 9), number)})
    with pytest.raises(MessageError, match=r"input arm has shape \[250, 9\]"):
        model.run({**values, "arm": np.zeros((250, 9))})


def test_a_file_that_is_no_model_is_refused_at_once(tmp_path: Path) -> None:
    script, empty = tmp_path / "script.py", tmp_path / "empty.tflite"
    script.write_text("print('hello')\n" * 20)
    empty.write_bytes(b"")
    for path in (script, empty):
        with pytest.raises(ModelError, match=path.name):
            har_edge.load_model(path)


def test_a_model_names_its_classes_and_is_printed_in_a_line(picture: Path, tmp_path: Path) -> None:
    model = har_edge.load_model("int8")
    assert model.labels == list(model.known_task().labels) and len(model.labels) == 12
    assert repr(model) == f"Model('int8', {str(model.path)!r})"
    assert har_edge.load_model(picture).labels == []
    assert har_edge.load_model(picture, labels=["cat", "dog", "bird"]).labels == ["cat", "dog", "bird"]
    pipeline = har_edge.split(model, tmp_path / "slices", cuts=[9], name="home")
    assert repr(pipeline) == f"Pipeline('home', 2 slices, folder={str(tmp_path / 'slices')!r})"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda at: har_edge.load_model(5), "model=5 came, of type int; expected a path"),
        (lambda at: har_edge.load_model(None), "model=None came, of type NoneType; expected a path"),
        (
            lambda at: har_edge.load_model("int8", labels="cat"),
            "labels='cat' came, of type str; expected a list",
        ),
        (lambda at: har_edge.split(3, at), "model=3 came, of type int; expected a path"),
        (lambda at: har_edge.split("int8", 3), "folder=3 came, of type int; expected a path"),
        (
            lambda at: har_edge.split("int8", at, stages="2"),
            "stages='2' came, of type str; expected a whole",
        ),
        (lambda at: har_edge.split("int8", at, stages=2.5), "stages=2.5 came, of type float; expected a whole"),
        (lambda at: har_edge.split("int8", at, cuts=4), "cuts=4 came, of type int; expected a list"),
        (lambda at: har_edge.split("int8", at, cuts="49"), "cuts='49' came, of type str; expected a list"),
        (lambda at: har_edge.split("int8", at, name=1), "name=1 came, of type int; expected a text"),
        (
            lambda at: har_edge.split("int8", at, reducers="q8"),
            "reducers='q8' came, of type str; expected a map",
        ),
        (lambda at: har_edge.load_model("int8").verify(4), "cuts=4 came, of type int; expected a list"),
        (lambda at: har_edge.watch(7), "folder=7 came, of type int; expected a path"),
        (lambda at: har_edge.watch(pipeline=7), "pipeline=7 came, of type int; expected a text"),
        (lambda at: har_edge.watch(pipeline="a", broker=1883), "broker=1883 came, of type int; expected mqtt://"),
        (
            lambda at: har_edge.watch(pipeline="a", limit="3"),
            "limit='3' came, of type str; expected a whole",
        ),
        (
            lambda at: har_edge.watch(pipeline="a", timeout_s="3"),
            "timeout_s='3' came, of type str; expected a numb",
        ),
        (lambda at: har_edge.Sensor(pipeline="a", stream=7), "stream=7 came, of type int; expected a text"),
        (
            lambda at: har_edge.Sensor(pipeline="a", sources="chest"),
            "sources='chest' came, of type str; expected a",
        ),
        (
            lambda at: har_edge.Sensor(pipeline="a", in_flight="1"),
            "in_flight='1' came, of type str; expected a whole",
        ),
        (
            lambda at: har_edge.LocalCluster(7),
            "model=7 came, of type int; expected a path",
        ),
        (
            lambda at: har_edge.LocalCluster("int8", nodes="2"),
            "nodes='2' came, of type str; expected a whole",
        ),
        (lambda at: har_edge.LocalCluster("int8", broker=1883), "broker=1883 came, of type int; expected a text"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(
    tmp_path: Path, call: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        call(tmp_path / "slices")
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "slices").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    pipeline = har_edge.split("int8", tmp_path / "slices", cuts=[np.int64(9)])
    assert len(pipeline.manifest.slices) == 2


def test_errors_name_arguments_and_not_options(tmp_path: Path) -> None:
    with pytest.raises(CutError, match=r"refused; Model\.cuts shows other cuts"), python_words():
        raise CutError("refused; --list shows other cuts")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(ConfigError) as refused:
            har_edge.split("int8", tmp_path / place, cuts=[9])
        assert "folder" in str(refused.value) and "--" not in str(refused.value)
    with (
        pytest.raises(ConfigError, match="is said by `har-edge x --out DIR`, not by folder or stages=N"),
        python_words(),
    ):
        raise ConfigError("it is said by `har-edge x --out DIR`, not by --out or --stages N")
