"""Plans for a model on devices: against plain arithmetic, and what they say of themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, permutations, product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import ConfigError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.devices import UNLIMITED, BrokerLink, DeviceClass, PlannerDevice, SensorMessages
from har_edge.planner.plan import Objective, Plan, PlanningProblem, compare, make_plan, make_planning_problem
from har_edge.planner.slice_graph import RESULT_BYTES, tensor_bytes
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model
from har_edge.units import size
from tests.planner.test_slice_graph import wanted
from tests.tflite import models

EQUAL = DeviceClass((), 1e-3, 1e-4, 1e-9, 1e7, 1e-3, None, 0, 1.0)


def kind(work_s: tuple[float, ...], **changes: object) -> DeviceClass:
    return replace(EQUAL, work_s=work_s, **changes)  # type: ignore[arg-type]


def planning_of(content: bytes, devices: list[PlannerDevice], replicas: int = 1) -> tuple[Model, PlanningProblem]:
    model = read_model(content)
    return model, make_planning_problem(model, segment_bounds(model), devices, replicas=replicas)


def everything(
    model: Model,
    devices: list[PlannerDevice],
    replicas: int,
    broker: BrokerLink = UNLIMITED,
) -> list[tuple[float, float]]:
    """Return bottleneck and latency of every plan: every cut, every order of devices, every number of replicas."""
    bounds = segment_bounds(model)
    sizes, segments = tensor_bytes(model, bounds), len(bounds) - 1
    found = []
    for count in range(segments):
        for places in combinations(range(1, segments), count):
            rows = wanted(model, [bounds[place] for place in places], SensorMessages.APART)
            spans = list(zip((0, *places), (*places, segments), strict=True))
            # Windows enter once; of what they and the stages send, each taker gets a copy, and the sink the result.
            windows = wanted(model, [], SensorMessages.APART)[0][1]
            answers = {model.main.tensors[i].name for i in model.main.outputs}
            pieces = slice_model(model, [bounds[place] for place in places])
            results = sum(not answers.isdisjoint(spec.name for spec in piece.outputs) for piece in pieces)
            leaving = sum(row[1] for row in rows) + RESULT_BYTES * results
            entering = sum(row[3] for row in rows) + windows
            rate = broker.link_bytes_per_s or math.inf
            shared = (max(leaving, entering) if broker.duplex else leaving + entering) / rate
            for sharing in product(range(1, replicas + 1), repeat=len(spans)):
                allowed = all(r == 1 or row[0] == 1 for r, row in zip(sharing, rows, strict=True))
                if not allowed or sum(sharing) > len(devices):
                    continue
                for order in permutations(devices, sum(sharing)):
                    taken, periods, ways = iter(order), [], []
                    for (start, stop), row, r in zip(spans, rows, sharing, strict=True):
                        period, way = zip(
                            *(
                                single(next(taken).kind, start, stop, row, int(sizes[start, stop]), broker)
                                for _ in range(r)
                            ),
                            strict=True,
                        )
                        periods.append(max(period) / r)
                        ways.append(max(way))
                    found.append((max(shared, *periods), windows / rate + sum(ways)))
    return found


def single(
    kind: DeviceClass,
    start: int,
    stop: int,
    row: tuple[int, ...],
    size: int,
    broker: BrokerLink = UNLIMITED,
) -> tuple[float, float]:
    """The cost model of docs/explanation/planning.md, in plain words."""
    received, received_bytes, sent, sent_bytes = row
    if kind.memory_bytes is not None and kind.base_bytes + int(kind.growth * size) > kind.memory_bytes:
        return math.inf, math.inf
    moved = received_bytes + sent_bytes
    busy = kind.overhead_s + sum(kind.work_s[start:stop])
    busy += kind.message_s * (received + sent) + kind.message_byte_s * moved
    link = (max(received_bytes, sent_bytes) if kind.duplex else moved) / kind.link_bytes_per_s
    rate = min(kind.link_bytes_per_s, broker.link_bytes_per_s or math.inf)
    return max(busy, link), busy + moved / rate + 2 * kind.latency_s


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.data())
def test_plans_are_the_best_of_all(seed: int, operators: int, count: int, replicas: int, data: st.DataObject) -> None:
    model = read_model(models.random_graph(seed, operators))
    segments = len(segment_bounds(model)) - 1
    devices = []
    for number in range(count):
        work = tuple(data.draw(st.lists(st.integers(0, 9), min_size=segments, max_size=segments)))
        devices.append(
            PlannerDevice(
                f"d{number}",
                kind(
                    tuple(w * 1e-3 for w in work),
                    link_bytes_per_s=data.draw(st.sampled_from([2e4, 1e5, 1e7])),
                    latency_s=data.draw(st.sampled_from([0.0, 1e-3])),
                    message_s=data.draw(st.sampled_from([1e-5, 1e-3])),
                    memory_bytes=data.draw(st.sampled_from([None, None, 200, 60])),
                    duplex=data.draw(st.booleans()),
                ),
            )
        )
    broker = BrokerLink(data.draw(st.sampled_from([None, 2e4, 1e5, 1e6])), data.draw(st.booleans()))
    planning = make_planning_problem(model, segment_bounds(model), devices, replicas=replicas, broker=broker)
    plans = everything(model, devices, min(replicas, count), broker)
    bottleneck, latency = min(p for p, _ in plans), min(way for _, way in plans)
    if math.isinf(bottleneck):
        with pytest.raises(ConfigError, match="too large for all devices together"):
            make_plan(planning, Objective.THROUGHPUT)
        return
    fast, quick = make_plan(planning, Objective.THROUGHPUT), make_plan(planning, Objective.LATENCY)
    assert fast.bottleneck_s == pytest.approx(bottleneck) and fast.proven and fast.gap == 0
    assert quick.latency_s == pytest.approx(latency) and quick.proven
    for plan in (fast, quick):
        assert plan.stages[0].start == 0 and plan.stages[-1].stop == len(model.main.operators)
        assert all(a.stop == b.start for a, b in zip(plan.stages, plan.stages[1:], strict=False))
        assert sorted((*plan.devices, *plan.spare)) == [device.name for device in devices]
        shared = 0.0 if plan.broker_s is msgspec.UNSET else plan.broker_s
        assert plan.bottleneck_s == max(shared, *(stage.period_s for stage in plan.stages))
        assert (plan.broker_s is msgspec.UNSET) == (broker.link_bytes_per_s is None)
        assert plan.latency_s == pytest.approx(sum(stage.latency_s for stage in plan.stages))
        rows = wanted(model, list(plan.cuts), SensorMessages.APART)
        assert [(s.received, s.received_bytes, s.sent, s.sent_bytes) for s in plan.stages] == rows


def fleet(*speeds: float, link: float = 1e7, memory: int | None = None) -> list[PlannerDevice]:
    work = (4e-3, 4e-3, 4e-3, 4e-3)
    return [
        PlannerDevice(
            f"pi-{number}",
            kind(tuple(w / speed for w in work), overhead_s=0.0, link_bytes_per_s=link, memory_bytes=memory),
        )
        for number, speed in enumerate(speeds)
    ]


def test_equal_devices_get_equal_slices_and_are_of_one_kind() -> None:
    _, planning = planning_of(models.chain(), fleet(1, 1))
    assert planning.names == (("pi-0", "pi-1"),)
    plan = make_plan(planning, Objective.THROUGHPUT)
    assert plan.cuts == (2,) and plan.devices == ("pi-0", "pi-1") and plan.spare == ()


def test_a_device_twice_as_fast_gets_twice_as_much() -> None:
    work = (3e-3, 3e-3, 3e-3)  # the middle one holds two operators
    slow, fast = kind(work, overhead_s=0.0), kind(tuple(w / 2 for w in work), overhead_s=0.0)
    model = read_model(models.many_ports())
    bounds = [0, 1, 3, 4]
    plan = make_plan(
        make_planning_problem(model, bounds, [PlannerDevice("slow", slow), PlannerDevice("fast", fast)]),
        Objective.THROUGHPUT,
    )
    share = {name: (s.start, s.stop) for s in plan.stages for name in s.devices}
    assert len(share) == 2
    assert plan.stages[[s.devices for s in plan.stages].index(("fast",))].compute_s == pytest.approx(3e-3)


def test_on_a_slow_link_one_device_does_it_all() -> None:
    model = read_model(models.skip())
    work = (4e-3,) * 5
    devices = [PlannerDevice(f"pi-{i}", kind(work, link_bytes_per_s=5e4)) for i in range(3)]
    planning = make_planning_problem(model, segment_bounds(model), devices, replicas=1)
    plan = make_plan(planning, Objective.THROUGHPUT)
    assert plan.devices == ("pi-0",) and plan.cuts == () and plan.spare == ("pi-1", "pi-2")
    others = {each.name: each for each in compare(planning, plan)}
    assert list(others) == ["at least 2 devices", "3 slices of equal time, devices in order", "one device: pi-0"]
    assert others["at least 2 devices"].bottleneck_s > plan.bottleneck_s
    assert others["one device: pi-0"].bottleneck_s == plan.bottleneck_s


def test_replicas_share_what_takes_one_message_only() -> None:
    devices = fleet(1, 1, 1)
    _, planning = planning_of(models.chain(), devices, replicas=3)
    plan = make_plan(planning, Objective.THROUGHPUT)
    assert [stage.replicas for stage in plan.stages] == [3] and plan.stages[0].received == 1
    assert plan.bottleneck_s == pytest.approx((16e-3 + 2e-4 + plan_bytes(plan) * 1e-9) / 3)
    rows = {each.name: each for each in compare(planning, plan)}
    assert rows["no replicas"].devices == 3 and rows["no replicas"].bottleneck_s > plan.bottleneck_s
    # Three inputs from three sensors: the messages of one window would go to different replicas.
    model = read_model(models.many_ports())
    takes = sum(1 for _ in model.main.inputs)
    assert takes > 1
    work = tuple(4e-3 for _ in range(len(segment_bounds(model)) - 1))
    devices = [PlannerDevice(f"d{i}", kind(work)) for i in range(2)]
    apart = make_plan(make_planning_problem(model, segment_bounds(model), devices, replicas=2), Objective.THROUGHPUT)
    assert all(stage.replicas == 1 for stage in apart.stages if stage.received > 1)


def plan_bytes(plan: Plan) -> int:
    return sum(stage.received_bytes + stage.sent_bytes for stage in plan.stages)


def test_memory_forces_a_split_and_too_little_of_it_is_an_error_with_figures() -> None:
    model = read_model(models.chain())
    sizes = tensor_bytes(model, segment_bounds(model))
    whole = int(sizes[0, -1])
    work = tuple(1e-3 for _ in range(len(sizes) - 1))
    devices = [PlannerDevice(f"d{i}", kind(work, link_bytes_per_s=1e3, memory_bytes=whole - 1)) for i in range(3)]
    planning = make_planning_problem(model, segment_bounds(model), devices)
    plan = make_plan(planning, Objective.LATENCY)
    assert len(plan.stages) > 1 and all(stage.memory_bytes < whole for stage in plan.stages)
    assert compare(planning, plan)[-1].reason == "the whole model fits the memory of none"
    small = [PlannerDevice(f"d{i}", kind(work, memory_bytes=100)) for i in range(3)]
    with pytest.raises(ConfigError) as caught:
        make_plan(make_planning_problem(model, segment_bounds(model), small), Objective.THROUGHPUT)
    assert str(caught.value) == (
        f"model is too large for all devices together: as one slice it takes {size(whole)}, and the 3 devices "
        "offer 300 B in all, each with a runtime of its own to hold; operators [0, 1), which cannot be cut, take "
        f"{size(int(sizes[0, 1]))}, more than any device has; offer more devices, raise memory_bytes where there is "
        "more, or use a smaller model"
    )


def test_slices_of_equal_time_say_which_device_they_do_not_fit() -> None:
    devices = fleet(1, 1)
    tight = replace(devices[1].kind, memory_bytes=1)
    _, planning = planning_of(models.chain(), [devices[0], PlannerDevice("tiny", tight)])
    plan = make_plan(planning, Objective.THROUGHPUT)
    assert plan.devices == ("pi-0",)
    rows = {each.name: each for each in compare(planning, plan)}
    assert rows["at least 2 devices"].reason == "no such plan fits the model and the memory"
    assert rows["2 slices of equal time, devices in order"].reason == "its slice does not fit the memory of tiny"


def test_a_plan_is_json_and_comes_back() -> None:
    _, planning = planning_of(models.chain(), fleet(1, 2, 0.5))
    plan = make_plan(planning, Objective.THROUGHPUT)
    again = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    assert again == plan
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        msgspec.json.decode(msgspec.json.encode(plan)[:-1] + b',"colour":1}', type=Plan)


def test_where_ways_were_left_out_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    from har_edge.planner import slice_graph

    monkeypatch.setattr(slice_graph, "MAX_EDGES", 1)
    model = read_model(models.random_graph(3, 30))
    bounds = segment_bounds(model)
    work = tuple(np.random.default_rng(0).uniform(1e-3, 2e-3, len(bounds) - 1).tolist())
    planning = make_planning_problem(
        model, bounds, [PlannerDevice(f"d{i}", kind(work, link_bytes_per_s=1e9)) for i in range(3)]
    )
    plan = make_plan(planning, Objective.THROUGHPUT)
    assert not plan.proven and plan.bound_s == 0 and plan.gap == math.inf


def test_bounds_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="the profile ends at operator 3, but model has 4; profile it anew"):
        make_planning_problem(read_model(models.chain()), [0, 3], fleet(1))
