"""Plans with a parity shard: any one device but the last may be away, at the price of a device and of arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from har_edge.errors import ConfigError, CutError
from har_edge.planner.choice import PlanChoice
from har_edge.planner.devices import PlannerDevice
from har_edge.planner.parity_forecast import ParityCosts, ParityForecast
from har_edge.planner.plan import VERSION, Alternative, Objective, Plan, PlannedStage, PlanningProblem
from har_edge.planner.split_model import operator_seconds
from har_edge.tflite.model import Model
from har_edge.tflite.split.arithmetic import count_macs
from har_edge.tflite.split.coded_plan import code_layers
from har_edge.tflite.split.plan import SplitMethod, SplitPlan
from har_edge.tflite.split.program import split_model
from har_edge.units import duration, plural

_MOST = 6  # devices that are tried in every combination; of more, the fastest
_WAYS = 64


def plan_parity(
    model: Model,
    planning: PlanningProblem,
    bounds: Sequence[int],
    other: PlanChoice,
    objective: Objective,
    *,
    floats: bool = False,
) -> PlanChoice:
    """Return the best plan in which every layer has a parity, beside the best one without.

    Args:
        bounds: Operators at which the segments of the profiles begin, and the number of operators.
        other: The choice without parity, to compare with.

    Raises CutError for a model whose layers cannot have one, ConfigError for fewer than three devices and where none of
    these plans fits their memory.
    """
    devices = planning.devices
    if len(devices) < 3:
        raise ConfigError(
            f"{len(devices)} devices came for a plan with a parity; expected three or more: two share each layer, and "
            "a third one computes the parity"
        )
    seconds = {device.name: operator_seconds(model, bounds, device.kind.work_s) for device in devices}
    best: tuple[float, SplitPlan, list[PlannerDevice], ParityForecast] | None = None
    reason = ""
    for chosen in _choices(devices, seconds):
        speeds = [1 / max(1e-12, sum(seconds[device.name])) for device in chosen]
        try:
            plan = code_layers(model, speeds[:-1], floats=floats)
        except CutError as error:
            if len(chosen) == 3:  # fewer shares are no way out
                raise
            reason = str(error)
            continue
        own = [seconds[device.name] for device in chosen]
        forecast = ParityCosts(model, split_model(model, [plan]), chosen, own, planning.broker).forecast()
        fits = zip(chosen, forecast.memory_bytes, strict=True)
        if any(one.kind.memory_bytes is not None and taken > one.kind.memory_bytes for one, taken in fits):
            reason = f"{len(chosen)} devices have too little memory for their shares"
            continue
        value = forecast.latency_s if objective is Objective.LATENCY else _period(planning, chosen, forecast)
        if best is None or value < best[0]:
            best = value, plan, chosen, forecast
    if best is None:
        raise ConfigError(f"no plan with a parity fits: {reason}; add devices, or plan without --parity")
    return _choice(model, planning, best[1], best[2], best[3], other, objective)


def _choices(devices: Sequence[PlannerDevice], seconds: dict[str, tuple[float, ...]]) -> list[list[PlannerDevice]]:
    """Return the devices to try, those that share layers first and the one with the parities last; few come first."""
    order = sorted(devices, key=lambda device: sum(seconds[device.name]))
    found = list[list[PlannerDevice]]()
    for count in range(3, len(order) + 1):
        groups = combinations(order, count) if len(order) <= _MOST else [tuple(order[:count])]
        for group in groups:
            # The parity is as much work as the largest share: the fastest device takes it, or the slowest one.
            found += [[*group[1:], group[0]], [*group[:-1], group[-1]]]
    return found[:_WAYS]


def _period(planning: PlanningProblem, devices: Sequence[PlannerDevice], forecast: ParityForecast) -> float:
    """Return the seconds between two windows: those of the busiest processor or link."""
    busy = [a + b for a, b in zip(forecast.compute_s, forecast.message_s, strict=True)]
    ends = zip(devices, forecast.up_bytes, forecast.down_bytes, strict=True)
    return max(*busy, *(_link_s(device, up, down) for device, up, down in ends), _broker_s(planning, forecast))


def _link_s(device: PlannerDevice, up: int, down: int) -> float:
    return (max(up, down) if device.kind.duplex else up + down) / device.kind.link_bytes_per_s


def _broker_s(planning: PlanningProblem, forecast: ParityForecast) -> float:
    return float(planning.broker.busy_bytes(*forecast.broker_bytes)) * planning.broker.byte_s


def _choice(
    model: Model,
    planning: PlanningProblem,
    split: SplitPlan,
    devices: Sequence[PlannerDevice],
    forecast: ParityForecast,
    other: PlanChoice,
    objective: Objective,
) -> PlanChoice:
    period, names = _period(planning, devices, forecast), tuple(device.name for device in devices)
    busiest = max(range(len(devices)), key=lambda k: forecast.compute_s[k] + forecast.message_s[k])
    ends = zip(devices, forecast.up_bytes, forecast.down_bytes, strict=True)
    links = [_link_s(device, up, down) for device, up, down in ends]
    stage = PlannedStage(
        devices=names,
        start=0,
        stop=split.stop,
        received=forecast.received,
        received_bytes=sum(forecast.down_bytes),
        sent=forecast.sent,
        sent_bytes=sum(forecast.up_bytes),
        memory_bytes=max(forecast.memory_bytes),
        compute_s=forecast.compute_s[busiest],
        message_s=forecast.message_s[busiest],
        link_s=max(links),
        period_s=period,
        latency_s=forecast.latency_s,
        split=split,
    )
    plan = Plan(
        version=VERSION,
        model=model.name,
        model_sha256=model.sha256,
        objective=objective,
        stages=(stage,),
        spare=tuple(device.name for device in planning.devices if device.name not in names),
        bottleneck_s=period,
        latency_s=forecast.latency_s,
        bound_s=0.0,
        proven=False,
        broker_s=_broker_s(planning, forecast),
        broker_bytes=sum(forecast.broker_bytes),
        max_payload_bytes=forecast.largest_bytes,
    )
    without = other.plan
    found = Alternative(
        "without parity", len(without.stages), len(without.devices), without.bottleneck_s, without.latency_s
    )
    return PlanChoice(plan, [found, *other.alternatives], _remarks(model, plan, split, forecast, other))


def _remarks(model: Model, plan: Plan, split: SplitPlan, forecast: ParityForecast, other: PlanChoice) -> list[str]:
    """Return what the parity costs, and what it is for."""
    last, without = plan.devices[-1], other.plan
    whole = max(1, count_macs(model.main, range(len(model.main.operators))))
    computed = sum(program.macs for program in split_model(model, [split]).programs)
    worst, calm = duration(forecast.missing_s), duration(forecast.latency_s)
    then = f"takes {worst} at most, instead of {calm}" if worst != calm else f"takes no longer than with all: {calm}"
    floats = any(block.method is SplitMethod.FLOAT_PARITY for block in split.blocks)
    return [
        f"any one of {', '.join(plan.devices[:-1])} may be away or late: a window then {then}; "
        f"{last} computes the parities and answers, and must be there",
        f"the price: a device more, and {computed / whole - 1:.0%} more arithmetic than one device has; the best plan "
        f"without parity takes {duration(without.latency_s)} for a window on {plural(len(without.devices), 'device')}",
        "the last bits of answers depend on which device is late"
        if floats
        else "integers take as long as float32 here, by measurements on x86-64",
    ]
