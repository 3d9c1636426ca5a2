"""Pictures through sensor, wire and stages give what the whole model gives; outputs that are no classes arrive too."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.array_output import MAX_VALUES, check_arrays, real_values
from har_edge.config.image_task import Normalization, derive_image_task
from har_edge.config.pipeline import Pipeline, find_batch_problem, load_pipeline
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.task import ArrayOutput, SourceInput, StreamTask, Task
from har_edge.config.unlisted_model import derive_task
from har_edge.data.description import load_description, parse_description
from har_edge.data.picture_stream import PictureWindows
from har_edge.data.pictures import AspectRule
from har_edge.data.recording import Window
from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.inference.tensor_observation import open_model
from har_edge.mqtt.bus import Delivery
from har_edge.planner.slice_graph import HEAD_BYTES, make_slice_graph
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.results import LabelScore, NamedArray, Result, encode_results
from har_edge.runtime.build import build_sensor, build_stage
from har_edge.runtime.sensor.plan_follower import check_windows
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.neighbours import hash_task
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import gather_outputs, read_model, with_sent_bytes
from tests.data.pillow_made import pixels
from tests.protocol.reading import read_results
from tests.tflite import models, picture_models

LABELS = [f"class {number}" for number in range(7)]
COUNT = 4
MEAN, STD = (127.5, 100.0, 3.0), (127.5, 50.0, 2.0)
TYPES: dict[str, dict[str, Any]] = {
    "uint8": {"dtype": "uint8"},
    "int8": {"dtype": "int8", "quantization": (1 / 64, -7)},
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return path


def windows(pictures: np.ndarray) -> list[Window]:
    """Return pictures as a sensor numbers them."""
    made = PictureWindows("door", "camera", lambda content, name: pictures[int(name)])
    return [window for number in range(len(pictures)) for _, window in made.take(b"", str(number), 0.0)]


def run(pipeline: Pipeline, sent: list[Window], batch: int = 1) -> tuple[list[Result], list[int]]:
    """Send windows through sensor and stages; return the results, and the bytes of each message of the sensor."""
    stages = [build_stage(pipeline, index) for index in range(len(pipeline.manifest.slices))]
    sensor, results, sizes = build_sensor(pipeline, list(pipeline.task.inputs)), list[Result](), list[int]()
    token = 0
    for start in range(0, len(sent), batch):
        chosen = sent[start : start + batch]
        todo = sensor.handle(chosen, [float(window.seq) for window in chosen])
        sizes += [len(one.payload) for one in todo]
        while todo:
            one = todo.pop(0)
            if "/result/" in one.topic:
                results += read_results(one)
                continue
            for stage in stages:
                if any(_matches(pattern, one.topic) for pattern in stage.filters):
                    todo += [made for made in stage.handle(Delivery(one.topic, one.payload, (0, token))) if made.topic]
                    token += 1
                while stage.ready:
                    todo += [made for made in stage.step() if made.topic]
    assert [(stage.complaint, stage.waiting) for stage in stages] == [("", 0)] * len(stages)
    return results, sizes


def _matches(pattern: str, topic: str) -> bool:
    levels = pattern.split("/"), topic.split("/")
    return len(levels[0]) == len(levels[1]) and all(a in ("+", b) for a, b in zip(*levels, strict=True))


def whole(content: bytes, inputs: list[Array]) -> list[dict[str, Array]]:
    """Return what the uncut model makes of each input."""
    interpreter = Interpreter(content)
    (port,) = interpreter.inputs
    return [dict(interpreter.run({port.name: one[None]})) for one in inputs]


def entered(dtype: str, pictures: np.ndarray, normalized: bool) -> list[Array]:
    """Return the inputs of the model that the page of pictures promises, by plain NumPy."""
    if not normalized:
        return list(pictures if dtype == "uint8" else (pictures.astype(np.int16) - 128).astype(np.int8))
    real = (pictures.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    if dtype in ("float32", "float16"):
        return list(real.astype(dtype))
    scale, zero = TYPES[dtype].get("quantization", (1 / 128, 128))
    limits = np.iinfo(dtype)
    return list(np.clip(np.rint(real / np.float32(scale)) + zero, limits.min, limits.max).astype(dtype))


# A float model says how bytes enter, or is refused (test_image_task).
CASES = [("uint8", False), ("int8", False), *((dtype, True) for dtype in TYPES)]


@pytest.mark.parametrize(("dtype", "normalized"), CASES)
def test_every_cut_gives_the_classes_of_the_whole_model(dtype: str, normalized: bool, tmp_path: Path) -> None:
    content = picture_models.classifier(**TYPES[dtype])
    path, pictures = write(tmp_path, content), np.stack([pixels(8, 6, seed=n) for n in range(COUNT)])
    normalization = Normalization(MEAN, STD) if normalized else None
    task = derive_image_task(read_model(content), labels=LABELS, normalization=normalization)
    expected = [one["scores"][0] for one in whole(content, entered(dtype, pictures, normalized))]
    for cut in [cut.index for cut in list_cuts(open_model(path)) if cut.refusal is None]:
        pipeline = prepare(path, task, tmp_path / str(cut), stages=2, cuts=[cut])
        assert load_pipeline(tmp_path / str(cut)).task == task
        results, sizes = run(pipeline, windows(pictures))
        assert max(sizes) < 8 * 6 * 3 + 120  # a byte a value, whatever the model takes
        for result, scores in zip(results, expected, strict=True):
            best = sorted(range(7), key=lambda index: -scores[index])[:5]
            assert result.classes == [LabelScore(LABELS[index], index, float(scores[index])) for index in best]
            assert (result.label, result.label_id, result.confidence) == msgspec.structs.astuple(result.classes[0])


def test_several_pictures_may_share_a_message(tmp_path: Path) -> None:
    content = picture_models.classifier(dynamic=True)
    path, pictures = write(tmp_path, content), np.stack([pixels(8, 6, seed=n) for n in range(COUNT)])
    task = derive_image_task(read_model(content), labels=LABELS)
    pipeline = prepare(path, task, tmp_path / "out", stages=2, cuts=[2])
    assert find_batch_problem(pipeline.manifest, task) == ""
    alone, together = run(pipeline, windows(pictures))[0], run(pipeline, windows(pictures), batch=3)[0]
    assert [one.label for one in together] == [one.label for one in alone]
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 6), (1, 8, 6, 1)])
def test_grey_pictures_enter_with_and_without_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    content, pictures = picture_models.classifier(shape=shape), np.stack([pixels(8, 6, 1, seed=n) for n in range(2)])
    task = derive_image_task(read_model(content), labels=LABELS)
    pipeline = prepare(write(tmp_path, content), task, tmp_path / "out", stages=2, cuts=[1])
    expected = [one["scores"][0] for one in whole(content, [one.reshape(shape[1:]) for one in pictures])]
    results, _ = run(pipeline, windows(pictures))
    assert [result.label_id for result in results] == [int(scores.argmax()) for scores in expected]


@pytest.mark.parametrize("spec", ["u8:1:0+zlib", "q8", "none"])
def test_other_reducers_that_restore_bytes_give_the_same_classes(spec: str, tmp_path: Path) -> None:
    content, pictures = picture_models.classifier(), np.stack([pixels(8, 6, seed=n) for n in range(COUNT)])
    task = derive_image_task(read_model(content), labels=LABELS)
    path, answers = write(tmp_path, content), list[list[LabelScore]]()
    for number, chosen in enumerate(({}, {"camera": spec})):
        pipeline = prepare(path, task, tmp_path / str(number), stages=2, cuts=[1], reducers=chosen)
        answers.append([result.classes for result in run(pipeline, windows(pictures))[0]])
    assert answers[0] == answers[1]


def test_a_reducer_that_does_not_restore_pictures_is_refused(tmp_path: Path) -> None:
    content = picture_models.classifier()
    task = derive_image_task(read_model(content), labels=LABELS)
    with pytest.raises(ConfigError, match="reducer 'stats' does not restore pictures"):
        prepare(write(tmp_path, content), task, tmp_path / "out", stages=2, cuts=[1], reducers={"camera": "stats"})


def outputs_task(content: bytes, **options: Any) -> Task:
    return derive_image_task(read_model(content), normalization=Normalization((0.0,), (255.0,)), **options)


WAYS = [(), *combinations(range(1, 7), 1), *combinations(range(1, 7), 2), (1, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("labels", [None, ["a", "b", "c"]])
@pytest.mark.parametrize("cuts", WAYS)
def test_outputs_of_all_slices_arrive_in_one_result(cuts: tuple[int, ...], labels: Any, tmp_path: Path) -> None:
    content, pictures = picture_models.many_outputs(), np.stack([pixels(8, 6, seed=n) for n in range(2)])
    task = outputs_task(content, labels=labels)
    pipeline = prepare(write(tmp_path, content), task, tmp_path / "out", stages=2, cuts=list(cuts))
    assert load_pipeline(tmp_path / "out").task == task
    expected = whole(content, list(pictures.astype(np.float32) / np.float32(255)))
    results, _ = run(pipeline, windows(pictures))
    assert len(results) == 2
    for result, values in zip(results, expected, strict=True):
        found = {array.name: np.array(array.values).reshape(array.shape) for array in result.arrays}
        assert list(found) == ["boxes", "scores", "mask"]
        assert np.array_equal(found["boxes"].astype(np.float32), values["boxes"][0])
        assert np.array_equal(found["scores"].astype(np.float32), values["scores"][0])
        assert np.array_equal(found["mask"], (values["mask"][0].astype(np.float64) + 3) * 0.5)
        if labels is None:
            assert (result.label, result.label_id, result.confidence, result.classes) == ("", -1, 0.0, [])
        else:
            best = int(values["scores"][0].argmax())
            assert (result.label_id, result.classes[0].label) == (best, labels[best])


def test_only_the_stage_with_the_last_output_answers_and_the_others_send_it_theirs(tmp_path: Path) -> None:
    content = picture_models.many_outputs()
    pipeline = prepare(write(tmp_path, content), outputs_task(content), tmp_path / "out", stages=3, cuts=[4, 6])
    wirings = [pipeline.wiring(index) for index in range(3)]
    assert [wiring.answers for wiring in wirings] == [False, False, True]
    assert [[spec.name for spec in wiring.passes] for wiring in wirings] == [[], [], ["boxes", "scores"]]
    assert [set(wiring.sends) for wiring in wirings] == [{"hidden", "boxes"}, {"deep", "scores"}, set()]
    assert (wirings[0].takers, wirings[2].earlier) == ((1, 2), {1: ("deep", "scores"), 0: ("boxes",)})


def test_the_planner_counts_a_byte_a_value_of_a_picture() -> None:
    model = read_model(picture_models.many_outputs())
    graphs = [make_slice_graph(one, [0, 7]) for one in (model, with_sent_bytes(model, {"image": 8 * 6 * 3}))]
    assert [int(graph.received_bytes[0]) - HEAD_BYTES for graph in graphs] == [4 * 8 * 6 * 3, 8 * 6 * 3]


@pytest.mark.parametrize("spec", ["whole:0-1 output:1-2@2 whole:2-5 whole:5-7", "whole:0-4 input:4-5@3 whole:5-7"])
def test_outputs_of_shards_arrive_in_one_result_too(spec: str, tmp_path: Path) -> None:
    content, pictures = picture_models.many_outputs(), np.stack([pixels(8, 6, seed=n) for n in range(2)])
    words = ["--stream", "images", "--normalize", "0,255", "--split", spec, "--out", str(tmp_path / "out")]
    assert main(["slice", str(write(tmp_path, content)), *words]) == 0
    results, _ = run(load_pipeline(tmp_path / "out"), windows(pictures))
    for result, values in zip(
        results, whole(content, list(pictures.astype(np.float32) / np.float32(255))), strict=True
    ):
        found = {array.name: np.array(array.values).reshape(array.shape) for array in result.arrays}
        assert np.allclose(found["boxes"], values["boxes"][0], rtol=1e-5, atol=1e-4)
        assert np.allclose(found["scores"], values["scores"][0], rtol=1e-5, atol=1e-4)
        assert np.abs(found["mask"] - (values["mask"][0].astype(np.float64) + 3) * 0.5).max() <= 0.5


def test_cuts_and_planner_count_what_goes_along(tmp_path: Path) -> None:
    model = read_model(picture_models.many_outputs())
    gathered = gather_outputs(model, ("boxes", "scores", "mask"))
    plain = {cut.index: cut.bytes for cut in list_cuts(model)}
    assert {cut.index: cut.bytes - plain[cut.index] for cut in list_cuts(gathered)} == {
        1: 0, 2: 0, 3: 0, 4: 32, 5: 32, 6: 32 + 12,
    }  # fmt: skip
    graphs = [make_slice_graph(one, [0, 4, 7]) for one in (model, gathered)]
    first, second = (graph.edge(graph.places.index(0), 1) for graph in graphs)
    assert first is not None and second is not None
    # Its result goes with the last slice, and its boxes there; each had its own message of a result before.
    assert graphs[1].sent_bytes[second] - graphs[0].sent_bytes[first] == 32 - 256


def test_regression_on_windows_of_sensors(tmp_path: Path) -> None:
    """A model of recordings may give other outputs than classes, too."""
    content = models.laid_out([1, models.LENGTH, models.CHANNELS])
    described = load_description("mhealth")
    task = derive_task(read_model(content), described, "mhealth", inputs={"c": "chest"}, arrays=True)
    assert (task.labels, task.arrays) == ([], (ArrayOutput("scores"),))
    pipeline = prepare(write(tmp_path, content), task, tmp_path / "out", stages=2, cuts=[1])
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((models.LENGTH, models.CHANNELS)).astype(np.float32)
    ((result,), _) = run(pipeline, [Window("s", 0, 0, {"chest": samples}, None)])
    ((array,), (expected,)) = result.arrays, whole(content, [samples])
    assert array.shape == (2,) and np.array_equal(np.float32(array.values), expected["scores"][0])


FOUR = """
name = "four"
rate_hz = 50.0
[files]
[[sources]]
name = "wrist"
columns = ["a", "b", "c", "d"]
"""


@pytest.mark.parametrize("cuts", [(), (2,), (3,), (2, 3)])
def test_outputs_that_later_slices_read_and_constant_ones_arrive_too(cuts: tuple[int, ...], tmp_path: Path) -> None:
    content = models.odd_outputs()
    (tmp_path / "four.toml").write_text(FOUR)
    described = parse_description(FOUR)
    task = derive_task(read_model(content), described, "four.toml", inputs={})
    assert task.results == ("early", "fixed", "end")
    pipeline = prepare(write(tmp_path, content), task, tmp_path / "out", stages=2, cuts=list(cuts))
    sample = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)
    interpreter = Interpreter(content)
    values = {port.name: np.zeros(port.shape, port.dtype) for port in interpreter.inputs} | {"x": sample}
    expected = interpreter.run(values)
    ((result,), _) = run(pipeline, [Window("s", 0, 0, {"wrist": sample}, None)])
    found = {array.name: np.float32(array.values) for array in result.arrays}
    assert found["fixed"].tolist() == [0.0, 1.0, 2.0]
    assert np.array_equal(found["early"], expected["early"][0]) and np.array_equal(found["end"], expected["end"][0])


def test_arrays_that_are_too_large_or_no_numbers_are_refused() -> None:
    check_arrays([TensorSpec("a", (1, MAX_VALUES), "float32")], "file")
    with pytest.raises(ConfigError, match=rf"^file: the arrays of a result have {MAX_VALUES + 1} values"):
        check_arrays([TensorSpec("a", (1, MAX_VALUES), "float32"), TensorSpec("b", (1,), "int8")], "file")
    with pytest.raises(ConfigError, match="complex64, which JSON has no numbers for"):
        check_arrays([TensorSpec("a", (1,), "complex64")], "file")


def test_no_finite_number_is_null_in_json() -> None:
    values = real_values(ArrayOutput("x"), np.array([1.5, np.nan, -np.inf, 0.1], np.float32))
    assert values == [1.5, None, None, 0.1]
    assert real_values(ArrayOutput("x"), np.array([True, False])) == [True, False]
    assert real_values(ArrayOutput("x"), np.array([2**40], np.int64)) == [2**40]
    result = Result("s", 0, "", -1, 0.0, 0.0, 0.0, 1, arrays=[NamedArray("x", (4,), values)])
    assert b'"values":[1.5,null,null,0.1]' in encode_results([result])


def test_results_and_hashes_of_other_tasks_have_their_bytes() -> None:
    result = Result("s", 3, "Walking", 4, 0.98, 1.25, 1.5, 1, truth=4)
    assert encode_results([result]) == (
        b'{"stream":"s","seq":3,"label":"Walking","label_id":4,"confidence":0.98,"captured":1.25,"emitted":1.5,'
        b'"epoch":1,"truth":4}'
    )
    task = Task(StreamTask("mhealth", 50.0, 8, 4), {"chest": SourceInput("c")}, "scores", ["a", "b"], [0, 1])
    kept = (task.stream, {"chest": "c"}, "scores", ["a", "b"], [0, 1])
    assert hash_task(task) == hashlib.sha256(msgspec.json.encode(kept)).hexdigest()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fit": AspectRule.PAD}, "pictures was 6 x 8 RGB, stretch, is 6 x 8 RGB, pad"),
        ({"height": 6, "width": 8}, "pictures was 6 x 8 RGB, stretch, is 8 x 6 RGB, stretch"),
        ({"mean": (1.0,), "std": (2.0,)}, ""),
    ],
)
def test_a_sensor_follows_a_plan_whose_pictures_are_those_that_it_makes(change: dict[str, Any], text: str) -> None:
    """The stages make the values of the input: only what the sensor does to a picture matters to it."""
    task = derive_image_task(read_model(picture_models.classifier()), labels=LABELS)
    assert task.image is not None
    other = msgspec.structs.replace(task, image=msgspec.structs.replace(task.image, **change))
    plans = [Deployment(1, number, "one", 1.0, PipelineConfig(one)) for number, one in enumerate((task, other))]
    if not text:
        check_windows(plans[0], plans[1], ["camera"])
        return
    with pytest.raises(ConfigError, match=text):
        check_windows(plans[0], plans[1], ["camera"])
