"""Training graphs of the zoo's networks as a whole, at their smallest size, against TensorFlow.

Float32 rounds: through 50 layers TensorFlow's own gradients are up to 4e-5 of the largest away from its float64 ones,
and where rounding moves a value over the corner of a RELU6, the derivative there is another one, in TensorFlow or here.
So all gradients must be near those of TensorFlow in float32, or near those in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.inference.training_step import TrainingStep
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model
from har_edge.training.zoo.catalog import ZOO, find_network

pytestmark = [pytest.mark.training, pytest.mark.slow]
BATCH, CLASSES, SMOOTHING = 2, 6, 0.1
TOLERANCE = 1e-4
NEAR = {"lenet5": 1e-5}
# LOCAL_RESPONSE_NORMALIZATION has no kernel for float64.
FLOAT32_ALONE = {"alexnet"}


@pytest.mark.parametrize("name", ZOO)
def test_gradients_of_a_network_are_tensorflows(name: str) -> None:
    tf = pytest.importorskip("tensorflow")
    from har_edge.training.zoo.convert import make
    from har_edge.training.zoo.weights import make_images
    from tests.tflite.gradient.tensorflow_graph import TensorFlowGraph

    network = find_network(name)
    model = read_model(make(network, int8=False, size=network.smallest, classes=CLASSES, seed=0, log=print))
    x = np.concatenate(list(make_images(network.shape(network.smallest), BATCH, np.random.default_rng(5))))
    x, y = x[:BATCH].astype(np.float32), np.eye(CLASSES, dtype=np.float32)[:BATCH]
    graph = write_training_graph(model, batch=BATCH, loss=Loss.CROSS_ENTROPY, label_smoothing=SMOOTHING)
    weights = read_weights(model)
    found = TrainingStep(graph.data, graph.spec).run(weights, x, y)
    assert set(found.gradients) == set(weights)
    logits, target = model.main.operators[-1].inputs[0], (1 - SMOOTHING) * y + SMOOTHING / CLASSES
    distances = []
    for dtype in ("float32",) if name in FLOAT32_ALONE else ("float32", "float64"):

        def score(values, dtype=dtype):
            return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(tf.cast(target, dtype), values[logits]))

        loss, _, wanted = TensorFlowGraph(model, dtype).differentiate({graph.spec.x[0].name: x}, score)
        assert found.loss_sum == pytest.approx(loss, rel=1e-4)
        distances.append(
            max(np.abs(found.gradients[key] - wanted[key]).max() / np.abs(wanted[key]).max() for key in weights)
        )
    assert min(distances) <= NEAR.get(name, TOLERANCE), distances
