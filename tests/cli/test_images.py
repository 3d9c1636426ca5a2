"""`har-edge sensor --images` as processes on Mosquitto: files, a watched folder, standard input, and bad pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.cluster.processes import PROGRAM
from har_edge.config.pipeline import load_pipeline
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.broker.launcher import Mosquitto
from tests.cli.fleet import Fleet, environment
from tests.data.pillow_made import file_of, pixels, png_of_size
from tests.runtime.test_pictures import FOUR
from tests.test_readme import blocks, run
from tests.tflite import models, picture_models

LABELS = [f"class {number}" for number in range(7)]
MODEL = picture_models.classifier()
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "images.md"
SENSOR = "sensor-all-live"


def best(picture: np.ndarray) -> str:
    """Return the class that the whole model gives a picture."""
    scores = Interpreter(MODEL).run({"image": picture[None]})["scores"][0]
    return LABELS[int(scores.argmax())]


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures in three slices, as `slice` cuts it."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "model.tflite").write_bytes(MODEL)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    words = ["--stream", "images", "--labels", str(folder / "labels.txt"), "--at", "1,2", "--out", str(folder / "out")]
    assert main(["slice", str(folder / "model.tflite"), *words]) == 0
    return folder / "out"


@pytest.fixture
def fleet(sliced: Path, tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Fleet]:
    with Fleet(sliced, tmp_path, mosquitto.address) as fleet:
        yield fleet


def test_files_are_answered_and_bad_ones_refused_with_their_names(fleet: Fleet, tmp_path: Path) -> None:
    good = [pixels(8, 6, seed=n) for n in range(3)]
    files = {f"good-{n}.png": file_of(one) for n, one in enumerate(good)}
    files |= {"none.png": b"hello", "half.png": file_of(pixels(64, 64))[:5000], "bomb.png": png_of_size(60_000, 60_000)}
    files |= {"other.png": b"hello too"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    fleet.stages()
    names = ["good-0.png", "none.png", "half.png", "good-1.png", "bomb.png", "other.png", "good-2.png"]
    sensor = fleet.start("sensor", "--images", *names)
    assert sensor.wait() == 0, sensor.output
    fleet.until_results(3)
    assert [fleet.results["live", seq].label for seq in range(3)] == [best(one) for one in good]
    assert all(len(result.classes) == 5 for result in fleet.results.values()) and fleet.doubled == 0
    said = sensor.output
    assert "camera of live, pictures from 7 files from good-0.png on" in said
    assert [line for line in said.splitlines() if line.startswith("window ")] == [
        f"window {seq} of live: good-{seq}.png" for seq in range(3)
    ]
    assert "none.png is no picture: 5 bytes that begin with b'hell'" in said and "other.png is" not in said
    assert "half.png is refused: it ends too early" in said and "bomb.png is refused: " in said
    counts = {"pictures": 7, "unreadable_pictures": 2, "truncated_pictures": 1, "huge_pictures": 1, "windows": 3}
    assert {name: fleet.counter(SENSOR, name) for name in counts} == counts
    assert fleet.counter(SENSOR, "raw_bytes") == 3 * 8 * 6 * 3
    assert re.search(r"sensor all done: 3 windows in 3 messages; pictures 7, unreadable pictures 2,", said)


def test_a_folder_is_watched_until_the_end(fleet: Fleet, tmp_path: Path) -> None:
    fleet.stages()
    folder, more = tmp_path / "in", [pixels(8, 6, seed=n) for n in range(4)]
    folder.mkdir()
    (folder / "b.png").write_bytes(file_of(more[1]))
    (folder / "a.png").write_bytes(file_of(more[0]))
    sensor = fleet.start("sensor", "--images", str(folder), "--stream", "door", "--name", "camera")
    fleet.until_results(2)
    whole = file_of(more[2], "BMP")
    (folder / "c.bmp").write_bytes(whole[:100])  # half written, and then no more for long
    fleet.until(lambda: fleet.counter("camera", "truncated_pictures") == 1, "the half picture was not refused")
    (folder / "c.bmp").write_bytes(whole)
    fleet.until_results(3)
    (folder / "d.png").write_bytes(file_of(more[3]))
    fleet.until_results(4)
    assert sensor.end(signal.SIGTERM) == 0
    assert [fleet.results["door", seq].label for seq in range(4)] == [best(one) for one in more]
    assert "sensor all stopped: 4 windows in 4 messages; pictures 5, truncated pictures 1" in sensor.output


def test_a_folder_ends_after_so_many_pictures_and_when_it_goes(fleet: Fleet, tmp_path: Path) -> None:
    fleet.stages()
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(file_of(pixels(8, 6, seed=number)))
    sensor = fleet.start("sensor", "--images", str(folder), "--windows", "2")
    assert sensor.wait() == 0 and "sensor all done: 2 windows in 2 messages" in sensor.output, sensor.output
    sensor = fleet.start("sensor", "--images", str(folder), "--stream", "other")
    fleet.until(lambda: ("other", 2) in fleet.results, "the pictures were not answered")
    shutil.rmtree(folder)
    assert sensor.wait() == 2
    assert f"{folder} can no longer be read" in sensor.output and "ended: 3 windows in 3 messages" in sensor.output


def piped(fleet: Fleet, data: bytes, *options: str) -> tuple[int, str]:
    """Run a sensor with this standard input; return exit code and output."""
    command = [*PROGRAM, "sensor", "--config", str(fleet.slices), "--images", "-", *options]
    made = subprocess.run(
        [*command, "--broker", fleet.address.url], input=data, capture_output=True, timeout=60, env=environment()
    )
    return made.returncode, (made.stdout + made.stderr).decode()


def test_standard_input_brings_jpegs_or_raw_frames(fleet: Fleet) -> None:
    fleet.stages()
    sent = [pixels(8, 6, seed=n) for n in range(3)]
    raw = b"".join(one.tobytes() for one in sent) + b"rest"
    code, said = piped(fleet, raw, "--raw", "6x8", "--stream", "raw")
    assert code == 0 and "pictures from standard input" in said, said
    assert "frame 3 of standard input is refused: it has 4 bytes; expected 144 for 6 x 8 RGB" in said
    assert "done: 3 windows in 3 messages; pictures 4, wrong frame sizes 1" in said
    jpegs = [file_of(one, "JPEG") for one in sent]
    code, said = piped(fleet, jpegs[0] + jpegs[1][:-20] + jpegs[2], "--stream", "jpeg")
    assert code == 0 and "frame 1 of standard input is refused: it ends too early" in said, said
    fleet.until_results(5)
    assert [fleet.results["raw", seq].label for seq in range(3)] == [best(one) for one in sent]
    assert {key for key in fleet.results if key[0] == "jpeg"} == {("jpeg", 0), ("jpeg", 1)}


def test_pictures_are_kept_until_they_are_answered(fleet: Fleet, tmp_path: Path) -> None:
    """The stages start after the sensor, and one of them dies while pictures are on their way."""
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes(file_of(pixels(8, 6, seed=number)))
    names = [f"{number:02}.png" for number in range(30)]
    sensor = fleet.start("sensor", "--images", *names, "--in-flight", "4")
    stages = fleet.stages()
    fleet.until_results(3)
    stages[1].end(signal.SIGKILL)
    fleet.stage(1)
    assert sensor.wait() == 0, sensor.output
    fleet.until_results(30)
    assert [fleet.results["live", seq].label for seq in range(30)] == [
        best(pixels(8, 6, seed=number)) for number in range(30)
    ]
    assert "sensor all done: 30 windows" in sensor.output


def test_no_picture_at_all_is_exit_code_1(fleet: Fleet, tmp_path: Path) -> None:
    fleet.stages()
    (tmp_path / "none.png").write_bytes(b"hello")
    sensor = fleet.start("sensor", "--images", "none.png")
    assert sensor.wait() == 1
    last = sensor.output.splitlines()[-1]
    assert last.startswith("sensor all: no picture was sent: 1 picture came, and all were refused: none.png is no pict")
    code, said = piped(fleet, b"")
    assert code == 1 and "no picture was sent: 0 pictures came" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "nowhere.png"], "cannot read nowhere.png: it is no file; expected picture files, a folder of"),
        (["--images", "-", "--speed", "2", "--live", "x"], "--live, --speed came with --images; expected without"),
        (["--images", "x", "--raw", "6x8"], "--raw came without --images -; expected both"),
        (["--images", "-", "x"], "--images has 2 entries; expected files, or one folder, or - alone"),
        (["--images", "x", "--stream", "a/b"], "name of the stream"),
        ([], "the model takes pictures of 6 x 8 RGB, of which there are no recordings; give --images"),
        (["--live", "x"], "the model takes pictures of 6 x 8 RGB, of which there are no recordings; give --images"),
    ],
)
def test_what_makes_no_sense_is_refused(
    sliced: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["sensor", "--config", str(sliced), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_pipeline_without_pictures_refuses_them(slices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensor", "--config", str(slices), "--images", "x.png"]) == 2
    assert "takes no pictures; cut its model with `har-edge slice MODEL --stream images`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "evaluate"])
def test_commands_that_replay_recordings_say_where_pictures_go(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.tflite").write_bytes(MODEL)
    assert main([command, "--model", str(tmp_path / "model.tflite"), "--stream", "images"]) == 2
    assert "this command replays recordings, of which pictures have none" in capsys.readouterr().err


def test_slice_says_how_pictures_enter_and_what_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.tflite").write_bytes(picture_models.many_outputs())
    words = ["--stream", "images", "--normalize", "0/1/2,255", "--at", "5", "--out", str(tmp_path / "out")]
    assert main(["slice", str(tmp_path / "model.tflite"), *words]) == 2
    assert "mean has 3 figures and std 1; expected one each" in capsys.readouterr().err
    words[3] = "0,255"
    assert main(["slice", str(tmp_path / "model.tflite"), *words, "--fit", "crop", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "pictures of 6 x 8 RGB enter as (byte - [0.0]) / [255.0]; others are made so by `crop`" in notes
    assert "results carry as arrays: boxes, scores, mask; no labels fit an output" in notes


def test_labels_and_constants_of_the_model_itself_are_enough(tmp_path: Path) -> None:
    meta = picture_models.normalized([127.5], [127.5])
    content = picture_models.classifier("float32", meta=meta, files={"labels.txt": "\n".join(LABELS).encode()})
    (tmp_path / "model.tflite").write_bytes(content)
    words = ["--stream", "images", "--at", "1", "--out", str(tmp_path / "out")]
    assert main(["slice", str(tmp_path / "model.tflite"), *words]) == 0
    task = load_pipeline(tmp_path / "out").task
    assert task.labels == LABELS and task.image is not None and task.image.mean == task.image.std == (127.5,)


@pytest.mark.parametrize("command", ["demo", "evaluate"])
def test_commands_that_show_classes_refuse_a_model_without(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.tflite").write_bytes(models.odd_outputs())
    (tmp_path / "four.toml").write_text(FOUR)
    options = ["--model", str(tmp_path / "model.tflite"), "--stream", str(tmp_path / "four.toml")]
    assert main([command, *options]) == 2
    said = capsys.readouterr().err
    assert "no labels fit an output of the model (early, fixed, end), and this command shows classes" in said


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("way", ["fixed", "split", "coordinator"])
def test_the_commands_of_the_page_say_egyptian_cat(way: str, tmp_path: Path) -> None:
    default = Path(os.environ.get("HAR_EDGE_DATA", ".")).parent / "models"
    folder = Path(os.environ.get("HAR_EDGE_MODELS", default))
    names = ("mobilenet_v2_1.0_224_quant.tflite", "imagenet_labels.txt", "cat.bmp")
    if not all((folder / name).is_file() for name in names):
        pytest.fail(f"needs {', '.join(names)} in {folder}: set HAR_EDGE_MODELS to the folder with them")
    for name in names:
        shutil.copy(folder / name, tmp_path / name)
    found = blocks(PAGE, "sh")
    script = "".join(found[number] for number in ((0, 3) if way == "coordinator" else (0, 1, 2)))
    if way == "split":  # three devices, of which two share the first layers
        script = script.replace("--stages 3", '--split "rows:0-20@2 whole:20-66"')
    sent = "2 messages" if way == "split" else "1 message"  # each of the two takes rows of its own
    said = run(script, tmp_path, "page")
    assert re.search(r"live +│ +0 │ Egyptian cat +│ +0\.79 │", said), said
    assert "window 0 of live: cat.bmp" in said and f"sensor all done: 1 window in {sent}; pictures 1" in said
