"""The simulation of one window: against sums by hand, and never faster for a slower part."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.devices import BrokerLink, DeviceClass, PlannerDevice
from har_edge.planner.plan import Objective, make_plan, make_planning_problem
from har_edge.planner.profile import MessageRate
from har_edge.planner.simulation import Simulator
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.planner.split_costs import PackingCost, PlannedPiece, SplitCosts
from har_edge.planner.split_model import SplitOperator, SplitTensor
from har_edge.planner.split_plan import make_split_costs
from har_edge.planner.split_search import best_split
from har_edge.tflite.model import read_model
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.planner.split_models import Window, chain_model, costs_of, network
from tests.tflite.split.layers import Layers

# One convolution of 3 x 3 on eight rows of 100 bytes, and a dense layer.
CONVOLUTION = SplitOperator("CONV_2D", (0,), 1, 1000, linear=True)
PICTURE, SCORES = SplitTensor(8, 1, 800), SplitTensor(0, 2, 8)
LAYER, LAST = Window(1, 3, 1), SplitOperator("FULLY_CONNECTED", (1,), 2, 500, linear=True)
TWO = chain_model([CONVOLUTION, LAST], [PICTURE, PICTURE, SCORES], [LAYER, None])
ROWS = Block(0, 1, SplitMethod.ROWS, (0, 4, 8))
DENSE = Block(1, 2, SplitMethod.WHOLE, (0, 1, 1))


def test_one_device_takes_what_its_parts_take() -> None:
    costs = costs_of(TWO, seconds=(0.08, 0.02))
    whole = Block(0, 2, SplitMethod.WHOLE, (0, 1, 1))
    came = 800 + HEAD_BYTES
    expected = (came * 1e-6 + 1e-3) + (2e-4 + came * 1e-9) + (1e-3 + 0.08 + 0.02) + (2e-4 + RESULT_BYTES * 1e-9)
    expected += RESULT_BYTES * 1e-6 + 1e-3
    forecast = Simulator(costs, border_first=False).forecast([whole])
    assert forecast.latency_s == pytest.approx(expected)
    assert forecast.compute_s == (pytest.approx(0.101), 0.0)
    assert (forecast.up_bytes, forecast.down_bytes) == ((RESULT_BYTES, 0), (came, 0))
    assert forecast.memory_bytes == (1000 + 2 * (1500 + 1600 + 800 + 8), 0)


def test_two_devices_share_the_rows_and_the_second_sends_its_half() -> None:
    costs = costs_of(TWO, seconds=(0.08, 0.02))
    forecast = Simulator(costs, border_first=False).forecast([ROWS, DENSE])
    window, half = 500 + HEAD_BYTES, 400 + HEAD_BYTES  # four rows, and the one beside them
    first = window * 1e-6 + 1e-3 + 2e-4 + window * 1e-9 + 1e-3 + 0.04
    sent = first + 2e-4 + half * 1e-9
    # The broker takes no time, so the message goes down as fast as it comes up, once it is there.
    came = sent + half * 1e-6 + 1e-3 + half * 1e-6 + 1e-3 + 2e-4 + half * 1e-9
    result = 1e-3 + 0.02 + 2e-4 + RESULT_BYTES * 1e-9 + RESULT_BYTES * 1e-6 + 1e-3
    assert forecast.latency_s == pytest.approx(came + result)
    assert forecast.up_bytes == (RESULT_BYTES, half) and forecast.down_bytes == (window + half, window)
    assert forecast.broker_bytes == (2 * window + half + RESULT_BYTES,) * 2
    assert forecast.largest_bytes == window


def test_messages_cost_what_they_cost_after_the_work_between_them() -> None:
    costs = costs_of(TWO, seconds=(0.08, 0.02))
    rates = (MessageRate(0.0, 1e-5, 0.0), MessageRate(0.1, 2e-4, 0.0))
    kind = replace(costs.devices[0].kind, message_byte_s=0.0, message_rates=rates)
    costs = SplitCosts(costs.model, [PlannerDevice(name, kind) for name in "ab"], costs.seconds, costs.broker)
    forecast = Simulator(costs, border_first=False).forecast([ROWS, DENSE])
    # The picture comes after a whole window. One message lies behind 41 ms of rows, and the result behind 21 ms.
    piece, result = 1e-5 + 0.41 * 1.9e-4, 1e-5 + 0.21 * 1.9e-4
    assert forecast.message_s == pytest.approx((2e-4 + piece + result, 2e-4 + piece))


def test_each_run_of_some_rows_reads_all_weights() -> None:
    costs = costs_of(TWO, seconds=(0.08, 0.02))
    kind = replace(costs.devices[0].kind, weight_byte_s=2e-5)  # 20 ms of the 80 of a convolution with 1000 bytes
    costs = SplitCosts(costs.model, [PlannerDevice(name, kind) for name in "ab"], costs.seconds, costs.broker)
    assert costs.step_seconds(ROWS, 0, 0, 4) == pytest.approx(1e-3 + 0.02 + 0.06 / 2)
    assert costs.step_seconds(ROWS, 0, 0, 1) == pytest.approx(1e-3 + 0.02 + 0.06 / 8)
    assert costs.step_seconds(Block(0, 1, SplitMethod.WHOLE, (0, 1, 1)), 0, 0, 1) == pytest.approx(1e-3 + 0.08)


def test_the_broker_s_link_carries_one_window_after_the_other() -> None:
    free = Simulator(costs_of(TWO, seconds=(0.08, 0.02)), border_first=False).latency([ROWS, DENSE])
    slow = Simulator(costs_of(TWO, seconds=(0.08, 0.02), broker=1e5), border_first=False)
    window, half = 500 + HEAD_BYTES, 400 + HEAD_BYTES
    # Out of the broker at a tenth of the rate: both windows, then the half; the first window comes in before them.
    more = window * 1e-5 + 2 * window * 1e-5 - window * 1e-6 + (half * 1e-5 - half * 1e-6) * 2
    more += RESULT_BYTES * (1e-5 - 1e-6)
    assert slow.latency([ROWS, DENSE]) == pytest.approx(free + more)
    assert slow.forecast([ROWS, DENSE]).binding == "the processor of pi-0"
    assert slow.forecast([ROWS, DENSE]).broker_s == pytest.approx((2 * window + half + RESULT_BYTES) * 1e-5)


def test_border_rows_are_computed_and_sent_first() -> None:
    again = replace(CONVOLUTION, inputs=(1,), output=2)
    dense = replace(LAST, inputs=(2,), output=3)
    model = chain_model([CONVOLUTION, again, dense], [PICTURE] * 3 + [SCORES], [LAYER, LAYER, None])
    costs = costs_of(model, seconds=(0.08, 0.08, 0.02))
    second = Block(1, 2, SplitMethod.ROWS, (0, 4, 8))
    transfer = costs.transfer(ROWS, second, True)
    assert [[(step.low, step.high) for step in own] for own in transfer.steps] == [[(3, 4), (0, 3)], [(4, 5), (5, 8)]]
    assert transfer.pieces == (
        PlannedPiece(0, 3, 4, (1,), 100 + HEAD_BYTES, 0),
        PlannedPiece(1, 4, 5, (0,), 100 + HEAD_BYTES, 0),
    )
    together = costs.transfer(ROWS, second, False)
    assert [[(step.low, step.high) for step in own] for own in together.steps] == [[(0, 4)], [(4, 8)]]
    # Weights are there twice where the border of the picture has a file of its own, and others lie inside.
    assert transfer.memory[0][0] == 2000 and together.memory[0][0] == 1000
    blocks = [ROWS, second, Block(2, 3, SplitMethod.WHOLE, (0, 1, 1))]
    slow = costs_of(model, seconds=(0.08, 0.08, 0.02), link_bytes_per_s=1e4)
    gain = Simulator(slow, border_first=False).latency(blocks) - Simulator(slow, border_first=True).latency(blocks)
    # The inside (0.03 s) hides part of the way of a row (2 * 0.0228 s); two more runs cost a millisecond each.
    assert gain == pytest.approx(0.03, abs=3e-3)


def test_packing_makes_messages_smaller_and_costs_both_ends() -> None:
    plain = costs_of(TWO, seconds=(0.08, 0.02))
    packed = costs_of(TWO, seconds=(0.08, 0.02))
    packed.packing = PackingCost(2.0, 1e-6)
    before, after = (Simulator(one, border_first=False).forecast([ROWS, DENSE]) for one in (plain, packed))
    assert after.up_bytes[1] == 200 + HEAD_BYTES and before.up_bytes[1] == 400 + HEAD_BYTES
    assert after.message_s[1] == pytest.approx(before.message_s[1] + 400 * 1e-6 - 200 * 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.sampled_from(["seconds", "link_bytes_per_s", "latency_s", "message_s", "overhead_s", "broker"]),
    st.floats(1.0, 20.0),
    st.booleans(),
    st.booleans(),
)
def test_a_slower_part_never_makes_a_window_faster(
    seed: int, devices: int, part: str, factor: float, border_first: bool, duplex: bool
) -> None:
    costs = costs_of(network(seed, 5, 12), (1.0, 0.7, 1.4, 1.0)[:devices], broker=5e5, duplex=duplex)
    found = best_split(costs, border_first=border_first)
    assert found is not None
    slower = _slower(costs, part, factor, seed % devices)
    for blocks in (found.blocks, [Block(0, costs.model.n, SplitMethod.WHOLE, (0, *(1,) * devices))]):
        before = Simulator(costs, border_first=border_first).latency(blocks)
        after = Simulator(slower, border_first=border_first).latency(blocks)
        assert after >= before * (1 - 1e-12)


def _slower(costs: SplitCosts, part: str, factor: float, device: int) -> SplitCosts:
    devices, seconds, broker = list(costs.devices), [list(each) for each in costs.seconds], costs.broker
    kind = devices[device].kind
    if part == "seconds":
        seconds[device] = [each * factor for each in seconds[device]]
    elif part == "broker":
        assert broker.link_bytes_per_s
        broker = BrokerLink(broker.link_bytes_per_s / factor)
    else:
        value = getattr(kind, part)
        changed = value / factor if part == "link_bytes_per_s" else value * factor
        devices[device] = PlannerDevice(devices[device].name, replace(kind, **{part: changed}))
    return SplitCosts(costs.model, devices, seconds, broker)


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("rate", [1e4, 1e7])
def test_one_device_has_the_figures_of_a_plan_of_whole_layers(rate: float, duplex: bool) -> None:
    layers = Layers(0, (1, 24, 6, 3))
    model, broker = read_model(layers.build(layers.scores(layers.conv(layers.x, 4)))), BrokerLink(rate, duplex)
    bounds = segment_bounds(model)
    kind = DeviceClass((1e-3,) * (len(bounds) - 1), 1e-3, 1e-4, 1e-9, 1e6, 1e-3, None, 0, 1.0)
    devices = [PlannerDevice("a", kind), PlannerDevice("b", kind)]
    plan = make_plan(
        replace(make_planning_problem(model, bounds, devices, broker=broker), most=1, replicas=1), Objective.LATENCY
    )
    costs = make_split_costs(model, bounds, devices, broker)
    assert costs is not None
    block = Block(0, costs.model.n, SplitMethod.WHOLE, (0, 1, 1))
    forecast = Simulator(costs, border_first=False).forecast([block])
    assert (plan.broker_s, plan.broker_bytes) == (pytest.approx(forecast.broker_s), sum(forecast.broker_bytes))
    assert plan.bottleneck_s == pytest.approx(forecast.period_s)
    assert plan.latency_s == pytest.approx(forecast.latency_s)
