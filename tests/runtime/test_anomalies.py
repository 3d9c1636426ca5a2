"""Models that find anomalies, through sensor, wire and stages: score, threshold and heat map of each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.anomaly_outputs import describe_anomaly, heat_map_size
from har_edge.config.anomaly_task import derive_anomaly_task
from har_edge.config.pipeline import load_pipeline
from har_edge.config.task import VERDICTS, AnomalyOutput, ArrayOutput, Task
from har_edge.errors import ConfigError, MessageError
from har_edge.inference.tensor_observation import open_model
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.results import AnomalyScore, HeatMap, Result, encode_results
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.anomalies import judge_windows, make_heat_map, shrink
from har_edge.runtime.stage.neighbours import describe_task, hash_task
from har_edge.runtime.stage.no_score import NoScore
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import read_model
from tests.protocol.reading import read_results
from tests.runtime.test_pictures import run, windows, write
from tests.tflite import anomaly_models, picture_models
from tests.tflite.anomaly_models import THRESHOLD, defect, heat_map_of, normal

PICTURES = np.stack([normal(0), defect(5, 2), normal(1)])


def derive(content: bytes, **options: Any) -> Task:
    task = derive_anomaly_task(read_model(content), **options)
    assert task is not None
    return task


def test_the_note_of_a_model_says_that_it_finds_anomalies() -> None:
    task = derive(anomaly_models.detector())
    assert (task.output, tuple(task.labels), task.label_ids, task.ranked) == ("score", VERDICTS, [0, 1], False)
    outputs = ArrayOutput("score"), ArrayOutput("heat_map"), ArrayOutput("threshold")
    assert task.anomaly == AnomalyOutput(outputs[0], heat_map=outputs[1], limit=outputs[2])
    assert task.results == ("score", "heat_map", "threshold")
    assert derive_anomaly_task(read_model(anomaly_models.detector(note=False))) is None
    assert derive_anomaly_task(read_model(picture_models.classifier())) is None


def test_a_threshold_that_a_person_gives_counts_and_one_in_the_note_alone_is_that_of_the_task() -> None:
    given = derive(anomaly_models.detector(note=False), threshold=4.5, side=0).anomaly
    assert given is not None and (given.threshold, given.limit, given.tensors) == (4.5, None, ("score",))
    noted = derive(anomaly_models.detector(limit=False)).anomaly
    assert noted is not None and (noted.threshold, noted.limit) == (THRESHOLD, None)
    assert describe_anomaly(noted).startswith("results say anomaly where 'score' is above 9, with heat maps of at most")


def test_a_model_without_a_score_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no output of the model is the score of a picture: scores \[1, 7\]; expect"):
        derive_anomaly_task(read_model(picture_models.classifier()), threshold=1.0)


@pytest.mark.parametrize("batch", [-1, 1])
def test_every_cut_gives_score_threshold_and_heat_map_of_the_whole_model(batch: int, tmp_path: Path) -> None:
    path = write(tmp_path, anomaly_models.detector(batch=batch))
    task = derive(path.read_bytes())
    for cut in [cut.index for cut in list_cuts(open_model(path)) if cut.refusal is None]:
        pipeline = prepare(path, task, tmp_path / str(cut), stages=2, cuts=[cut])
        assert load_pipeline(tmp_path / str(cut)).task == task
        results, _ = run(pipeline, windows(PICTURES))
        assert [(result.label, result.label_id, result.confidence) for result in results] == [
            ("normal", 0, 1.0),
            ("anomaly", 1, 1.0),
            ("normal", 0, 1.0),
        ]
        for result, picture in zip(results, PICTURES, strict=True):
            one, expected = result.anomaly, heat_map_of(picture)
            assert one is not None and one.heat_map is not None
            assert one.score == pytest.approx(expected.max(), rel=1e-6) and one.threshold == THRESHOLD
            assert one.anomaly == (one.score > THRESHOLD) and not (result.classes or result.arrays)
            assert one.heat_map.shape == (8, 6)
            assert np.allclose(np.array(one.heat_map.values).reshape(8, 6), expected, rtol=1e-3)


def test_the_threshold_goes_with_the_weights_and_the_task_stays() -> None:
    """So another version of a model can take over while data flow."""
    older, newer = derive(anomaly_models.detector()), derive(anomaly_models.detector(mean=90, threshold=30.0))
    assert older == newer and hash_task(older) == hash_task(newer)
    assert describe_task(older) == "images: 6 x 8 RGB of camera, scores of anomalies"


@pytest.mark.parametrize("side", [0, 4])
def test_the_side_of_heat_maps_is_bounded(side: int, tmp_path: Path) -> None:
    path = write(tmp_path, anomaly_models.detector())
    pipeline = prepare(path, derive(path.read_bytes(), side=side), tmp_path / "out", stages=2, cuts=[3])
    results, _ = run(pipeline, windows(PICTURES))
    one = results[1].anomaly
    assert one is not None and one.anomaly
    if not side:
        assert one.heat_map is None
        return
    assert one.heat_map is not None and one.heat_map.shape == (4, 3)
    values = np.array(one.heat_map.values).reshape(4, 3)
    assert np.unravel_index(values.argmax(), values.shape) == (2, 1)  # the pixel at (5, 2)
    assert values.max() == pytest.approx(one.score, rel=1e-3)


def test_cells_are_the_largest_values_and_what_is_no_number_is_null() -> None:
    values = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert shrink(values, 3).tolist() == [[8, 10, 13], [29, 31, 34]]
    assert make_heat_map(np.array([[np.nan, 1.23456]], np.float32), 8) == HeatMap((1, 2), [None, 1.235])
    assert shrink(np.zeros((300, 1), np.float32), 128).shape == (128, 1)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 4, 5), (4, 5)),
        ((1, 4, 5, 1), (4, 5)),
        ((4, 5), (4, 5)),
        ((1, 4, 5, 2), None),
        ((5,), None),
        ((1, 0, 5), None),
    ],
)
def test_heat_maps_come_in_these_shapes(shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    assert heat_map_size(shape) == size


OUTPUT = AnomalyOutput(ArrayOutput("s", 0.5, 2), heat_map=ArrayOutput("m"), limit=ArrayOutput("t"))


def made(**changes: Any) -> dict[str, Any]:
    values = {"s": np.array([4, 10], np.uint8), "m": np.ones((2, 2, 2), np.float32), "t": np.array([1.5], np.float32)}
    return values | changes


def test_quantised_scores_are_real_and_a_constant_threshold_holds_for_all() -> None:
    found = judge_windows(OUTPUT, made(), 2)
    assert [(one.score, one.threshold, one.anomaly) for one in found] == [(1.0, 1.5, False), (4.0, 1.5, True)]


def test_outputs_of_other_sizes_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(MessageError, match=r"output 's' came as \[3\] for 2 windows; expected a number for each"):
        judge_windows(OUTPUT, made(s=np.zeros(3, np.uint8)), 2)
    with pytest.raises(
        MessageError, match=r"output 'm' came as \[3, 2, 2\] for 2 windows; expected a heat map for each"
    ):
        judge_windows(OUTPUT, made(m=np.ones((3, 2, 2), np.float32)), 2)
    with pytest.raises(NoScore, match="the model's score is NaN"):
        judge_windows(OUTPUT, made(t=np.array([np.nan], np.float32)), 2)


def test_results_bring_it_and_results_of_other_models_do_not() -> None:
    plain = Result("s", 3, "Walking", 4, 0.98, 1.25, 1.5, 1)
    assert b"anomaly" not in encode_results([plain])
    result = msgspec.structs.replace(plain, anomaly=AnomalyScore(2.5, 2.0, True, HeatMap((1, 2), [0.5, None])))
    payload = encode_results([result])
    assert payload.endswith(
        b'"anomaly":{"score":2.5,"threshold":2.0,"anomaly":true,"heat_map":{"shape":[1,2],"values":[0.5,null]}}}'
    )
    assert read_results(Outgoing("har/v1/har/result/s", payload)) == [result]


@pytest.mark.parametrize("change", [{"arrays": (ArrayOutput("a"),)}, {"labels": ["a", "b"]}, {"output": "other"}])
def test_a_task_with_other_labels_or_arrays_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="anomaly came with output"):
        msgspec.structs.replace(derive(anomaly_models.detector()), **change)


def test_tables_of_a_pipeline_file_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    path = write(tmp_path, anomaly_models.detector(limit=False))
    prepare(path, derive(path.read_bytes()), tmp_path / "out", stages=2, cuts=[3])
    file = tmp_path / "out" / "pipeline.toml"
    text = file.read_text()
    assert "[task.anomaly]" in text and "threshold = 9.0" in text
    file.write_text(text.replace("threshold = 9.0", "threshold = 2.0"))
    anomaly = load_pipeline(file).task.anomaly
    assert anomaly is not None and anomaly.threshold == 2.0
    file.write_text(text.replace("side = 32 ", "side = 129 "))
    with pytest.raises(ConfigError, match=r"`int` <= 128.*task\.anomaly\.side"):
        load_pipeline(file)
    file.write_text(
        text.replace('[task.anomaly.heat_map]\ntensor = "heat_map"', '[task.anomaly.heat_map]\ntensor = "score"')
    )
    with pytest.raises(
        ConfigError, match=r"heat map 'score' is float32 \[-1\]; expected real numbers \[1, height, widt"
    ):
        load_pipeline(file)


def test_shards_answer_too_where_one_computes_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, anomaly_models.detector())
    words = ["slice", str(path), "--stream", "images", "--split"]
    assert main([*words, "rows:0-5@2 whole:5-6", "--out", str(tmp_path / "cut")]) == 2
    assert "parts of the result heat_map, and none has it whole" in capsys.readouterr().err
    assert main([*words, "rows:0-4@2 whole:4-6", "--out", str(tmp_path / "out")]) == 0
    results, _ = run(load_pipeline(tmp_path / "out"), windows(PICTURES))
    assert [result.label for result in results] == ["normal", "anomaly", "normal"]
    judged = [result.anomaly for result in results]
    assert [one.threshold for one in judged if one is not None] == [THRESHOLD] * 3
