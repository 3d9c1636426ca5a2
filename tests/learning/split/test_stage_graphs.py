"""The graphs of stages: gradients of several stages are those of one device, whatever crosses the cuts."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from har_edge.errors import MessageError
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.preparation import prepare_model
from har_edge.learning.split.step import StageStep
from har_edge.learning.split.tensors import pack_tensors, unpack_tensors
from har_edge.learning.updates.vectors import flatten, unflatten
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.stage_graphs import check_training_cuts, training_cuts, write_stage
from har_edge.tflite.gradient.stage_spec import StageSpec, decode_stage_spec
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model, read_model
from tests.learning.split.networks import CLASSES, WIDTH, Layers, residual

BATCH = 4


def stages_of(model: Model, cuts: tuple[int, ...], keep: bool) -> list[StageStep]:
    bounds = [0, *cuts, len(model.main.operators)]
    found = []
    for start, stop in pairwise(bounds):
        graphs = write_stage(model, start, stop, batch=BATCH, loss=Loss.CROSS_ENTROPY, keep=keep)
        spec = decode_stage_spec(graphs.spec.encode())
        assert spec == graphs.spec
        found.append(StageStep(graphs.forward, graphs.backward, spec))
    return found


Floats = NDArray[np.float32]


def run_stages(stages: list[StageStep], model: Model, x: Floats, y: Floats) -> tuple[float, dict[str, Floats]]:
    """Take one micro-batch through the stages and back."""
    weights = read_weights(model)
    vectors = [flatten({w.name: weights[w.name] for w in one.spec.weights}, one.spec.weights) for one in stages]
    entering, held = {stages[0].spec.entering[0].name: x}, []
    for stage, vector in zip(stages[:-1], vectors, strict=False):
        passed = stage.forward(vector, entering)
        assert set(passed.leaving) == {port.name for port in stage.spec.leaving}
        held.append(passed.held)
        assert sum(values.nbytes for values in passed.held.values()) == stage.spec.held_bytes
        entering = unpack_tensors(pack_tensors(passed.leaving, stage.spec.leaving), stage.spec.leaving)
    back = stages[-1].finish(vectors[-1], entering, y, np.ones(len(y), np.float32))
    gradients = dict(unflatten(back.gradient, stages[-1].spec.weights))
    loss = back.loss
    for number in range(len(stages) - 2, -1, -1):
        assert set(back.returned) == set(stages[number].spec.awaited)
        back = stages[number].backward(vectors[number], held[number], back.returned)
        gradients |= unflatten(back.gradient, stages[number].spec.weights)
    return loss, gradients


def check_against_one_device(model: Model, cuts: tuple[int, ...], keep: bool, x: Floats, classes: int) -> None:
    y = np.eye(classes, dtype=np.float32)[np.arange(BATCH) % classes]
    whole = prepare_model(model, BATCH)
    wanted = TrainingStep(whole.graph, whole.spec).run(read_weights(model), x, y)
    loss, gradients = run_stages(stages_of(model, cuts, keep), model, x, y)
    assert loss == pytest.approx(wanted.loss_sum, rel=1e-6)
    assert set(gradients) == set(wanted.gradients)
    for name, values in wanted.gradients.items():
        np.testing.assert_allclose(gradients[name], values, rtol=1e-5, atol=1e-5 * float(np.abs(values).max()))


PAIRS = [(1, 3), (1, 4), (2, 4), (2, 5), (3, 6)]
CUTS = [(), *((cut,) for cut in range(1, 7)), *PAIRS, (1, 2, 4), (1, 3, 5), (2, 3, 4), (1, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("keep", [False, True], ids=["computes anew", "keeps"])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_gradients_of_stages_are_those_of_one_device(cuts: tuple[int, ...], keep: bool) -> None:
    x = np.random.default_rng(1).normal(size=(BATCH, WIDTH)).astype(np.float32)
    check_against_one_device(residual(), cuts, keep, x, CLASSES)


@pytest.mark.parametrize("keep", [False, True], ids=["computes anew", "keeps"])
def test_lenet_in_stages(keep: bool) -> None:
    model = read_model(bytes(write_lenet5()))
    x = np.random.default_rng(1).random((BATCH, 28, 28, 1), np.float32)
    cuts = training_cuts(model)
    for chosen in [*combinations(cuts, 1), cuts[::3], cuts]:
        check_against_one_device(model, tuple(chosen), keep, x, 10)


def test_a_stage_that_keeps_computes_nothing_anew() -> None:
    model = residual()
    anew, kept = (write_stage(model, 1, 4, batch=BATCH, loss=Loss.CROSS_ENTROPY, keep=keep) for keep in (False, True))
    operators = [len(read_model(bytes(one.backward)).main.operators) for one in (anew, kept)]  # type: ignore[arg-type]
    assert operators[1] < operators[0] and kept.spec.held_bytes > anew.spec.held_bytes
    assert anew.spec.kept_bytes == 0 < kept.spec.kept_bytes


def tied() -> Model:
    """Return a network two of whose layers have one matrix."""
    net = Layers(0)
    x = net.builder.empty((1, WIDTH), name="samples")
    first = net.dense(x, WIDTH, "first")
    raw = net.builder._table.operators[-1]
    middle = net.builder.unary("TANH", first)
    last = net.builder.add("FULLY_CONNECTED", [middle, *map(int, raw.inputs[1:])], (1, WIDTH), raw.builtinOptions)
    net.builder.open_batch()
    return read_model(bytes(net.builder.encode([x], [net.named(last, "last")])))


def test_a_weight_that_two_operators_read_stays_in_one_stage() -> None:
    model = tied()
    assert training_cuts(model) == ()
    with pytest.raises(GradientError, match=r"operators 0 and 2 both read weight first/weights"):
        check_training_cuts(model, [1])


def test_operators_in_front_of_all_weights_are_not_differentiated() -> None:
    net = Layers(0)
    x = net.builder.empty((1, WIDTH), name="samples")
    squashed = net.named(net.builder.unary("TANH", x), "squashed")
    logits = net.dense(squashed, CLASSES, "logits")
    net.builder.open_batch()
    model = read_model(bytes(net.builder.encode([x], [logits])))
    first = write_stage(model, 0, 1, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    last = write_stage(model, 1, 2, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    assert first.backward is None and not first.spec.trains and last.spec.returned == () == first.spec.awaited


@pytest.mark.parametrize(
    "change",
    [b"{}", b"not JSON", b"[" * 5000],
)
def test_a_description_that_is_none_is_refused(change: bytes) -> None:
    with pytest.raises(GradientError, match="description of a stage cannot be read"):
        decode_stage_spec(change)


def test_a_description_that_contradicts_itself_is_refused() -> None:
    spec: StageSpec = write_stage(residual(), 1, 4, batch=BATCH, loss=Loss.CROSS_ENTROPY).spec
    for change in (
        {"returned": ("nothing",)},
        {"awaited": ("nothing",)},
        {"forward_weights": (99,)},
        {"loss": "cross-entropy"},
    ):
        with pytest.raises(GradientError, match="send it anew"):
            decode_stage_spec(structs.replace(spec, **change).encode())


def test_tensors_of_another_size_are_refused() -> None:
    spec = write_stage(residual(), 1, 4, batch=BATCH, loss=Loss.CROSS_ENTROPY).spec
    with pytest.raises(MessageError, match=r"3 bytes of tensors came; expected \d+"):
        unpack_tensors(b"abc", spec.entering)
    with pytest.raises(MessageError, match="expected float32"):
        pack_tensors({port.name: np.zeros(2, np.float64) for port in spec.entering}, spec.entering)
