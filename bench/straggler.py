"""Kill one of several shards, or slow it, in mid-stream: what that costs with a parity shard, and without one.

    python bench/mlp.py build/mlp
    python bench/straggler.py build/mlp/mlp-int8.tflite --out build/straggler.json

Both plans share every layer among the same number of devices; a further device answers, and computes the parities in
one of the plans. Windows come at a fixed pace, one at a time, and a third of them before the fault. Each run, calm or
with a fault, begins on a group in which all shards run at full speed, and the runs take turns. Latency is from the
moment a window is sent to its answer, of all windows from the fault on. A killed shard comes back: without parity after
`--away` seconds, since the windows wait for it, with parity after the last answer. Nothing is sent again, so an answer
that is missing at the end is a lost window. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from har_edge.cli.console import say
from har_edge.codecs.reducer import Code
from har_edge.config.pipeline import Pipeline
from har_edge.emulation.limits import Device, Layout, Limits, read_rate
from har_edge.emulation.testbed import Testbed
from har_edge.experiments.emulation import Emulated, run_stages
from har_edge.experiments.model_under_test import find_model_under_test, make_windows
from har_edge.inference.interpreter import RUNTIME
from har_edge.runtime.build import build_sensor
from har_edge.runtime.slicing import prepare
from har_edge.tflite.model import read_model
from har_edge.tflite.split.coded_plan import code_layers, spell
from har_edge.tflite.split.parity import CODED

VICTIM = 1  # the stage that is killed or slowed
RUNS = ("calm", "killed", "slowed")
SAMPLES, WARM = 4, 5
ANSWER_S, CATCH_UP_S = 60.0, 60.0


@dataclass(slots=True)
class Group:
    """One plan on devices of its own."""

    name: str
    pipeline: Pipeline
    hosts: list[str]
    codes: Sequence[Mapping[str, Code]]
    running: Emulated | None = None
    runs: int = 0


@dataclass(slots=True)
class Row:
    """The latencies of all repeats of a run from the fault on, in seconds; and the windows that were never answered."""

    plan: str
    run: str
    seconds: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)  # of each repeat
    lost: int = 0
    twice: int = 0


def main() -> int:
    """Print a row for each plan and run; return 1 when a window was lost or answered twice."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        groups = make_groups(args, Path(folder))
        limits = Limits(args.cpu, read_rate(args.link))
        layout = Layout(
            tuple(Device(host, limits) for group in groups for host in group.hosts),
            Limits(link_bits_per_s=read_rate(args.broker_link)),
        )
        rows = {(group.name, run): Row(group.name, run) for group in groups for run in RUNS}
        with Testbed(layout) as testbed, running(testbed, groups):
            period = args.period or 3 * max(warm_up(group) for group in groups)
            say(f"{args.model.name}, {args.shares} shares, devices of {args.cpu:g} of a core with {args.link},")
            say(f"broker's host: {args.broker_link}; a window each {period:.3f} s; {RUNTIME}; made-up windows")
            for _ in range(args.repeats):
                for run in RUNS:
                    for group in groups:
                        observe(testbed, group, rows[group.name, run], period, args)
    report(rows)
    if args.out:
        facts = {key: str(value) for key, value in vars(args).items()} | {"period_s": period}
        Path(args.out).write_text(
            json.dumps({**facts, "rows": [asdict(row) for row in rows.values()]}, indent=1) + "\n"
        )
    return 1 if any(row.lost or row.twice for row in rows.values()) else 0


def make_groups(args: argparse.Namespace, folder: Path) -> list[Group]:
    """Cut the model with parities and without."""
    under_test = find_model_under_test(str(args.model), folder / "model")
    model = read_model(under_test.path)
    coded = spell(code_layers(model, [1.0] * args.shares, floats=args.floats))
    layers = [one.index for one in model.main.operators if one.name in CODED]
    words, at, alone = [], 0, ",".join(["0"] * args.shares + ["1"])
    for index in layers:
        if at < index:
            words.append(f"whole:{at}-{index}={alone}")
        shares = ",".join(map(str, _even(model.main.tensors[model.main.operators[index].outputs[0]].shape[-1], args)))
        words.append(f"output:{index}-{index + 1}={shares},0")
        at = index + 1
    words.append(f"whole:{at}-{len(model.main.operators)}={alone}")
    groups = []
    for number, (name, split) in enumerate({"parity": coded, "plain": " ".join(words)}.items()):
        pipeline = prepare(
            under_test.path, under_test.task, folder / name, stages=1, split=split, name=f"straggler-{name}"
        )
        stages = len(pipeline.manifest.slices)
        hosts = [f"device-{number * stages + k}" for k in range(stages)]
        groups.append(Group(name, pipeline, hosts, make_windows(pipeline, SAMPLES)))
    return groups


def _even(channels: int, args: argparse.Namespace) -> list[int]:
    return [channels * (k + 1) // args.shares - channels * k // args.shares for k in range(args.shares)]


@contextlib.contextmanager
def running(testbed: Testbed, groups: Sequence[Group]) -> Iterator[None]:
    """Run the stages of both plans until the end of the block."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(testbed.inside())
        turns = list[Emulated]()
        for group in groups:
            group.running = stack.enter_context(run_stages(testbed, group.pipeline, group.hosts, turns))
        yield


def warm_up(group: Group) -> float:
    """Return the median latency of a few windows."""
    assert group.running is not None
    return median([group.running.ask(group.codes[k % SAMPLES]) for k in range(WARM)][1:])


def observe(testbed: Testbed, group: Group, row: Row, period: float, args: argparse.Namespace) -> None:
    """Send a stream, disturb one shard in its course, and note when each window is answered."""
    assert group.running is not None
    cluster, name, group.runs = group.running.cluster, f"stage-{VICTIM}", group.runs + 1
    sensor = build_sensor(group.pipeline, list(group.pipeline.task.inputs), combine=True)
    stream, sent, came = f"{row.run}{group.runs}", list[float](), dict[int, float]()
    fault, back = args.windows // 3, float("inf")
    began = heard = time.monotonic()

    def poll(timeout_s: float) -> None:
        nonlocal heard
        for arrival in cluster.poll(timeout_s):
            if arrival.result.stream == stream:
                row.twice += arrival.result.seq in came
                heard = time.monotonic()
                came.setdefault(arrival.result.seq, heard)

    while len(came) < args.windows and time.monotonic() < heard + ANSWER_S:
        now = time.monotonic()
        if len(sent) < args.windows and now >= began + len(sent) * period:
            if len(sent) == fault:
                before = time.monotonic()
                disturb(testbed, group, row.run, args)
                began += time.monotonic() - before  # windows keep their pace
                back = time.monotonic() + (args.away if group.name == "plain" else float("inf"))
            for outgoing in sensor.write(stream, len(sent), (time.time(),), group.codes[len(sent) % SAMPLES]):
                cluster.bus.publish(outgoing.topic, outgoing.payload)
            sent.append(time.monotonic())
        if row.run == "killed" and now > back:
            cluster.processes.restart(name)
            back = float("inf")
        due = began + len(sent) * period if len(sent) < args.windows else float("inf")
        poll(max(0.0, min(0.05, due - time.monotonic())))
    restore(testbed, group, row.run, args)
    if row.run != "calm":
        catch_up(group, poll)
    row.lost += args.windows - len(came)
    seconds = [came[seq] - sent[seq] for seq in range(fault, args.windows) if seq in came]
    row.seconds += seconds
    row.p95.append(float(np.percentile(seconds, 95)))


def disturb(testbed: Testbed, group: Group, run: str, args: argparse.Namespace) -> None:
    """Kill the shard of a run, or give it less of the processor."""
    assert group.running is not None
    if run == "killed":
        group.running.cluster.processes.kill(f"stage-{VICTIM}")
    elif run == "slowed":
        testbed.limit_cpu(group.hosts[VICTIM], args.cpu / args.slow)


def restore(testbed: Testbed, group: Group, run: str, args: argparse.Namespace) -> None:
    """Bring the shard back, at its full speed."""
    assert group.running is not None
    processes = group.running.cluster.processes
    if run == "killed" and not processes.find(f"stage-{VICTIM}").alive:
        processes.restart(f"stage-{VICTIM}")
    if run == "slowed":
        testbed.limit_cpu(group.hosts[VICTIM], args.cpu)


def catch_up(group: Group, poll: Callable[[float], None]) -> None:
    """Wait until the shard has worked off what waited for it: until its count of windows stays the same for a while."""
    assert group.running is not None
    names, deadline = [f"stage-{VICTIM}"], time.monotonic() + CATCH_UP_S
    group.running.cluster.wait_ready(names, CATCH_UP_S)
    last, calm = -1, 0
    while calm < 3 and time.monotonic() < deadline:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            poll(0.1)
        status = group.running.cluster.statuses.get(names[0])
        count = status.counters.get("windows", 0) if status else -1
        last, calm = count, calm + 1 if count == last else 0


def report(rows: Mapping[tuple[str, str], Row]) -> None:
    """Print the table; the ratio is that of the p95 to the calm run of the same plan."""
    say(f"{'plan':<8}{'run':<8}{'windows':>8}{'p50 s':>9}{'p95 s':>9}{'p95 each repeat':>22}{'ratio':>7}{'lost':>6}")
    for row in rows.values():
        p50, p95 = np.percentile(row.seconds, [50, 95])
        calm = np.percentile(rows[row.plan, "calm"].seconds, 95)
        spread = f"{min(row.p95):.3f} to {max(row.p95):.3f}"
        lost = f"{row.lost}" if not row.twice else f"{row.lost}, {row.twice} twice"
        figures = f"{len(row.seconds):>8}{p50:>9.3f}{p95:>9.3f}{spread:>22}{p95 / calm:>7.2f}{lost:>6}"
        say(f"{row.plan:<8}{row.run:<8}{figures}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--shares", type=int, default=4, metavar="N", help="devices that share each layer (default: 4)")
    parser.add_argument("--floats", action="store_true", help="give floats parities, too")
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--link", default="94mbit")
    parser.add_argument("--broker-link", default="1gbit")
    parser.add_argument("--slow", type=float, default=5.0, metavar="X", help="how many times slower (default: 5)")
    parser.add_argument("--away", type=float, default=5.0, metavar="S", help="killed without parity (default: 5)")
    parser.add_argument("--period", type=float, metavar="S", help="between windows (default: 3 x the latency)")
    parser.add_argument("--windows", type=int, default=90, metavar="N", help="of each run (default: 90)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    parser.add_argument("--out", metavar="FILE", help="write all figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
