"""Rows of a table of planned models: which there are, the commands that make their folders, and what is predicted."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec

from har_edge.cli.console import say
from har_edge.inference.tensor_observation import open_model
from har_edge.planner.devices import BrokerLink, PlannerDevice, SensorMessages, load_devices, make_devices
from har_edge.planner.flow_choice import planned_costs
from har_edge.planner.placed_split import forecast_placed
from har_edge.planner.plan import Plan, make_planning_problem
from har_edge.planner.profile import Profile, load_profile
from har_edge.planner.relocation import StagePlacement, forecast
from har_edge.planner.split_plan import make_split_costs
from har_edge.tflite.model import Model
from har_edge.tflite.split.plan import SplitPlan
from har_edge.tflite.split.program import ordinary

# Payload of a link, of which headers of Ethernet, IP and TCP take their part.
RATES = {"94mbit": 11_236_000, "1gbit": 119_500_000}
LATENCY_S = 1e-4
CLI = (sys.executable, "-c", "import sys; from har_edge.cli.main import main; sys.exit(main())")


@dataclass(frozen=True, slots=True)
class Session:
    """What one test bed measures in turns: one device that holds the whole model, and plans for several."""

    model: str
    objective: str
    broker: str
    memory_mb: int = 0

    @property
    def name(self) -> str:
        limit = f"-{self.memory_mb}mb" if self.memory_mb else ""
        return f"{self.model}-{self.objective}-{self.broker}{limit}"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A plan of a session: so many devices; of whole layers only, with turns, packed, or through brokers on devices."""

    session: Session
    devices: int
    whole_layers: bool = False
    pack: str = ""
    own: bool = False
    turns: bool = False

    @property
    def folder(self) -> str:
        """The name of the folder, which also tells the pipelines on a broker apart."""
        kind = "turns" if self.turns else "pipe" if self.whole_layers else "plan"
        return f"{kind}{self.devices}{'-' + self.pack if self.pack else ''}"

    @property
    def name(self) -> str:
        return self.folder + ("@own" if self.own else "")

    @property
    def key(self) -> str:
        return f"{self.session.name}/{self.name}"


def table() -> Iterator[PlannedRow]:
    """Yield the rows of docs/results.md, those of a session together."""
    for model in ("vgg16-float32", "vgg16-int8"):
        for broker in ("1gbit", "94mbit"):
            session = Session(model, "latency", broker)
            yield from (PlannedRow(session, n) for n in (2, 4, 8))
            if broker == "94mbit":
                yield PlannedRow(session, 8, own=True)
    for model, counts in (("alexnet-float32", (4, 6)), ("c3d-float32", (4,))):
        for broker in ("1gbit", "94mbit"):
            yield from (PlannedRow(Session(model, "latency", broker), n) for n in counts)
    xception = Session("xception-float32", "throughput", "1gbit")
    for n in (2, 3, 4, 8):
        yield PlannedRow(xception, n)
        yield PlannedRow(xception, n, whole_layers=True)
    yield PlannedRow(xception, 8, turns=True)
    slow = replace(xception, broker="94mbit")
    yield from (PlannedRow(slow, 8), PlannedRow(slow, 8, pack="zstd"))
    for n in (2, 3, 8):
        yield PlannedRow(Session("mobilenetv2-int8", "throughput", "1gbit"), n)
        yield PlannedRow(Session("mobilenetv2-int8", "throughput", "1gbit"), n, whole_layers=True)
    yield PlannedRow(Session("vgg16-float32", "latency", "1gbit", 400), 4)
    yield PlannedRow(Session("vgg16-float32", "latency", "1gbit", 256), 8)


@dataclass(frozen=True, slots=True)
class RowBuilder:
    """Where models lie and folders are made; `speed` is that of a device, relative to the profiles of this machine."""

    models: Path
    out: Path
    speed: float

    def model(self, session: Session) -> Path:
        return self.models / f"{session.model}.tflite"

    def profile(self, session: Session) -> Path:
        return self.out / f"{session.model}.profile.json"

    def folder(self, row: PlannedRow) -> Path:
        return self.out / row.session.name / row.folder

    def whole(self, session: Session) -> Path:
        return self.out / session.model / "whole"

    def devices(self, row: PlannedRow) -> Path:
        return self.folder(row).with_suffix(".devices.toml")

    def plan(self, row: PlannedRow) -> Path:
        return self.folder(row).with_suffix(".plan.json")

    def make(self, row: PlannedRow, *, dry: bool = False) -> None:
        """Profile, plan and cut what is not there yet; `dry` prints the commands alone."""
        session, model = row.session, self.model(row.session)
        if not self.profile(session).exists():
            self.run(["profile", str(model), "--again", "--out", str(self.profile(session))], dry=dry)
        if not self.whole(session).exists():
            self.run(["slice", str(model), "--stages", "1", "--name", "whole", "--out", str(self.whole(session))], dry)
        if not dry:
            self.folder(row).parent.mkdir(parents=True, exist_ok=True)
            self.devices(row).write_text(self.devices_text(row), encoding="utf-8")
        pack = ["--pack", row.pack] if row.pack else []
        if not self.plan(row).exists():
            words = ["plan", str(model), "--devices", str(self.devices(row)), "--profile", str(self.profile(session))]
            replicas = str(row.devices if row.turns else 1)
            words += ["--objective", session.objective, "--replicas", replicas, "--out", str(self.plan(row))]
            self.run([*words, *(["--no-split"] if row.whole_layers else []), *pack], dry)
        if not self.folder(row).exists():
            words = ["slice", str(model), "--plan", str(self.plan(row)), "--name", row.folder]
            packed = pack if dry or read_plan(self.plan(row)).is_packed else []
            self.run([*words, *packed, "--out", str(self.folder(row))], dry)

    def run(self, words: Sequence[str], dry: bool = False) -> None:
        """Run a command of har-edge, with its output in the log of this folder."""
        say(f"har-edge {shlex.join(words)}")
        if dry:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "commands.log").open("ab") as log:
            subprocess.run([*CLI, *words], stdout=log, stderr=subprocess.STDOUT, check=True)

    def devices_text(self, row: PlannedRow) -> str:
        """Return the devices file of a row."""
        lines = ['sensors = "together"', "[broker]", f"link_bytes_per_s = {RATES[row.session.broker]}"]
        lines += ["[[device]]", 'name = "pi"', f"count = {row.devices}", f"speed = {self.speed}"]
        lines += [f"link_bytes_per_s = {RATES['94mbit']}", f"latency_s = {LATENCY_S}", "duplex = true"]
        if row.session.memory_mb:
            lines.append(f"memory_bytes = {row.session.memory_mb * 1_000_000}")
        return "\n".join([*lines, ""])

    def predict(self, row: PlannedRow, slower: float = 1.0) -> tuple[float, float]:
        """Return the seconds that the plan of a row takes, and those of one device, by the objective of its session.

        Processors are `slower` than the devices file says.
        """
        session, plan = row.session, read_plan(self.plan(row))
        profile, model = load_profile(self.profile(session)), load_model(self.model(session))
        file = load_devices(self.devices(row))
        entry = msgspec.structs.replace(file.device[0], speed=self.speed / slower, memory_bytes=None)
        devices, _ = make_devices(msgspec.structs.replace(file, device=[entry]), self.devices(row), profile)
        one = whole_layers(model, devices, file.broker, profile, ())
        if plan.is_split or plan.is_packed:
            several = shared_layers(model, devices, file.broker, profile, plan, own=row.own)
        else:
            several = whole_layers(model, devices, file.broker, profile, plan.cuts, plan.turns)
        index = session.objective == "latency"
        return several[index], one[index]


def whole_layers(
    model: Model,
    devices: Sequence[PlannerDevice],
    broker: BrokerLink,
    profile: Profile,
    cuts: Sequence[int],
    turns: Sequence[int] = (),
) -> tuple[float, float]:
    """Return the seconds between windows, and of one window, of stages of whole layers on the first devices.

    `turns` says how many devices take turns at each stage.
    """
    planning = make_planning_problem(model, profile.bounds, devices, broker=broker, sensors=SensorMessages.TOGETHER)
    stages = [k for k, count in enumerate(turns or (1,) * (len(cuts) + 1)) for _ in range(count)]
    places = [StagePlacement(stage, device.name) for stage, device in zip(stages, devices, strict=False)]
    found = forecast(planning, cuts, places, {})
    graph = planning.slice_graph
    edges = graph.walk([graph.bounds.index(cut) for cut in cuts])
    assert found is not None and edges is not None
    return max(found.period_s, float(sum(planning.costs.broker_s[edges]))), found.latency_s


def shared_layers(
    model: Model,
    devices: Sequence[PlannerDevice],
    broker: BrokerLink,
    profile: Profile,
    plan: Plan,
    *,
    own: bool = False,
) -> tuple[float, float]:
    """Return the seconds between windows, and of one window, of a plan whose devices share layers; with `own`, each
    device carries a broker for what it sends.
    """
    costs = make_split_costs(model, profile.bounds, devices, broker)
    assert costs is not None
    packing = plan.packing if isinstance(plan.packing, str) else ""
    packings = plan.packings if isinstance(plan.packings, dict) else {}
    costs = planned_costs(costs, profile, model, packing, packings)
    costs = costs.with_flows(own_brokers=frozenset(range(costs.n) if own else ()))
    plans = [one.split if isinstance(one.split, SplitPlan) else ordinary(one.start, one.stop) for one in plan.stages]
    names = [device.name for device in devices]
    homes = [names.index(name) for name in plan.devices]
    placed = forecast_placed(costs, plans, homes, [1] * len(devices)).figures
    return placed.period_s, placed.latency_s


def read_plan(path: Path) -> Plan:
    """Return the plan that `har-edge plan --out` wrote."""
    return msgspec.convert(json.loads(path.read_bytes()), Plan)


@cache
def load_model(path: Path) -> Model:
    return open_model(path)
