"""Plans with parities: their price, what a missing device costs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from har_edge.errors import ConfigError, CutError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.choice import PlanChoice
from har_edge.planner.devices import BrokerLink, DeviceClass, PlannerDevice
from har_edge.planner.parity_forecast import EXACT_FACTOR, ParityCosts, ParityForecast
from har_edge.planner.parity_plan import plan_parity
from har_edge.planner.plan import Objective, make_plan, make_planning_problem
from har_edge.planner.split_model import operator_seconds
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.coded_plan import code_layers, spell
from har_edge.tflite.split.plan import SplitMethod
from har_edge.tflite.split.program import split_model
from har_edge.tflite.split.spec import parse_split
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.layers import Layers

KIND = DeviceClass((), 0.0, 0.0, 0.0, 1e12, 0.0, None, 0, 1.0)


def network(type: int) -> Model:
    layers = Layers(0, (1, 12, 12, 3), type)
    x = layers.conv(layers.pool(layers.conv(layers.x, 8)), 8)
    return read_model(layers.build(layers.conv(x, 8)))


def devices_of(model: Model, *speeds: float, **changes: object) -> list[PlannerDevice]:
    segments = len(segment_bounds(model)) - 1
    return [
        PlannerDevice(f"pi-{k}", replace(KIND, work_s=(1 / speed,) * segments, **changes))  # type: ignore[arg-type]
        for k, speed in enumerate(speeds)
    ]


def chosen(
    model: Model, devices: list[PlannerDevice], *, floats: bool = False, broker: float | None = None
) -> PlanChoice:
    bounds = segment_bounds(model)
    planning = make_planning_problem(model, bounds, devices, replicas=1, broker=BrokerLink(broker))
    other = PlanChoice(make_plan(planning, Objective.LATENCY), [], [])
    return plan_parity(model, planning, bounds, other, Objective.LATENCY, floats=floats)


def forecast_of(model: Model, devices: list[PlannerDevice], floats: bool) -> ParityForecast:
    plan = code_layers(model, [1.0] * (len(devices) - 1), floats=floats)
    bounds = segment_bounds(model)
    seconds = [operator_seconds(model, bounds, device.kind.work_s) for device in devices]
    return ParityCosts(model, split_model(model, [plan]), devices, seconds, BrokerLink()).forecast()


def test_every_layer_has_a_parity_and_goes_with_what_follows_it() -> None:
    plan = code_layers(network(INT8), [2.0, 1.0, 1.0])
    assert [(block.start, block.stop) for block in plan.blocks] == [(0, 2), (2, 3), (3, 4)]
    assert {block.bounds for block in plan.blocks} == {(0, 4, 6, 8, 8)}
    assert {block.method for block in plan.blocks} == {SplitMethod.PARITY}
    assert spell(plan) == "parity:0-2=4,2,2 parity:2-3=4,2,2 parity:3-4=4,2,2"
    (again,) = parse_split(spell(plan), network(INT8))
    assert again.blocks == plan.blocks


def test_without_messages_a_window_takes_the_largest_share_of_each_layer() -> None:
    """Of equal devices, each does a half, the parity as much: a missing one then costs nothing."""
    model = network(FLOAT)
    devices = devices_of(model, 1.0, 1.0, 1.0)
    forecast = forecast_of(model, devices, floats=True)
    bounds = segment_bounds(model)
    seconds = operator_seconds(model, bounds, devices[0].kind.work_s)
    least = (seconds[0] + seconds[2] + seconds[3]) / 2 + seconds[1]
    assert least < forecast.latency_s < 1.3 * least
    assert forecast.missing_s == pytest.approx(forecast.latency_s, rel=1e-3)


def test_a_window_is_never_promised_earlier_for_a_device_that_is_away() -> None:
    """Messages that cost most make a plan with all slower; one that is late may still send them."""
    model = network(FLOAT)
    devices = devices_of(model, *[1e6] * 4, link_bytes_per_s=1e5)
    forecast = forecast_of(model, devices, floats=True)
    assert forecast.missing_s == forecast.latency_s
    three = devices_of(model, *[1.0] * 3)
    assert "a window then takes no longer than with all: " in chosen(model, three, floats=True).remarks[0]


def test_a_slow_share_delays_nothing_but_its_absence_of_another_one_does() -> None:
    model = network(FLOAT)
    even = forecast_of(model, devices_of(model, 1.0, 1.0, 1.0), floats=True)
    slow = forecast_of(model, devices_of(model, 1.0, 0.1, 1.0), floats=True)
    assert slow.latency_s == pytest.approx(even.latency_s, rel=1e-3)
    assert slow.missing_s > 3 * even.missing_s


def test_integers_are_priced_as_floats_are() -> None:
    model = network(INT8)
    devices = devices_of(model, 1.0, 1.0, 1.0)
    exact, float_ = forecast_of(model, devices, False), forecast_of(network(FLOAT), devices, True)
    assert exact.latency_s > 0.5 * EXACT_FACTOR["CONV_2D"] * float_.latency_s


def test_the_price_is_told_beside_the_best_plan_without() -> None:
    model = network(INT8)
    choice = chosen(model, devices_of(model, 1.0, 1.0, 2.0, 1.0, link_bytes_per_s=1e7, message_s=1e-4), broker=1e8)
    (stage,) = choice.plan.stages
    assert stage.split is not None and stage.split.shards == len(stage.devices) >= 3
    assert choice.alternatives[0].name == "without parity" and choice.plan.broker_bytes > 0
    first, second, third = choice.remarks
    assert f"any one of {', '.join(stage.devices[:-1])} may be away or late" in first
    assert f"{stage.devices[-1]} computes the parities and answers" in first
    assert "the price: a device more, and " in second and "without parity takes" in second
    assert "integers take as long as float32" in third
    split_model(model, [stage.split])


def test_what_cannot_have_a_parity_is_refused_with_the_reason() -> None:
    model = network(FLOAT)
    with pytest.raises(CutError, match=r"operator 0 \(CONV_2D\) sums up floats"):
        chosen(model, devices_of(model, 1.0, 1.0, 1.0))
    assert "last bits" in chosen(model, devices_of(model, 1.0, 1.0, 1.0), floats=True).remarks[-1]
    with pytest.raises(ConfigError, match="2 devices came for a plan with a parity; expected three or more"):
        chosen(model, devices_of(model, 1.0, 1.0), floats=True)
    layers = Layers(0, (1, 8, 8, 8), INT8)
    mobile = read_model(layers.build(layers.scores(layers.depthwise(layers.conv(layers.x, 8)))))
    with pytest.raises(CutError, match=r"operator 1 \(DEPTHWISE_CONV_2D\) can have no parity"):
        chosen(mobile, devices_of(mobile, 1.0, 1.0, 1.0))
    small = network(INT8)
    with pytest.raises(ConfigError, match="no plan with a parity fits: 3 devices have too little memory"):
        chosen(small, devices_of(small, 1.0, 1.0, 1.0, memory_bytes=3200))


def test_more_devices_than_channels_are_no_hindrance() -> None:
    layers = Layers(0, (1, 8, 8, 3), INT8)
    model = read_model(layers.build(layers.conv(layers.x, 2)))
    choice = chosen(model, devices_of(model, *[1.0] * 5))
    assert len(choice.plan.devices) == 3 and len(choice.plan.spare) == 2
