"""int8 models by ai-edge-quantizer, from ranges that were measured elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.lenet import INPUT, OUTPUT, write_lenet5
from har_edge.learning.quantization.int8_model import quantize, require_quantizer
from har_edge.learning.quantization.tensor_ranges import TensorRanges, write_range_graph
from har_edge.learning.server.held_out import quantised
from har_edge.tflite.model import read_model

CONTENT = bytes(write_lenet5(4, shape=(8, 8)))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.extras.is_installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"needs ai-edge-quantizer, which is not installed; pip install 'har-edge\["):
        require_quantizer()


def test_a_model_is_int8_from_input_to_output_and_answers_alike() -> None:
    pytest.importorskip("ai_edge_quantizer")
    graph = write_range_graph(read_model(CONTENT))
    x = np.random.default_rng(0).random((64, 8, 8, 1)).astype(np.float32)
    tensors = [x, *Interpreter(graph.content).run({INPUT: x}).values()]
    lows, highs = (np.array([pick(one) for one in tensors], np.float32) for pick in (np.min, np.max))
    made = Interpreter(quantize(CONTENT, TensorRanges(graph, lows, highs, ("a",), 64)))
    (image,), (scores,) = made.inputs, made.outputs
    assert (image.dtype, scores.dtype) == (np.int8, np.int8)
    got = scores.real(made.run({image.name: quantised(x, image)})[scores.name])
    np.testing.assert_allclose(got, Interpreter(CONTENT).run({INPUT: x})[OUTPUT], atol=0.03)
