"""Split training on emulated devices: memory, samples a second, the bubble, equal losses, and a device that is killed.

    python bench/split_training.py --data DIR --out split_training.json
    python bench/split_training.py --data DIR --out split_training.json --only four --counts 8 --steps 3

DIR holds MNIST's idx files (`har-edge data fetch mnist`), enlarged to 64 x 64 pixels; without --data the pictures are
synthetic. The network has VGG16's layers (bench/split_network.py). Devices have 0.1 of a core and 94 Mbit/s, and a
limit of memory where it says so; the command runs beside them without limits.

    limited   one device with the limit: the plan is refused, with what it would take
    whole     one device given the memory, the whole model in one graph, as `train --on-devices` without --split has it
    one       the same as the only stage of a split training
    four      four devices with the limit, for each of --counts micro-batches, and as the planner chooses
    curve     --curve-steps steps on one and on four devices without limits of the processor: losses side by side
    kill      one of five devices (one is spare) is killed at step --kill-at: steps lost, seconds until the loss goes on
    restart   the same, but the command ends too, and starts again: it goes on from its last checkpoint

Each case is kept in FILE when it ends; a case that is there is not run again, so the command can be repeated. Needs
root. `--only CASE,...` runs some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.split_network import write_pictures, write_vgg
from har_edge.cli.commands.profile import device_name
from har_edge.cli.console import say
from har_edge.cluster.processes import PROGRAM, Processes, Running
from har_edge.emulation.limits import Device, Layout, Limits, read_rate, read_size
from har_edge.emulation.testbed import Testbed
from har_edge.errors import ConfigError
from har_edge.experiments.environment import spawn_on
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import PollableBus, Session
from har_edge.mqtt.connect import open_bus
from har_edge.planner.devices import BrokerLink
from har_edge.planner.training_costs import TrainingProblem
from har_edge.planner.training_devices import SplitDevice
from har_edge.planner.training_plan import PlannedTraining, plan_training
from har_edge.planner.training_profile import TrainingProfile, load_training_profile, store_training_profile
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingProgress
from har_edge.units import duration, size

CASES = ("limited", "whole", "one", "four", "curve", "kill", "restart")
RUN = "bench"
STOP_S, READY_S = 20.0, 300.0
# Steps at the beginning that do not count: caches, links and the first messages.
WARM_UP = 1
# The limit of a device that is given the memory: a limit, so that its control group counts.
ROOMY = 8 << 30


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Devices and options of one run."""

    name: str
    devices: int
    steps: int
    batch: int
    memory: int | None = None
    cpu: float | None = 0.1
    split: bool = True
    options: tuple[str, ...] = ()
    timeout_s: float = 1800.0


@dataclass(slots=True)
class Seen:
    """A step as it was announced: seconds since the command started, steps done, loss."""

    seconds: float
    step: int
    loss: float | None


@dataclass(slots=True)
class Outcome:
    """What one run left."""

    exit_code: int
    record: dict[str, Any] | None
    rows: list[dict[str, str]]
    seen: list[Seen]
    memory: dict[str, dict[str, int]]
    output: list[str]
    notes: dict[str, Any] = field(default_factory=dict)


class Bench:
    """The folder with model, pictures and profile, and the cases that are done."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.model = folder / "vgg.tflite"
        self.model.write_bytes(write_vgg(args.width))
        self.variables = {"XDG_CACHE_HOME": str(folder / "cache")}
        self.profile = self.measured()
        self.data = ""

    def measured(self) -> TrainingProfile:
        """Return the training profile of the network on this machine, which is kept beside the results."""
        path = self.args.out.with_suffix(".profile.json")
        if not path.exists():
            words = ["profile", str(self.model), "--train", "--micro-batch", self.args.micro_batch, "--out", str(path)]
            done = subprocess.run([*PROGRAM, *words], check=False, env={**os.environ, **self.variables})
            if done.returncode:
                raise SystemExit(f"the profile was not measured: exit code {done.returncode}")
        profile = load_training_profile(path)
        # Where the command finds it, so that it compares the devices with this machine by its probe.
        cached = Path(self.variables["XDG_CACHE_HOME"]) / "har-edge" / "profiles" / "training"
        cached.mkdir(parents=True, exist_ok=True)
        store_training_profile(profile, cached / f"{device_name(None)}-{profile.model_sha256[:16]}-1.json")
        return profile

    def pictures(self, samples: int) -> Path:
        """Return a file with so many pictures."""
        path = self.folder / f"pictures-{samples}.npz"
        if not path.exists():
            self.data = write_pictures(path, samples, self.args.data)
        return path

    def problem(self, devices: int, memory: int | None, cpu: float | None, **wishes: Any) -> TrainingProblem:
        """Return the problem that the planner has, with the devices as they are emulated."""
        link = read_rate(self.args.link) / 8
        slowdown = 1 / cpu if cpu else 1.0
        found = tuple(SplitDevice(f"device-{k}", slowdown, memory or 0, link) for k in range(devices))
        broker = BrokerLink(read_rate(self.args.broker_link) / 8)
        return TrainingProblem(self.profile, found, self.args.batch, vectors=self.args.vectors, broker=broker, **wishes)

    # --- one run ------------------------------------------------------------------------------------------------------

    def run(self, setup: RunOptions, during: Callable[[LiveRun], None] | None = None) -> Outcome:
        """Train once on a test bed of its own; `during` is called while it runs, until it returns."""
        args = self.args
        limits = Limits(setup.cpu, read_rate(args.link), setup.memory or ROOMY)
        names = [f"device-{number}" for number in range(setup.devices)]
        layout = Layout(
            tuple(Device(name, limits) for name in names), Limits(link_bits_per_s=read_rate(args.broker_link))
        )
        with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as temporary, Testbed(layout) as testbed:
            processes = Processes(spawn_on(testbed, {name: name for name in names}), patience_s=STOP_S)
            live = LiveRun(testbed, processes, Path(temporary), names, self.variables)
            try:
                live.start_nodes()
                live.start_command(self.words(setup, testbed.emulation.broker_url, Path(temporary)))
                with live.watch():
                    live.follow(setup.timeout_s, during)
                return live.outcome()
            finally:
                processes.stop()

    def words(self, setup: RunOptions, url: str, folder: Path) -> list[str]:
        args = self.args
        words = ["train", "--on-devices", "--model", str(self.model), "--out", str(folder / "out"), "--broker", url]
        words += ["--data", str(self.pictures(setup.steps * setup.batch)), "--workers", str(setup.devices)]
        words += [
            "--wait",
            str(READY_S),
            "--epochs",
            "1",
            "--batch",
            str(setup.batch),
            "--run-name",
            RUN,
            "--seed",
            "0",
        ]
        words += ["--optimizer", args.optimizer, "--cache", str(folder / "cache")]
        if setup.split:
            words += ["--split"]
        else:
            words += ["--mode", "sync", "--compress", "none"]
        return [*words, *setup.options]

    # --- the cases ----------------------------------------------------------------------------------------------------

    def limited(self) -> dict[str, Any]:
        """Train on one device with the limit: what is said, and what its plan would take."""
        try:
            plan_training(self.problem(1, self.memory, self.args.cpu))
            predicted = "fits"
        except ConfigError as error:
            predicted = str(error)
        found = self.run(RunOptions("limited", 1, 2, self.args.batch, self.memory, self.args.cpu, timeout_s=300))
        return {
            "predicted": predicted,
            "exit_code": found.exit_code,
            "output": found.output[-6:],
            "memory": found.memory,
        }

    def whole(self) -> dict[str, Any]:
        """Train as without --split, on one device that is given the memory; micro-batches of the whole batch."""
        found = self.run(RunOptions("whole", 1, self.args.steps, self.args.batch, None, self.args.cpu, split=False))
        times = [float(row["seconds"]) for row in found.rows]
        return self.report(found, times, [float(row["loss"]) for row in found.rows], None)

    def one(self) -> dict[str, Any]:
        """Train in one stage on one device that is given the memory, by the micro-batch that is best for it."""
        planned = plan_training(self.problem(1, None, self.args.cpu))
        options = ("--stages", "1", "--micro-batches", str(planned.plan.micro_batches))
        found = self.run(RunOptions("one", 1, self.args.steps, self.args.batch, None, self.args.cpu, options=options))
        return self.report(found, *steps_of(found), planned)

    def four(self, count: int | None) -> dict[str, Any]:
        """Train on four devices with the limit."""
        planned = plan_training(self.problem(4, self.memory, self.args.cpu, micro_batches=count, stages=4))
        found = self.run(
            RunOptions("four", 4, self.args.steps, self.args.batch, self.memory, self.args.cpu, options=told(planned))
        )
        return self.report(found, *steps_of(found), planned)

    def curve(self, devices: int) -> dict[str, Any]:
        """Train many steps without limits of the processor, for the losses."""
        planned = plan_training(self.problem(devices, None, None, stages=devices, micro_batches=self.args.curve_count))
        setup = RunOptions("curve", devices, self.args.curve_steps, self.args.batch, None, None, options=told(planned))
        found = self.run(setup)
        return self.report(found, *steps_of(found), planned)

    def kill(self) -> dict[str, Any]:
        """Kill a device of four, with a fifth to take its place."""
        return self.fault(restart=False)

    def restart(self) -> dict[str, Any]:
        """Kill a device and the command, and start the command again."""
        return self.fault(restart=True)

    def fault(self, *, restart: bool) -> dict[str, Any]:
        args = self.args
        planned = plan_training(self.problem(4, self.memory, args.cpu, stages=4, micro_batches=args.kill_count))
        options = (*told(planned), "--checkpoint-every", str(args.checkpoint_every))
        setup = RunOptions("kill", 5, args.kill_steps, args.batch, self.memory, args.cpu, options=options)

        def during(live: LiveRun) -> None:
            live.await_step(args.kill_at)
            live.notes["killed"] = live.kill_used()
            live.notes["killed_s"], live.notes["killed_step"] = live.now(), live.step
            if restart:
                live.restart_command()

        found = self.run(setup, during)
        killed_s, step = float(found.notes["killed_s"]), int(found.notes["killed_step"])
        after = [one for one in found.seen if one.seconds > killed_s]
        back = min((one.step for one in after), default=step)
        went_on = next((one.seconds for one in after if one.step > step), None)
        facts = self.report(found, *steps_of(found), planned)
        recoveries = [] if found.record is None else found.record["recoveries"]
        return {
            **facts,
            "killed": found.notes["killed"],
            "at_step": step,
            "back_to": back,
            "lost_steps": step - back,
            "seconds_until_further": None if went_on is None else went_on - killed_s,
            "recoveries": recoveries,
        }

    @property
    def memory(self) -> int:
        return read_size(self.args.memory)

    def report(
        self, found: Outcome, times: Sequence[float], losses: Sequence[float], planned: PlannedTraining | None
    ) -> dict[str, Any]:
        """Return the figures of a run beside those that were predicted."""
        each = [later - before for before, later in pairwise(times)][WARM_UP - 1 :]
        facts: dict[str, Any] = {
            "exit_code": found.exit_code,
            "data": self.data,
            "steps": len(times),
            "step_s": statistics.median(each) if each else None,
            "least_step_s": min(each, default=None),
            "most_step_s": max(each, default=None),
            "samples_per_s": self.args.batch / statistics.median(each) if each else None,
            "losses": list(losses),
            "memory": found.memory,
            "bubble": bubble_of(found),
            "stages": stages_of(found),
        }
        if planned is not None:
            facts["plan"] = [[stage.start, stage.stop, stage.in_flight, stage.keep] for stage in planned.plan.stages]
            facts |= {"micro_batches": planned.plan.micro_batches, "micro_batch": planned.plan.micro_batch}
            facts |= {"predicted_step_s": planned.step_s, "predicted_bubble": planned.bubble}
            facts["predicted_memory"] = [stage.memory_bytes for stage in planned.stages]
            facts["predicted_stages"] = [
                [
                    stage.forward_s * planned.plan.micro_batches,
                    stage.backward_s * planned.plan.micro_batches,
                    stage.update_s,
                ]
                for stage in planned.stages
            ]
        if found.exit_code or not times:
            facts["output"] = found.output[-12:]
        return facts


class LiveRun:
    """A test bed while a run goes on."""

    def __init__(
        self,
        testbed: Testbed,
        processes: Processes,
        folder: Path,
        names: Sequence[str],
        variables: Mapping[str, str],
    ) -> None:
        self.testbed, self.processes, self.folder, self.names = testbed, processes, folder, names
        self.variables = variables
        self.seen: list[Seen] = []
        self.notes: dict[str, Any] = {}
        self.began = time.monotonic()
        self.topics = Topics("har", "har")
        self.command: Running | None = None
        self.bus: PollableBus | None = None
        self.step = 0

    def now(self) -> float:
        return time.monotonic() - self.began

    def start_nodes(self) -> None:
        url = self.testbed.emulation.broker_url
        for name in self.names:
            words = ["node", "--name", name, "--broker", url, "--cache", str(self.folder / f"cache-{name}")]
            self.processes.start(name, words, log=self.folder / f"{name}.log")
        until = time.monotonic() + READY_S
        while not all("connected" in self.processes.find(name).output for name in self.names):
            if time.monotonic() > until:
                raise SystemExit(f"the nodes did not start in {READY_S:.0f} s:\n{self.processes.last_lines()}")
            time.sleep(0.2)

    def start_command(self, words: Sequence[str]) -> None:
        self.command = self.processes.start("train", words, log=self.folder / "train.log", variables=self.variables)
        self.began = time.monotonic()

    def restart_command(self) -> None:
        """Kill the command, and start it again at once."""
        self.processes.kill("train")
        self.command = self.processes.restart("train")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Hear the progress of the run while it goes on."""
        with self.testbed.inside():
            self.bus = open_bus(
                read_address(self.testbed.emulation.broker_url), Session("bench-watch", clean_start=True)
            )
        try:
            self.bus.subscribe([self.topics.training(RUN, "progress")])
            yield
        finally:
            self.bus.close(forget=True)

    def poll(self) -> None:
        assert self.bus is not None
        for delivery in self.bus.poll(0.2):
            self.bus.acknowledge(delivery)
            event = decode(delivery)
            if isinstance(event, TrainingEvent) and isinstance(event.message, TrainingProgress):
                if event.message.round != self.step or not self.seen:
                    self.seen.append(Seen(self.now(), event.message.round, event.message.loss))
                self.step = event.message.round

    def follow(self, timeout_s: float, during: Callable[[LiveRun], None] | None) -> None:
        """Wait until the command has ended."""
        until = time.monotonic() + timeout_s
        if during is not None:
            during(self)
        while self.command is not None and self.command.alive:
            self.poll()
            if time.monotonic() > until:
                self.notes["timeout"] = True
                self.processes.kill("train")

    def await_step(self, step: int) -> None:
        """Wait until so many steps are done."""
        assert self.command is not None
        while self.command.alive and self.step < step:
            self.poll()

    def kill_used(self) -> str:
        """Kill the busiest device that is not the first stage's; return its name."""
        used = {name: charge(self.testbed, name).get("processor_us", 0) for name in self.names[1:]}
        name = max(used, key=lambda one: used[one])
        self.processes.kill(name)
        return name

    def outcome(self) -> Outcome:
        assert self.command is not None
        out = self.folder / "out"
        record, table = out / f"{RUN}.record.json", out / f"{RUN}.csv"
        lines = table.read_text().splitlines() if table.exists() else []
        head = lines[0].split(",") if lines else []
        return Outcome(
            self.command.wait(STOP_S),
            json.loads(record.read_bytes()) if record.exists() else None,
            [dict(zip(head, line.split(","), strict=False)) for line in lines[1:]],
            self.seen,
            {name: charge(self.testbed, name) for name in self.names},
            self.command.output.splitlines(),
            self.notes,
        )


def charge(testbed: Testbed, name: str) -> dict[str, int]:
    """Return what the control groups of a device say of its memory and processor, version 1 or 2."""
    found: dict[str, int] = {}
    for folder in testbed.emulation.groups_of(name):
        for key, file in (("peak", "memory.peak"), ("peak", "memory.max_usage_in_bytes"), ("limit", "memory.max")):
            text = (folder / file).read_text().strip() if (folder / file).exists() else ""
            if text.isdecimal():
                found[key] = int(text)
        for file in ("memory.stat", "memory.events", "memory.oom_control", "cpu.stat"):
            path = folder / file
            rows = dict(line.split()[:2] for line in path.read_text().splitlines()) if path.exists() else {}
            for key, wanted in (
                ("anon", "anon"),
                ("anon", "rss"),
                ("killed", "oom_kill"),
                ("processor_us", "usage_usec"),
            ):
                if wanted in rows:
                    found[key] = int(rows[wanted])
        usage = folder / "cpuacct.usage"
        if usage.exists():
            found["processor_us"] = int(usage.read_text()) // 1000
    return found


def told(planned: PlannedTraining) -> tuple[str, ...]:
    """Return the options that make the command take this plan's stages and micro-batches."""
    cuts = ",".join(str(stage.start) for stage in planned.plan.stages[1:])
    return (*(("--at", cuts) if cuts else ("--stages", "1")), "--micro-batches", str(planned.plan.micro_batches))


def steps_of(found: Outcome) -> tuple[list[float], list[float]]:
    """Return when each step was done, and its loss."""
    rows = [] if found.record is None else found.record["steps"]  # step, epoch, samples, loss, accuracy, seconds
    return [float(row[5]) for row in rows], [float(row[3]) for row in rows]


def bubble_of(found: Outcome) -> float | None:
    """Return the part of the time that workers waited, without the first steps."""
    rows = [row for row in (found.record or {}).get("stages", ()) if row[0] >= WARM_UP]
    busy, idle = sum(sum(row[3:6]) for row in rows), sum(row[6] for row in rows)
    return idle / (busy + idle) if busy + idle else None


def stages_of(found: Outcome) -> list[list[Any]]:
    """Return for each stage and worker the median seconds a step: forward, backward, update, idle; and most bytes."""
    rows: dict[tuple[int, str], list[list[Any]]] = {}
    for row in (found.record or {}).get("stages", ()):
        rows.setdefault((row[1], row[2]), []).append(row)
    return [
        [*key, *(statistics.median(row[k] for row in some) for k in range(3, 7)), max(row[8] for row in some)]
        for key, some in sorted(rows.items())
    ]


def main() -> None:
    """Run the cases that are not done, and print what there is."""
    args = _arguments()
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    facts = {key: str(value) for key, value in sorted(vars(args).items()) if key not in ("only", "out", "counts")}
    if kept and kept["options"] != facts:
        raise SystemExit(f"{args.out} holds results of other options; name another file, or the same options")
    kept = kept or {"options": facts, "cases": {}}
    wanted = args.only.split(",")
    if unknown := [name for name in wanted if name not in CASES]:
        raise SystemExit(f"--only {','.join(unknown)} came; expected some of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as folder:
        bench = Bench(args, Path(folder))
        for name, run in _cases(bench):
            if name.split(" ")[0] in wanted and name not in kept["cases"]:
                began = time.monotonic()
                found = run()
                found["minutes"] = round((time.monotonic() - began) / 60, 1)
                kept["cases"][name] = found
                args.out.write_text(json.dumps(kept, indent=1))
                say(f"{name}: {found['minutes']} minutes")
    report(kept["cases"], args)


def _cases(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield "limited", bench.limited
    yield "whole", bench.whole
    yield "one", bench.one
    for count in map(int, bench.args.counts.split(",")):
        yield f"four {count}", lambda count=count: bench.four(count)  # type: ignore[misc]
    yield "four best", lambda: bench.four(None)
    yield "curve 1", lambda: bench.curve(1)
    yield "curve 4", lambda: bench.curve(4)
    yield "kill", bench.kill
    yield "restart", bench.restart


def report(cases: dict[str, Any], args: argparse.Namespace) -> None:
    """Print a table of the cases, and what they say together."""
    say(
        f"devices: {args.cpu:g} of a core, {args.link}, limit {args.memory}; broker {args.broker_link}; VGG16's layers "
        f"with {args.width} filters first; steps of {args.batch} samples, {args.optimizer}"
    )
    head = f"{'case':<10} {'micro':>7} {'step':>8} {'predicted':>9} {'samples/s':>9} {'bubble':>6} {'pred.':>6}"
    say(f"{head} {'most memory':>11}")
    for name, one in cases.items():
        if one.get("step_s") is None:
            say(f"{name:<10} exit code {one['exit_code']}: {' '.join(one.get('output', []))[-300:]}")
            continue
        micro = f"{one['micro_batches']}x{one['micro_batch']}" if "micro_batches" in one else "-"
        most = max((entry.get("anon", 0) for entry in one["memory"].values()), default=0)
        peak = max((entry.get("peak", 0) for entry in one["memory"].values()), default=0)
        say(
            f"{name:<10} {micro:>7} {duration(one['step_s']):>8} {_known(one.get('predicted_step_s'), duration):>9} "
            f"{one['samples_per_s']:>9.3g} {_known(one['bubble'], _percent):>6} "
            f"{_known(one.get('predicted_bubble'), _percent):>6} {size(peak or most):>11}"
        )
    _ratios(cases)
    _curves(cases)
    for name in ("kill", "restart"):
        if name in cases and "at_step" in cases[name]:
            one = cases[name]
            say(
                f"{name}: {one['killed']} at step {one['at_step']}, back to step {one['back_to']} "
                f"({one['lost_steps']} steps lost), the next one after {_known(one['seconds_until_further'], duration)}"
            )


def _known(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _ratios(cases: dict[str, Any]) -> None:
    alone = {
        name: cases[name]["samples_per_s"] for name in ("whole", "one") if cases.get(name, {}).get("samples_per_s")
    }
    if not alone:
        return
    best = max(alone, key=lambda name: alone[name])
    for name, one in cases.items():
        if name.startswith("four") and one.get("samples_per_s"):
            say(f"{name}: {one['samples_per_s'] / alone[best]:.2f} times one device given the memory ({best})")


def _curves(cases: dict[str, Any]) -> None:
    if "curve 1" in cases and "curve 4" in cases:
        pairs = list(zip(cases["curve 1"]["losses"], cases["curve 4"]["losses"], strict=False))
        if pairs:
            worst = max(abs(one - four) for one, four in pairs)
            say(
                f"losses of {len(pairs)} steps on 1 and 4 devices differ by at most {worst:.1e} "
                f"({pairs[0][0]:.3f} to {pairs[-1][0]:.3f})"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's idx files (default: synthetic pictures)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results, as JSON")
    parser.add_argument("--only", default=",".join(CASES), metavar="CASE,...", help="cases to run (default: all)")
    parser.add_argument("--counts", default="2,4,8", metavar="N,...", help="micro-batches of `four` (default: 2,4,8)")
    parser.add_argument("--width", type=int, default=32, metavar="N", help="filters of the first block (default: 32)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="samples of a step (default: 32)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps of a run (default: 5)")
    parser.add_argument("--curve-steps", type=int, default=100, metavar="N", help="steps of `curve` (default: 100)")
    parser.add_argument("--curve-count", type=int, default=8, metavar="N", help="its micro-batches (default: 8)")
    parser.add_argument("--kill-steps", type=int, default=14, metavar="N", help="steps of `kill` (default: 14)")
    parser.add_argument("--kill-at", type=int, default=7, metavar="N", help="steps done when it dies (default: 7)")
    parser.add_argument("--kill-count", type=int, default=8, metavar="N", help="its micro-batches (default: 8)")
    parser.add_argument("--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds (default: 60)")
    parser.add_argument("--optimizer", default="momentum:lr=0.01", metavar="SPEC")
    parser.add_argument("--vectors", type=int, default=1, help="values that it keeps for a weight (default: 1)")
    parser.add_argument(
        "--micro-batch", default="1,4,16", metavar="N,...", help="sizes that are profiled (default: 1,4,16)"
    )
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--link", default="94mbit")
    parser.add_argument("--broker-link", default="94mbit")
    parser.add_argument("--memory", default="640m", metavar="SIZE", help="limit of a device (default: 640m)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
