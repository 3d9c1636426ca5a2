"""Plans of devices that share layers, by arithmetic from the measured seconds of a model's segments on this machine.

    python bench/split_plans.py MODEL [--objective latency] [--devices 2,4,8] [--broker 94,1000] [--profile FILE]

Each device is `--slower` times slower than this machine (10: a tenth of its core), with a switched link of 94 Mbit/s,
2 ms a hop, and `--message` seconds of its processor for a message. Nothing runs over MQTT: the table has what the
planner predicts, as a factor of one device that holds the whole model, the processor time of the planning, and what
limits the plan. `--unequal` makes device k of n (0.5 + k / n) times as fast; `--memory` limits each process, in MB;
`--ratio` is that of lossless packing (at no seconds). `--profile` takes a profile of `har-edge profile` instead of
measuring; with `--seconds`, the whole takes so long and operators share it by their arithmetic operations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.devices import BrokerLink, DeviceClass, PlannerDevice
from har_edge.planner.plan import Objective
from har_edge.planner.profile import load_profile
from har_edge.planner.regression import work_of
from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import PackingCost, SplitCosts
from har_edge.planner.split_model import make_split_model, operator_seconds
from har_edge.planner.split_plan import find_candidate, groups_of
from har_edge.runtime.profiling import time_model
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.plan import Block, SplitMethod

MBIT = 125_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--objective", choices=("latency", "throughput"), default="latency")
    parser.add_argument("--devices", default="2,4,8")
    parser.add_argument("--broker", default="94,1000", help="Mbit/s of the broker's host")
    parser.add_argument("--link", type=float, default=94, help="Mbit/s of each device")
    parser.add_argument("--slower", type=float, default=10)
    parser.add_argument("--message", type=float, default=2e-3)
    parser.add_argument("--memory", type=float)
    parser.add_argument("--growth", type=float, default=2.0)
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--unequal", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--blocks", action="store_true", help="print the blocks of each plan")
    args = parser.parse_args()
    model = read_model(args.model)
    seconds, overhead = measure(model, args)
    print(f"{model.name}: {sum(seconds):.3f} s here, {overhead * 1e6:.0f} us a run; {args.objective}")
    print(f"{'broker':>7} {'devices':>7} {'value':>9} {'factor':>6} {'planned':>8}  limit")
    for rate in map(float, args.broker.split(",")):
        for count in map(int, args.devices.split(",")):
            row(model, seconds, overhead, rate, count, args)


def measure(model: Model, args: argparse.Namespace) -> tuple[list[float], float]:
    """Return the seconds of every operator on this machine, and those of a run that does nothing."""
    if args.seconds is not None:
        operators = range(len(model.main.operators))
        operations = [sum(part.operations for part in work_of(model, i, i + 1)) for i in operators]
        return [args.seconds * count / sum(operations) for count in operations], 1e-4
    if args.profile is not None:
        profile = load_profile(args.profile)
        work = [max(0.0, segment.seconds - profile.overhead_s) for segment in profile.segments]
        return list(operator_seconds(model, profile.bounds, work)), profile.overhead_s
    timing = time_model(model)
    bounds = segment_bounds(model)
    work = [max(0.0, timing.seconds[start] - timing.overhead_s) for start in bounds[:-1]]
    if timing.whole_s:
        scale = (timing.whole_s - timing.overhead_s) / sum(work)
        work = [each * scale for each in work]
    return list(operator_seconds(model, bounds, work)), timing.overhead_s


def row(model: Model, seconds: list[float], overhead: float, rate: float, count: int, args: argparse.Namespace) -> None:
    """Plan once and print it."""
    devices, each = [], []
    for k in range(count):
        slower = args.slower / (0.5 + k / count) if args.unequal else args.slower
        kind = DeviceClass(
            work_s=(),
            overhead_s=overhead * slower,
            message_s=args.message * slower / args.slower,
            message_byte_s=0.0,
            link_bytes_per_s=args.link * MBIT,
            latency_s=1e-3,
            memory_bytes=None if args.memory is None else int(args.memory * 1e6),
            base_bytes=55_000_000,
            growth=args.growth,
            duplex=True,
        )
        devices.append(PlannerDevice(f"d{k}", kind))
        each.append([one * slower for one in seconds])
    costs = SplitCosts(make_split_model(model), devices, each, BrokerLink(rate * MBIT), PackingCost(args.ratio))
    started = time.process_time()
    objective = Objective(args.objective)
    found = find_candidate(costs, objective)
    planned = time.process_time() - started
    if found is None:
        print(f"{rate:7.0f} {count:7} no plan fits")
        return
    n = costs.model.n
    alone = [
        Simulator(costs, border_first=False).forecast(
            [Block(0, n, SplitMethod.WHOLE, (0,) * (k + 1) + (1,) * (count - k))]
        )
        for k in range(count)
    ]
    one = min(each.latency_s if objective is Objective.LATENCY else each.period_s for each in alone)
    value, memory = found.value(objective), max(found.forecast.memory_bytes)
    print(
        f"{rate:7.0f} {count:7} {value:8.3f}s {one / value:6.2f} {planned:7.1f}s  {found.forecast.binding}, "
        f"{memory / 1e6:.0f} MB, broker {found.forecast.broker_s:.3f} s, borders first: {found.border_first}"
    )
    if args.blocks:
        for group in groups_of(found.blocks):
            for block in group.blocks:
                print(f"{'':16}[{block.start}, {block.stop}) {block.method.value} {block.bounds} on {group.devices}")


if __name__ == "__main__":
    main()
