"""The planner's view of a model: its forecasts against the layout of the split, message by message."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from har_edge.planner.devices import PlannerDevice
from har_edge.planner.simulation import Simulator
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_model import make_split_model, operator_seconds
from har_edge.planner.split_search import best_split
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import read_model
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import split_model
from tests.planner.split_models import DEVICE
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.layers import Layers


def plain(type: int) -> bytes:
    layers = Layers(0, (1, 24, 6, 3), type)
    x = layers.pool(layers.conv(layers.conv(layers.x, 16), 16))
    x = layers.conv(layers.conv(x, 32, stride=2), 32)
    return layers.build(layers.scores(x))


def residual(type: int) -> bytes:
    """Two blocks with a sum each, as in MobileNetV2."""
    layers = Layers(1, (1, 20, 6, 8), type)
    x = layers.conv(layers.x, 8)
    for _ in range(2):
        x = layers.add(x, layers.conv(layers.depthwise(layers.conv(x, 16, 1)), 8, 1))
    return layers.build(layers.scores(x))


def costs_of(content: bytes, devices: int, **changes: object) -> SplitCosts:
    model = read_model(content)
    split = make_split_model(model)
    kind = replace(DEVICE, **changes)  # type: ignore[arg-type]
    seconds = [0.2] * (split.n - 2) + [1e-3] * 2
    return SplitCosts(split, [PlannerDevice(f"pi-{k}", kind) for k in range(devices)], [seconds] * devices)


@pytest.mark.parametrize("border_first", [False, True])
@pytest.mark.parametrize("type", [FLOAT, INT8])
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("make", [plain, residual])
def test_a_plan_is_laid_out_with_the_steps_and_bytes_that_were_forecast(
    make: Callable[[int], bytes], devices: int, type: int, border_first: bool
) -> None:
    content = make(type)
    costs = costs_of(content, devices)
    found = best_split(costs, border_first=border_first)
    assert found is not None and any(block.method is SplitMethod.ROWS for block in found.blocks)
    _check_layout(content, costs, found.blocks, border_first)


@pytest.mark.parametrize("border_first", [False, True])
def test_channels_and_rows_meet_as_forecast(border_first: bool) -> None:
    content = plain(FLOAT)
    costs = costs_of(content, 2)
    n = costs.model.n
    blocks = (
        Block(0, 1, SplitMethod.ROWS, (0, 10, 24)),
        Block(1, 3, SplitMethod.OUTPUT, (0, 4, 16)),
        Block(3, 5, SplitMethod.ROWS, (0, 2, 6)),
        Block(5, n, SplitMethod.WHOLE, (0, 0, 1)),
    )
    assert all(costs.is_legal(block.start, block.stop, block.method) for block in blocks)
    _check_layout(content, costs, blocks, border_first)


def _check_layout(content: bytes, costs: SplitCosts, blocks: tuple[Block, ...], border_first: bool) -> None:
    forecast = Simulator(costs, border_first=border_first).forecast(blocks)
    layout = split_model(read_model(content), [SplitPlan(costs.n, blocks, border_first)])
    sent = [dict[int, int]() for _ in layout.programs]
    taken = [[spec for spec in program.inputs if spec.of == "x"] for program in layout.programs]
    down = [sum(map(_bytes, specs)) + HEAD_BYTES * len(specs) for specs in taken]
    for k, program in enumerate(layout.programs):
        takers = dict[int, tuple[int, ...]]()
        for spec, own in zip(program.outputs, program.takers, strict=True):
            if own:  # the result is a message of its own
                sent[k][spec.flow], takers[spec.flow] = sent[k].get(spec.flow, HEAD_BYTES) + _bytes(spec), own
        for flow, size in sent[k].items():
            for taker in takers[flow]:
                down[taker] += size
    up = [sum(flows.values()) for flows in sent]
    last = next(k for k in range(costs.n) if blocks[-1].bounds[k] < blocks[-1].bounds[k + 1])
    up[last] += RESULT_BYTES
    assert (list(forecast.up_bytes), list(forecast.down_bytes)) == (up, down)
    assert forecast.largest_bytes >= max(max(flows.values(), default=0) for flows in sent)
    steps = [0] * costs.n
    for block, after in zip(blocks, (*blocks[1:], None), strict=True):
        transfer = costs.transfer(block, after, border_first)
        steps = [count + len(own) for count, own in zip(steps, transfer.steps, strict=True)]
    assert steps == [len(program.steps) for program in layout.programs]


def _bytes(spec: TensorSpec) -> int:
    return math.prod(abs(n) for n in spec.shape) * np.dtype(spec.dtype).itemsize


def test_places_are_those_that_one_tensor_crosses() -> None:
    model = read_model(residual(FLOAT))
    split = make_split_model(model)
    assert [operator.name for operator in split.operators][:5] == [
        "CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "ADD",
    ]
    assert set(split.places) >= {0, 1, 5, 9} and not set(split.places) & {2, 3, 4}
    costs = costs_of(residual(FLOAT), 2)
    assert costs.is_legal(1, 5, SplitMethod.ROWS) and not costs.is_legal(1, 4, SplitMethod.ROWS)
    assert not costs.is_legal(1, 5, SplitMethod.OUTPUT)  # all shards would compute the first convolution


def test_seconds_of_a_segment_are_shared_by_arithmetic() -> None:
    model = read_model(plain(FLOAT))
    n = len(model.main.operators)
    found = operator_seconds(model, (0, 2, n), (1.0, 2.0))
    assert sum(found) == pytest.approx(3.0) and sum(found[:2]) == pytest.approx(1.0)
    assert found[1] > 5 * found[0]  # 16 input channels instead of 3
