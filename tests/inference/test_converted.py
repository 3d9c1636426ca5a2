"""Models as TensorFlow's converter writes them: cut everywhere, compared with the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from har_edge.inference.segment_timing import segment_bounds  # noqa: E402
from har_edge.inference.tensor_observation import observe_tensors, open_model  # noqa: E402
from har_edge.runtime.verify import check_cuts  # noqa: E402
from har_edge.tflite.cuts import list_cuts  # noqa: E402
from har_edge.tflite.manifest import ModelState  # noqa: E402
from har_edge.tflite.model import read_model  # noqa: E402
from har_edge.tflite.state import state_of  # noqa: E402

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def seed() -> None:
    keras.utils.set_random_seed(0)


def _convert(model: Any, prepare: Callable[[Any], None] = lambda converter: None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    prepare(converter)
    return bytes(converter.convert())


def _check(content: bytes) -> tuple[int, int]:
    """Return how many cuts were compared and how many are refused; fail when one is not equal."""
    model = observe_tensors(read_model(content))  # also with inputs that no sensor feeds
    cuts = list_cuts(model)
    legal = [cut.index for cut in cuts if cut.refusal is None]
    ways = [*((index,) for index in legal), tuple(segment_bounds(model)[1:-1])]
    assert [check for check in check_cuts(model, ways, runs=2) if check.difference is not None] == []
    return len(legal), len(cuts) - len(legal)


def _convolutions() -> Any:
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    skip = x
    x = layers.DepthwiseConv2D(3, padding="same")(layers.BatchNormalization()(x))
    x = layers.Add()([layers.Activation("sigmoid")(x), skip])
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def _float(converter: Any) -> None: ...


def _float16(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic_range(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(converter: Any) -> None:
    def samples() -> Iterator[list[Any]]:
        rng = np.random.default_rng(0)
        for _ in range(10):
            yield [rng.standard_normal((1, 16, 16, 3)).astype(np.float32)]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8


def _int16(converter: Any) -> None:
    _int8(converter)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int16


@pytest.mark.parametrize("prepare", [_float, _float16, _dynamic_range, _int8, _int16])
def test_convolutions_in_every_precision(prepare: Callable[[Any], None]) -> None:
    compared, _ = _check(_convert(_convolutions(), prepare))
    assert compared >= 4


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("unroll", [False, True])
def test_recurrent_layers(kind: str, unroll: bool) -> None:
    inputs = keras.Input((6, 4), batch_size=None if unroll else 1)
    x = keras.layers.Dense(4)(inputs)
    x = getattr(keras.layers, kind)(5, return_sequences=True, unroll=unroll)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    compared, _ = _check(_convert(model))
    assert compared >= 2


@pytest.mark.parametrize(("stateful", "state"), [(False, ModelState.NONE), (True, ModelState.RESOURCES)])
def test_an_lstm_remembers_where_its_author_said_so(stateful: bool, state: ModelState) -> None:
    inputs = keras.Input((6, 4), batch_size=1)
    content = _convert(keras.Model(inputs, keras.layers.LSTM(5, stateful=stateful)(inputs)))
    assert state_of(open_model(content)) is state


def test_state_in_a_variable_and_a_loop() -> None:
    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(tf.zeros([1, 4]))

        @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32)])
        def __call__(self, x: Any) -> Any:
            x = tf.nn.relu(x * 2.0)
            self.total.assign_add(x)
            _, y = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 1.5), (0, self.total.read_value()))
            return tf.sin(y) + 1.0

    module = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.__call__.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    compared, refused = _check(bytes(converter.convert()))
    assert compared >= 2 and refused >= 1


def test_indices_branches_and_several_ports() -> None:
    words, scores = keras.Input((5,), dtype="int32", name="words"), keras.Input((8,), name="scores")
    x = keras.layers.Flatten()(keras.layers.Embedding(10, 4)(words))
    y = keras.layers.Concatenate()([x, keras.layers.Dense(6)(scores)])
    first, second = keras.layers.Dense(3, name="first")(y), keras.layers.Dense(2, name="second")(scores)
    compared, _ = _check(_convert(keras.Model([words, scores], [first, second])))
    assert compared >= 3


def _steps() -> Any:
    """A dilated convolution, a dense layer for every step, and the most frequent end of a classifier."""
    layers = keras.layers
    x = inputs = keras.Input((12, 4))
    x = layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    x = layers.Dense(5, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def test_what_a_converter_calls_a_batch_is_one_only_where_it_carries_it() -> None:
    content = _convert(_steps())
    model = open_model(content)
    crossing = {item.tensor.name: item for cut in list_cuts(model) for item in cut.crossing}
    dynamic = [item for item in crossing.values() if item.tensor.shape[:1] == (-1,)]
    assert 0 < sum(item.tensor.batched for item in dynamic) < len(dynamic)
    # Of one window: two blocks of 8 steps (four are causal padding), twelve rows of 6 and of 5.
    sizes = {item.bytes for item in dynamic if not item.tensor.batched}
    assert {2 * 8 * 4 * 4, 12 * 6 * 4, 12 * 5 * 4} <= sizes
    assert _check(content) == (len(model.main.operators) - 1, 0)
