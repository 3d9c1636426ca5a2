"""The bottleneck: what is shipped, whole or as encoders and head, answers as the trained members do together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Recording, Samples
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import read_model
from har_edge.training.augmentation import Augmenter
from har_edge.training.bottleneck import (
    LINEAR_WEIGHT,
    Bottleneck,
    FittedBottleneck,
    bottleneck_inputs,
    code_name,
    fit_linear_head,
    member_sizes,
)
from har_edge.training.dataset import WindowPool
from har_edge.training.fit import Recipe, schedule, window_inputs, window_passes
from har_edge.training.loop import train
from har_edge.training.magnitude import measure_magnitudes
from har_edge.training.network import NetworkLayout
from har_edge.training.scaling import measure_scaling

pytestmark = pytest.mark.training

LABELS = list(range(1, 13))
SIZES = (2, 1)
MEDIANS = {"chest": 1, "ankle": 2, "arm": 2}
# Medians and interquartile ranges of magnitudes, and the medians of three accelerations.
STATISTICS = {"chest": 5, "ankle": 7, "arm": 7}


@pytest.fixture(scope="module")
def fitted(recordings: list[Recording], description: StreamDescription) -> FittedBottleneck:
    recipe = Recipe(epochs=2, windows_a_length=5)
    pool = WindowPool(recordings[:2], 250, LABELS)
    scaling = measure_scaling(recordings[:2], description)
    vectors = measure_magnitudes(recordings[:2], description, scaling)
    augmenter = Augmenter(description, [description.labels[label] for label in LABELS], recipe.augmentation)
    epochs = window_passes(pool, augmenter, scaling, bottleneck_inputs(scaling, vectors), 12, recipe)
    input_specs, counts = window_inputs(description, 250), (tuple(MEDIANS.values()), tuple(STATISTICS.values()))
    blueprint = Bottleneck(input_specs, *counts, NetworkLayout(12), SIZES)
    batch = pool.draw().batch()
    linear_head = fit_linear_head(
        [vectors.statistics(name, batch.samples[name], scaling) for name in MEDIANS], batch.classes
    )
    network = train(blueprint, epochs, schedule(pool, recipe), 0)
    return FittedBottleneck(blueprint, network, scaling, vectors, linear_head)


@pytest.fixture(scope="module")
def windows(recordings: list[Recording]) -> Mapping[str, Samples]:
    return WindowPool(recordings[2:], 250, LABELS, windows_a_length=2).draw().batch().samples


@pytest.fixture(scope="module")
def expected(fitted: FittedBottleneck, windows: Mapping[str, Samples]) -> np.ndarray:
    """What the members answer together: the softmax of their mean logits and of those of the linear one."""
    inputs = bottleneck_inputs(fitted.scaling, fitted.magnitudes)({name: v.copy() for name, v in windows.items()})
    logits = np.asarray(fitted.network(inputs, training=False)).reshape(-1, len(SIZES), 12).mean(1)
    assert fitted.linear_head is not None
    statistics = [fitted.magnitudes.statistics(name, windows[name], fitted.scaling) for name in MEDIANS]
    linear = np.concatenate(statistics, 1) @ fitted.linear_head.kernel + fitted.linear_head.bias
    logits = logits * (1 - LINEAR_WEIGHT) + linear * LINEAR_WEIGHT
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def whole(fitted: FittedBottleneck) -> bytes:
    return fitted.export_whole()


def encode(fitted: FittedBottleneck, windows: Mapping[str, Samples]) -> dict[str, np.ndarray]:
    return {
        code_name(name): Interpreter(model).run({name: windows[name]})[code_name(name)]
        for name, model in fitted.export_encoders().items()
    }


def test_the_whole_answers_as_its_members_do_together(
    whole: bytes, windows: Mapping[str, Samples], expected: np.ndarray
) -> None:
    came = Interpreter(whole).run(dict(windows))["activity"]
    np.testing.assert_allclose(came, expected, atol=2e-5)
    assert len(np.unique(came.argmax(1))) > 1


def test_the_whole_can_be_cut_behind_every_code(whole: bytes) -> None:
    model = read_model(whole)
    cuts = {cut.before + " " + cut.after: cut for cut in list_cuts(model)}
    assert all(cut.refusal is None for cut in cuts.values())
    crossing = [{crossing.tensor.name for crossing in cut.crossing} for cut in list_cuts(model)]
    for behind in ({"chest_code"}, {"chest_code", "ankle_code"}, {"steady", "hidden_0"}, {"steady", "hidden_1"}):
        assert behind in crossing


def test_codes_are_those_of_the_members_within_a_step(
    fitted: FittedBottleneck, windows: Mapping[str, Samples], expected: np.ndarray
) -> None:
    codes = encode(fitted, windows)
    assert {name: (code.dtype.name, code.shape[1]) for name, code in codes.items()} == {
        code_name(name): ("int8", sum(SIZES) + count) for name, count in STATISTICS.items()
    }
    head = Interpreter(fitted.export_head(windows, int8=False))
    real = {name: code.astype(np.float32) / 127 for name, code in codes.items()}
    np.testing.assert_allclose(head.run(real)["activity"], expected, atol=0.02)


def test_the_int8_head_takes_codes_as_they_are(
    fitted: FittedBottleneck, windows: Mapping[str, Samples], expected: np.ndarray
) -> None:
    head = Interpreter(fitted.export_head(windows, int8=True))
    assert {(port.dtype.name, port.zero_point, np.float32(port.scale)) for port in head.inputs} == {
        ("int8", 0, np.float32(1 / 127))
    }
    (output,) = head.outputs
    came = output.real(head.run(encode(fitted, windows))["activity"])
    np.testing.assert_allclose(came, expected, atol=0.05)


def test_a_source_that_is_missing_still_leaves_an_answer(
    fitted: FittedBottleneck, windows: Mapping[str, Samples]
) -> None:
    codes = encode(fitted, windows)
    head = Interpreter(fitted.export_head(windows, int8=True))
    there = head.run(codes)["activity"]
    without = head.run({**codes, "arm_code": np.zeros_like(codes["arm_code"])})["activity"]
    assert (there != without).any()


@pytest.mark.parametrize(("size", "members", "expected"), [(24, 3, (8, 8, 8)), (7, 3, (3, 2, 2)), (2, 3, (1, 1))])
def test_members_share_the_values_of_a_code(size: int, members: int, expected: tuple[int, ...]) -> None:
    assert member_sizes(size, members) == expected
