"""The methods that each operator allows, the shares that it has, and how others are refused."""

from __future__ import annotations

import pytest

from har_edge.config.catalog import find_model
from har_edge.errors import CutError
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import read_model
from har_edge.tflite.split.methods import block_methods, legal_methods, share_bounds, share_extent, split_block
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.tflite.models import chain, loop, recurrent
from tests.tflite.split.typed_layers import LayerDraft, options

WHOLE, ROWS, OUTPUT = SplitMethod.WHOLE, SplitMethod.ROWS, SplitMethod.OUTPUT
INPUT, HEADS = SplitMethod.INPUT, SplitMethod.HEADS


def convolution(dtype: str = "float32") -> bytes:
    draft = LayerDraft(dtype)
    return draft.build(draft.conv(draft.input([1, 9, 7, 5]), 12))


def legal(content: bytes, index: int = 0) -> set[SplitMethod]:
    return {method for method, reason in legal_methods(read_model(content), index).items() if reason is None}


def test_each_operator_names_its_methods() -> None:
    assert legal(convolution()) == legal(convolution("int8")) == {WHOLE, ROWS, OUTPUT, INPUT}
    assert legal(convolution("int16")) == {WHOLE, ROWS, OUTPUT}
    assert legal(chain(), 1) == {WHOLE, OUTPUT, INPUT}
    draft = LayerDraft("float32")
    made = draft.build(draft.unary("SOFTMAX", draft.input([1, 8]), options("Softmax", beta=1.0)))
    assert legal(made) == {WHOLE}
    draft = LayerDraft("float32")
    made = draft.build(draft.product(draft.input([1, 3, 5, 4], "a"), draft.input([1, 3, 4, 6], "b"), [1, 3, 5, 6]))
    assert {WHOLE, OUTPUT, INPUT, HEADS} <= legal(made)


@pytest.mark.parametrize(("content", "name"), [(recurrent(), "SVDF"), (loop(), "WHILE")])
def test_state_and_loops_run_whole(content: bytes, name: str) -> None:
    model = read_model(content)
    index = next(operator.index for operator in model.main.operators if operator.name == name)
    found = legal_methods(model, index)
    assert found.pop(WHOLE) is None
    assert all((reason and name in reason) or "have no BATCH_MATMUL" in (reason or "") for reason in found.values())


@pytest.mark.parametrize("name", ["float-split", "int8-split", "bottleneck", "decimate-q8-zlib-restore"])
def test_the_shares_of_a_legal_method_can_be_made(name: str) -> None:
    """The planner takes a method without a reason as one that it may propose."""
    model = read_model(find_model(name).path)
    flow = trace_dataflow(model)
    for operator in model.main.operators:
        for method, reason in legal_methods(model, operator.index, flow).items():
            if reason is None and method is not WHOLE:
                extent = share_extent(model, flow, operator.index, operator.index + 1, method)
                bounds = (0, extent // 2, extent)
                split = split_block(model, flow, Block(operator.index, operator.index + 1, method, bounds))
                assert all(split.steps(shard)[0].write()[4:8] == b"TFL3" for shard in range(2))
            elif reason is not None:
                assert f"operator {operator.index} ({operator.name})" in reason or f"[{operator.index}, " in reason


def test_shares_are_in_proportion_and_never_empty() -> None:
    model = read_model(convolution())
    flow = trace_dataflow(model)
    assert share_bounds(model, flow, 0, 1, OUTPUT, [1, 1, 1]) == (0, 4, 8, 12)
    assert share_bounds(model, flow, 0, 1, OUTPUT, [1, 2, 3]) == (0, 2, 6, 12)
    assert share_bounds(model, flow, 0, 1, OUTPUT, [1000, 1, 1]) == (0, 10, 11, 12)
    assert share_bounds(model, flow, 0, 1, OUTPUT, [1, 1, 1000]) == (0, 1, 2, 12)
    assert share_bounds(model, flow, 0, 1, ROWS, [1] * 9) == tuple(range(10))
    assert share_bounds(model, flow, 0, 1, INPUT, [2, 3]) == (0, 2, 5)


@pytest.mark.parametrize(
    ("method", "weights", "said"),
    [
        (INPUT, [1] * 6, "6 shards came for operators [0, 1), 0 (CONV_2D), which have 5 input channels; expected at"),
        (ROWS, [1] * 10, "at most 9 shards, or another method (whole, rows (9 rows), output (12 output channels)"),
        (OUTPUT, [1, 0], "expected one positive number for each shard"),
        (OUTPUT, [], "expected one positive number for each shard"),
        (HEADS, [1, 1], "have no BATCH_MATMUL"),
    ],
)
def test_more_shards_than_shares_are_refused(method: SplitMethod, weights: list[float], said: str) -> None:
    model = read_model(convolution())
    with pytest.raises(CutError) as error:
        share_bounds(model, trace_dataflow(model), 0, 1, method, weights)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("method", "bounds", "said"),
    [
        (HEADS, (0, 1, 2), "methods for operators [0, 1): whole, rows (9 rows), output (12 output channels), input (5"),
        (OUTPUT, (0, 6, 11), "expected shares that add up to 12; methods for operators [0, 1): whole, rows (9 rows)"),
        (INPUT, (0, 6, 12), "operator 0 (CONV_2D) has 5 input channels; expected shares that add up to 5; methods for"),
        (ROWS, (0, 6, 12), "output (12 output channels)"),
    ],
)
def test_a_refusal_names_the_methods_that_there_are(method: SplitMethod, bounds: tuple[int, ...], said: str) -> None:
    model = read_model(convolution())
    with pytest.raises(CutError) as error:
        split_block(model, trace_dataflow(model), Block(0, 1, method, bounds))
    assert said in str(error.value)


def test_a_block_allows_what_all_of_its_operators_allow() -> None:
    draft = LayerDraft("float32")
    x = draft.pool(draft.conv(draft.input([1, 8, 8, 3]), 6))
    model = read_model(draft.build(draft.conv(x, 4)))
    found = block_methods(model, trace_dataflow(model), 0, 3)
    # For INPUT, each shard makes the channels of the first convolution that it takes for the second one.
    assert {method for method, reason in found.items() if reason is None} == {WHOLE, ROWS, INPUT}
    assert "end the block before operator 2" in str(found[OUTPUT])
