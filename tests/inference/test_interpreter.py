"""Running one model: ports, values, batches and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Interpreter, Port, load_slice
from har_edge.tflite.encode import encode
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model, write_slice
from tests.tflite import models

X = np.arange(6, dtype=np.float32).reshape(1, 6)


def test_ports_say_what_the_model_takes_and_gives() -> None:
    model = Interpreter(models.chain(dynamic=True))
    assert model.inputs == (Port("x", (-1, 6), np.dtype("float32"), 0.0, 0),)
    assert [(port.name, port.shape) for port in model.outputs] == [("t12", (-1, 3))]
    (quantised,) = Interpreter(models.quantised()).inputs
    assert (quantised.dtype, quantised.shape, quantised.zero_point) == (np.int8, (1, 6, 6, 3), -1)
    assert quantised.scale == pytest.approx(0.05)


def test_ports_with_one_name_are_told_apart() -> None:
    model = Interpreter(models.badly_named())
    assert [port.name for port in model.inputs] == ["same", "same#1"]
    assert [port.name for port in model.outputs] == ["same", "same#4"]


def test_the_computation_alone_is_timed_and_gives_the_same() -> None:
    model, ticks = Interpreter(models.chain()), iter((2.0, 5.0))
    seconds, results = model.time({"x": X}, lambda: next(ticks))
    assert seconds == 3.0 and results["t12"].tobytes() == model.run({"x": X})["t12"].tobytes()


def test_run_computes_what_numpy_computes() -> None:
    graph = read_model(models.chain()).main
    data = read_model(models.chain()).buffers
    value = X
    for operator in graph.operators:
        weights, bias = (data[graph.tensors[i].raw.buffer].view(np.float32) for i in operator.inputs[1:])
        value = value @ weights.reshape(bias.size, -1).T + bias
    (result,) = Interpreter(models.chain()).run({"x": X}).values()
    np.testing.assert_allclose(result, value, rtol=1e-4)


def test_a_path_and_its_bytes_run_alike(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(models.skip())
    values = {"image": np.ones((1, 8, 8, 3), np.float32)}
    assert (
        Interpreter(path).run(values)["result"].tobytes() == Interpreter(models.skip()).run(values)["result"].tobytes()
    )


def test_results_belong_to_the_caller() -> None:
    model = Interpreter(models.many_ports())
    values = {"a": np.ones((1, 4), np.float32), "b": np.ones((1, 4), np.float32)}
    first = model.run(values)
    before = {name: value.copy() for name, value in first.items()}
    model.run({name: value * 7 for name, value in values.items()})
    assert all(np.array_equal(first[name], before[name]) for name in before)
    assert all(value.flags.writeable and value.flags.owndata for value in first.values())


def test_batches_of_any_size_give_each_row_its_own_result() -> None:
    model = Interpreter(models.chain(dynamic=True))
    rows = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    single = [model.run({"x": row[None]})["t12"][0] for row in rows]
    together = model.run({"x": rows})["t12"]
    assert together.shape == (5, 3)
    np.testing.assert_allclose(together, single, rtol=1e-5)
    assert model.run({"x": rows[:1]})["t12"].shape == (1, 3)
    assert model.run({"x": rows[:4]})["t12"].tobytes() == together[:4].tobytes()


def test_a_result_without_dimensions_is_an_array_that_the_next_model_takes() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([], "x")
    graph.output(graph.add(x, x, "result"))
    model = Interpreter(draft.build())
    result = model.run({"x": np.array(2.0, np.float32)})["result"]
    assert isinstance(result, np.ndarray) and result.shape == () and result.dtype == np.float32
    assert model.run({"x": result})["result"] == 8.0


def test_a_result_without_elements_is_an_empty_array() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    start, size = graph.const(np.zeros(2, np.int32)), graph.const(np.array([0, 4], np.int32))
    result = graph.tensor([0, 4], "result")
    graph.op("SLICE", [x, start, size], [result], models.tflite.SliceOptionsT())
    graph.output(graph.add(x, x, "sum"), result)
    got = Interpreter(draft.build()).run({"x": np.ones((1, 4), np.float32)})
    assert got["result"].shape == (0, 4) and got["sum"].tolist() == [[2.0] * 4]


def test_state_lives_between_runs_until_it_is_reset() -> None:
    model = Interpreter(models.recurrent())
    values = {"x": np.ones((1, 4), np.float32)}
    name = model.outputs[0].name
    first, second = model.run(values)[name], model.run(values)[name]
    assert first.tobytes() != second.tobytes()
    model.reset_state()
    assert model.run(values)[name].tobytes() == first.tobytes()


class _OtherArray(np.ndarray):
    pass


def test_an_array_of_another_class_does_not_cost_the_state() -> None:
    model = Interpreter(models.recurrent())
    values = np.ones((1, 4), np.float32)
    name = model.outputs[0].name
    model.run({"x": values})
    second = model.run({"x": values})[name]
    model.reset_state()
    model.run({"x": values})
    assert model.run({"x": values.view(_OtherArray)})[name].tobytes() == second.tobytes()


_FALLBACK = """
import sys, types
import numpy as np
import ai_edge_litert.interpreter as real
sys.modules["tflite_runtime"] = types.ModuleType("tflite_runtime")
sys.modules["tflite_runtime.interpreter"] = real
sys.modules["ai_edge_litert.interpreter"] = None
from har_edge.inference.interpreter import Interpreter
model = Interpreter(open(sys.argv[1], "rb").read())
assert model.run({"x": np.ones((1, 6), np.float32)})["t12"].shape == (1, 3)
"""


def test_tflite_runtime_takes_over_where_litert_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(models.chain())
    subprocess.run([sys.executable, "-c", _FALLBACK, str(path)], check=True)


def test_values_in_another_memory_order_are_read_rightly() -> None:
    model = Interpreter(models.skip())
    image = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype(np.float32)
    turned = np.asfortranarray(image)
    assert model.run({"image": turned})["result"].tobytes() == model.run({"image": image})["result"].tobytes()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "missing input x; the model takes x"),
        ({"y": X}, "unknown input y; the model takes x"),
        ({"x": X, "y": X}, "unknown input y; the model takes x"),
        ({"x": X.astype(np.float64)}, "input x has dtype float64, expected float32"),
        ({"x": X.astype(">f4")}, "input x has dtype >f4, expected float32"),
        ({"x": X[0]}, r"input x has shape \[6\], expected \[1, 6\]"),
        ({"x": np.vstack([X, X])}, r"input x has shape \[2, 6\], expected \[1, 6\]"),
        ({"x": X.tolist()}, "input x is a list, expected an array"),
    ],
)
def test_wrong_values_are_refused_and_the_next_right_ones_run(values: Any, text: str) -> None:
    model = Interpreter(models.chain())
    wanted = model.run({"x": X})["t12"].tobytes()
    with pytest.raises(MessageError, match=text):
        model.run(values)
    assert model.run({"x": X})["t12"].tobytes() == wanted


def test_stand_in_sizes_that_cannot_run_wait_for_true_ones() -> None:
    model = read_model(models.reshaped())
    last = Interpreter(bytes(write_slice(model, slice_model(model, [3])[1])))
    assert last.inputs[0].shape == (-1, -1, -1)
    assert last.run({"flat": np.ones((5, 1, 8), np.float32)})["result"].shape == (5, 3)
    with pytest.raises(MessageError, match=r"the model cannot take inputs of these sizes: flat \[1, 1, 7\]"):
        last.run({"flat": np.ones((1, 1, 7), np.float32)})
    assert last.run({"flat": np.ones((1, 1, 8), np.float32)})["result"].shape == (1, 3)


def test_an_input_without_elements_gives_what_comes_of_it() -> None:
    """Values may say how many rows there are, and none is a number of rows."""
    interpreter = Interpreter(models.chain(dynamic=True))
    (empty,) = interpreter.run({"x": np.empty((0, 6), np.float32)}).values()
    assert empty.shape == (0, 3)
    (full,) = interpreter.run({"x": np.ones((2, 6), np.float32)}).values()
    assert full.shape == (2, 3)


def _gather() -> bytes:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1], "x", type=models.INT32)
    result = graph.tensor([1, 4], "result")
    table = graph.const(np.ones((3, 4), np.float32))
    graph.op("GATHER", [table, x], [result], models.tflite.GatherOptionsT())
    graph.output(result)
    return draft.build()


def test_values_that_an_operator_refuses_cost_one_message_only() -> None:
    model = Interpreter(_gather())
    with pytest.raises(MessageError, match=r"the model refuses these values: .*; check what the sender puts in"):
        model.run({"x": np.array([77], np.int32)})
    assert model.run({"x": np.array([2], np.int32)})["result"].tolist() == [[1.0] * 4]


def test_a_batch_that_the_model_cannot_take_costs_one_message_only() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x", signature=[-1, 4])
    fixed = graph.const(np.ones((2, 4), np.float32))
    graph.output(graph.add(x, fixed, "result"))
    model = Interpreter(draft.build())
    with pytest.raises(MessageError, match=r"cannot take inputs of these sizes: x \[3, 4\]"):
        model.run({"x": np.ones((3, 4), np.float32)})
    assert model.run({"x": np.ones((2, 4), np.float32)})["result"].shape == (2, 4)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "these 0 bytes: no TFLite model: bytes 4 to 8 are b''"),
        (
            b"<html>no such page</html>",
            "bytes 4 to 8 are b'l>no', expected b'TFL3'; give a .tflite file",
        ),
        (models.chain()[:400], "the runtime cannot load this model"),
        (models.custom(), "unresolved custom op: Mystery.*if an operator is missing, use a newer runtime"),
        (models.of_type(5), "tensor .* has type|unresolved custom op"),
    ],
)
def test_what_cannot_run_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        Interpreter(content)
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=text.replace(f"these {len(content)} bytes", str(path))):
        Interpreter(path)


def test_text_ports_are_refused() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1], "words", type=5)
    graph.output(x)
    y = graph.input([1, 4])
    graph.output(graph.add(y, y))
    with pytest.raises(ModelError, match=r"tensor words has type .*; only numbers and booleans can be sent"):
        Interpreter(draft.build())


def test_load_slice_checks_the_hash_first(tmp_path: Path) -> None:
    path = tmp_path / "slice-0.tflite"
    path.write_bytes(models.chain())
    digest = hashlib.sha256(models.chain()).hexdigest()
    assert load_slice(path, digest).run({"x": X})["t12"].shape == (1, 3)
    path.write_bytes(b"evil")
    with pytest.raises(ModelError, match=rf"slice .* has sha256 \w+, but {digest} was expected"):
        load_slice(path, digest)
    with pytest.raises(ModelError, match=r"cannot read slice .*none.tflite: No such file"):
        load_slice(tmp_path / "none.tflite", digest)


def test_weights_behind_the_flatbuffer_run() -> None:
    model = read_model(models.chain())
    behind = bytes(encode(model, slice_model(model, [])[0].part, large_bytes=0))
    wanted = Interpreter(models.chain()).run({"x": X})["t12"]
    assert Interpreter(behind).run({"x": X})["t12"].tobytes() == wanted.tobytes()
