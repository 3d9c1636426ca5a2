"""Every type of tensor, as input, between slices, as answer and beside it: it runs, or is refused before anything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.pipeline import load_pipeline
from har_edge.config.pipeline_writer import write_pipeline
from har_edge.errors import ConfigError, HarEdgeError, ModelError
from har_edge.evaluation.composition import load_whole
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.segment_timing import segment_bounds
from har_edge.inference.tensor_observation import open_model
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.runtime.build import build_sensor, build_stage
from har_edge.runtime.slicing import prepare
from har_edge.runtime.verify import check_cuts
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.folder import write_folder
from har_edge.tflite.manifest import MAX_RANK, MAX_TENSORS, QUANTISED, REAL
from har_edge.tflite.model import read_model
from har_edge.tflite.ports import check_ports
from har_edge.tflite.schema import DTYPES
from har_edge.tflite.slices import slice_model
from tests.runtime.rig import windows_of
from tests.runtime.test_odd_models import TASK, expected, run
from tests.tflite import models

TYPES = models.types()
# Those of which the runtime has no CAST, so that no model with them runs: only what is said of them is tested.
NO_KERNEL = {"COMPLEX128", "RESOURCE", "VARIANT", "FLOAT8_E4M3FN", "FLOAT8_E5M2"}
SENT = {name for name, value in TYPES.items() if value in DTYPES}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write


def test_what_may_cross_is_what_messages_carry() -> None:
    assert (MAX_RANK, MAX_TENSORS) == (wire.MAX_RANK, wire.MAX_TENSORS_3)
    assert {np.dtype(dtype) for dtype in DTYPES.values()} == {np.dtype(dtype.name) for dtype in wire.DTYPES.values()}


@pytest.mark.parametrize("name", TYPES)
def test_an_input_takes_windows_or_is_refused_before_anything(
    name: str, save: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = save(models.typed(entering=TYPES[name]))
    if name.lower() not in REAL:
        said = (
            f"input 'c' is {'of type ' + name if name.lower() not in QUANTISED else name.lower() + ' without a scale'}"
        )
        for refuse in (open_model, lambda path: load_whole(path, TASK)):
            with pytest.raises(ModelError, match=said):
                refuse(path)
        return
    for cut in list_cuts(open_model(path)):
        assert cut.refusal is None
        pipeline = prepare(path, TASK, tmp_path / str(cut.index), stages=2, cuts=[cut.index])
        assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("scales", [1, 5])
def test_an_integer_input_takes_windows_by_its_one_scale(
    name: str, scales: int, save: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = save(models.typed(entering=TYPES[name.upper()], scales=scales))
    if scales > 1:
        with pytest.raises(ModelError, match=f"input 'c' is {name} with 5 scales, so the windows of sensors cannot"):
            open_model(path)
        return
    pipeline = prepare(path, TASK, tmp_path / "slices", stages=2, cuts=[2])
    assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


@pytest.mark.parametrize("name", TYPES)
def test_what_crosses_is_sent_or_the_cut_is_refused(name: str, save: Callable[[bytes], Path], tmp_path: Path) -> None:
    path = save(models.typed(crossing=TYPES[name]))
    model = read_model(path) if name in NO_KERNEL else open_model(path)
    cuts = list_cuts(model)
    makers = {tensor: o.index for o in model.main.operators for tensor in o.outputs}
    (place,) = [makers[t.index] + 1 for t in model.main.tensors if t.name == "mean"]
    cut = cuts[place - 1]
    if name not in SENT:
        assert cut.refusal == f"tensor mean would cross, and its type {name} cannot be sent between devices"
        assert place not in segment_bounds(model)
    else:
        assert cut.refusal is None and place in segment_bounds(model)
    if name in NO_KERNEL:
        return
    legal = [cut.index for cut in cuts if cut.refusal is None]
    assert legal
    assert [one.difference for one in check_cuts(model, [(index,) for index in legal])] == [None] * len(legal)
    for index in legal:
        pipeline = prepare(path, TASK, tmp_path / str(index), stages=2, cuts=[index])
        assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


@pytest.mark.parametrize("name", TYPES)
def test_an_answer_is_real_or_refused_at_start(name: str, save: Callable[[bytes], Path], tmp_path: Path) -> None:
    path = save(models.typed(answering=TYPES[name]))
    if name not in SENT:
        with pytest.raises(ModelError, match=rf"messages can carry none of its outputs: 'scores' \({name}\); expected"):
            open_model(path)
        return
    if name.startswith("COMPLEX"):
        with pytest.raises(ConfigError, match="output 'scores' is complex64, of which none is the largest"):
            prepare(path, TASK, tmp_path / "s", stages=2, cuts=[2])
        return
    pipeline = prepare(path, TASK, tmp_path / "s", stages=2, cuts=[2])
    assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TYPES.keys() - NO_KERNEL))
def test_an_output_beside_the_answer_goes_with_it_or_is_left_out(
    name: str, save: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = save(models.typed(beside=TYPES[name]))
    model = open_model(path)
    said = f"output beside is left out: its type {name} cannot be sent between devices"
    assert model.remarks == (() if name in SENT else (said,))
    cuts = list_cuts(model)
    legal = [cut.index for cut in cuts if cut.refusal is None]
    assert legal == [cut.index for cut in cuts if name in SENT or cut.index < 5]  # from there on, only it is made
    assert [one.difference for one in check_cuts(model, [(index,) for index in legal])] == [None] * len(legal)
    for way in [(), (2,)]:
        pipeline = prepare(path, TASK, tmp_path / str(len(way)), stages=len(way) + 1, cuts=way)
        assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


@pytest.mark.parametrize("name", ["STRING", "INT32", "BOOL"])
def test_every_command_says_the_same_of_an_input_that_no_window_enters(
    name: str,
    save: Callable[[bytes], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, devices = str(save(models.typed(entering=TYPES[name]))), tmp_path / "devices.toml"
    devices.write_text('[[device]]\nname = "a"\n')
    labels = tmp_path / "labels.txt"
    labels.write_text("standing still\nwalking\n")
    known = ["--model", path, "--stream", "mhealth", "--input", "c=chest", "--labels", str(labels)]
    said = []
    for command in (
        ["slice", path, "--list"],
        ["slice", path, "--check"],
        ["slice", path, "--stages", "2", "--out", str(tmp_path / "out")],
        ["slice", path, "--at", "1", "--out", str(tmp_path / "out")],
        ["profile", path],
        ["plan", path, "--devices", str(devices)],
        ["coordinator", *known, "--broker", "mqtt://127.0.0.1:1"],
    ):
        assert main(command) == 2
        said.append(" ".join(capsys.readouterr().err.split()))
    assert (
        set(said) == {said[0]} and f"input 'c' is of type {name}, so the windows of sensors cannot enter it" in said[0]
    )
    assert not (tmp_path / "out").exists()


def test_a_stage_refuses_slices_of_such_a_model_that_came_from_elsewhere(
    save: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = save(models.typed(entering=TYPES["INT32"]))
    model = read_model(path)
    write_folder(model, slice_model(model, [2]), tmp_path / "slices")
    write_pipeline(tmp_path / "slices", TASK, name="p")
    with pytest.raises(HarEdgeError, match="input 'c' of the model is int32; windows and codes can enter float32"):
        build_stage(load_pipeline(tmp_path / "slices"), 0)


def test_an_unread_input_may_be_of_any_type(save: Callable[[bytes], Path]) -> None:
    draft = models.Draft()
    graph = draft.graph()
    x, _ = graph.input([1, 4], "x"), graph.input([1], "name", type=TYPES["STRING"])
    graph.output(graph.add(x, x))
    assert check_ports(read_model(draft.build())).remarks == ()


@pytest.mark.parametrize("first", [True, False])
def test_a_model_that_makes_what_is_no_number_is_named(
    first: bool, save: Callable[[bytes], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(models.undefined(first=first))
    model = open_model(path)
    cuts = {cut.index: [one.tensor.name for one in cut.crossing] for cut in list_cuts(model)}
    for index, names in cuts.items():
        pipeline = prepare(path, TASK, tmp_path / str(index), stages=2, cuts=[index])
        stages, sensor = [build_stage(pipeline, number) for number in (0, 1)], build_sensor(pipeline, ["chest"])
        (window,) = windows_of(pipeline, "s", 1)
        (sent,) = sensor.handle([window], [0.0])
        with caplog.at_level(logging.WARNING):
            (made,) = stages[0].handle(Delivery(sent.topic, sent.payload, (0, 0)))
            (released,) = stages[1].handle(Delivery(made.topic, made.payload, (0, 1)))
        assert released.topic == "" and stages[1].counters.rejected == 1
        where = "stage 0 gave 'log' with NaN or infinity" if names == ["log"] else "all that entered this slice are fin"
        assert f"the model's score is NaN; expected a number; {where}" in stages[1].complaint
        assert "the model itself makes it of what the sensors sent, which are numbers" in stages[1].complaint
    whole = load_whole(path, TASK)
    classifier = Classifier(whole.run, whole.inputs, TASK, channels={"chest": models.CHANNELS})
    with pytest.raises(
        ModelError, match="its best score for window 0 of s is nan, which is no answer, and a stage drops"
    ):
        classifier.predict(window)
    assert msgspec.structs.asdict(TASK)["output"] == "scores"
