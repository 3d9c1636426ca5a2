"""Values of a model of one's own that its quantised input cannot take: said where the data is known."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.pipeline import load_pipeline
from har_edge.data.recording import Window
from har_edge.mqtt.bus import Delivery
from har_edge.runtime.build import build_sensor, build_stage
from tests.tflite import models

SAID = "100% of the values of source 'photo' saturate: 100 to 200 came, but input 'photo' takes -31.25 to 32.5 (int8)"
COMMAND = ["--model", "m.tflite", "--stream", "photos.toml", "--labels", "l.txt", "--hop", "8", "--json", "o.json"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.tflite").write_bytes(models.averaging({"photo": (8, 3)}, input_type="int8"))
    (tmp_path / "l.txt").write_text("cat\ndog\n")
    (tmp_path / "photos.toml").write_text(
        'name = "photos"\nrate_hz = 8.0\n[files]\n[[sources]]\nname = "photo"\ncolumns = ["r", "g", "b"]\n'
    )
    for name, line in (("pixels", "100,150,200\n"), ("real", "-20,0,20\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.csv").write_text("r,g,b\n" + line * 32)
    return tmp_path


@pytest.mark.parametrize(("data", "share"), [("pixels", 1.0), ("real", 0.0)])
def test_evaluate_says_it_and_writes_it(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, nowhere: Path, data: str, share: float
) -> None:
    assert main(["evaluate", *COMMAND, "--data", data]) == 0
    said, bad = capfd.readouterr(), data == "pixels"
    assert (SAID in caplog.text, "saturated  100.0% of the values of photo: 100 to 200 came" in said.out) == (bad, bad)
    assert sum(SAID in record.getMessage() for record in caplog.records) == bad
    figures = msgspec.json.decode((nowhere / "o.json").read_bytes())["saturated"]["photo"]
    assert figures["share"] == share and figures["takes"] == [-31.25, 32.5]


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("data", ["pixels", "real"])
def test_demo_says_it_once_and_in_its_summary(capfd: pytest.CaptureFixture[str], nowhere: Path, data: str) -> None:
    assert main(["demo", *COMMAND, "--data", data, "--speed", "max", "--stages", "2"]) == 0
    said, bad = capfd.readouterr(), data == "pixels"
    assert said.err.count(SAID) == bad
    assert ("saturated   100.0% of the values that a quantised input took" in said.out) == bad
    summary = msgspec.json.decode((nowhere / "o.json").read_bytes())
    assert (summary["quantised"], summary["saturated"]) == (4 * 24, 4 * 24 if bad else 0)


def test_a_sensor_and_a_stage_of_fixed_slices_say_it(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    (nowhere / "s").mkdir()
    assert main(["slice", "m.tflite", "--out", "s", "--stages", "1"]) == 0
    (nowhere / "s" / "photos.toml").write_bytes((nowhere / "photos.toml").read_bytes())
    (nowhere / "s" / "pipeline.toml").write_text(
        '[task]\noutput = "scores"\nlabels = ["cat", "dog"]\nlabel_ids = [0, 1]\n[task.stream]\n'
        'description = "photos.toml"\nrate_hz = 8.0\nlength = 8\nhop = 8\n[task.inputs.photo]\ntensor = "photo"\n'
    )
    pipeline = load_pipeline(nowhere / "s")
    quiet, sensor = build_sensor(pipeline, ["photo"]), build_sensor(pipeline, ["photo"], look=True)
    samples = np.tile(np.array([100.0, 150.0, 200.0], np.float32), (8, 1))
    window = Window(stream="cat", seq=0, start=0, label=None, samples={"photo": samples})
    quiet.handle([window], [1.0])
    assert quiet.counters.quantised == 0 and not caplog.records
    (sent,) = sensor.handle([window], [1.0])
    assert (sensor.counters.quantised, sensor.counters.saturated) == (24, 24)
    assert sum(SAID in record.getMessage() for record in caplog.records) == 1
    stage = build_stage(pipeline, 0)
    (made,) = stage.handle(Delivery(sent.topic, sent.payload, 1), time.monotonic())
    assert made.topic and (stage.counters.quantised, stage.counters.saturated) == (24, 24)
    assert sum(SAID in record.getMessage() for record in caplog.records) == 2
