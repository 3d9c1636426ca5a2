"""Training graphs as a whole: slices, weights in other forms, dropout, losses, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.lenet import write_lenet5
from har_edge.resources import find_folder
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.shapes import batch_shapes
from har_edge.tflite.gradient.spec import decode_spec
from har_edge.tflite.gradient.training_graph import TrainingGraph, write_backward_graph, write_training_graph
from har_edge.tflite.gradient.walk import TrainingWalk
from har_edge.tflite.gradient.weights import find_weights, read_weights, replace_weights
from har_edge.tflite.model import Model, read_model
from tests.tflite.models import Draft

BATCH = 4
RNG = np.random.default_rng(11)
X = RNG.normal(size=(BATCH, 28, 28, 1)).astype(np.float32)
Y = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, BATCH)]


@pytest.fixture(scope="module")
def lenet() -> Model:
    return read_model(bytes(write_lenet5()))


def step(graph: TrainingGraph) -> TrainingStep:
    """Return the graph as a node gets it: the file, and the description through JSON."""
    return TrainingStep(bytes(graph.data), decode_spec(graph.spec.encode()))


def crossing(model: Model, cut: int, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what crosses a cut, by the forward pass that training graphs have: its weights are inputs."""
    builder = GraphBuilder()
    walk = TrainingWalk(model, builder, batch_shapes(model, BATCH), 0, cut)
    ports = {weight.name: walk.feed_weight(weight, weight.name) for weight in find_weights(model)}
    image = walk.feed(walk.part.inputs[0], "image", active=False)
    walk.forward()
    (leaving,) = walk.part.outputs
    name = model.main.tensors[leaving].name
    data = builder.encode([*ports.values(), image], [walk.tensor(leaving)])
    return {name: next(iter(Interpreter(bytes(data)).run({**weights, "image": X}).values()))}


@pytest.mark.parametrize("cut", [2, 3, 5, 7, 9])
def test_two_slices_give_the_bits_of_the_whole_step(lenet: Model, cut: int) -> None:
    weights = read_weights(lenet)
    whole = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)).run(weights, X, Y)
    last = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY, start=cut))
    first = step(write_backward_graph(lenet, batch=BATCH, start=0, stop=cut))
    behind = last.run(weights, crossing(lenet, cut, weights), Y)
    front = first.backward(weights, X, behind.dx)
    assert behind.loss_sum == whole.loss_sum
    assert set(front.gradients) | set(behind.gradients) == set(whole.gradients)
    assert not set(front.gradients) & set(behind.gradients)
    for name, gradient in {**front.gradients, **behind.gradients}.items():
        assert np.array_equal(gradient, whole.gradients[name]), name


def test_the_same_inputs_give_the_same_bits(lenet: Model) -> None:
    weights = read_weights(lenet)
    graph = write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    one, other = (step(graph).run(weights, X, Y) for _ in range(2))
    assert one.loss_sum == other.loss_sum
    assert all(np.array_equal(one.gradients[name], other.gradients[name]) for name in weights)


def test_a_smaller_batch_is_filled_up_and_sample_weights_count(lenet: Model) -> None:
    weights = read_weights(lenet)
    own = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY))
    two = own.run(weights, X[:2], Y[:2])
    weighted = own.run(weights, X, Y, np.array([1, 1, 0, 0], np.float32))
    assert two.predictions is not None and two.predictions.shape == (2, 10)
    assert two.loss_sum == pytest.approx(weighted.loss_sum, rel=1e-6)
    each = [own.run(weights, X[i : i + 1], Y[i : i + 1]) for i in range(2)]
    for name, gradient in two.gradients.items():
        largest = np.abs(gradient).max()
        assert np.abs(gradient - weighted.gradients[name]).max() <= 1e-6 * largest
        assert np.abs(gradient - sum(one.gradients[name] for one in each)).max() <= 1e-5 * largest


def test_predictions_are_those_of_the_model(lenet: Model) -> None:
    own = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY))
    found = own.run(read_weights(lenet), X, Y).predictions
    wanted = next(iter(Interpreter(bytes(lenet.data)).run({"image": X}).values()))
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_label_smoothing_and_loss_are_those_of_their_formulas(lenet: Model) -> None:
    own = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY, label_smoothing=0.2))
    found = own.run(read_weights(lenet), X, Y)
    assert found.predictions is not None
    wanted = -((0.8 * Y + 0.02) * np.log(found.predictions.astype(np.float64))).sum()
    assert found.loss_sum == pytest.approx(wanted, rel=1e-5)


def test_mean_squared_error_is_the_mean_over_each_sample(lenet: Model) -> None:
    own = step(write_training_graph(lenet, batch=BATCH, loss=Loss.MEAN_SQUARED))
    weights = read_weights(lenet)
    found = own.run(weights, X, Y)
    assert found.predictions is not None
    assert found.loss_sum == pytest.approx(
        ((found.predictions.astype(np.float64) - Y) ** 2).mean(axis=1).sum(), rel=1e-5
    )
    name, moved = "logits/bias", 1e-2
    ends = []
    for sign in (1, -1):
        changed = {**weights, name: weights[name] + sign * moved * np.eye(10, dtype=np.float32)[3]}
        ends.append(own.run(changed, X, Y).loss_sum)
    assert found.gradients[name][3] == pytest.approx((ends[0] - ends[1]) / (2 * moved), rel=1e-2)


def test_a_dropout_mask_is_an_input(lenet: Model) -> None:
    weights = read_weights(lenet)
    plain = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)).run(weights, X, Y)
    graph = write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY, dropout={"f6": 0.5})
    own = step(graph)
    assert [(mask.name, mask.rate, mask.shape) for mask in graph.spec.masks] == [("f6", 0.5, (BATCH, 84))]
    ones = own.run(weights, X, Y, masks={"f6": np.ones((BATCH, 84), np.float32)})
    assert ones.loss_sum == pytest.approx(plain.loss_sum, rel=1e-6)
    mask = np.full((BATCH, 84), 2.0, np.float32)
    mask[:, :40] = 0
    dropped = own.run(weights, X, Y, masks={"f6": mask})
    assert not dropped.gradients["logits/weights"][:, :40].any()
    assert not dropped.gradients["f6/bias"][:40].any()
    assert dropped.gradients["f6/bias"][40:].all()
    with pytest.raises(GradientError, match="dropout came for 'f7'"):
        write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY, dropout={"f7": 0.5})


def test_weights_that_are_not_trained_stay_constants(lenet: Model) -> None:
    names = ["logits/weights", "logits/bias"]
    graph = write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY, trainable=names)
    weights = read_weights(lenet)
    found = step(graph).run(weights, X, Y)
    whole = step(write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)).run(weights, X, Y)
    assert list(found.gradients) == names
    for name in names:
        assert np.abs(found.gradients[name] - whole.gradients[name]).max() <= 1e-5 * np.abs(whole.gradients[name]).max()


def test_replaced_weights_make_an_ordinary_model(lenet: Model) -> None:
    doubled = {name: 2 * values for name, values in read_weights(lenet).items()}
    again = read_model(bytes(replace_weights(lenet, doubled)))
    assert {name: values.tobytes() for name, values in read_weights(again).items()} == {
        name: values.tobytes() for name, values in doubled.items()
    }
    assert len(again.data) <= len(lenet.data) + 2048
    same = read_model(bytes(replace_weights(again, read_weights(lenet))))
    runs = [next(iter(Interpreter(bytes(one.data)).run({"image": X}).values())) for one in (lenet, same)]
    assert np.array_equal(*runs)


def _dense_twice(kind: str) -> Model:
    """Return two dense layers whose biases are one constant of zeros; `half` stores weights as float16."""
    draft = Draft()
    graph = draft.graph()
    x = graph.input((1, 3), "x", signature=(-1, 3))
    bias = graph.const(np.zeros(3, np.float32), name="bias")
    for number in range(2):
        values = np.random.default_rng(number).normal(size=(3, 3))
        weights = graph.const(values.astype(np.float16 if kind == "half" else np.float32), name=f"w{number}")
        if kind == "half":
            wide = graph.tensor((3, 3), f"wide{number}")
            graph.op("DEQUANTIZE", [weights], [wide], tflite.DequantizeOptionsT())
            weights = wide
        y = graph.tensor((1, 3), f"y{number}", signature=(-1, 3))
        graph.op("FULLY_CONNECTED", [x, weights, bias], [y], tflite.FullyConnectedOptionsT())
        x = y
    graph.output(x)
    return read_model(draft.build())


def test_zero_biases_that_a_converter_joined_are_trained_apart() -> None:
    model = _dense_twice("float")
    assert {weight.name for weight in find_weights(model)} == {"w0", "w1", "bias@0", "bias@1"}
    weights = read_weights(model)
    weights["bias@0"], weights["bias@1"] = np.arange(3, dtype=np.float32), -np.ones(3, np.float32)
    again = read_model(bytes(replace_weights(model, weights)))
    back = read_weights(again)
    assert set(back) == set(weights)
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_float16_weights_are_trained_as_float32() -> None:
    model = _dense_twice("half")
    weights = read_weights(model)
    assert {"wide0", "wide1"} <= set(weights)
    assert weights["wide0"].dtype == np.float32
    x, y = np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32)[:2]
    found = step(write_training_graph(model, batch=2, loss=Loss.CROSS_ENTROPY)).run(weights, x, y)
    plain = _dense_twice("float")
    halves = {f"w{i}": weights[f"wide{i}"] for i in range(2)} | {f"bias@{i}": np.zeros(3, np.float32) for i in range(2)}
    wanted = step(write_training_graph(plain, batch=2, loss=Loss.CROSS_ENTROPY)).run(halves, x, y)
    for i in range(2):
        np.testing.assert_allclose(found.gradients[f"wide{i}"], wanted.gradients[f"w{i}"], rtol=1e-5, atol=1e-6)
    again = read_model(bytes(replace_weights(model, weights)))
    assert [operator.name for operator in again.main.operators] == ["FULLY_CONNECTED"] * 2
    runs = [next(iter(Interpreter(bytes(one.data)).run({"x": x}).values())) for one in (model, again)]
    np.testing.assert_allclose(*runs, rtol=1e-6)


@pytest.mark.parametrize("name", ["har-float", "har-float-split"])
def test_the_shipped_float_models_learn(name: str) -> None:
    model = read_model(find_folder("models") / f"{name}.tflite")
    own = step(write_training_graph(model, batch=8, loss=Loss.CROSS_ENTROPY))
    rng = np.random.default_rng(0)
    x = {one.name: rng.normal(size=one.shape).astype(np.float32) for one in own.spec.x}
    y = np.eye(12, dtype=np.float32)[rng.integers(0, 12, 8)]
    weights = read_weights(model)
    direction = own.run(weights, x, y)
    size = sum(float((one.astype(np.float64) ** 2).sum()) for one in direction.gradients.values())
    # Along the gradient the loss falls as its square says.
    move = 1e-3 * direction.loss_sum / size
    moved = {key: (values - move * direction.gradients[key]).astype(np.float32) for key, values in weights.items()}
    assert direction.loss_sum - own.run(moved, x, y).loss_sum == pytest.approx(move * size, rel=0.1)


def test_a_quantised_model_is_refused_with_the_file_to_take() -> None:
    model = read_model(find_folder("models") / "har-int8.tflite")
    with pytest.raises(GradientError, match=r"operator \d+ \(CONV_2D\) has INT8 weights.*take the float file"):
        write_training_graph(model, batch=2, loss=Loss.CROSS_ENTROPY)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "a batch of 0 came"),
        ({"label_smoothing": 1.0}, "label smoothing 1.0 came"),
        ({"start": 99}, "operators 99 to"),
        ({"trainable": ["nothing"]}, "weight 'nothing' came"),
        ({"dropout": {"f6": 1.0}}, "dropout 1.0 came"),
    ],
)
def test_wrong_arguments_are_refused(lenet: Model, given: dict[str, Any], said: str) -> None:
    with pytest.raises(GradientError, match=said):
        write_training_graph(lenet, **{"batch": 2, "loss": Loss.CROSS_ENTROPY, **given})


def test_wrong_values_are_refused(lenet: Model) -> None:
    graph = write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    own, weights = step(graph), read_weights(lenet)
    with pytest.raises(MessageError, match=r"image came with shape \[4, 28, 28\]"):
        own.run(weights, X[..., 0], Y)
    with pytest.raises(MessageError, match=r"at most 4 samples"):
        own.run(weights, np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0))
    with pytest.raises(MessageError, match="logits/bias is missing"):
        own.run({name: one for name, one in weights.items() if name != "logits/bias"}, X, Y)
    with pytest.raises(ModelError, match="ends with a loss"):
        own.backward(weights, X, Y)
    with pytest.raises(GradientError, match=r"weight logits/bias came with shape \[9\], expected \[10\]"):
        replace_weights(lenet, {"logits/bias": np.zeros(9, np.float32)})
    with pytest.raises(GradientError, match="not finite"):
        replace_weights(lenet, {"logits/bias": np.full(10, np.nan, np.float32)})


def test_file_and_description_of_two_graphs_are_refused(lenet: Model, tmp_path: Path) -> None:
    graph = write_training_graph(lenet, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    other = write_training_graph(lenet, batch=BATCH + 1, loss=Loss.CROSS_ENTROPY)
    with pytest.raises(ModelError, match="training graph and description differ"):
        TrainingStep(bytes(graph.data), other.spec)
    with pytest.raises(GradientError, match="cannot be read"):
        decode_spec(b'{"batch": 0}')
