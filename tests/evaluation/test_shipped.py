"""The models in models/ are what their entries say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.config.catalog import find_model, load_catalog
from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.evaluation.prediction import Classifier, Prediction, predict_recordings
from har_edge.evaluation.report import score
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model, write_slice
from har_edge.tflite.split.writer import constant_data

KINDS = ("float", "int8", "bottleneck", "bottleneck-float", "decimate-q8-zlib-restore")
NAMES = (*KINDS, *(f"{kind}-split" for kind in KINDS))


def test_all_are_there() -> None:
    assert sorted(entry.name for entry in load_catalog().models) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_that_of_the_entry(name: str) -> None:
    found = find_model(name)
    assert found.entry is not None
    assert found.entry.real
    interpreter = Interpreter(found.path)
    for specs, ports in ((found.entry.inputs, interpreter.inputs), (found.entry.outputs, interpreter.outputs)):
        assert specs == [TensorSpec(port.name, port.shape, port.dtype.name) for port in ports]
    description = load_description(found.entry.task.stream.description)
    assert found.entry.task.labels == [description.labels[label] for label in found.entry.task.label_ids]
    assert found.entry.task.label_ids == list(range(1, 13))
    # The shipped weights are scored by a model that never saw the test streams; its file is shipped too.
    twin = find_model(name if name.endswith("-split") else f"{name}-split")
    assert found.entry.split.model == twin.sha256
    assert twin.entry is not None
    assert not set(twin.entry.trained_on) & set(twin.entry.split.test)


MASTERS = {"int8": "float", "bottleneck": "bottleneck-float"}


@pytest.mark.parametrize("suffix", ["", "-split"])
@pytest.mark.parametrize("name", MASTERS)
def test_every_weight_of_an_int8_file_is_that_of_its_master_rounded(name: str, suffix: str) -> None:
    entry = find_model(f"{name}{suffix}").entry
    assert entry is not None
    assert entry.master == f"{MASTERS[name]}{suffix}"
    master, int8 = (read_model(find_model(one).path) for one in (entry.master, entry.name))
    floats = {one.name: constant_data(master, one) for one in master.main.tensors if one.constant}
    compared = 0
    for tensor in int8.main.tensors:
        if tensor.constant and tensor.dtype == "int8":
            scale = np.array(tensor.raw.quantization.scale)
            shape = [1] * len(tensor.shape)
            if scale.size > 1:
                shape[tensor.raw.quantization.quantizedDimension] = -1
            rounded = np.round(floats[tensor.name] / scale.reshape(shape)).clip(-127, 127)
            np.testing.assert_array_equal(rounded, constant_data(int8, tensor))
            compared += rounded.size
    assert compared > 10_000
    assert sum(one.master is not None for one in load_catalog().models) == 4


@pytest.mark.parametrize("suffix", ["", "-split"])
def test_the_head_is_the_end_of_the_network_that_is_shipped_whole(suffix: str) -> None:
    """No training was needed: encoders and head were trained as one, and that one is shipped in float32."""
    whole = read_model(find_model(f"decimate-q8-zlib-restore{suffix}").path)
    head = write_slice(whole, slice_model(whole, [156])[1])
    assert bytes(head) == find_model(f"bottleneck-float{suffix}").path.read_bytes()


def test_int8_stays_near_float() -> None:
    floats, int8 = (find_model(name).entry for name in ("float", "int8"))
    assert floats is not None
    assert int8 is not None
    assert floats.split.accuracy >= 0.95
    assert int8.split.accuracy >= 0.95
    assert abs(floats.split.accuracy - int8.split.accuracy) <= 0.005


@pytest.mark.parametrize("name", ["int8", "int8-split"])
def test_a_batch_gives_the_same_bits_as_its_windows_alone(name: str, recordings: list[Recording]) -> None:
    found = find_model(name)
    assert found.entry is not None
    captured: list[dict[str, np.ndarray]] = []
    interpreter = Interpreter(found.path)

    def run(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        captured.append(values)
        return interpreter.run(values)

    classifier = Classifier(run, interpreter.inputs, found.entry.task)  # type: ignore[arg-type]
    cut: list[Window] = list(windows(recordings[0], 250, 125, within_activity=False))[:32]
    alone = np.stack([classifier.predict(window).scores for window in cut])
    together = {tensor: np.concatenate([values[tensor] for values in captured]) for tensor in captured[0]}
    assert len(cut) == 32
    np.testing.assert_array_equal(interpreter.run(together)["activity"], alone)


def test_synthetic_people_are_recognised(predictions: list[Prediction]) -> None:
    labels = load_catalog().models[0].task.labels
    assert score(predictions, labels).accuracy >= 0.8


@pytest.mark.dataset
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-split")])
def test_the_split_figure_is_reproduced(name: str, dataset: Path) -> None:
    found = find_model(name)
    assert found.entry is not None
    recordings = read_recordings(load_description("mhealth"), dataset, found.entry.split.test)
    interpreter = Interpreter(found.path)
    classifier = Classifier(
        interpreter.run,
        interpreter.inputs,
        found.entry.task,
        channels={source.name: len(source.channels) for source in load_description("mhealth").sources},
        files=FolderFiles(found.path.parent, found.entry.task.files),
    )
    scores = score(predict_recordings(classifier, recordings, found.entry.task), found.entry.task.labels)
    assert scores.windows == found.entry.split.windows
    assert scores.accuracy == found.entry.split.accuracy  # one file, one data set: no room for luck


def test_shards_are_not_scored_as_slices_that_run_one_after_the_other(tmp_path):
    from har_edge.config.catalog import find_model
    from har_edge.errors import ModelError
    from har_edge.evaluation.composition import load_composition
    from har_edge.runtime.slicing import prepare

    found = find_model("int8")
    prepare(found.path, found.entry.task, tmp_path / "slices", stages=1, split="whole:0-10 rows:10-11@2 whole:11-17")
    with pytest.raises(ModelError, match="holds shards, which exchange tensors while they run"):
        load_composition(tmp_path / "slices", found.sha256, found.entry.task)
