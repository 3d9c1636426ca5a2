"""Modules of har_edge that four ways enter: how much of the code a reader must follow, in this checkout or another one.

    python bench/trace.py [--checkout DIR] [--ways window,slice,plan,loso] [--repeats 3]
                          [--embedded] [--modules] [--json FILE]

- window: one more window, from three sensors through three stages with their join to `har-edge watch`. A run of 60
  windows less a run of 20, seven processes, divided by the 40 windows.
- slice: a slice from its file to a running stage. `har-edge stage` from its start until its status says `ready`, less
  `har-edge --version`.
- plan: a plan to a running worker. `har-edge node` from the plan (one stage) until its status says `busy`: it fetches
  the slice, tries it, loads it and connects; less what it does in as much time without a plan.
- loso: recordings to the table. `har-edge evaluate --protocol loso` of two synthetic people, one epoch, less
  `har-edge --version`. Needs TensorFlow.

A module is entered when code of another module of har_edge, or of none, calls (or resumes) a function of it; a library
in between does not count, nor does what an import runs. Code that dataclasses or msgspec made is not seen, and neither
are processes that a command starts itself (the test load of a model). "Less" takes the calls of a second run off those
of the first, so that parsing arguments, connecting and waiting are not on a way that has them in both. Of a node, which
waits for a time that varies, functions with less than half more calls than waiting makes are left out. Modules on the
way of a window are entered at least once in two windows.

Everything runs through the command of the checkout in its pyproject.toml, and is watched by topics and JSON keys of
docs/reference/wire.md alone, so rooms may have any names. DIR is made by `git worktree add DIR COMMIT`. The broker is
Mosquitto unless told otherwise, the recordings are synthetic. The loops of a window turn more or less often, by how
messages meet: compare medians. The table shows the run with the median of entries, and the lowest and highest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
PIPELINE = "har"  # the name that `har-edge slice` gives
PREFIX = f"har/v1/{PIPELINE}"  # of its topics (docs/reference/wire.md)
WINDOWS = (20, 60)
# A window every 100 ms: its parts have gone before those of the next come, and the loops (0.2 s) do not wait in vain.
SPEED = "25"
TIMEOUT_S = 120.0
# How long a node waits before a plan comes, to know what waiting costs.
IDLE_S = 3.0
Calls = Counter[tuple[str, str]]  # by module and function


@dataclass
class Traced:
    """A command that runs traced, and the file that its calls will be in."""

    argv: Sequence[str]
    process: subprocess.Popen[str]
    log: Path
    calls_file: Path

    def snapshot(self) -> Calls:
        """Return the calls up to now."""
        assert self.process.stdin is not None
        self.calls_file.unlink(missing_ok=True)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + TIMEOUT_S
        while not self.calls_file.exists():
            self.check(time.monotonic() < deadline and self.process.poll() is None, "it wrote no calls")
            time.sleep(0.005)
        return read_calls(self.calls_file)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def finish(self, *, stop: bool = False) -> Calls:
        """Return all calls of a command once it has ended, asked to or by itself."""
        if stop:
            self.process.terminate()
        code = self.process.wait(10 * TIMEOUT_S)
        self.check(code == 0, f"it ended with exit code {code}")
        return read_calls(self.calls_file)

    def check(self, good: bool, what: str) -> None:
        if not good:
            raise SystemExit(f"{what}: har-edge {' '.join(self.argv)}\n{self.log.read_text()}")


def read_calls(path: Path) -> Calls:
    return Counter({(module, function): count for module, function, count in json.loads(path.read_text())})


@dataclass(frozen=True)
class Target:
    """The checkout whose commands are traced, and the brokers that they spoke to."""

    checkout: Path
    embedded: bool
    brokers: set[str] = field(default_factory=set)


@dataclass
class Workspace:
    """A folder, a broker, and the commands of one checkout that were started in it."""

    target: Target
    folder: Path
    url: str = ""
    started: list[Traced] = field(default_factory=list)

    def start(self, *argv: str) -> Traced:
        """Start a command of the checkout."""
        number = len(self.started)
        log, calls = self.folder / f"{number}.log", self.folder / f"{number}.json"
        environment = {name: value for name, value in os.environ.items() if name != "HAR_EDGE_DATA"}
        environment |= {"PYTHONPATH": str(self.target.checkout), "XDG_CACHE_HOME": str(self.folder / f"{number}.cache")}
        command = [sys.executable, str(HERE / "bench/tracer.py"), str(self.target.checkout), str(calls), *argv]
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=file, text=True
            )
        self.started.append(Traced(argv, process, log, calls))
        return self.started[-1]

    def start_broker(self) -> None:
        """Start a broker on a free port, and wait until it says that it listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = ["--embedded"] if self.target.embedded else ["--directory", str(self.folder / "broker")]
        broker = self.start("broker", "--port", str(port), *where)
        self.url = f"mqtt://127.0.0.1:{port}"
        deadline = time.monotonic() + TIMEOUT_S
        while " listens on " not in broker.log.read_text():
            broker.check(time.monotonic() < deadline and broker.process.poll() is None, "no broker")
            time.sleep(0.05)
        self.target.brokers.add(broker.log.read_text().partition(" listens")[0].strip())

    def node(self, cache: str) -> Traced:
        """Start the node that offers itself to the pipeline."""
        options = ("--name", "node", "--cache", str(self.folder / cache), "--pipeline", PIPELINE)
        return self.start("node", *options, "--broker", self.url)

    def version(self) -> Calls:
        """Return the calls of `har-edge --version`: what every command enters before it begins."""
        return self.start("--version").finish()

    def close(self) -> None:
        for one in self.started:
            if one.process.poll() is None:
                one.kill()


@contextlib.contextmanager
def open_workspace(target: Target) -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="har-edge-trace-") as folder:
        Path(folder).chmod(0o755)  # for the user that root's Mosquitto becomes
        workspace = Workspace(target, Path(folder))
        try:
            yield workspace
        finally:
            workspace.close()


class Watcher:
    """Sees plan, statuses and results of the pipeline, with nothing of har_edge."""

    def __init__(self, workspace: Workspace) -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self._workspace = workspace
        self.states: dict[str, str] = {}
        self.results, self.plan = 0, b""
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        filters = [(f"{PREFIX}/{of}", 1) for of in ("node/+/status", "result/+", "plan")]
        self._client.on_connect = lambda client, *_: client.subscribe(filters)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", int(workspace.url.rpartition(":")[2]))
        self._client.loop_start()

    def _on_message(self, _client: object, _data: object, message: Any) -> None:
        if message.topic.endswith("/status"):
            self.states[message.topic.split("/")[-2]] = json.loads(message.payload)["state"] if message.payload else ""
        elif message.topic.endswith("/plan"):
            self.plan = message.payload
        else:
            self.results += 1

    def retain_plan(self, plan: bytes) -> None:
        """Put a plan in the place of the one that the broker keeps, or none."""
        self._client.publish(f"{PREFIX}/plan", plan, 1, retain=True).wait_for_publish(TIMEOUT_S)

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until something holds; end with what the commands said when it does not."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            died = any((one.process.poll() or 0) > 0 for one in self._workspace.started)
            if died or time.monotonic() > deadline:
                said = "\n".join(f"--- {one.log.name}\n{one.log.read_text()}" for one in self._workspace.started)
                raise SystemExit(f"{what} did not come; {self.states}\n{said}")
            time.sleep(0.005)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def watching(workspace: Workspace) -> Iterator[Watcher]:
    watcher = Watcher(workspace)
    try:
        yield watcher
    finally:
        watcher.close()


def without_waiting(calls: Calls, waiting: Calls, times: float) -> Calls:
    """Return the calls less `times` those of waiting; of functions that have not half more calls than those, none."""
    kept: Calls = Counter()
    for key, count in calls.items():
        other = round(waiting[key] * times)
        if count > other and count >= 1.5 * other:
            kept[key] = count - other
    return kept


def trace_window(target: Target) -> dict[str, Calls]:
    """Return the calls that the windows of the longer run cost more, by process."""
    short, long = (run_windows(target, count) for count in WINDOWS)
    return {name: long[name] - short[name] for name in long}


def run_windows(target: Target, count: int) -> dict[str, Calls]:
    """Send windows from three sensors through three stages to a watcher; return the calls of each process."""
    with open_workspace(target) as workspace:
        workspace.start("slice", "int8", "--stages", "3", "--out", "slices").finish()
        workspace.start_broker()
        common = ("--config", str(workspace.folder / "slices"), "--broker", workspace.url)
        with watching(workspace) as watcher:
            ready = [f"stage-{index}" for index in range(3)]
            stages = {name: workspace.start("stage", "--index", name[-1], *common) for name in ready}
            sink = workspace.start("watch", "--json", *common)
            watcher.until(lambda: all(watcher.states.get(name) == "ready" for name in ready), "three ready stages")
            time.sleep(1.0)  # until the sink listens, too; below it is looked at whether it did
            sent = ("--subjects", "1", "--windows", str(count), "--speed", SPEED)
            sensors = {
                f"sensor-{source}": workspace.start("sensor", "--source", source, *sent, *common)
                for source in ("chest", "ankle", "arm")
            }
            calls = {name: sensor.finish() for name, sensor in sensors.items()}
            watcher.until(lambda: watcher.results >= count, f"{count} results")
        calls |= {name: one.finish(stop=True) for name, one in (stages | {"watch": sink}).items()}
        shown = sum('"seq"' in line for line in sink.log.read_text().splitlines())
        sink.check(shown == watcher.results == count, f"{watcher.results} results, {shown} shown; expected {count}")
        return calls


def trace_slice(target: Target) -> dict[str, Calls]:
    """Return the calls of a stage from its start until it is ready."""
    with open_workspace(target) as workspace:
        workspace.start("slice", "int8", "--stages", "3", "--out", "slices").finish()
        workspace.start_broker()
        with watching(workspace) as watcher:
            stage = workspace.start(
                "stage", "--index", "2", "--config", str(workspace.folder / "slices"), "--broker", workspace.url
            )
            watcher.until(lambda: watcher.states.get("stage-2") == "ready", "a ready stage")
            calls = stage.snapshot()
        return {"stage-2": calls - workspace.version()}


def trace_plan(target: Target) -> dict[str, Calls]:
    """Return the calls of a node from the plan until the stage that it gives runs; a coordinator made it before."""
    with open_workspace(target) as workspace:
        workspace.start_broker()
        with watching(workspace) as watcher:
            options = ("--model", "int8", "--stages", "1", "--settle", "1", "--pipeline", PIPELINE)
            coordinator = workspace.start("coordinator", *options, "--broker", workspace.url)
            first = workspace.node("first")
            watcher.until(lambda: watcher.states.get("node") == "busy", "a plan whose stage runs")
            for one in (coordinator, first):  # plan and slice stay at the broker
                one.kill()
            watcher.until(lambda: watcher.states.get("node") == "lost", "the will of the first node")
            plan = watcher.plan
            watcher.retain_plan(b"")
            node = workspace.node("second")
            watcher.until(lambda: watcher.states.get("node") == "ready", "a node without a plan")
            time.sleep(0.5)
            started = node.snapshot()
            time.sleep(IDLE_S)
            before, began = node.snapshot(), time.monotonic()
            watcher.retain_plan(plan)
            watcher.until(lambda: watcher.states.get("node") == "busy", "a node that follows the plan")
            after, took_s = node.snapshot(), time.monotonic() - began
        return {"node": without_waiting(after - before, before - started, took_s / IDLE_S)}


def trace_loso(target: Target) -> dict[str, Calls]:
    """Return the calls of a study that leaves one of two people out."""
    with open_workspace(target) as workspace:
        study = ("--protocol", "loso", "--subjects", "1,2", "--epochs", "1", "--jobs", "1", "--reducer", "paa:10+q8")
        calls = workspace.start(
            "evaluate", *study, "--downstream", "codes", "--out", str(workspace.folder / "study")
        ).finish()
        return {"evaluate": calls - workspace.version()}


@dataclass(frozen=True)
class TracedPath:
    """What is traced, how, and by how many its calls are divided; modules entered less often are not on it."""

    title: str
    trace: Callable[[Target], dict[str, Calls]]
    divisor: int = 1
    least: float = 1.0


WAYS = {
    "window": TracedPath("a window, sensor to result", trace_window, WINDOWS[1] - WINDOWS[0], 0.5),
    "slice": TracedPath("a slice, file to running stage", trace_slice),
    "plan": TracedPath("a plan to a running worker", trace_plan),
    "loso": TracedPath("recordings to the LOSO table", trace_loso),
}


def figures(way: TracedPath, by_process: dict[str, Calls]) -> dict[str, Any]:
    """Return the modules on a way, how often each is entered, and the functions that are entered most."""
    functions: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for calls in by_process.values():
        for (module, function), count in calls.items():
            modules[module] += count
            functions[f"{module}.{function}"] += count
    kept = {module: count / way.divisor for module, count in modules.most_common() if count >= way.least * way.divisor}
    return {
        "modules": kept,
        "entered": sum(kept.values()),
        "functions": {name: count / way.divisor for name, count in functions.most_common(20)},
        "processes": {name: sum(calls.values()) / way.divisor for name, calls in by_process.items()},
    }


def measure(way: TracedPath, target: Target, repeats: int) -> dict[str, Any]:
    """Return the figures of the run whose number of entries is the median one, and the numbers of all runs."""
    runs = sorted((figures(way, way.trace(target)) for _ in range(repeats)), key=lambda run: float(run["entered"]))
    return runs[(repeats - 1) // 2] | {"runs": [run["entered"] for run in runs]}


def show(found: dict[str, dict[str, Any]], *, modules: bool) -> None:
    print(f"{'way':<32}{'modules':>8}{'entered':>9}{'lowest':>8}{'highest':>9}")
    for name, figure in found.items():
        function, count = next(iter(figure["functions"].items()), ("nothing", 0.0))
        low, high = figure["runs"][0], figure["runs"][-1]
        print(f"{WAYS[name].title:<32}{len(figure['modules']):>8}{figure['entered']:>9.0f}{low:>8.0f}{high:>9.0f}")
        print(f"  {count:.0f} times {function:.62}")
    for name, figure in found.items() if modules else ():
        print(f"\n{WAYS[name].title}")
        for module, count in figure["modules"].items():
            print(f"{count:>10.1f}  {module}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=HERE, metavar="DIR", help="another state of har_edge")
    parser.add_argument("--ways", default=",".join(WAYS), help="which to trace (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="show the run with the median of entries (default: 3)")
    parser.add_argument("--modules", action="store_true", help="print the modules of each way, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--embedded", action="store_true", help="use the broker that comes with har_edge")
    args = parser.parse_args()
    names = args.ways.split(",")
    if unknown := set(names) - set(WAYS):
        parser.error(f"no way {', '.join(sorted(unknown))}; expected some of {', '.join(WAYS)}")
    target = Target(args.checkout.resolve(), args.embedded)
    found = {name: measure(WAYS[name], target, args.repeats) for name in names}
    brokers = ", ".join(sorted(target.brokers)) or "no broker"
    print(f"{brokers}; synthetic recordings; Python {platform.python_version()}")
    show(found, modules=args.modules)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
