"""LeNet-5 written without TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import batches
from har_edge.learning.data.digits import load_digits
from har_edge.learning.lenet import INPUT, OUTPUT, write_lenet5
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.updates.vectors import flatten, unflatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights, replace_weights
from har_edge.tflite.model import read_model


def forward(weights, image):
    """Return what the paper's formulas give, in float64."""

    def convolve(x, kernel, bias, pad):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
        return np.tanh(np.einsum("nhwcij,oijc->nhwo", windows, kernel) + bias)

    def pool(x):
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))

    layer = {name: (weights[f"{name}/weights"], weights[f"{name}/bias"]) for name in ("c1", "c3", "c5", "f6", "logits")}
    x = pool(convolve(image, *layer["c1"], 2))
    x = pool(convolve(x, *layer["c3"], 0)).reshape(len(image), -1)
    for name in ("c5", "f6"):
        x = np.tanh(x @ layer[name][0].T + layer[name][1])
    logits = x @ layer["logits"][0].T + layer["logits"][1]
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("count", [1, 3])
def test_it_computes_the_formulas_of_the_paper_for_any_batch(count):
    content = write_lenet5()
    weights = {name: values.astype(np.float64) for name, values in read_weights(read_model(bytes(content))).items()}
    assert sum(values.size for values in weights.values()) == 61_706
    image = np.random.default_rng(0).random((count, 28, 28, 1)).astype(np.float32)
    got = Interpreter(bytes(content)).run({INPUT: image})[OUTPUT]
    np.testing.assert_allclose(got, forward(weights, image.astype(np.float64)), atol=1e-6)


def test_one_seed_gives_the_same_bytes_and_classes_are_as_many_as_asked():
    assert write_lenet5() == write_lenet5(10, 0)
    assert write_lenet5(10, 1) != write_lenet5(10, 0)
    assert Interpreter(bytes(write_lenet5(3))).outputs[0].shape == (-1, 3)


def test_it_learns_digits_with_the_training_graph():
    train, test = load_digits()
    train, test = train.reshaped((28, 28, 1)), test.reshaped((28, 28, 1))
    model = read_model(bytes(write_lenet5()))
    graph = write_training_graph(model, batch=32, loss=Loss.CROSS_ENTROPY)
    step, specs = TrainingStep(graph.data, graph.spec), graph.spec.weights
    vector = flatten(read_weights(model), specs)
    optimizer, generator = make_optimizer("adam:lr=0.002", vector.size), np.random.default_rng(0)
    for _ in range(3):
        for chosen in batches(len(train), 32, generator):
            result = step.run(unflatten(vector, specs), train.values(chosen), train.one_hot(chosen))
            optimizer.step(vector, flatten(result.gradients, specs) / np.float32(len(chosen)))
    trained = Interpreter(bytes(replace_weights(model, unflatten(vector, specs))))
    scores = trained.run({INPUT: test.values()})[OUTPUT]
    assert (scores.argmax(1) == test.y).mean() > 0.9


@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8), (8, 8, 3), (15, 32, 1), (28, 28), (32, 40, 3)])
def test_it_takes_pictures_of_other_sizes_and_learns_from_them(shape):
    model = read_model(bytes(write_lenet5(12, shape=shape)))
    graph = write_training_graph(model, batch=4, loss=Loss.CROSS_ENTROPY)
    x = np.random.default_rng(0).random((4, *(*shape, 1)[:3])).astype(np.float32)
    result = TrainingStep(graph.data, graph.spec).run(read_weights(model), x, np.eye(12, dtype=np.float32)[:4])
    assert result.predictions.shape == (4, 12)
    assert all(np.abs(gradient).max() > 0 for gradient in result.gradients.values())


def test_the_size_of_the_paper_is_the_one_without_a_shape():
    assert write_lenet5(10, shape=(28, 28)) == write_lenet5()


@pytest.mark.parametrize("shape", [(3, 8), (8, 8, 2), (300, 8, 1), (250, 23, 1, 1), (40,)])
def test_samples_that_are_no_pictures_are_refused(shape):
    with pytest.raises(ConfigError, match=r"lenet5 takes pictures of 4 to 256 pixels a side, grey or RGB; samples of"):
        write_lenet5(shape=shape)
