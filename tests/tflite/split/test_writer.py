"""Files of shares, written operator by operator, run as the model that they came from."""

import numpy as np
import pytest

from har_edge.errors import CutError
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import read_model
from har_edge.tflite.split.methods import split_block
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.tflite.split.writer import ShardWriter, constant_data, raw_inputs
from tests.tflite import models


def rewrite(model):
    """Write all of a model anew, operator by operator."""
    writer, graph = ShardWriter(model), model.main
    for operator in graph.operators:
        if operator.index not in writer.flow.folded:
            inputs = [writer.take(i) if i >= 0 else -1 for i in raw_inputs(operator)]
            writer.copy(operator, inputs, [writer.take(i) for i in operator.outputs])
    return writer.encode([writer.take(i) for i in graph.inputs], [writer.take(i) for i in graph.outputs])


@pytest.mark.parametrize("build", [models.chain, models.skip, models.quantised, models.half_weights])
def test_a_model_written_operator_by_operator_gives_the_same_bits(build):
    content = build()
    made = bytes(rewrite(read_model(content)))
    whole, copy = Interpreter(content), Interpreter(made)
    assert len(made) < 2 * len(content)
    rng = np.random.default_rng(0)
    for port in whole.inputs:
        value = rng.integers(-100, 100, port.shape).astype(port.dtype)
    wanted, got = whole.run({whole.inputs[0].name: value}), copy.run({whole.inputs[0].name: value})
    assert wanted.keys() == got.keys()
    assert all(wanted[name].tobytes() == got[name].tobytes() for name in wanted)


def test_a_constant_is_a_view_of_the_file():
    model = read_model(models.quantised())
    weights = model.main.tensors[model.main.operators[0].inputs[1]]
    data = constant_data(model, weights)
    assert data.shape == weights.shape == (4, 3, 3, 3) and data.dtype == np.int8
    assert np.shares_memory(data, model.buffers[weights.raw.buffer])
    with pytest.raises(CutError, match="expected a constant"):
        constant_data(model, model.main.tensors[model.main.inputs[0]])


def test_operators_with_graphs_or_state_only_run_whole():
    with pytest.raises(CutError, match=r"operator 1 \(WHILE\) holds graphs"):
        rewrite(read_model(models.loop()))
    with pytest.raises(CutError, match="is state"):
        rewrite(read_model(models.recurrent()))


def test_a_whole_block_is_one_step_of_one_shard():
    model = read_model(models.skip())
    block = Block(1, 4, SplitMethod.WHOLE, (0, 0, 1))
    split = split_block(model, trace_dataflow(model), block)
    assert split.steps(0) == []
    (step,) = split.steps(1)
    assert [spec.name for spec in step.inputs] == ["first"] and [spec.name for spec in step.outputs] == ["sum"]
    assert step.macs == 2 * 8 * 8 * 4 * 36 + 8 * 8 * 4
    assert {port.name for port in Interpreter(bytes(step.write())).inputs} == {"first"}
