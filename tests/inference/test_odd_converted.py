"""Odd models by TensorFlow's converter: cut everywhere they are equal, and a batch is one only where it may be."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from har_edge.config.wiring import is_batched  # noqa: E402
from har_edge.inference.interpreter import Interpreter  # noqa: E402
from har_edge.inference.sampling import sample  # noqa: E402
from har_edge.inference.segment_timing import segment_bounds  # noqa: E402
from har_edge.inference.tensor_observation import open_model  # noqa: E402
from har_edge.runtime.verify import check_cuts  # noqa: E402
from har_edge.tflite.cuts import list_cuts, tensor_spec  # noqa: E402
from har_edge.tflite.slices import write_whole  # noqa: E402

pytestmark = pytest.mark.training

Body = Callable[[Any], Any]
_RNG = np.random.default_rng(0)
ONE, SQUARE, LAST, WIDE, SHORT = (
    _RNG.standard_normal(shape).astype(np.float32) / 2 for shape in ((6,), (6, 6), (6, 3), (6, 40), (5, 3))
)


def _end(x: Any) -> Any:
    return tf.matmul(x, LAST)


def _few(x: Any) -> Any:
    wide = x @ WIDE
    return tf.concat([wide[:, :39], tf.cumsum(wide[:, 39:], axis=0)], 1) * 2.0


def _loop(x: Any) -> Any:
    return _end(tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y @ SQUARE)), [0, x * ONE])[1])


def _branch(x: Any) -> Any:
    x = x * ONE
    return _end(tf.cond(tf.reduce_sum(x) > 0, lambda: x @ SQUARE, lambda: tf.nn.relu(x) - 1.0) + 1.0)


def _spectrum(x: Any) -> Any:
    return tf.abs(tf.signal.rfft(tf.concat([x * ONE, x[:, :2]], 1))) @ SHORT


# Each window for itself.
APART: dict[str, Body] = {
    "while": _loop,
    "transposed twice": lambda x: tf.transpose(tf.transpose(x * ONE) * 2.0) @ LAST,
    "tiled": lambda x: tf.reduce_sum(tf.reshape(tf.tile(x * ONE, [3, 1]), [3, -1, 6]), 0) @ LAST,
    "beside another": lambda x: (tf.concat([x * ONE, x + 1.0], 0) @ LAST)[: tf.shape(x)[0]],
    "indices": lambda x: _end(tf.gather(SQUARE, tf.clip_by_value(tf.cast(tf.reduce_sum(x, 1), tf.int32), 0, 5))),
    "complex numbers": _spectrum,
    "rank 7": lambda x: tf.reshape(tf.reshape(x * ONE, [-1, 1, 1, 3, 1, 1, 2]) * 2.0, [-1, 6]) @ LAST,
    "half": lambda x: _end(tf.cast(tf.cast(x * ONE, tf.float16), tf.float32) * 2.0),
    "chosen rows": lambda x: tf.where((x * ONE)[:, :1] > 0, x, -x) @ LAST,
    "filled": lambda x: _end(x * ONE) * tf.fill([tf.shape(x)[0], 3], 2.0),
}
# Windows of a batch that see each other, or where they stand, or how many there are.
MIXED: dict[str, Body] = {
    "branch": _branch,
    "gather": lambda x: _end(tf.gather(x * ONE, tf.zeros([tf.shape(x)[0]], tf.int32)) + ONE),
    "reverse": lambda x: _end(tf.reverse(x * ONE, [0]) + ONE),
    "sum so far": lambda x: _end(tf.cumsum(x * ONE, axis=0) + ONE),
    "mean": lambda x: _end(x * ONE - tf.reduce_mean(x * ONE, axis=0, keepdims=True)),
    "a little": lambda x: _end(x * ONE - 0.001 * tf.reduce_max(x * ONE, axis=0, keepdims=True)),
    "few values": _few,
    "softmax": lambda x: _end(tf.nn.softmax(x * ONE, axis=0) + ONE),
    "norm": lambda x: tf.nn.l2_normalize(x * ONE, axis=0) @ LAST,
    "order": lambda x: _end(tf.gather(x * ONE, tf.argsort((x * ONE)[:, 0]))),
    "how many": lambda x: _end(x * ONE * tf.cast(tf.shape(x)[0], tf.float32) + 1.0),
    "which": lambda x: _end(x * ONE) + tf.cast(tf.range(tf.shape(x)[0])[:, None], tf.float32),
    "largest": lambda x: _end(x * ONE) + tf.reduce_max(x),
    "pairs": lambda x: tf.matmul(x * ONE, x + ONE, transpose_b=True) @ tf.ones([tf.shape(x)[0], 3]),
    "first": lambda x: _end(tf.tensor_scatter_nd_update(x * ONE, [[0, 0]], [1.0])),
}


def _convert(body: Body, windows: int | None) -> bytes:
    function = tf.function(body, input_signature=[tf.TensorSpec((windows, 6), tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    return bytes(converter.convert())


@pytest.mark.parametrize("windows", [None, 1, 4])
@pytest.mark.parametrize("name", [*APART, *MIXED])
def test_every_legal_cut_gives_the_bits_of_the_whole_model(name: str, windows: int | None) -> None:
    model = open_model(_convert((APART | MIXED)[name], windows))
    ways = [(cut.index,) for cut in list_cuts(model) if cut.refusal is None]
    together = tuple(segment_bounds(model)[1:-1])
    assert [one.difference for one in check_cuts(model, [*ways, together], runs=2)] == [None] * (len(ways) + 1)


@pytest.mark.parametrize("name", [*APART, *MIXED])
def test_a_batch_is_one_where_each_window_is_answered_as_if_alone(name: str) -> None:
    model = open_model(_convert((APART | MIXED)[name], None))
    (output,) = model.main.outputs
    assert is_batched(tensor_spec(model.main.tensors[output])) == (name in APART)
    if name in MIXED:
        return
    together, alone = (Interpreter(write_whole(model)) for _ in range(2))
    rng, (port,) = np.random.default_rng(1), together.inputs
    windows = [sample(together.inputs, rng)[port.name] for _ in range(5)]
    (rows,) = together.run({port.name: np.concatenate(windows)}).values()
    (firsts,) = zip(*[alone.run({port.name: window}).values() for window in windows], strict=True)
    np.testing.assert_allclose(rows, np.concatenate(firsts), rtol=1e-3, atol=1e-3)
