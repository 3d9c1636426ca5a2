"""Pipelines whose sensors reduce: groups of sources; codes restored, or classified as they are; batches."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.codecs.spec import file_names
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import load_description
from har_edge.data.grouping import regroup_recording
from har_edge.data.recording import Window
from har_edge.errors import ConfigError, ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.runtime.build import build_sensor, build_stage, override, reducer_of, topics_of
from har_edge.runtime.sender import Sender
from har_edge.runtime.slicing import prepare
from tests.runtime.rig import Node, Watcher
from tests.tflite import models

LENGTH, COUNT = 20, 6
# The sources of each grouping of mHealth, with their channels.
GROUPS = {
    "location": {"chest": 5, "ankle": 9, "arm": 9},
    "all": {"all": 23},
    "type": {"acc": 9, "ecg": 2, "gyro": 6, "mag": 6},
}


def task_of(grouping: str, reducer: str = "none") -> Task:
    return Task(
        stream=StreamTask("mhealth", 50.0, LENGTH, 10, grouping),
        inputs={source: SourceInput(f"in_{source}", reducer) for source in GROUPS[grouping]},
        output="scores",
        labels=["walking", "running"],
        label_ids=[4, 11],
    )


def pipeline_of(folder: Path, grouping: str, reducer: str, shape=lambda channels: (LENGTH, channels), **options):
    """Return the pipeline of a model that averages; `shape` says what its inputs take of a source."""
    ports = {f"in_{source}": shape(channels) for source, channels in GROUPS[grouping].items()}
    folder.mkdir(exist_ok=True)
    path = folder / "model.tflite"
    path.write_bytes(models.averaging(ports, **options))
    return prepare(path, task_of(grouping, reducer), folder / "slices", stages=1, cuts=[])


def windows_of(grouping: str) -> list[Window]:
    """Return windows as a sensor reads them, grouped."""
    rng, description = np.random.default_rng(3), load_description("mhealth")
    sizes = {source.name: len(source.channels) for source in description.sources}
    found = []
    for seq in range(COUNT):
        samples = {
            name: rng.normal(0, 4, (LENGTH, size)).cumsum(axis=0).astype(np.float32) for name, size in sizes.items()
        }
        found.append(regroup_recording(Window("s", seq, seq * 10, samples, 4), description, grouping))
    return found


def run_dry(bus: MemoryBus, node: Node) -> None:
    moved = True
    while moved:
        bus.poll(0)
        moved = node.step() or bus.unsent > 0


def answers_of(pipeline: Pipeline, windows: list[Window], batch: int) -> dict[int, float]:
    """Send windows through sensor, bus, stage and sink; return the score of each answer."""
    broker = MemoryBroker()
    watcher, node = Watcher(broker, topics_of(pipeline)), Node(broker, pipeline, 0)
    sensor = build_sensor(pipeline, list(pipeline.task.inputs))
    bus = broker.connect(Session("sensor"))
    sender = Sender(bus, sensor.counters, "start the stages")
    for start in range(0, len(windows), batch):
        chosen = windows[start : start + batch]
        for outgoing in sensor.handle(chosen, [1.0] * len(chosen)):
            sender.send(outgoing)
    run_dry(bus, node)
    watcher.step()
    assert (node.stage.counters.rejected, node.stage.waiting) == (0, 0)
    return {seq: result.confidence for (_, seq), result in watcher.results.items()}


def scores_by(pipeline: Pipeline, windows: list[Window], value) -> dict[int, float]:
    """Return the best score of each window by the uncut model, fed with `value(reducer, window)` of each source."""
    whole = Interpreter(pipeline.folder.parent / "model.tflite")
    found = {}
    for window in windows:
        values = {
            enters.tensor: value(reducer_of(pipeline, source), window.samples[source])[None]
            for source, enters in pipeline.task.inputs.items()
        }
        found[window.seq] = float(whole.run(values)["scores"].max())
    return found


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("reducer", ["none", "paa:5+q8", "sod:3", "door:0.5", "zlib"])
@pytest.mark.parametrize("grouping", GROUPS)
def test_windows_restored_from_codes_give_the_answers_of_the_whole_model(
    tmp_path: Path, grouping: str, reducer: str, batch: int
) -> None:
    pipeline, windows = pipeline_of(tmp_path, grouping, reducer), windows_of(grouping)
    expected = scores_by(pipeline, windows, lambda reducer, window: reducer.decode(reducer.encode(window)))
    assert answers_of(pipeline, windows, batch) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("input_type", ["float32", "int8"])
@pytest.mark.parametrize(
    ("reducer", "shape"),
    [
        ("paa:5+q8", lambda channels: (4, channels)),
        ("paa:5+q8:0.25:-3", lambda channels: (4, channels)),
        ("paa:4+q16+zlib", lambda channels: (5, channels)),
        ("stats", lambda channels: (11 * channels,)),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_codes_are_classified_without_windows(tmp_path: Path, reducer, shape, input_type: str, batch: int) -> None:
    pipeline, windows = pipeline_of(tmp_path, "type", reducer, shape, input_type=input_type), windows_of("type")

    def value(reducer, window):
        features = reducer.features(reducer.encode(window))
        if input_type == "float32":
            return features
        return np.clip(np.rint(features * np.float32(4)) - 3, -128, 127).astype(np.int8)

    assert answers_of(pipeline, windows, batch) == pytest.approx(scores_by(pipeline, windows, value), rel=1e-6)


@pytest.mark.parametrize(
    ("told", "expected"),
    [("paa:4+q8", r"\[1, 299\], expected uint8 \[1, 276\]"), ("paa:5", "float32"), ("zlib", "paa:5")],
)
def test_a_stage_told_otherwise_than_its_sensor_drops_and_counts(
    tmp_path: Path, told: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, (window, *_) = pipeline_of(tmp_path, "all", "paa:5+q8"), windows_of("all")
    broker = MemoryBroker()
    node = Node(broker, pipeline, 0)
    bus = broker.connect(Session("sensor"))
    sensor = build_sensor(override(pipeline, {"all": told}), ["all"])
    sender = Sender(bus, sensor.counters, "start the stages")
    for outgoing in (*sensor.handle([window], [1.0]), *build_sensor(pipeline, ["all"]).handle([window], [1.0])):
        sender.send(outgoing)
    run_dry(bus, node)
    assert (node.stage.counters.rejected, node.stage.counters.windows) == (1, 1)
    assert "the code of source 'all' is not what 'paa:5+q8' makes of 1 windows: " in caplog.text
    assert re.search(expected, caplog.text) and "give sensor and stage the same reducer" in caplog.text


def change(pipeline: Pipeline, old: str, new: str) -> Pipeline:
    file = pipeline.folder / "pipeline.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return load_pipeline(pipeline.folder)


@pytest.mark.parametrize("build", [lambda pipeline: build_stage(pipeline, 0), lambda one: build_sensor(one, ["acc"])])
@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("length = 20", "length = 24", "source 'acc' gives windows [24, 9], of which reducer 'none' makes"),
        ('reducer = "none"', 'reducer = "stats"', "features [99] and cannot restore them, but the input 'in_acc'"),
        ('reducer = "none"', 'reducer = "pca:8"', "source 'acc': reducer 'pca:8': pca:8 is a recipe that is yet"),
        ('reducer = "none"', 'reducer = "paa:50"', "source 'acc': paa:50: expected a piece of 1 to 20 samples"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_at_start(
    tmp_path: Path, build, old: str, new: str, text: str
) -> None:
    pipeline = change(pipeline_of(tmp_path, "type", "none"), old, new)
    with pytest.raises(ConfigError, match=re.escape(text)):
        build(pipeline)


@pytest.mark.parametrize(("grouping", "text"), [("location", "has no source 'acc'"), ("all", "has no source 'acc'")])
def test_a_model_of_other_groups_is_refused_when_the_pipeline_is_read(tmp_path: Path, grouping: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        change(pipeline_of(tmp_path, "type", "none"), 'grouping = "type"', f'grouping = "{grouping}"')


def test_a_model_for_another_rate_is_refused_when_the_pipeline_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the model was trained at 25.0 Hz, but mhealth runs at 50.0 Hz; resample"):
        change(pipeline_of(tmp_path, "type", "none"), "rate_hz = 50.0", "rate_hz = 25.0")


def fitted(folder: Path) -> tuple[Path, Task, bytes]:
    """Return a model, a task with a file beside it, and that file."""
    buffer = io.BytesIO()
    np.savez(buffer, mean=np.zeros(3, np.float32))
    (folder / "extra.npz").write_bytes(buffer.getvalue())
    path = folder / "model.tflite"
    path.write_bytes(models.averaging({"in_all": (LENGTH, 23)}))
    files = {"extra.npz": hashlib.sha256(buffer.getvalue()).hexdigest()}
    task = msgspec.structs.replace(task_of("all"), inputs={"all": SourceInput("in_all", "none", files)})
    return path, task, buffer.getvalue()


def test_fitted_files_travel_with_the_slices(tmp_path: Path) -> None:
    path, task, content = fitted(tmp_path)
    pipeline = prepare(path, task, tmp_path / "slices", stages=1, cuts=[])
    assert pipeline.task == task and (tmp_path / "slices" / "extra.npz").read_bytes() == content
    prepare(path, task, tmp_path / "slices", stages=2, cuts=[2])  # the folder is still known as one of slices
    assert sorted(one.name for one in (tmp_path / "slices").iterdir()) == [
        "extra.npz", "manifest.json", "pipeline.toml", "slice-0.tflite", "slice-1.tflite",
    ]  # fmt: skip


def basis(size: int) -> bytes:
    """Return principal components [size, LENGTH, 23], as a fitted file holds them."""
    rng, buffer = np.random.default_rng(5), io.BytesIO()
    directions = np.linalg.qr(rng.standard_normal((LENGTH * 23, size)))[0].T.reshape(size, LENGTH, 23)
    np.savez(
        buffer,
        mean=np.zeros((LENGTH, 23), np.float32),
        spread=np.ones(23, np.float32),
        components=directions.astype(np.float32),
        scale=np.full(size, 0.5, np.float32),
    )
    return buffer.getvalue()


@pytest.mark.parametrize("takes", [(LENGTH, 23), (4,)])
@pytest.mark.parametrize("reducer", ["pca:basis.npz", "pca:basis.npz+zlib", "ae:encoder.tflite:decoder.tflite"])
def test_fitted_reducers_run_from_the_folder_of_the_pipeline(tmp_path: Path, takes, reducer: str) -> None:
    """Files that the model's manifest does not know are hashed when the model is cut, and carried along."""
    (tmp_path / "basis.npz").write_bytes(basis(4))
    (tmp_path / "encoder.tflite").write_bytes(models.averaging({"window": (LENGTH, 23)}, classes=4))
    (tmp_path / "decoder.tflite").write_bytes(models.averaging({"code": (4,)}, classes=LENGTH * 23, shape=(LENGTH, 23)))
    (tmp_path / "model.tflite").write_bytes(models.averaging({"in_all": takes}))
    path, folder = tmp_path / "model.tflite", tmp_path / "slices"
    pipeline = prepare(path, task_of("all"), folder, stages=1, cuts=[], reducers={"all": reducer})
    assert sorted(pipeline.task.files) == sorted(file_names(reducer))
    for name, sha256 in pipeline.task.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
        (tmp_path / name).unlink()
    windows = windows_of("all")

    def value(reducer, window):
        code = reducer.encode(window)
        return reducer.decode(code) if len(takes) == 2 else reducer.features(code)

    assert answers_of(pipeline, windows, 4) == pytest.approx(scores_by(pipeline, windows, value), rel=1e-5)
    name = file_names(reducer)[0]
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"!")
    for build in (lambda: build_stage(pipeline, 0), lambda: build_sensor(pipeline, ["all"])):
        with pytest.raises(ModelError, match=rf"{name} has sha256 .* the file was changed or belongs to another"):
            build()


def test_a_reducer_fitted_for_other_channels_is_refused_by_sensor_and_stage(tmp_path: Path) -> None:
    (tmp_path / "basis.npz").write_bytes(basis(4))
    pipeline = pipeline_of(tmp_path, "type", "none")
    (pipeline.folder / "basis.npz").write_bytes(basis(4))
    files = f'[task.inputs.acc.files]\n"basis.npz" = "{hashlib.sha256(basis(4)).hexdigest()}"\n\n[task.inputs.ecg]'
    pipeline = change(pipeline, "[task.inputs.ecg]", files)
    pipeline = change(pipeline, 'tensor = "in_acc"\nreducer = "none"', 'tensor = "in_acc"\nreducer = "pca:basis.npz"')
    text = "source 'acc': pca:basis.npz: components are [4, 20, 23], expected [K, 20, 9] for windows [20, 9]"
    for build in (lambda: build_stage(pipeline, 0), lambda: build_sensor(pipeline, ["acc"])):
        with pytest.raises(ConfigError, match=re.escape(text)):
            build()


def test_a_changed_or_missing_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, task, _ = fitted(tmp_path)
    (tmp_path / "extra.npz").write_bytes(b"other")
    with pytest.raises(
        ModelError, match=r"extra.npz has sha256 .* the file was changed or belongs to another pipeline"
    ):
        prepare(path, task, tmp_path / "slices", stages=1, cuts=[])
    (tmp_path / "extra.npz").unlink()
    with pytest.raises(
        ModelError, match=r"cannot read .*extra.npz: No such file or directory; a fitted reducer's files"
    ):
        prepare(path, task, tmp_path / "slices", stages=1, cuts=[])
    assert not (tmp_path / "slices").exists()
