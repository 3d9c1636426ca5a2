"""Anomalies in pictures as processes on Mosquitto: fixed slices and a coordinator, heat maps as files, bad pictures."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from har_edge.api.model import load_model
from har_edge.cli.heat_map_files import HeatMapFiles
from har_edge.cli.main import main
from har_edge.cluster.local_cluster import LocalCluster, picture_options
from har_edge.config.anomaly import read_anomaly_note
from har_edge.config.pipeline import load_pipeline
from har_edge.data.pictures import AspectRule
from har_edge.inference.anomaly import AnomalyDetector
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.results import AnomalyScore, HeatMap, Result, encode_results
from har_edge.protocol.topics import COORDINATOR, Topics
from har_edge.tflite.model import read_model
from tests.cli.fleet import Fleet
from tests.data.pillow_made import file_of
from tests.learning.anomaly_pictures import stripes, with_spot
from tests.tflite import anomaly_models, picture_models
from tests.tflite.anomaly_models import THRESHOLD, defect, heat_map_of, normal

PICTURES = {"a.png": normal(0), "b.png": defect(5, 2), "c.png": normal(1)}


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds anomalies in three slices, as `slice` cuts it without another option."""
    folder = tmp_path_factory.mktemp("anomalies")
    (folder / "model.tflite").write_bytes(anomaly_models.detector())
    words = ["--stream", "images", "--at", "2,5", "--out", str(folder / "out")]
    assert main(["slice", str(folder / "model.tflite"), *words]) == 0
    return folder / "out"


@pytest.fixture
def fleet(sliced: Path, tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Fleet]:
    with Fleet(sliced, tmp_path, mosquitto.address) as fleet:
        yield fleet


def test_each_picture_gets_score_threshold_and_heat_map_and_anomalies_are_drawn(fleet: Fleet, tmp_path: Path) -> None:
    for name, picture in PICTURES.items():
        (tmp_path / name).write_bytes(file_of(picture))
    (tmp_path / "none.png").write_bytes(b"hello")
    fleet.stages()
    words = ["--images", "a.png", "none.png", "b.png", "c.png", "--heat-maps", "found"]
    sensor = fleet.start("sensor", *words)
    assert sensor.wait() == 0, sensor.output
    fleet.until_results(3)
    for seq, picture in enumerate(PICTURES.values()):
        one, expected = fleet.results["live", seq].anomaly, heat_map_of(picture)
        assert one is not None and one.heat_map is not None and one.threshold == THRESHOLD
        assert one.score == pytest.approx(expected.max(), rel=1e-6)
        assert np.allclose(np.array(one.heat_map.values).reshape(8, 6), expected, rtol=1e-3)
    assert [fleet.results["live", seq].label for seq in range(3)] == ["normal", "anomaly", "normal"]
    assert "none.png is no picture" in sensor.output and "sensor all: 1 heat map written to found" in sensor.output
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["live-000001-b.png"]
    with Image.open(tmp_path / "found" / "live-000001-b.png") as drawn:
        values = np.asarray(drawn)
    row, column = (5 * values.shape[0] + values.shape[0] // 2) // 8, (2 * values.shape[1] + values.shape[1] // 2) // 6
    assert values[row, column, 0] > 200 and values[row, column, 1] < 80 and values[2, 2, 0] < 110


@pytest.mark.slow
def test_a_trained_detector_is_sliced_and_served_as_it_is(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """From `train --task anomaly` to results: each has the score, threshold and heat map of the file that was made."""
    for number, picture in enumerate(stripes(20, channels=3)):
        (tmp_path / f"{number}.png").write_bytes(file_of(picture))
    (tmp_path / "good").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "good" / file.name)
    words = ["--size", "16", "--epochs", "4", "--filters", "4", "--code", "3", "--fit", "crop", "--batch", "8"]
    out = tmp_path / "out"
    assert main(["train", "--task", "anomaly", "--data", str(tmp_path / "good"), "--out", str(out), *words]) == 0
    model = out / "anomaly.tflite"
    assert main(["slice", str(model), "--stream", "images", "--stages", "3", "--out", str(out / "cut")]) == 0
    detector, shown = AnomalyDetector(model.read_bytes()), stripes(2, channels=3, seed=5)
    shown = np.concatenate([shown, with_spot(shown)])
    expected = detector.run(shown)
    for number, picture in enumerate(shown):
        (tmp_path / f"{number}.png").write_bytes(file_of(picture))
    with Fleet(out / "cut", tmp_path, mosquitto.address) as fleet:
        image = fleet.pipeline.task.image
        assert image is not None and image.fit is AspectRule.CROP  # the rule of the training, from the note
        fleet.stages()
        sensor = fleet.start("sensor", "--images", *(f"{number}.png" for number in range(4)))
        assert sensor.wait() == 0, sensor.output
        fleet.until_results(4)
        found = [fleet.results["live", seq] for seq in range(4)]
    note = read_anomaly_note(read_model(model))
    assert note is not None
    for seq, one in enumerate(found):
        assert one.anomaly is not None and one.anomaly.heat_map is not None
        assert np.float32(one.anomaly.score) == expected.scores[seq]
        assert one.anomaly.threshold == pytest.approx(note.threshold)
        assert one.anomaly.anomaly == (expected.scores[seq] > np.float32(note.threshold))
        values = np.array(one.anomaly.heat_map.values).reshape(one.anomaly.heat_map.shape)
        assert np.allclose(values, expected.heat_maps[seq], rtol=1e-3)
    assert [one.label for one in found[2:]] == ["anomaly", "anomaly"]


def test_slice_says_what_results_are_and_takes_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.tflite").write_bytes(anomaly_models.detector(note=False))
    words = ["slice", str(tmp_path / "model.tflite"), "--stream", "images", "--at", "2", "--out", str(tmp_path / "out")]
    assert main([*words, "--heat-map", "8"]) == 2
    assert "--heat-map came, and nothing says that the model finds anomalies" in capsys.readouterr().err
    assert main([*words, "--threshold", "4", "--arrays"]) == 2
    assert "--threshold came with --arrays; expected one of them" in capsys.readouterr().err
    assert main([*words, "--threshold", "4", "--heat-map", "0", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "results say anomaly where 'score' is above 4; heat maps stay out" in notes
    anomaly = load_pipeline(tmp_path / "out").task.anomaly
    assert anomaly is not None and (anomaly.threshold, anomaly.limit, anomaly.side) == (4.0, None, 0)
    (tmp_path / "model.tflite").write_bytes(anomaly_models.detector())
    assert main([*words[:-1], str(tmp_path / "arrays"), "--arrays"]) == 0
    task = load_pipeline(tmp_path / "arrays").task
    assert task.anomaly is None and [one.tensor for one in task.arrays] == ["score", "heat_map", "threshold"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "x", "--every-heat-map"], "--every-heat-map came without --heat-maps FOLDER; expected both"),
        (["--heat-maps", "x"], "--heat-maps came without --images; expected both"),
        (["--images", "x", "--heat-maps", "y", "--in-flight", "0"], "the sensor hears no results (--in-flight 0)"),
    ],
)
def test_heat_maps_without_pictures_or_results_are_refused(
    sliced: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["sensor", "--config", str(sliced), *options]) == 2
    assert said in capsys.readouterr().err


def test_heat_maps_of_a_classifier_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.tflite").write_bytes(picture_models.classifier())
    words = ["--stream", "images", "--at", "1", "--out", str(tmp_path / "out")]
    assert main(["slice", str(tmp_path / "model.tflite"), *words]) == 0
    assert main(["sensor", "--config", str(tmp_path / "out"), "--images", "x", "--heat-maps", "y"]) == 2
    assert "--heat-maps came, but the model finds no anomalies" in capsys.readouterr().err


def files(folder: Path, **options: object) -> HeatMapFiles:
    """Return a writer that has had three pictures."""
    made = HeatMapFiles(folder, "s", Topics("har", "har"), since=50.0, **({"most": 2, "everything": True} | options))  # type: ignore[arg-type]
    decode, note = made.decoder(lambda content, name: defect()), made.named(None)
    for seq in range(3):
        decode(b"", "")
        note(seq, f"dir/a b{seq}.png")
    return made


def result(seq: int, *, stream: str = "s", captured: float = 60.0, score: float = 10.0) -> Delivery:
    anomaly = AnomalyScore(score, 9.0, score > 9.0, HeatMap((1, 1), [score]))
    one = Result(stream, seq, "anomaly", 1, 1.0, captured, captured, 1, anomaly=anomaly)
    return Delivery(f"har/v1/har/result/{stream}", encode_results([one]), (0, 0))


def test_only_kept_pictures_of_this_stream_and_this_run_are_drawn(tmp_path: Path) -> None:
    made = files(tmp_path)
    for delivery in (
        result(0),
        result(1, captured=40.0),
        result(1, stream="t"),
        Delivery("har/v1/har/result/s", b"{", (0, 0)),
    ):
        made.hear(delivery)
    assert list(tmp_path.iterdir()) == [] and made.written == 0
    made.hear(result(1))
    made.hear(result(1))
    assert [file.name for file in tmp_path.iterdir()] == ["s-000001-a-b1.png"] and made.written == 1
    with Image.open(io.BytesIO((tmp_path / "s-000001-a-b1.png").read_bytes())) as drawn:
        assert drawn.format == "PNG"


def test_normal_pictures_are_left_out_and_the_number_of_files_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files(tmp_path, everything=False).hear(result(1, score=3.0))
    assert list(tmp_path.iterdir()) == []
    made = files(tmp_path, limit=1)
    for seq in (1, 2):
        made.hear(result(seq))
    assert made.written == 1 and "1 heat maps are written; this run writes no more" in caplog.text
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    files(blocked).hear(result(1))
    assert "cannot be written: " in caplog.text


def deploy(cluster: LocalCluster, path: Path) -> None:
    """Let a coordinator with another model take the place of the one that runs."""
    cluster.kill(COORDINATOR, signal.SIGTERM)
    cluster.start_coordinator(path, 2, *picture_options(cluster.pipeline.task, path.parent))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def is_new() -> bool:
        deployment = cluster.view.deployment
        current = None if deployment is None else deployment.current
        return current is not None and current.manifest.model_sha256 == sha256

    cluster.until(is_new, "the new version is not deployed")
    cluster.wait_deployed()


@pytest.mark.slow
def test_a_new_version_with_its_threshold_takes_over_while_pictures_flow(tmp_path: Path) -> None:
    """By a coordinator: no picture is lost, and each is judged by the threshold of the weights that scored it."""
    (tmp_path / "old.tflite").write_bytes(anomaly_models.detector())
    (tmp_path / "new.tflite").write_bytes(anomaly_models.detector(mean=90.0, threshold=30.0))
    model = load_model(tmp_path / "old.tflite", pictures=True)
    with (
        LocalCluster(model, stages=2, nodes=2, directory=tmp_path / "work") as cluster,
        cluster.watch() as results,
        cluster.sensor("line") as sensor,
    ):
        sent = 0

        def send() -> None:
            nonlocal sent
            sensor.send(defect() if sent % 2 else normal())
            sent += 1

        cluster.steps.append(send)
        cluster.until(lambda: sent >= 10, "pictures were not sent")
        deploy(cluster, tmp_path / "new.tflite")
        until = sent + 20
        cluster.until(lambda: sent >= until, "pictures were not sent")
        cluster.steps.clear()
        found = {result.seq: result for result in itertools.islice(results, sent)}
    assert sorted(found) == list(range(sent))
    judged = [found[seq].anomaly for seq in range(sent)]
    limits = [one.threshold for one in judged if one is not None]
    assert len(limits) == sent and set(limits) == {THRESHOLD, 30.0} and limits == sorted(limits)
    for seq, one in enumerate(judged):
        assert one is not None
        expected = heat_map_of(defect() if seq % 2 else normal(), 100.0 if one.threshold == THRESHOLD else 90.0).max()
        assert one.score == pytest.approx(expected, rel=1e-6) and one.anomaly == (seq % 2 == 1)
