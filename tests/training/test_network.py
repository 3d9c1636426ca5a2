"""Folding and export: the shipped file computes what was trained, with few operators in a good order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError
from har_edge.evaluation.study import Training
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import read_model
from har_edge.training.dataset import Batch, WindowPool
from har_edge.training.export import export_float, export_int8
from har_edge.training.fit import Fitted, Recipe, fit_network
from har_edge.training.network import FRAMES, InputSpec, Kernels, fit_kernels, fit_layout, fold_network

pytestmark = pytest.mark.training

LABELS = list(range(1, 13))


@pytest.fixture(scope="module")
def fitted(recordings: list[Recording], description: StreamDescription) -> Fitted:
    return fit_network(Training(recordings[:2]), description, LABELS, 250, Recipe(epochs=2, windows_a_length=10))


@pytest.fixture(scope="module")
def batch(recordings: list[Recording]) -> Batch:
    return WindowPool(recordings[2:], 250, LABELS).draw().batch()


@pytest.fixture(scope="module")
def float_model(fitted: Fitted, description: StreamDescription) -> bytes:
    return export_float(fitted)


@pytest.fixture(scope="module")
def int8_model(fitted: Fitted, recordings: list[Recording], description: StreamDescription) -> bytes:
    return export_int8(fitted, WindowPool(recordings[:2], 250, LABELS, windows_a_length=2).draw().batch().samples)


def answers(fitted: Fitted, batch: Batch, description: StreamDescription) -> np.ndarray:
    scaled = fitted.scaling.apply(batch.samples)
    logits = np.asarray(fitted.network.predict([scaled[source.name] for source in description.sources], verbose=0))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def test_folding_changes_no_answer(fitted: Fitted, batch: Batch, description: StreamDescription) -> None:
    shipped = fold_network(fitted.network, fitted.input_specs, fitted.layout, fitted.scaling, clip=True)
    raw = [batch.samples[source.name] * 5 for source in description.sources]  # well beyond full scale
    louder = Batch({source: values * 5 for source, values in batch.samples.items()}, batch.classes)
    np.testing.assert_allclose(shipped.predict(raw, verbose=0), answers(fitted, louder, description), atol=1e-5)


def test_the_float_file_computes_the_same(
    fitted: Fitted, float_model: bytes, batch: Batch, description: StreamDescription
) -> None:
    came = Interpreter(float_model).run(dict(batch.samples))["activity"]
    np.testing.assert_allclose(came, answers(fitted, batch, description), atol=1e-5)


def test_the_int8_file_is_int8_from_end_to_end(int8_model: bytes) -> None:
    interpreter = Interpreter(int8_model)
    assert [(port.name, port.shape, port.dtype.name) for port in interpreter.inputs] == [
        ("chest", (-1, 250, 5), "int8"),
        ("ankle", (-1, 250, 9), "int8"),
        ("arm", (-1, 250, 9), "int8"),
    ]
    assert [(port.name, port.shape, port.dtype.name) for port in interpreter.outputs] == [
        ("activity", (-1, 12), "int8")
    ]
    # The whole range of int8 is that of the accelerometer, in every source.
    assert [port.scale for port in interpreter.inputs] == pytest.approx([44 / 255] * 3)
    kinds = {operator.name for operator in read_model(int8_model).main.operators}
    assert not kinds & {"QUANTIZE", "DEQUANTIZE", "SHAPE", "STRIDED_SLICE", "PACK"}


def test_branches_are_complete_one_by_one(int8_model: bytes, tmp_path: Path) -> None:
    model = read_model(int8_model)
    made = [model.main.tensors[operator.outputs[0]].name for operator in model.main.operators]
    assert made == [
        *("chest_column", "chest_first", "chest_second"),
        *("ankle_column", "ankle_first", "ankle_second"),
        *("arm_column", "arm_first", "arm_second"),
        *("fusion", "trunk", "mean", "most", "pooled", "features", "logits", "activity"),
    ]
    crossing = {cut.index: cut.bytes for cut in list_cuts(model) if cut.refusal is None}
    assert len(crossing) == len(made) - 1
    assert crossing[3] == 368
    assert crossing[6] == 736


def test_the_same_seed_gives_the_same_bytes(
    recordings: list[Recording], description: StreamDescription, float_model: bytes, int8_model: bytes
) -> None:
    again = fit_network(Training(recordings[:2]), description, LABELS, 250, Recipe(epochs=2, windows_a_length=10))
    calibration = WindowPool(recordings[:2], 250, LABELS, windows_a_length=2).draw().batch().samples
    assert export_float(again) == float_model
    assert export_int8(again, calibration) == int8_model
    recipe = Recipe(epochs=1, windows_a_length=10, seed=1)
    other = fit_network(Training(recordings[:2]), description, LABELS, 250, recipe)
    assert export_float(other) != float_model


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 16, 25, 50, 83, 250, 640, 5000])
def test_kernels_fit_any_length(steps: int) -> None:
    kernels = fit_kernels(steps)
    after = (steps - kernels.first) // kernels.first_stride + 1
    left = (after - kernels.second) // kernels.second_stride + 1
    assert left >= kernels.third >= 1
    assert after <= 2 * FRAMES
    assert fit_kernels(250) == Kernels()


def test_lengths_that_cannot_meet_are_refused() -> None:
    message = r"chest \[50, 5\], ankle \[8\] enter one network; expected one number of steps: give every source one"
    with pytest.raises(ConfigError, match=message):
        fit_layout([InputSpec("chest", (50, 5)), InputSpec("ankle", (8,))], 3)
