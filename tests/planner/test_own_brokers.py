"""Brokers on devices: what a message takes there, and which devices carry one in a plan."""

from __future__ import annotations

from itertools import combinations

import pytest

from har_edge.planner.flow_choice import FlowOptions, choose_flows, senders_of
from har_edge.planner.plan import Objective
from har_edge.planner.simulation import OWN_BYTE, OWN_MESSAGE, Simulator
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.planner.split_plan import SplitCandidate, find_candidate, make_candidate
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.planner.split_models import costs_of, network
from tests.planner.test_simulation import DENSE, ROWS, TWO


def test_a_message_crosses_the_links_of_its_ends_and_no_central_one() -> None:
    costs = costs_of(TWO, seconds=(0.08, 0.02), broker=1e5)
    central = Simulator(costs, border_first=False).forecast([ROWS, DENSE])
    own = Simulator(costs.with_flows(own_brokers=frozenset({1})), border_first=False).forecast([ROWS, DENSE])
    half = 400 + HEAD_BYTES
    assert (own.up_bytes, own.down_bytes) == (central.up_bytes, central.down_bytes)
    assert own.broker_bytes == tuple(size - half for size in central.broker_bytes)
    # The broker takes the message in and gives it out on the processor of its device.
    more = 2 * (OWN_MESSAGE * 2e-4 + half * OWN_BYTE * 1e-9)
    assert own.message_s == (pytest.approx(central.message_s[0]), pytest.approx(central.message_s[1] + more))
    # Inward and outward at a tenth of the rate of the devices' links, one after the other; now once, at their rate.
    assert own.latency_s == pytest.approx(central.latency_s + more - half * (2e-5 - 1e-6))


def test_a_broker_on_the_device_sends_a_copy_to_each_taker() -> None:
    costs = costs_of(network(1, 3, 12), (1.0, 1.0, 1.0))
    first = Block(0, 1, SplitMethod.WHOLE, (0, 1, 1, 1))
    tensor = costs.model.tensors[2]
    second = Block(1, 2, SplitMethod.OUTPUT, (0, 1, 1, tensor.channels))
    last = Block(2, 3, SplitMethod.WHOLE, (0, 1, 1, 1))
    third = Block(1, 2, SplitMethod.ROWS, (0, 4, 8, 12))
    for blocks in ([first, second, last], [first, third, last]):
        if not costs.is_legal(blocks[1].start, blocks[1].stop, blocks[1].method):
            continue
        pieces = [piece for piece in costs.transfer(first, blocks[1], False).pieces if piece.sender == 0]
        copies = sum(piece.bytes * len(piece.takers) for piece in pieces)
        own = costs.with_flows(own_brokers=frozenset({0}))
        forecast = Simulator(own, border_first=False).forecast(blocks)
        assert copies and forecast.up_bytes[0] == copies + RESULT_BYTES


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_the_devices_that_carry_brokers_are_the_best_of_all_choices(rate: float, objective: Objective) -> None:
    costs = costs_of(network(3, 5, 12), (1.0, 0.8, 1.2), seconds=(0.2, 0.2, 0.2, 0.2, 0.01), broker=rate)
    candidate = find_candidate(costs, objective)
    assert candidate is not None
    chosen = choose_flows(candidate, FlowOptions(own_brokers=True), None, objective).candidate  # type: ignore[arg-type]
    blocks, border_first = chosen.blocks, chosen.border_first

    def carried(devices: tuple[int, ...]) -> SplitCandidate:
        return make_candidate(costs.with_flows(own_brokers=frozenset(devices)), blocks, border_first=border_first)

    senders = senders_of(chosen)
    every = [carried(each) for count in range(len(senders) + 1) for each in combinations(senders, count)]
    assert chosen.value(objective) == pytest.approx(min(one.value(objective) for one in every), rel=1e-12)
    assert chosen.value(objective) <= candidate.value(objective)
